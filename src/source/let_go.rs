//! Letting go of a database that nobody else has open: everything goes into its file, and `-wal` and `-shm` go away, as
//! if we had never been there.

use super::attach::Attached;
use super::capture::Look;
use super::proof;
use super::round::{Stop, checkpoint, move_reader};
use crate::core::evidence::{Evidence, Stamp};
use crate::core::sync::Break;
use crate::disk::Disk;
use crate::locks;
use crate::shadow::ShadowWal;
use log::warn;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Until the times of a file that was just written are good enough, where the file system keeps nanoseconds.
const SHORT_PAUSE: Duration = Duration::from_millis(25);

/// What a worker needs to let go.
pub struct LetGoRequest {
    /// What is held.
    pub attached: Box<Attached>,
    /// The database file.
    pub database: PathBuf,
    /// Its `-wal`.
    pub wal: PathBuf,
    /// Our state.
    pub meta: PathBuf,
    /// Where our state is.
    pub disk: Arc<dyn Disk>,
    /// The file when it was first seen that nobody else is there.
    pub stamp: Stamp,
}

/// A database at rest: nothing of it is held.
pub struct Resting {
    /// The copy; complete.
    pub shadow: ShadowWal,
    /// That the file is what was copied.
    pub evidence: Evidence,
    /// Keeps other agents out.
    pub lock: File,
}

/// Why a database is not let go of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stay {
    /// Another process has it open.
    Used,
    /// A process has its `-wal` open, though no lock tells.
    OpenIn(String),
    /// The file was written so lately that a later write might not show in its times.
    Young(Duration),
    /// Something is still in the way.
    Later,
    /// A look on the way found this.
    Broken(Break),
    /// What failed.
    Failed(String),
}

/// How letting go ended.
pub enum LetGoOutcome {
    /// Nothing is held any more.
    Resting(Box<Resting>),
    /// Everything is held as before.
    Kept(Box<Attached>, Stay),
    /// Nothing is held; SQLite could not close the database properly.
    Lost(String),
}

/// Lets go, if nobody is there. Until all others are locked out, nothing is given up.
pub fn let_go(request: LetGoRequest) -> LetGoOutcome {
    let LetGoRequest { mut attached, database, wal, meta, disk, stamp } = request;
    let boot = match settle(&mut attached, &database, &wal, stamp) {
        Ok(boot) => boot,
        Err(stay) => return LetGoOutcome::Kept(attached, stay),
    };
    let evidence = match lock_out(&mut attached, &database, boot) {
        Ok(evidence) => evidence,
        Err(stay) => return LetGoOutcome::Kept(attached, stay),
    };
    let (shadow, lock, closed) = attached.close();
    if let Err(error) = closed {
        return LetGoOutcome::Lost(format!("cannot close the database: {error}"));
    }
    if let Err(error) = proof::keep(&*disk, &meta, &evidence) {
        // It counts in this run all the same.
        warn!("{}: cannot write {}: {error}", database.display(), meta.display());
    }
    LetGoOutcome::Resting(Box::new(Resting { shadow, evidence, lock }))
}

/// Brings everything into the database file, beside whoever comes. Returns the boot.
fn settle(attached: &mut Attached, database: &Path, wal: &Path, stamp: Stamp) -> Result<String, Stay> {
    let boot =
        proof::boot().ok_or_else(|| Stay::Failed("the kernel does not tell its boot id".to_owned()))?;
    let failed = |error: std::io::Error| Stay::Failed(error.to_string());
    if proof::stamp_of(&attached.descriptor).map_err(failed)? != stamp {
        return Err(Stay::Later);
    }
    move_reader(attached, None)?;
    if checkpoint(attached, database, None)? > 0 {
        return Err(Stay::Later);
    }
    move_reader(attached, None)?;
    attached.descriptor.sync_data().map_err(failed)?;
    match locks::process_with(wal) {
        Some(process) => Err(Stay::OpenIn(process)),
        None => Ok(boot),
    }
}

/// Keeps everybody out, and proves that the file holds everything that was copied.
fn lock_out(attached: &mut Attached, database: &Path, boot: String) -> Result<Evidence, Stay> {
    let failed = |error: std::io::Error| Stay::Failed(error.to_string());
    let stamp = proof::stamp_of(&attached.descriptor).map_err(failed)?;
    match stamp.ripens_in(proof::file_time()) {
        // What we have just checkpointed is always young. Whoever comes meanwhile is followed a moment later.
        pause if pause <= SHORT_PAUSE => std::thread::sleep(pause),
        pause => return Err(Stay::Young(pause)),
    }
    if !locks::lock_out(&attached.descriptor).map_err(failed)? {
        return Err(Stay::Used);
    }
    let result = is_complete(attached, database, stamp);
    if result.is_err() {
        locks::let_in(&attached.descriptor).map_err(failed)?;
    }
    result?;
    let position = attached.capture.shadow.extent().position();
    Ok(Evidence { position, stamp, boot })
}

/// While everybody is locked out.
fn is_complete(attached: &mut Attached, database: &Path, stamp: Stamp) -> Result<(), Stay> {
    let look = attached.capture.look(&attached.guard.query);
    match look.map_err(|error| Stay::Failed(error.to_string()))? {
        Look::UpToDate { extent, .. } if extent.frames == 0 || extent.is_backfilled() => {}
        Look::Broken(reason) => return Err(Stay::Broken(reason)),
        Look::UpToDate { .. } | Look::More | Look::Again => return Err(Stay::Later),
    }
    // Now, or never: from here on, a write of anybody shows in the file's times.
    let is_same = proof::stamp_of(&attached.descriptor).is_ok_and(|now| now == stamp);
    if is_same && attached.is_at_path(database) { Ok(()) } else { Err(Stay::Later) }
}

impl From<Stop> for Stay {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Later => Stay::Later,
            Stop::Broken(reason) => Stay::Broken(reason),
            Stop::Failed(error) => Stay::Failed(error),
        }
    }
}
