//! When to look again though no event will come.

use std::time::{Duration, Instant};

/// A time to look again, and the pause before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recheck {
    /// When.
    pub at: Instant,
    /// The pause before it.
    pub pause: Duration,
    /// Frames were in flight.
    pub in_flight: bool,
}

impl Recheck {
    /// At once.
    pub fn now(now: Instant) -> Recheck {
        Recheck { at: now, pause: Duration::ZERO, in_flight: false }
    }

    /// After `first`, or after twice the pause of the `previous` one, up to `longest`. A time that has not come yet
    /// stays as it is.
    pub fn after(previous: Option<Recheck>, first: Duration, longest: Duration, now: Instant) -> Recheck {
        match previous {
            Some(previous) if now < previous.at => previous,
            _ => {
                let doubled = previous.map_or(first, |p| (p.pause * 2).max(first));
                let pause = doubled.min(longest);
                Recheck { at: now + pause, pause, in_flight: false }
            }
        }
    }
}
