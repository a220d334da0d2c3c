//! A source's look at its WAL, and how it holds it afterwards.

use super::capture::{Look, LookError};
use super::guard::GuardError;
use super::proof;
use super::recheck::Recheck;
use super::{BACKFILL_PAUSE, LONGEST_RETRY_PAUSE, RETRY_PAUSE, Source, State, Task};
use crate::core::evidence::Stamp;
use crate::core::shadow::ShadowExtent;
use crate::core::wal_index::WalExtent;
use crate::sqlite::SqliteError;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// The pauses before the guard is brought in place again.
pub(super) const PLACE_PAUSE: Duration = Duration::from_micros(100);
pub(super) const LONGEST_PLACE_PAUSE: Duration = Duration::from_millis(50);
/// Parts copied in one turn, so that one busy database does not keep the others waiting.
const PARTS_A_TURN: u32 = 16;
/// How often a turn follows writers that commit while it copies.
const MOST_LOOKS: u32 = 2;

/// Everything that was committed at a moment is copied.
struct Caught {
    /// The wal-index then.
    extent: WalExtent,
    /// There may be more in a moment.
    in_flight: bool,
    /// Writers went on all the while.
    is_overtaken: bool,
}

impl Source {
    /// Looks at the WAL until everything committed is copied, or a turn's worth is.
    pub(super) fn look(&mut self, now: Instant) {
        let dirty = std::mem::take(&mut self.dirty);
        let previous = self.recheck.take();
        let awaits_backfill = self.awaits_backfill(dirty);
        let before = self.shadow_extent().map(ShadowExtent::position);
        self.hot = false;
        if self.lets_restart() {
            // Copying the beginning of the next WAL takes a while, in which nobody could checkpoint it.
            self.bring_in_place(now);
        }
        let caught = self.copy_all(previous, now);
        self.is_caught_up = caught.is_some();
        let Some(Caught { extent, in_flight, is_overtaken }) = caught else {
            self.plan_backfill(awaits_backfill, dirty, now);
            return self.on_uncopied(now);
        };
        self.solved(Task::Look);
        self.solved(Task::BeginGeneration);
        (self.extent, self.up_to_date_at) = (extent, Some(now));
        self.looks = self.looks.wrapping_add(1);
        (self.break_at, self.retry, self.uncopied) = (None, None, None);
        self.compare_at = self.compare_at.filter(|_| self.passes_over());
        // A checkpoint: the next WAL is not copied before the copy of this one is durable. While writers go on beside it,
        // nobody restarts the WAL.
        let is_endless = self.pace.is_endless(now);
        self.needs_sync |= dirty.database && !is_overtaken && !is_endless && self.has_unsynced();
        let is_news = self.shadow_extent().map(ShadowExtent::position) != before;
        self.plan_backfill(awaits_backfill && !extent.is_backfilled(), dirty, now);
        // What is in flight now, was not before.
        self.plan_recheck(previous.filter(|_| !is_news), in_flight, dirty, now);
        if is_news {
            self.pace.on_news(is_overtaken, now);
            let not_before = self.pace.next_timeout(now).unwrap_or(now);
            self.recheck = self.recheck.map(|recheck| Recheck { at: recheck.at.max(not_before), ..recheck });
        } else if self.is_checkpointing() {
            self.pace.on_our_writes(now);
        }
        self.look_by_the_clock(now);
        self.plan_emptying(now);
        self.plan_sighting(now);
        self.judge_part(now);
        let seen = (in_flight && !is_overtaken).then(|| self.wal_at_path()).flatten();
        if let State::Attached(attached) = &mut self.state {
            attached.capture.in_flight = seen;
        }
        self.bring_in_place(now);
        // The next writer may restart the WAL at once.
        self.needs_sync |=
            !is_endless && self.lets_restart() && self.extent.frames > 0 && self.has_unsynced();
    }

    /// Whether a worker checkpoints beside everybody.
    pub(super) fn is_checkpointing(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.checkpointer.is_none())
    }

    /// Whether the next commit restarts the WAL.
    fn lets_restart(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.guard.lets_restart())
    }

    /// The live WAL, if all that was written into it so far belongs to the database that we hold.
    fn wal_at_path(&self) -> Option<Stamp> {
        let State::Attached(attached) = &self.state else { return None };
        let stamp = proof::stamp_of(attached.capture.live_file()?).ok()?;
        self.replaced().is_none().then_some(stamp)
    }

    /// Beside endless writers, events may not be listened to.
    fn look_by_the_clock(&mut self, now: Instant) {
        let Some(at) = self.pace.next_look(now) else { return };
        if self.recheck.is_none_or(|recheck| at < recheck.at) {
            self.recheck = Some(Recheck { at, pause: at.duration_since(now), in_flight: false });
        }
    }

    /// Where the WAL may be restarted, nobody can backfill what is not copied yet.
    fn on_uncopied(&mut self, now: Instant) {
        let State::Attached(attached) = &mut self.state else { return };
        if attached.guard.lets_restart() && !attached.guard.forbid_restart().is_ok_and(|is_ours| is_ours) {
            self.place_at = Some(Recheck::after(self.place_at, PLACE_PAUSE, LONGEST_PLACE_PAUSE, now));
        }
    }

    /// Copies what is committed. `None` if not everything is copied, and what follows on that is planned.
    fn copy_all(&mut self, previous: Option<Recheck>, now: Instant) -> Option<Caught> {
        // The pause for frames in flight may be long, and says nothing of what is in the way now.
        let previous = previous.filter(|recheck| !recheck.in_flight);
        let (mut uncopied, mut looks) = (0, 0);
        for _ in 0..PARTS_A_TURN {
            if self.has_no_room(uncopied, now) {
                return None;
            }
            let State::Attached(attached) = &mut self.state else { return None };
            match attached.look() {
                Ok(Look::UpToDate { extent, in_flight }) => {
                    return Some(Caught { extent, in_flight, is_overtaken: false });
                }
                Ok(Look::Copied { extent }) => {
                    // Writers that never pause would make it endless.
                    (looks, uncopied) = (looks + 1, 0);
                    if looks == MOST_LOOKS {
                        return Some(Caught { extent, in_flight: true, is_overtaken: true });
                    }
                }
                Ok(Look::More { left }) => uncopied = left,
                Ok(Look::Unsynced { left }) => {
                    // The one in flight may be just that.
                    self.needs_sync = !self.job_in_flight;
                    if self.pace.is_endless(now) {
                        self.pace.on_news(true, now);
                    }
                    self.is_uncopied(left, now);
                    return None;
                }
                Ok(Look::Again) => {
                    self.recheck = Some(Recheck::after(previous, BACKFILL_PAUSE, LONGEST_RETRY_PAUSE, now));
                    return None;
                }
                Ok(Look::Broken(reason)) => {
                    self.on_break(reason);
                    return None;
                }
                Err(LookError::Shadow(error)) if error.kind() == ErrorKind::StorageFull => {
                    self.is_full();
                    return None;
                }
                Err(error) => {
                    self.recheck = Some(Recheck::after(previous, RETRY_PAUSE, LONGEST_RETRY_PAUSE, now));
                    self.failed(Task::Look, &error.to_string());
                    return None;
                }
            }
        }
        self.hot = true;
        self.is_uncopied(uncopied, now);
        None
    }

    fn is_uncopied(&mut self, bytes: u64, now: Instant) {
        let since = self.uncopied.map_or(now, |(_, since)| since);
        self.uncopied = Some((bytes, since));
    }

    fn has_unsynced(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.capture.shadow.to_sync().is_some())
    }

    /// Holds the WAL in the way in which the application's checkpoints finish.
    pub(super) fn bring_in_place(&mut self, now: Instant) {
        let State::Attached(attached) = &mut self.state else { return };
        let again = Recheck::after(self.place_at, PLACE_PAUSE, LONGEST_PLACE_PAUSE, now);
        let extent = attached.extent();
        let placed = extent
            .map_err(GuardError::from)
            .and_then(|extent| attached.guard.bring_in_place(&attached.query, &attached.capture, extent));
        match placed {
            Ok(true) => {
                // On read lock 0 we are in the way of a checkpoint from the first commit of the next WAL on, and no event
                // tells of it.
                let is_awaited = attached.guard.lets_restart() && self.pace.is_endless(now);
                self.place_at = is_awaited.then(|| Recheck::after(None, PLACE_PAUSE, PLACE_PAUSE, now));
                self.solved(Task::Hold);
            }
            Ok(false) | Err(GuardError::Sqlite(SqliteError::Busy)) => self.place_at = Some(again),
            Err(error) => {
                self.place_at = Some(again);
                self.failed(Task::Hold, &error.to_string());
            }
        }
    }
}
