//! Our own checkpoints. None goes beyond what was committed before it was made sure that the database's path still leads
//! to the file we hold: what comes later may be another file's.

use crate::core::wal_index::Checkpointed;
use crate::sqlite::{Handle, SqliteError};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Two connections: one that checkpoints, and one whose mark limits it.
#[derive(Debug)]
pub struct Checkpointer {
    handle: Handle,
    limit: Handle,
}

impl Checkpointer {
    /// Of two handles that have read page 1.
    pub fn new(handle: Handle, limit: Handle) -> Self {
        Checkpointer { handle, limit }
    }

    /// Limits the checkpoint that follows to what is committed now.
    ///
    /// # Errors
    /// SQLite's; busy while somebody recovers the WAL.
    pub fn begin(&self) -> Result<LimitedCheckpoint<'_>, SqliteError> {
        self.limit.begin_read()?;
        Ok(LimitedCheckpoint(self))
    }

    /// Checkpoints while nobody else can commit, and makes nothing durable.
    ///
    /// # Errors
    /// SQLite's; busy while somebody else checkpoints.
    pub fn checkpoint_alone(&self) -> Result<Checkpointed, SqliteError> {
        self.handle.checkpoint_without_sync()
    }

    /// Empties the WAL; no other connection may be reading.
    ///
    /// # Errors
    /// SQLite's.
    pub fn empty_wal(&self) -> Result<Checkpointed, SqliteError> {
        self.handle.empty_wal()
    }

    /// Closes the last connections to a database, see [`Handle::close_last`].
    ///
    /// # Errors
    /// SQLite's; `-wal` and `-shm` stay then.
    pub fn close_last(self) -> Result<(), SqliteError> {
        drop(self.limit);
        self.handle.close_last()
    }
}

/// A passive checkpoint that is limited.
pub struct LimitedCheckpoint<'a>(&'a Checkpointer);

impl LimitedCheckpoint<'_> {
    /// Checkpoints, and tries for `patience` while somebody else does. Interrupted at `until`.
    ///
    /// # Errors
    /// SQLite's; busy only after `patience`.
    pub fn checkpoint(self, patience: Duration, until: Option<Instant>) -> Result<Checkpointed, SqliteError> {
        patiently(patience, || checkpoint_until(&self.0.handle, until))
    }
}

impl Drop for LimitedCheckpoint<'_> {
    fn drop(&mut self) {
        self.0.limit.end_read();
    }
}

/// Tries again while somebody else has the lock. Writers that never pause leave gaps of microseconds between two of their
/// transactions, or checkpoints, so it does not sleep between two tries.
///
/// # Errors
/// SQLite's; busy only after `patience`.
pub(super) fn patiently<T>(
    patience: Duration,
    mut ask: impl FnMut() -> Result<T, SqliteError>,
) -> Result<T, SqliteError> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(SqliteError::Busy) if begun.elapsed() < patience => std::thread::yield_now(),
            result => return result,
        }
    }
}

fn checkpoint_until(handle: &Handle, until: Option<Instant>) -> Result<Checkpointed, SqliteError> {
    let Some(until) = until else { return handle.checkpoint() };
    let stop = handle.interrupt_handle();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Disconnected means done: only a timeout is over the budget.
            let left = until.saturating_duration_since(Instant::now());
            if is_done.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                stop.interrupt();
            }
        });
        let result = handle.checkpoint();
        drop(done);
        result
    })
}
