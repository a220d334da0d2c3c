//! A source's look at its WAL, and its reader's moves after the commits.

use super::capture::{Look, LookError};
use super::guard::Move;
use super::recheck::Recheck;
use super::{BACKFILL_PAUSE, LONGEST_RETRY_PAUSE, RETRY_PAUSE, Source, State, Task};
use crate::core::shadow::ShadowExtent;
use crate::sqlite::WalExtent;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// How long after the last commit the reader moves up. While writers go on, nobody waits for it: a checkpoint that
/// waits for readers keeps writers waiting, too.
const MOVE_PAUSE: Duration = Duration::from_micros(300);
/// The same in a WAL that the application checkpoints after each commit, because it is long: then each move makes it
/// copy the few frames that have come since, with two fsyncs. Beside writers that never pause, the reader moves in rounds.
const LONG_WAL_MOVE_PAUSE: Duration = Duration::from_millis(2);
/// Two moves are at least so far apart, but for one to read lock 0. A checkpoint that waits for the slot that we left
/// should get it before we take it again: it would go on waiting, though our mark is new by then. SQLite's busy handler
/// sleeps for 1, 2, 5, 10... ms.
const SLOT_PAUSE: Duration = Duration::from_micros(1200);
/// A checkpoint that began while the reader moved has got the slot by then: SQLite's busy handler sleeps for 1 and 2 ms.
const CROSSED_PAUSE: Duration = Duration::from_millis(4);
/// The pauses before the reader moves to read lock 0 once more.
const CONFIRM_PAUSES: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(10)];
const LONGEST_MOVE_PAUSE: Duration = Duration::from_millis(500);
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
    /// Looks at the WAL until everything committed is copied, or a turn's worth is. Whether anything was copied.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        let previous = self.recheck.take();
        let before = self.shadow_extent().map(ShadowExtent::position);
        self.hot = false;
        let Some(Caught { extent, in_flight, is_overtaken }) = self.copy_all(previous, now) else {
            return true;
        };
        self.solved(Task::Look);
        self.solved(Task::BeginGeneration);
        (self.extent, self.up_to_date_at) = (extent, Some(now));
        (self.break_at, self.retry, self.uncopied) = (None, None, None);
        // A checkpoint: the next WAL is not copied before the copy of this one is durable. While writers go on beside it,
        // nobody restarts the WAL.
        self.needs_sync |= dirty.database && !is_overtaken && self.has_unsynced();
        let is_news = self.shadow_extent().map(ShadowExtent::position) != before;
        // What is in flight now, was not before.
        self.plan_recheck(previous.filter(|_| !is_news), in_flight, dirty, now);
        if is_news {
            self.pace.on_news(is_overtaken, now);
            let not_before = self.pace.next_timeout(now).unwrap_or(now);
            self.recheck = self.recheck.map(|recheck| Recheck { at: recheck.at.max(not_before), ..recheck });
        }
        self.plan_move(is_news, now);
        is_news
    }

    /// Copies what is committed. `None` if not everything is copied, and what follows on that is planned.
    fn copy_all(&mut self, previous: Option<Recheck>, now: Instant) -> Option<Caught> {
        let (mut uncopied, mut looks) = (0, 0);
        for _ in 0..PARTS_A_TURN {
            if self.has_no_room(now) {
                return None;
            }
            let State::Attached(attached) = &mut self.state else { return None };
            match attached.capture.look(&attached.guard.query) {
                Ok(Look::UpToDate { extent, in_flight }) => {
                    return Some(Caught { extent, in_flight, is_overtaken: false });
                }
                Ok(Look::Copied { extent }) => {
                    // Writers that never pause would make it endless.
                    looks += 1;
                    if looks == MOST_LOOKS {
                        return Some(Caught { extent, in_flight: true, is_overtaken: true });
                    }
                }
                Ok(Look::More { left }) => uncopied = left,
                Ok(Look::Unsynced { left }) => {
                    self.needs_sync = true;
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

    /// When the reader moves next, if it must.
    fn plan_move(&mut self, is_news: bool, now: Instant) {
        let State::Attached(attached) = &self.state else { return };
        if attached.guard.is_in_place(&attached.capture, self.extent) {
            // Where everything was backfilled before we came, the next writer may restart the WAL at once.
            let may_restart = self.extent.frames > 0 && self.extent.is_backfilled();
            self.needs_sync |= may_restart && attached.capture.shadow.to_sync().is_some();
            self.move_at = self.confirm_at(now);
            return self.plan_yield(now);
        }
        if self.extent.is_backfilled() && attached.guard.lets_backfill(&attached.capture) {
            // Whoever waits for readers now waits for ours; and it goes where it is in nobody's way.
            self.move_at = Some(Recheck::now(now));
            return;
        }
        let is_long = self.extent.frames >= self.settings.checkpoint.min_pages;
        let pause = if is_long { LONG_WAL_MOVE_PAUSE } else { MOVE_PAUSE };
        let planned = self.move_at.filter(|at| at.pause > LONG_WAL_MOVE_PAUSE || !is_news);
        let at = now + pause;
        let not_before = *self.moved_at.get_or_insert(now) + SLOT_PAUSE;
        self.move_at = planned.or(Some(Recheck { at: at.max(not_before), pause, in_flight: false }));
    }

    /// When the reader, which should be on read lock 0, moves there once more: it cannot be on it if a checkpoint was
    /// just about to give that lock back.
    fn confirm_at(&mut self, now: Instant) -> Option<Recheck> {
        if self.extent.frames == 0 || !self.extent.is_backfilled() {
            return None;
        }
        if self.confirmed.0 != self.extent {
            self.confirmed = (self.extent, 0);
        }
        let pause = *CONFIRM_PAUSES.get(self.confirmed.1)?;
        self.move_at.or(Some(Recheck::after(None, pause, pause, now)))
    }

    /// A checkpoint can copy nothing behind the reader's mark, so the reader moves first.
    pub(super) fn move_before_checkpoint(&mut self, now: Instant) {
        self.move_at.get_or_insert(Recheck::after(None, MOVE_PAUSE, LONGEST_MOVE_PAUSE, now));
    }

    pub(super) fn move_reader(&mut self, now: Instant) {
        let State::Attached(attached) = &mut self.state else { return };
        let again = Recheck::after(self.move_at, MOVE_PAUSE, LONGEST_MOVE_PAUSE, now);
        self.move_at = None;
        match attached.guard.move_on(&mut attached.capture, &attached.wal_index) {
            Ok(Move::Done) => {
                self.solved(Task::MoveReader);
                // Moving takes its time; the next turn, which comes at once, knows how late it is.
                self.moved_at = None;
                self.confirmed.1 += 1;
                // What was committed on the way is for the next turn.
                self.hot = true;
            }
            Ok(Move::NeedsSync) => self.needs_sync = true,
            Ok(Move::NotYet) => self.move_at = Some(again),
            Ok(Move::Crossed) => self.move_at = Some(Recheck::after(None, CROSSED_PAUSE, CROSSED_PAUSE, now)),
            Ok(Move::Broken(reason)) => self.on_break(reason),
            Err(error) => {
                self.move_at = Some(again);
                self.failed(Task::MoveReader, &error.to_string());
            }
        }
    }
}
