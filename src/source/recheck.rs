//! When to look again though no event will come.

use super::{
    BACKFILL_PAUSE, DEAF_PAUSE, IN_FLIGHT_PATIENCE, IN_FLIGHT_PAUSE, LONGEST_BACKFILL_PAUSE, Source, State,
};
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
        Recheck::at(now)
    }

    /// Once.
    pub fn at(at: Instant) -> Recheck {
        Recheck { at, pause: Duration::ZERO, in_flight: false }
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
    /// When to look again for frames in flight though no event will come, or is listened to.
    pub(super) fn plan_recheck(
        &mut self,
        previous: Option<Recheck>,
        in_flight: bool,
        dirty: Dirty,
        now: Instant,
    ) {
        if !in_flight {
            return;
        }
        let is_new = |r: &Recheck| !r.in_flight || (dirty.any() && r.pause > DEAF_PAUSE);
        let previous = previous.filter(|r| !is_new(r));
        let next = Recheck::after(previous, IN_FLIGHT_PAUSE, IN_FLIGHT_PATIENCE * 2, now);
        let pause = if dirty.any() { next.pause.min(DEAF_PAUSE) } else { next.pause };
        let next = Recheck { at: now + pause, pause, in_flight };
        self.recheck = Some(next).filter(|r| r.pause <= IN_FLIGHT_PATIENCE);
    }

    /// Whether somebody is in a checkpoint of which no event will tell that it is done. Asked before the wal-index is: if
    /// nobody is, it is done by then.
    pub(super) fn awaits_backfill(&self, dirty: Dirty) -> bool {
        let State::Attached(attached) = &self.state else { return false };
        let was_written = dirty.database || self.backfill_at.is_some();
        was_written && attached.guard.index().is_checkpointed().unwrap_or(true)
    }

    /// When to look again for what a checkpoint has done.
    pub(super) fn plan_backfill(&mut self, is_awaited: bool, dirty: Dirty, now: Instant) {
        let previous = self.backfill_at.filter(|_| !dirty.database);
        let next = Recheck::after(previous, BACKFILL_PAUSE, LONGEST_BACKFILL_PAUSE, now);
        self.backfill_at = is_awaited.then_some(next);
    }

    /// Whether events matter now. While a transaction is on its way into the WAL, or writers do not pause, only the
    /// next look does; while a worker follows writers, what it does.
    pub fn is_listening(&self, now: Instant) -> bool {
        if matches!(self.state, State::Lent) {
            return !self.loan.is_for_round;
        }
        let is_written = self.recheck.is_some_and(|r| r.in_flight && r.pause <= DEAF_PAUSE && now < r.at);
        !is_written && self.pace.is_listening(now)
    }

    /// Whether it is looked at by the clock, so that events would only cost its writers something.
    pub fn needs_no_events(&self, now: Instant) -> bool {
        self.needs_events_at(now).is_some()
    }

    /// When it needs events again, if it does not now.
    pub(super) fn needs_events_at(&self, now: Instant) -> Option<Instant> {
        let is_held = matches!(self.state, State::Attached(_) | State::Lent);
        self.pace.tireless_until(now).filter(|_| is_held)
    }
}
