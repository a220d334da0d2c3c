//! Who goes first where the processors do not suffice for all.
//!
//! A round beside writers that never pause waits for a moment of some microseconds ([`source`](crate::source)). While
//! sending has its processor, that moment passes, and the writers pay two fsyncs for the next one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long somebody goes first at the most: one whose disk hangs keeps nobody waiting for longer.
const LONGEST: Duration = Duration::from_millis(20);

/// Shared by those who may go first and those who let them.
#[derive(Debug, Clone, Default)]
pub struct Precedence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    going: Mutex<Goers>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Goers {
    count: u32,
    /// When the last of them began.
    since: Option<Instant>,
}

/// Somebody goes first until this is dropped.
#[derive(Debug)]
pub struct Going(Precedence);

impl Precedence {
    /// Goes first.
    pub fn take(&self) -> Going {
        let mut going = self.going();
        (going.count, going.since) = (going.count + 1, Some(Instant::now()));
        Going(self.clone())
    }

    // Both numbers are whole, whoever panicked meanwhile.
    fn going(&self) -> MutexGuard<'_, Goers> {
        self.0.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let Going(precedence) = self;
        precedence.going().count -= 1;
        precedence.0.ended.notify_all();
    }
}

/// One who lets others go first, and comes to its turn all the same: it never waits for longer than it did not.
#[derive(Debug, Default)]
pub struct Deference {
    precedence: Precedence,
    waited: Option<Instant>,
}

impl Deference {
    /// One who lets those go first that take `precedence`.
    pub fn to(precedence: &Precedence) -> Self {
        Deference { precedence: precedence.clone(), waited: None }
    }

    /// Waits while others go first, for a bounded time.
    pub fn let_go_first(&mut self) {
        let going = self.precedence.going();
        let Some(since) = going.since.filter(|_| going.count > 0) else { return };
        let patience = patience(since, self.waited, Instant::now());
        // Whether they have ended or the time is up, it goes on.
        drop(self.precedence.0.ended.wait_timeout_while(going, patience, |going| going.count > 0));
        self.waited = Some(Instant::now());
    }
}

/// How long somebody who began at `since` is waited for at `now`, by one who ended waiting at `waited`.
fn patience(since: Instant, waited: Option<Instant>, now: Instant) -> Duration {
    let patience = LONGEST.saturating_sub(now.saturating_duration_since(since));
    waited.map_or(patience, |at| now.saturating_duration_since(at).min(patience))
}

#[cfg(test)]
mod tests {
    use super::{Deference, LONGEST, Precedence, patience};
    use std::time::{Duration, Instant};

    #[test]
    fn whoever_goes_first_is_waited_for_and_nobody_else() {
        let precedence = Precedence::default();
        let mut deference = Deference::to(&precedence);
        deference.let_go_first();
        assert!(deference.waited.is_none(), "nobody went first");

        let going = precedence.take();
        drop(precedence.take());
        deference.let_go_first();
        assert!(deference.waited.is_some(), "one of two still goes first");
        drop(going);

        let waited = deference.waited;
        deference.let_go_first();
        assert_eq!(deference.waited, waited, "both have ended");
    }

    #[test]
    fn one_who_hangs_is_waited_for_once_and_nobody_longer_than_was_worked_since() {
        let since = Instant::now();
        assert_eq!(patience(since, None, since), LONGEST);
        assert_eq!(patience(since, Some(since), since + LONGEST), Duration::ZERO);
        let work = LONGEST / 10;
        assert_eq!(patience(since, Some(since), since + work), work);
    }
}
