//! When to look again though no event will come.

use super::{BACKFILL_PATIENCE, BACKFILL_PAUSE, DEAF_PAUSE, IN_FLIGHT_PATIENCE, IN_FLIGHT_PAUSE, Source};
use crate::core::sync::Dirty;
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

impl Source {
    /// When to look again though no event will come, or is listened to.
    pub(super) fn plan_recheck(
        &mut self,
        previous: Option<Recheck>,
        in_flight: bool,
        dirty: Dirty,
        now: Instant,
    ) {
        if in_flight {
            let is_new = |r: &Recheck| !r.in_flight || (dirty.any() && r.pause > DEAF_PAUSE);
            let previous = previous.filter(|r| !is_new(r));
            let next = Recheck::after(previous, IN_FLIGHT_PAUSE, IN_FLIGHT_PATIENCE * 2, now);
            let pause = if dirty.any() { next.pause.min(DEAF_PAUSE) } else { next.pause };
            let next = Recheck { at: now + pause, pause, in_flight };
            self.recheck = Some(next).filter(|r| r.pause <= IN_FLIGHT_PATIENCE);
            return;
        }
        let was_written = dirty.database || previous.is_some_and(|r| !r.in_flight);
        let previous = previous.filter(|_| !dirty.database);
        let next = Recheck::after(previous, BACKFILL_PAUSE, BACKFILL_PATIENCE * 2, now);
        let is_backfilling = was_written && !self.extent.is_backfilled();
        self.recheck = Some(next).filter(|r| is_backfilling && r.pause <= BACKFILL_PATIENCE);
    }

    /// Whether events matter now. While a transaction is on its way into the WAL, or writers do not pause, only the
    /// next look does.
    pub fn is_listening(&self, now: Instant) -> bool {
        let is_written = self.recheck.is_some_and(|r| r.in_flight && r.pause <= DEAF_PAUSE && now < r.at);
        !is_written && self.pace.is_listening(now)
    }
}
