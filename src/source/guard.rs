//! Holding the WAL, so that nobody can restart it over frames that we do not have.
//!
//! We hold one of two locks of the wal-index at all times. A slot: nobody restarts the WAL, and everybody backfills as
//! far as they like. Or read lock 0, which is taken while everything is backfilled and copied: the next writer may
//! restart the WAL, and nobody backfills what comes then, so that it is not restarted once more. Neither waits for the
//! copy to be durable: what was in a WAL that is restarted is in the database file, and the next WAL is not copied
//! before ([`Look::Unsynced`](super::capture::Look::Unsynced)), unless the shadow is volatile.

use super::capture::Capture;
use super::checkpointer::LimitedCheckpoint;
use crate::core::wal_index::WalExtent;
use crate::locks::{Slot, WalIndex};
use crate::sqlite::{Handle, SqliteError};
use std::io;
use std::time::Duration;

/// Why the locks are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// SQLite's answer.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The kernel's.
    #[error("cannot lock its wal-index: {0}")]
    Lock(#[from] io::Error),
}

/// What we hold of a WAL.
#[derive(Debug)]
pub struct Guard {
    index: WalIndex,
    slot: Option<Slot>,
    is_on_zero: bool,
}

impl Guard {
    /// Holds nothing yet.
    pub fn new(index: WalIndex) -> Guard {
        Guard { index, slot: None, is_on_zero: false }
    }

    /// Whether anything is held.
    pub fn holds(&self) -> bool {
        self.slot.is_some() || self.is_on_zero
    }

    /// The wal-index.
    pub fn index(&self) -> &WalIndex {
        &self.index
    }

    /// What the wal-index says. SQLite takes the write lock when it meets a writer in the middle of that, so it is only
    /// asked where it has to make it anew.
    ///
    /// # Errors
    /// SQLite's.
    pub fn extent(&self, query: &Handle) -> Result<WalExtent, SqliteError> {
        self.index.extent().map_or_else(|| query.wal_extent(), Ok)
    }

    /// Whether the next writer may restart the WAL, if everything is backfilled.
    pub fn lets_restart(&self) -> bool {
        self.slot.is_none()
    }

    /// Whether the WAL is held in the way in which the application's checkpoints finish.
    fn is_in_place(&self, extent: WalExtent) -> bool {
        match self.slot {
            Some(slot) => slot.is_ours && !extent.is_backfilled(),
            None => extent.is_backfilled(),
        }
    }

    /// Holds the WAL in the way in which the application's checkpoints finish. `false` if somebody is in the way for a
    /// moment, or not everything is copied.
    ///
    /// # Errors
    /// What failed; the WAL is held all the same.
    pub fn bring_in_place(
        &mut self,
        query: &Handle,
        capture: &Capture,
        extent: WalExtent,
    ) -> Result<bool, GuardError> {
        if self.is_in_place(extent) {
            return Ok(true);
        }
        match extent.is_backfilled() {
            true => self.let_restart(query, extent, |extent| capture.holds(extent)),
            false => Ok(self.forbid_restart()?),
        }
    }

    /// Goes to read lock 0, if everything is backfilled, and `may` says so of what is committed then.
    pub(super) fn let_restart(
        &mut self,
        query: &Handle,
        extent: WalExtent,
        may: impl FnOnce(WalExtent) -> bool,
    ) -> Result<bool, GuardError> {
        if !self.index.take_zero()? {
            return Ok(false);
        }
        self.is_on_zero = true;
        // From here on nothing more is backfilled. What was committed since we looked could have been, before; and `extent`
        // may be that of another WAL, which was as long.
        let is_same = self.extent(query) == Ok(extent) && may(extent);
        match self.slot {
            Some(slot) if is_same => {
                self.index.release(slot)?;
                self.slot = None;
            }
            _ => self.thaw()?,
        }
        Ok(is_same)
    }

    /// Goes to a slot of its own, or to the best there is; `false` if that is not its own.
    ///
    /// # Errors
    /// The kernel's; the WAL is held all the same.
    pub fn forbid_restart(&mut self) -> io::Result<bool> {
        self.slot = self.index.take_slot(self.slot)?;
        self.thaw()?;
        Ok(self.slot.is_some_and(|slot| slot.is_ours))
    }

    /// Keeps everybody from writing into the database file, until [`Guard::thaw`]; `false` while somebody does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze(&mut self) -> io::Result<bool> {
        self.is_on_zero = self.is_on_zero || self.index.take_zero()?;
        Ok(self.is_on_zero)
    }

    /// Takes [`Guard::freeze`] back, unless it is all that holds the WAL.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(&mut self) -> io::Result<()> {
        if self.slot.is_some() && std::mem::take(&mut self.is_on_zero) {
            self.index.release_zero()?;
        }
        Ok(())
    }

    /// Keeps everybody from beginning to read and to write, on a slot of our own; `None` if somebody reads. What is returned
    /// is for [`Guard::let_in_readers`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn shut_out_readers(&mut self) -> io::Result<Option<Slot>> {
        self.forbid_restart()?;
        let Some(ours) = self.slot.filter(|slot| slot.is_ours) else { return Ok(None) };
        Ok(self.index.shut_out_readers(ours)?.then_some(ours))
    }

    /// Takes that back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_in_readers(&self, ours: Slot) -> io::Result<()> {
        self.index.let_in_readers(ours)
    }

    /// Brings everything into the database file by a checkpoint, and goes to read lock 0; returns what the wal-index says
    /// then. `None` if others write meanwhile. What is not copied by then, the caller must take from the file.
    ///
    /// # Errors
    /// What failed; the WAL is held all the same.
    pub fn settle(
        &mut self,
        query: &Handle,
        checkpoint: Option<LimitedCheckpoint>,
    ) -> Result<Option<WalExtent>, GuardError> {
        if !self.extent(query)?.is_backfilled() {
            self.forbid_restart()?;
            let Some(checkpoint) = checkpoint else { return Ok(None) };
            checkpoint.checkpoint(Duration::ZERO, None)?;
        }
        let extent = self.extent(query)?;
        let is_settled =
            extent.is_backfilled() && (self.slot.is_none() || self.let_restart(query, extent, |_| true)?);
        Ok(is_settled.then_some(extent))
    }
}
