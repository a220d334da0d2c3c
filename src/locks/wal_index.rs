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
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// The byte that a checkpoint has locked until its end (wal.c, `WAL_CKPT_LOCK`).
const CHECKPOINT_LOCK: u64 = 121;
/// The byte of read lock 0; those of the slots follow (wal.c, `WAL_READ_LOCK`).
const READ_LOCK_ZERO: u64 = 123;
/// The slots of readers, the one last that SQLite takes first.
const SLOTS: [u8; 4] = [4, 3, 2, 1];
/// How many frames are in the database file, behind two headers of 48 bytes (wal.c, `WalCkptInfo.nBackfill`).
const BACKFILLED: u64 = 96;
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
    /// Nobody else has it, and its mark is unused; else no checkpoint goes beyond the mark that others gave it.
    pub is_ours: bool,
}

/// How far checkpoints of a WAL have come, as its wal-index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Of `-shm`.
    inode: u64,
    backfilled: u32,
    attempted: u32,
}

impl Progress {
    /// Of an open `-shm`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(index: &File) -> io::Result<Progress> {
        let number_at = |at| {
            let mut number = [0; 4];
            index.read_exact_at(&mut number, at).map(|()| u32::from_ne_bytes(number))
        };
        let inode = index.metadata()?.ino();
        Ok(Progress { inode, backfilled: number_at(BACKFILLED)?, attempted: number_at(ATTEMPTED)? })
    }

    /// Whether the last checkpoint has not come to its end: it is under way, or was killed, or failed; or somebody has
    /// recovered the WAL since.
    pub fn is_cut_off(self) -> bool {
        self.attempted > self.backfilled
    }

    /// Whether a checkpoint has been cut off since.
    pub fn was_cut_off_until(self, later: Progress) -> bool {
        self.inode == later.inode && self != later && later.is_cut_off()
    }
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

    /// Takes a slot: from then on nobody restarts the WAL. One that nobody uses, or the one that is `held` already, or at
    /// the worst one that others use. `None` if somebody is just restarting the WAL, or gives all slots a new mark.
    ///
    /// # Errors
    /// The kernel's; what is held stays held.
    pub fn take_slot(&self, held: Option<Slot>) -> io::Result<Option<Slot>> {
        if held.is_some_and(|slot| slot.is_ours) {
            return Ok(held);
        }
        for number in SLOTS {
            if self.lock(OwnLock::Exclusive, number)? {
                let slot = Slot { number, is_ours: true };
                let cleared = self.clear_mark(number);
                if cleared.is_err() && held.is_none_or(|held| held.number != number) {
                    // Exclusively locked, it would be in everybody's way.
                    self.release(slot)?;
                    return cleared.map(|()| None);
                }
                // Nobody can have come between: a lock of one's own is changed in one step.
                self.lock(OwnLock::Shared, number)?;
                cleared?;
                if let Some(held) = held.filter(|held| held.number != number) {
                    self.release(held)?;
                }
                return Ok(Some(slot));
            }
        }
        if held.is_some() {
            return Ok(held);
        }
        for number in SLOTS {
            if self.lock(OwnLock::Shared, number)? {
                return Ok(Some(Slot { number, is_ours: false }));
            }
        }
        Ok(None)
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release(&self, slot: Slot) -> io::Result<()> {
        self.lock(OwnLock::None, slot.number).map(drop)
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

    /// How far checkpoints have come.
    ///
    /// # Errors
    /// The kernel's.
    pub fn progress(&self) -> io::Result<Progress> {
        Progress::of(&self.0)
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
