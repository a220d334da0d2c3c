//! The wal-index (`-shm`), as far as the agent takes part in SQLite's protocol by itself: two of its locks.
//!
//! A lock on a reader's slot keeps the WAL from being restarted, since whoever restarts it needs all slots. The slot's
//! mark says how far a checkpoint may go; unused, it says nothing, and the checkpoints of others go as far as they like.
//! A lock on read lock 0 keeps everybody from backfilling, and from nothing else. (wal.c: `walRestartLog`,
//! `walCheckpoint`, `walTryBeginRead`.)
//!
//! The locks belong to our open file, not to the process: they are no business of SQLite's connections in it, and none of
//! these gives them back by mistake.

use super::{OwnLock, is_locked_for_others, lock_for_open_file};
use crate::core::wal_index::{BACKFILLED, BEGINNING_LENGTH, WalExtent};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The byte that a checkpoint has locked until its end (wal.c, `WAL_CKPT_LOCK`).
const CHECKPOINT_LOCK: u64 = 121;
/// The byte of read lock 0; those of the slots follow (wal.c, `WAL_READ_LOCK`).
const READ_LOCK_ZERO: u64 = 123;
/// The slots of readers, the one last that SQLite takes first.
const SLOTS: [u8; 4] = [4, 3, 2, 1];
/// How often the beginning is read again that somebody is just writing: that takes nanoseconds, unless the writer is kept
/// from the processor.
const MOST_READINGS: u32 = 16;
/// Where the marks begin (wal.c, `WalCkptInfo.aReadMark`).
const MARKS: u64 = 100;
/// How many frames a checkpoint set out to bring there (wal.c, `WalCkptInfo.nBackfillAttempted`).
const ATTEMPTED: u64 = 128;
/// The mark of a slot that nobody reads from (wal.c, `READMARK_NOT_USED`).
const NOT_USED: [u8; 4] = [0xff; 4];

/// A slot on which we hold a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    number: u8,
    /// Nobody else has it or waits for it, and its mark is unused; else a checkpoint may not go beyond the mark that
    /// others gave it.
    pub is_ours: bool,
}

/// All slots but one, in SQLite's order.
fn slots_but(one: Option<Slot>) -> impl Iterator<Item = u8> {
    SLOTS.into_iter().filter(move |number| one.is_none_or(|one| one.number != *number))
}

/// How many frames of a WAL the last checkpoint set out to bring into the database file, if it has not come to its end:
/// it is under way, or was killed, or failed; or somebody has recovered the WAL since. Zero if it has.
///
/// # Errors
/// The kernel's.
pub fn cut_off(index: &File) -> io::Result<u32> {
    let number_at = |at| {
        let mut number = [0; 4];
        index.read_exact_at(&mut number, at).map(|()| u32::from_ne_bytes(number))
    };
    let (backfilled, attempted) = (number_at(BACKFILLED as u64)?, number_at(ATTEMPTED)?);
    Ok(if attempted > backfilled { attempted } else { 0 })
}

/// The one descriptor of a `-shm` that is not SQLite's. Closing it drops the locks of SQLite's connections in this
/// process, so it outlives them.
#[derive(Debug)]
pub struct WalIndex(File);

impl WalIndex {
    /// Opens the wal-index of a database that a connection of this process has open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> io::Result<WalIndex> {
        Ok(WalIndex(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// What it says, without any lock. `None` if somebody is writing it all the while, or nobody has made it, or it cannot
    /// be read.
    pub fn extent(&self) -> Option<WalExtent> {
        let mut beginning = [0; BEGINNING_LENGTH];
        (0..MOST_READINGS).find_map(|_| {
            self.0.read_exact_at(&mut beginning, 0).ok()?;
            WalExtent::parse(&beginning)
        })
    }

    /// Takes a slot: from then on nobody restarts the WAL. One that nobody uses, or at the worst one that others use.
    /// `None` if somebody is just restarting the WAL, or gives all slots a new mark.
    ///
    /// A checkpoint that waits for readers looks at a slot's mark once, and then waits for that slot: one that is taken
    /// beside a checkpoint is in doubt, and given up for another one with the next call.
    ///
    /// # Errors
    /// The kernel's; what is held stays held.
    pub fn take_slot(&self, held: Option<Slot>) -> io::Result<Option<Slot>> {
        if held.is_some_and(|slot| slot.is_ours) {
            return Ok(held);
        }
        let others = || slots_but(held);
        for number in others() {
            if self.take_free(number, OwnLock::None)? {
                return self.change(held, self.judge(number)).map(Some);
            }
        }
        if let Some(held) = held.filter(|_| !self.may_be_awaited()) {
            let is_free = self.take_free(held.number, OwnLock::Shared)?;
            return Ok(Some(if is_free { self.judge(held.number) } else { held }));
        }
        for number in others() {
            if self.lock(OwnLock::Shared, number)? {
                return self.change(held, Slot { number, is_ours: false }).map(Some);
            }
        }
        Ok(held)
    }

    /// Takes a slot that nobody else has, and clears its mark. `before` is what we have of it.
    fn take_free(&self, number: u8, before: OwnLock) -> io::Result<bool> {
        if !self.lock(OwnLock::Exclusive, number)? {
            return Ok(false);
        }
        let cleared = self.clear_mark(number);
        // Exclusively locked, it would be in everybody's way. Nobody can have come between: a lock of one's own is
        // changed in one step.
        self.lock(if cleared.is_ok() { OwnLock::Shared } else { before }, number)?;
        cleared.map(|()| true)
    }

    /// What has become of a slot whose mark was just cleared.
    fn judge(&self, number: u8) -> Slot {
        Slot { number, is_ours: !self.may_be_awaited() }
    }

    /// Whether a checkpoint may wait for a slot, of which it knew another mark.
    fn may_be_awaited(&self) -> bool {
        self.is_checkpointed().unwrap_or(true)
    }

    fn change(&self, held: Option<Slot>, slot: Slot) -> io::Result<Slot> {
        held.map_or(Ok(()), |held| self.release(held))?;
        Ok(slot)
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release(&self, slot: Slot) -> io::Result<()> {
        self.lock(OwnLock::None, slot.number).map(drop)
    }

    /// Keeps everybody from beginning to read from the WAL, and so to write; `false` if somebody reads, and then nothing is
    /// changed. Whoever comes waits, see [`WalIndex::let_in_readers`]. `ours` must be ours.
    ///
    /// # Errors
    /// The kernel's; nobody may be kept out any longer.
    pub fn shut_out_readers(&self, ours: Slot) -> io::Result<bool> {
        for number in slots_but(Some(ours)) {
            let is_shut = match self.lock(OwnLock::Exclusive, number) {
                Ok(true) => self.clear_mark(number).map(|()| true),
                other => other,
            };
            if !matches!(is_shut, Ok(true)) {
                self.let_in_readers(ours)?;
                return is_shut;
            }
        }
        Ok(true)
    }

    /// Takes [`WalIndex::shut_out_readers`] back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_in_readers(&self, ours: Slot) -> io::Result<()> {
        for number in slots_but(Some(ours)) {
            self.lock(OwnLock::None, number)?;
        }
        Ok(())
    }

    /// Keeps everybody from backfilling; `false` while somebody does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_zero(&self) -> io::Result<bool> {
        self.lock(OwnLock::Shared, 0)
    }

    /// Lets everybody backfill again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release_zero(&self) -> io::Result<()> {
        self.lock(OwnLock::None, 0).map(drop)
    }

    /// Whether somebody checkpoints, perhaps a connection of this process. Only then more can be backfilled.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_checkpointed(&self) -> io::Result<bool> {
        is_locked_for_others(&self.0, CHECKPOINT_LOCK)
    }

    /// As a checkpoint does that finds nobody in a slot. Nobody else may have it.
    fn clear_mark(&self, number: u8) -> io::Result<()> {
        let at = MARKS + 4 * u64::from(number);
        let mut mark = [0; 4];
        self.0.read_exact_at(&mut mark, at)?;
        if mark != NOT_USED {
            self.0.write_all_at(&NOT_USED, at)?;
        }
        Ok(())
    }

    /// Whether it was to be had at once.
    fn lock(&self, lock: OwnLock, number: u8) -> io::Result<bool> {
        lock_for_open_file(&self.0, lock, READ_LOCK_ZERO + u64::from(number))
    }
}
