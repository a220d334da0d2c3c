//! Our readers: one of them holds the WAL at all times, so that nobody can restart it over frames we do not have.
//!
//! The reader moves on by overlap: a second one begins, everything committed now is copied, and durable if the WAL
//! could be restarted next; only then the first one ends.

use super::capture::{Capture, Look, LookError};
use crate::core::checkpoint::{Extent, Mark, is_in_place};
use crate::core::position::Index;
use crate::sqlite::{Handle, SqliteError, WalExtent};

/// How far a move of the reader came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// The reader stands on what was the newest mark.
    Done,
    /// The shadow must be durable first; call again then.
    NeedsSync,
    /// Something was in the way, or there is more to copy; call again.
    NotYet,
    /// The look on the way found this.
    Broken(crate::core::sync::Break),
}

/// The two readers and the handle that asks the wal-index.
pub struct Guard {
    reader: Handle,
    spare: Handle,
    /// Asks NOOP; never inside a transaction.
    pub query: Handle,
    mark: Mark,
    /// The spare reader has begun, and stands here.
    pending: Option<Mark>,
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
    pub fn new(reader: Handle, spare: Handle, query: Handle, extent: WalExtent, index: Index) -> Self {
        let mark = Mark { index, frames: extent.frames, on_lock_zero: extent.is_backfilled() };
        Guard { reader, spare, query, mark, pending: None }
    }

    /// Whether the reader lets the application's checkpoints finish.
    pub fn is_in_place(&self, capture: &Capture, extent: WalExtent) -> bool {
        let now = Extent {
            index: capture.shadow.extent().index,
            frames: extent.frames,
            backfilled: extent.backfilled,
        };
        self.pending.is_none() && is_in_place(self.mark, now)
    }

    /// Whether the reader is on the newest mark, so that a checkpoint can copy everything.
    pub fn is_newest(&self, capture: &Capture, extent: WalExtent) -> bool {
        let newest = self.mark.index == capture.shadow.extent().index && self.mark.frames == extent.frames;
        self.pending.is_none() && newest
    }

    /// Whether the reader's mark is beyond what a checkpoint has copied: then another reader stands before it.
    pub fn is_beyond(&self, extent: WalExtent) -> bool {
        self.mark.frames > extent.backfilled && self.mark.frames <= extent.frames
    }

    /// How many frames have come since the reader's mark. `None` if it is no mark of this WAL, or on read lock 0: then
    /// nothing at all can be backfilled, and the application's checkpoints search the WAL in vain.
    pub fn frames_behind(&self, capture: &Capture, extent: WalExtent) -> Option<u32> {
        let lets_backfill = self.mark.index == capture.shadow.extent().index && !self.mark.on_lock_zero;
        lets_backfill.then(|| extent.frames.saturating_sub(self.mark.frames))
    }

    /// Brings everything into the database file, and moves the reader to read lock 0; returns what the wal-index says
    /// then. `None` if others write meanwhile.
    ///
    /// # Errors
    /// SQLite's; the reader still holds.
    pub fn settle(&mut self, checkpointer: &Handle) -> Result<Option<WalExtent>, SqliteError> {
        if self.pending.take().is_some() {
            self.spare.end_read();
        }
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
        if self.pending.take().is_some() {
            self.spare.end_read();
        }
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

    /// Moves the reader to the newest mark, or goes on doing so.
    ///
    /// # Errors
    /// What could not be read or written; the first reader still holds.
    pub fn move_on(&mut self, capture: &mut Capture) -> Result<Move, LookError> {
        if self.pending.is_none() {
            let extent = match self.query.wal_extent() {
                Err(SqliteError::Busy) => return Ok(Move::NotYet),
                other => other?,
            };
            match self.spare.begin_read() {
                Err(SqliteError::Busy) => return Ok(Move::NotYet),
                other => other?,
            }
            if extent.frames > 0 && extent.is_backfilled() && self.query.wal_extent() != Ok(extent) {
                // It may stand on a mark between two commits, where it would only be in the way.
                self.spare.end_read();
                return Ok(Move::NotYet);
            }
            let index = capture.shadow.extent().index;
            self.pending = Some(Mark { index, frames: extent.frames, on_lock_zero: extent.is_backfilled() });
        }
        let extent = match capture.look(&self.query)? {
            Look::UpToDate { extent, .. } => extent,
            Look::More { .. } | Look::Again => return Ok(Move::NotYet),
            Look::Broken(reason) => return Ok(Move::Broken(reason)),
        };
        if extent.frames > 0 && extent.is_backfilled() && capture.shadow.to_sync().is_some() {
            return Ok(Move::NeedsSync);
        }
        self.reader.end_read();
        std::mem::swap(&mut self.reader, &mut self.spare);
        self.mark = self.pending.take().expect("BUG: the spare reader has begun");
        Ok(Move::Done)
    }
}
