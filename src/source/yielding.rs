//! Letting an application's checkpoint pass that waits for our reader though the reader stands on the newest mark.
//!
//! SQLite's checkpoint reads the mark of a reader's slot, and then waits for the slot. If we raise the mark in between,
//! it waits for its whole busy timeout, and holds the write lock. It asks for the slot every 100 ms at the most, so the
//! slot must be free for longer than that.

use super::recheck::Recheck;
use super::{IN_FLIGHT_PAUSE, Source, State};
use crate::core::checkpoint::Extent;
use crate::locks;
use crate::sqlite::WalExtent;
use std::time::{Duration, Instant};

/// The first time it is asked after the reader came in place; doubled each time. Longer than SQLite's busy handler
/// sleeps: before, a checkpoint that sleeps cannot be told from one that our slot keeps waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(120);
/// It is not asked any more at this pause: whoever waits has waited since the reader came in place.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long the reader stays aside: longer than SQLite's busy handler sleeps.
const ASIDE: Duration = Duration::from_millis(150);
/// Aside, the wal-index is asked after pauses that double from [`IN_FLIGHT_PAUSE`] to this: the checkpoint may wait for
/// somebody else's reader, for hours.
const LONGEST_ASIDE_PAUSE: Duration = Duration::from_millis(10);

/// The reader has stepped aside.
#[derive(Debug, Clone, Copy)]
pub struct Aside {
    /// When the wal-index is asked next.
    pub next: Instant,
    /// The pause before that.
    pause: Duration,
    /// SQLite was in the way when the reader was to begin again.
    is_hindered: bool,
    until: Instant,
    /// When to step aside again if it was of no use.
    yield_again: Recheck,
    /// What the wal-index said then.
    extent: WalExtent,
}

impl Aside {
    /// When the reader begins again after an event.
    pub fn after_event(&self, now: Instant) -> Instant {
        if self.is_hindered { self.next } else { now }
    }
}

impl Source {
    /// The reader is in place: somebody may have begun to wait for it just before.
    pub(super) fn plan_yield(&mut self, now: Instant) {
        let Extent { frames, backfilled, .. } = self.checkpoint_extent();
        if frames <= backfilled {
            self.yield_at = None;
        } else if self.yield_at.is_none() && self.yielded_at != Some(self.extent) {
            self.yield_at = Some(Recheck::after(None, FIRST_PAUSE, PATIENCE, now));
        }
    }

    /// Steps aside if a checkpoint waits.
    pub(super) fn yield_to_checkpoint(&mut self, now: Instant) {
        let State::Attached(attached) = &mut self.state else { return };
        let next = Recheck::after(self.yield_at, FIRST_PAUSE, PATIENCE, now);
        if !locks::has_waiting_checkpoint(&attached.wal_index) {
            self.yield_at = Some(next).filter(|next| next.pause < PATIENCE);
            self.yielded_at = Some(self.extent);
            return;
        }
        self.yield_at = Some(next);
        let is_copied =
            attached.guard.query.wal_extent().is_ok_and(|extent| extent.frames == self.extent.frames);
        if attached.capture.shadow.to_sync().is_some() {
            self.needs_sync = true;
        } else if is_copied && attached.capture.guarded {
            attached.guard.step_aside(&mut attached.capture);
            (self.yield_at, self.move_at) = (None, None);
            self.aside = Some(Aside {
                next: now + IN_FLIGHT_PAUSE,
                pause: IN_FLIGHT_PAUSE,
                is_hindered: false,
                until: now + ASIDE,
                yield_again: next,
                extent: self.extent,
            });
        }
    }

    /// Begins the reader again once that checkpoint moved on; `false` while it is still waited for.
    pub(super) fn come_back(&mut self, now: Instant) -> bool {
        let (Some(aside), State::Attached(attached)) = (self.aside, &mut self.state) else { return true };
        let pause = (aside.pause * 2).min(LONGEST_ASIDE_PAUSE);
        let again = Aside { next: now + pause, pause, ..aside };
        let is_the_same = attached.guard.query.wal_extent().is_ok_and(|extent| extent == aside.extent);
        if is_the_same && !self.dirty.any() && now < aside.until {
            self.aside = Some(again);
            return false;
        }
        if attached.guard.come_back(&attached.capture).is_err() {
            // Somebody recovers the WAL, or opens it; nobody restarts it in that moment.
            self.aside = Some(Aside { is_hindered: true, ..again });
            return false;
        }
        (self.aside, self.hot) = (None, true);
        if is_the_same {
            // It waits for somebody else's reader, perhaps.
            let next = Recheck::after(Some(aside.yield_again), FIRST_PAUSE, PATIENCE, now);
            self.yield_at = Some(next).filter(|next| next.pause < PATIENCE);
            self.yielded_at = Some(self.extent);
        }
        true
    }
}
