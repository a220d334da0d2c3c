//! Waiting for a condition: the only place where a test sleeps.

use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);
/// The agent's slow look that finds everything comes after 60 s: what must be noticed by itself is, before.
pub const BEFORE_THE_SLOW_LOOK: Duration = Duration::from_secs(45);

/// Waits until `condition` holds.
///
/// # Panics
/// After `deadline`, saying `what` did not come.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || condition().then_some(()));
}

/// Waits until `condition` gives something.
///
/// # Panics
/// After `deadline`, saying `what` did not come.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        thread::sleep(POLL);
    }
}
