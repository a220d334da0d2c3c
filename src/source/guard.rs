//! Our readers: one of them holds the WAL at all times, so that nobody can restart it over frames we do not have.
//!
//! The reader moves on by overlap: a second one begins, everything committed now is copied; only then the first one
//! ends. The copy need not be durable by then, though the WAL may be restarted next: what was in it is in the database
//! file, and the next WAL is not copied before ([`Look::Unsynced`]).

use super::capture::{Capture, Look, LookError};
use crate::core::checkpoint::{Extent, Mark, is_in_place};
use crate::core::position::Index;
use crate::locks;
use crate::sqlite::{Handle, SqliteError, WalExtent};
use std::fs::File;

/// How far a move of the reader came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// The reader stands on what was the newest mark.
    Done,
    /// The shadow must be durable first, see [`Look::Unsynced`]; call again then.
    NeedsSync,
    /// Something was in the way, or there is more to copy; call again.
    NotYet,
    /// A checkpoint has begun in the same moment, and perhaps waits for the very slot whose mark was raised: it would go
    /// on waiting. Call again once it has had time to get it.
    Crossed,
    /// The look on the way found this.
    Broken(crate::core::sync::Break),
}

/// How often the reader begins until nothing is committed meanwhile. Writers that never pause would make it endless.
const MOST_TRIES: u32 = 3;
/// How much is copied at most before the reader moves, in looks: a turn must not become long.
const MOST_LOOKS: u32 = 4;

/// The two readers and the handle that asks the wal-index.
pub struct Guard {
    reader: Handle,
    spare: Handle,
    /// Asks NOOP; never inside a transaction.
    pub query: Handle,
    mark: Mark,
}

impl Guard {
    /// Begins to hold the WAL with `reader`; returns what the wal-index said just before.
    ///
    /// # Errors
    /// SQLite's; busy while somebody recovers the WAL.
    pub fn take_mark(reader: &Handle, query: &Handle) -> Result<WalExtent, SqliteError> {
        let extent = query.wal_extent()?;
        reader.begin_read()?;
        Ok(extent)
    }

    /// The guard of a `reader` that has begun at `extent`, see [`Guard::take_mark`].
    pub fn new([reader, spare, query]: [Handle; 3], extent: WalExtent, index: Index) -> Self {
        let mark = Mark { index, frames: extent.frames, on_lock_zero: extent.is_backfilled() };
        Guard { reader, spare, query, mark }
    }

    /// Whether the reader lets the application's checkpoints finish.
    pub fn is_in_place(&self, capture: &Capture, extent: WalExtent) -> bool {
        let now = Extent {
            index: capture.shadow.extent().index,
            frames: extent.frames,
            backfilled: extent.backfilled,
        };
        is_in_place(self.mark, now)
    }

    /// Whether the reader is on the newest mark, so that a checkpoint can copy everything.
    pub fn is_newest(&self, capture: &Capture, extent: WalExtent) -> bool {
        self.mark.index == capture.shadow.extent().index && self.mark.frames == extent.frames
    }

    /// Whether the reader's mark is beyond what a checkpoint has copied: then another reader stands before it.
    pub fn is_beyond(&self, extent: WalExtent) -> bool {
        self.mark.frames > extent.backfilled && self.mark.frames <= extent.frames
    }

    /// Whether the reader is on a mark of this WAL, up to which everything can be backfilled. On read lock 0 nothing can,
    /// and the application's checkpoints search the WAL in vain.
    pub fn lets_backfill(&self, capture: &Capture) -> bool {
        self.mark.index == capture.shadow.extent().index && !self.mark.on_lock_zero
    }

    /// Brings everything into the database file, and moves the reader to read lock 0; returns what the wal-index says
    /// then. `None` if others write meanwhile.
    ///
    /// # Errors
    /// SQLite's; the reader still holds.
    pub fn settle(&mut self, checkpointer: &Handle) -> Result<Option<WalExtent>, SqliteError> {
        if !self.query.wal_extent()?.is_backfilled() {
            // From the newest mark, a checkpoint can copy everything.
            self.spare.begin_read()?;
            self.swap();
            checkpointer.checkpoint()?;
        }
        let before = self.query.wal_extent()?;
        if !before.is_backfilled() {
            return Ok(None);
        }
        self.spare.begin_read()?;
        if self.query.wal_extent()? != before {
            self.spare.end_read();
            return Ok(None);
        }
        self.swap();
        self.mark = Mark { frames: before.frames, on_lock_zero: true, ..self.mark };
        Ok(Some(before))
    }

    fn swap(&mut self) {
        self.reader.end_read();
        std::mem::swap(&mut self.reader, &mut self.spare);
    }

    /// Says that the reader's mark belongs to this index.
    pub fn stand_at(&mut self, index: Index) {
        self.mark.index = index;
    }

    /// Ends the reader. What follows is not guarded until [`Guard::come_back`] and a look.
    pub fn step_aside(&mut self, capture: &mut Capture) {
        self.reader.end_read();
        capture.guarded = false;
    }

    /// Begins the reader again.
    ///
    /// # Errors
    /// SQLite's; then nothing holds the WAL yet.
    pub fn come_back(&mut self, capture: &Capture) -> Result<(), SqliteError> {
        let extent = Guard::take_mark(&self.reader, &self.query)?;
        let index = capture.shadow.extent().index;
        self.mark = Mark { index, frames: extent.frames, on_lock_zero: extent.is_backfilled() };
        Ok(())
    }

    /// Moves the reader to the newest mark. `wal_index` is `-shm`, for its locks.
    ///
    /// A checkpoint that waits for readers reads the mark of a slot, and then waits for the slot until it is free: raised
    /// in between, the mark is of no use to it. One that waited before the mark was raised waits for the first reader.
    ///
    /// What is committed behind that mark meanwhile need not be copied first: the reader holds it from then on. On read
    /// lock 0 it is not backfilled, and so not restarted over.
    ///
    /// # Errors
    /// What could not be read or written; the first reader still holds.
    pub fn move_on(&mut self, capture: &mut Capture, wal_index: &File) -> Result<Move, LookError> {
        let has_waited = locks::has_waiting_checkpoint(wal_index);
        let extent = match self.begin_spare() {
            Err(SqliteError::Busy) => return Ok(Move::NotYet),
            other => other?,
        };
        let copied = self.follow(extent, capture);
        let may_cross = !has_waited && !extent.is_backfilled();
        let moved = match copied {
            Ok(Ok(_)) if may_cross && locks::has_waiting_checkpoint(wal_index) => Move::Crossed,
            Ok(Ok(mark)) => {
                self.swap();
                self.mark = mark;
                return Ok(Move::Done);
            }
            Ok(Err(why)) => why,
            Err(error) => {
                self.spare.end_read();
                return Err(error);
            }
        };
        self.spare.end_read();
        Ok(moved)
    }

    /// Begins the spare reader; returns the wal-index just before, and, if writers pause, just after.
    fn begin_spare(&self) -> Result<WalExtent, SqliteError> {
        let mut tries = 0;
        loop {
            let extent = self.query.wal_extent()?;
            self.spare.begin_read()?;
            tries += 1;
            if tries == MOST_TRIES || self.query.wal_extent() == Ok(extent) {
                return Ok(extent);
            }
            // It stands on a mark that we do not know, and would have to move once more.
            self.spare.end_read();
        }
    }

    /// Copies up to where the spare reader has begun, which was behind `extent`. `Ok(Err)` says why it cannot.
    fn follow(&self, extent: WalExtent, capture: &mut Capture) -> Result<Result<Mark, Move>, LookError> {
        if extent.frames > 0 && extent.is_backfilled() && self.query.wal_extent() != Ok(extent) {
            // It may stand on a mark between two commits, where it would only be in the way.
            return Ok(Err(Move::NotYet));
        }
        let index = capture.shadow.extent().index;
        for _ in 0..MOST_LOOKS {
            match capture.look(&self.query)? {
                Look::UpToDate { .. } | Look::Copied { .. } => {}
                Look::More { .. } => continue,
                Look::Unsynced { .. } => return Ok(Err(Move::NeedsSync)),
                Look::Again => return Ok(Err(Move::NotYet)),
                Look::Broken(reason) => return Ok(Err(Move::Broken(reason))),
            }
            return Ok(Ok(Mark { index, frames: extent.frames, on_lock_zero: extent.is_backfilled() }));
        }
        Ok(Err(Move::NotYet))
    }
}
