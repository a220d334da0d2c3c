//! When to look again though no event will come.

use std::time::{Duration, Instant};

/// A time to look again, and the pause before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recheck {
    pub at: Instant,
    /// The pause before it.
    pub pause: Duration,
    /// Frames were in flight.
    pub in_flight: bool,
}

impl Recheck {
    /// The next time, after twice the pause of the `previous` one, or after `first`.
    pub fn after(previous: Option<Recheck>, first: Duration, now: Instant) -> Recheck {
        let pause = previous.map_or(first, |p| (p.pause * 2).max(first));
        Recheck { at: now + pause, pause, in_flight: false }
    }
}
