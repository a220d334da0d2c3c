//! The urgent round: for writers that never pause, the last frames are checkpointed under the write lock.

use super::attach::Attached;
use super::guard::Move;
use crate::core::sync::Break;
use crate::sqlite::SqliteError;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a round tries to get the write lock; writers that never pause leave only short gaps.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// Between two tries for the write lock.
const LOCK_PAUSE: Duration = Duration::from_micros(50);
/// A copy under the lock takes a few turns at the most: what was committed since the bulk of the checkpoint.
const MOST_MOVES: u32 = 64;

/// How an urgent round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrgentReport {
    /// How long writers had to wait for us; `None` if we did not get the lock.
    pub held: Option<Duration>,
    /// Whether the next writer will restart the WAL.
    pub finished: bool,
    /// What a look on the way found.
    pub broken: Option<Break>,
    /// What failed; the round is tried again.
    pub error: Option<String>,
}

/// Carries out an urgent round; the bulk of the checkpoint was done before, beside the writers. Invariant: the WAL is
/// held throughout, and the write lock is free when this returns.
pub fn urgent_round(attached: &mut Attached, database: &Path, budget: Duration) -> UrgentReport {
    let mut report = UrgentReport { held: None, finished: false, broken: None, error: None };
    if let Err(error) = take_write_lock(attached) {
        report.error = error;
        return report;
    }
    let locked = Instant::now();
    match locked_part(attached, database, locked + budget) {
        Ok(Ok(finished)) => report.finished = finished,
        Ok(Err(reason)) => report.broken = Some(reason),
        Err(error) => report.error = Some(error),
    }
    attached.write_lock.rollback();
    report.held = Some(locked.elapsed());
    report
}

/// `Err(None)` if writers left no gap.
fn take_write_lock(attached: &Attached) -> Result<(), Option<String>> {
    let begun = Instant::now();
    loop {
        match attached.write_lock.begin_immediate() {
            Ok(()) => return Ok(()),
            Err(SqliteError::Busy) if begun.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_PAUSE),
            Err(SqliteError::Busy) => return Err(None),
            Err(error) => return Err(Some(error.to_string())),
        }
    }
}

/// Whether everything is backfilled and our reader on read lock 0.
fn locked_part(
    attached: &mut Attached,
    database: &Path,
    until: Instant,
) -> Result<Result<bool, Break>, String> {
    if let Some(reason) = move_reader(attached)? {
        return Ok(Err(reason));
    }
    if !attached.is_at_path(database) {
        return Ok(Err(Break::DatabaseReplaced));
    }
    let Some(checkpointer) = &attached.checkpointer else { return Ok(Ok(false)) };
    let stop = checkpointer.interrupt_handle();
    let (done, is_done) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            // Disconnected means done: only a timeout is over the budget.
            let left = until.saturating_duration_since(Instant::now());
            if is_done.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                stop.interrupt();
            }
        });
        let result = checkpointer.checkpoint();
        drop(done);
        result
    });
    match result {
        Ok(extent) if extent.is_backfilled() => {}
        Ok(_) | Err(SqliteError::Busy | SqliteError::Interrupted) => return Ok(Ok(false)),
        Err(error) => return Err(error.to_string()),
    }
    match move_reader(attached)? {
        Some(reason) => Ok(Err(reason)),
        None => Ok(Ok(true)),
    }
}

/// Copies the last frames, makes them durable, and moves the reader behind them.
fn move_reader(attached: &mut Attached) -> Result<Option<Break>, String> {
    for _ in 0..MOST_MOVES {
        match attached.guard.move_on(&mut attached.capture).map_err(|e| e.to_string())? {
            Move::Done => return sync_shadow(attached),
            Move::Broken(reason) => return Ok(Some(reason)),
            Move::NeedsSync => {
                if let Some(reason) = sync_shadow(attached)? {
                    return Ok(Some(reason));
                }
            }
            Move::NotYet => {}
        }
    }
    Err("the reader could not be moved".to_owned())
}

fn sync_shadow(attached: &mut Attached) -> Result<Option<Break>, String> {
    if let Some((file, index, end)) = attached.capture.shadow.to_sync() {
        // A failed fsync is not retried: what it should have written may be gone from the cache.
        if file.sync().is_err() {
            return Ok(Some(Break::ShadowSyncFailed));
        }
        attached.capture.shadow.on_synced(index, end);
    }
    Ok(None)
}
