//! Letting go of a database that nobody else has open: everything goes into its file, and `-wal` and `-shm` go away, as
//! if we had never been there.

use super::attach::Attached;
use super::capture::Look;
use super::guard::GuardError;
use super::kept_out;
use super::left_behind::{LeftBehind, Paths};
use super::proof;
use super::round::{Stop, copy_all, sync_shadow};
use crate::core::evidence::{Evidence, Sighting, Stamp};
use crate::core::sync::Break;
use crate::disk::Disk;
use crate::locks;
use crate::shadow::ShadowWal;
use log::warn;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Until the times of a file that was just written are good enough, where the file system keeps nanoseconds.
const SHORT_PAUSE: Duration = Duration::from_millis(25);

/// How often it is asked meanwhile whether the file was renamed.
const RENAME_PAUSE: Duration = Duration::from_millis(1);

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
    /// The file when it was last seen that nobody else is there.
    pub seen: Sighting,
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
    /// Nothing is held: another content was put into the file. Its WAL, if that has to stay.
    Overwritten(Option<LeftBehind>),
    /// Everything is held as before; and the file, if our checkpoint may have written into it.
    Kept(Box<Attached>, Stay, Option<Stamp>),
    /// Nothing is held; SQLite could not close the database properly.
    Lost(String),
}

/// Lets go, if nobody is there. Until all others are locked out, nothing is given up.
pub fn let_go(request: LetGoRequest) -> LetGoOutcome {
    let LetGoRequest { mut attached, database, wal, meta, disk, seen } = request;
    let boot = match settle(&mut attached, &wal) {
        Ok(boot) => boot,
        Err(stay) => return LetGoOutcome::Kept(attached, stay, None),
    };
    let stamp = match finish(&mut attached, &database, &seen) {
        Ok(Some(stamp)) => stamp,
        Ok(None) => {
            let at = Paths { database: &database, wal: &wal, meta: &meta, disk: &*disk };
            return LetGoOutcome::Overwritten(attached.let_go_of_overwritten(at));
        }
        Err(Unfinished { stay, written }) => {
            kept_out::let_in_unless_kept_out(&attached.descriptor);
            return LetGoOutcome::Kept(attached, stay, written);
        }
    };
    let position = attached.capture.shadow.extent().position();
    let (shadow, lock, closed) = attached.close();
    if let Err(error) = closed {
        return LetGoOutcome::Lost(format!("cannot close the database: {error}"));
    }
    let evidence = Evidence { position, stamp, boot };
    if let Err(error) = proof::keep(&*disk, &meta, &evidence) {
        // It counts in this run all the same.
        warn!("{}: cannot write {}: {error}", database.display(), meta.display());
    }
    LetGoOutcome::Resting(Box::new(Resting { shadow, evidence, lock }))
}

/// Why it was not finished, and the file with what our checkpoint has written by then.
struct Unfinished {
    stay: Stay,
    written: Option<Stamp>,
}

impl From<Stay> for Unfinished {
    fn from(stay: Stay) -> Self {
        Unfinished { stay, written: None }
    }
}

fn failed(error: impl ToString) -> Stay {
    Stay::Failed(error.to_string())
}

impl Attached {
    /// Brings everything into the file while nobody else can commit, and makes nothing durable; whether it is all there.
    pub(super) fn checkpoint_alone(&mut self) -> Result<bool, GuardError> {
        let Some(checkpointer) = &self.checkpointer else { return Ok(false) };
        self.guard.forbid_restart()?;
        Ok(checkpointer.checkpoint_alone()?.extent().is_backfilled())
    }
}

/// Copies everything and makes it durable, beside whoever comes. Returns the boot.
fn settle(attached: &mut Attached, wal: &Path) -> Result<String, Stay> {
    let boot = attached.capture.shadow.disk().boot();
    let boot = boot.ok_or_else(|| failed("the kernel does not tell its boot id"))?;
    if let Some(process) = locks::process_with(wal) {
        return Err(Stay::OpenIn(process));
    }
    copy_all(attached, None)?;
    sync_shadow(attached)?;
    // The checkpoint under the lock writes the database and waits for nothing.
    attached.capture.live_file().map_or(Ok(()), File::sync_data).map_err(failed)?;
    Ok(boot)
}

/// Keeps everybody out and does what SQLite does when a database is closed for the last time. Returns the file as it
/// is then, with everything in it; `None` if it is not what our checkpoint made of it.
///
/// Somebody may just be copying another file over this one: `cp` asks for no lock. So the file is compared directly
/// before our writes, and all that was written is looked for afterwards.
fn finish(attached: &mut Attached, database: &Path, seen: &Sighting) -> Result<Option<Stamp>, Unfinished> {
    if !locks::lock_out(&attached.descriptor).map_err(failed)? {
        return Err(Stay::Used.into());
    }
    // From here on nobody can come, nor make another wal-index.
    if let Some(reason) = attached.replaced(database) {
        return Err(Stay::Broken(reason).into());
    }
    let frames = match attached.look().map_err(failed)? {
        Look::UpToDate { extent, .. } if attached.capture.is_overwritten(extent) => {
            return Err(Stay::Broken(Break::WalOverwritten).into());
        }
        Look::UpToDate { extent, .. } => extent.left(),
        Look::Broken(reason) => return Err(Stay::Broken(reason).into()),
        Look::Copied { .. } | Look::More { .. } | Look::Unsynced { .. } | Look::Again => {
            return Err(Stay::Later.into());
        }
    };
    let headers = attached.capture.shadow.headers().map_err(failed)?;
    if !attached.is_at_path(database) || proof::stamp_of(&attached.descriptor).map_err(failed)? != seen.stamp
    {
        return Err(Stay::Later.into());
    }
    let checkpointed = match &attached.checkpointer {
        Some(_) if frames == 0 => Ok(true),
        _ => attached.checkpoint_alone(),
    };
    let stamp = proof::stamp_of(&attached.descriptor).map_err(failed)?;
    let written = |stay| Unfinished { stay, written: Some(stamp) };
    if !checkpointed.map_err(|error| written(failed(error)))? {
        return Err(written(Stay::Later));
    }
    if frames > 0 && proof::header_of(&attached.descriptor) != headers.last().copied().unwrap_or(seen.header)
    {
        return Ok(None);
    }
    attached.descriptor.sync_data().map_err(|error| written(failed(error)))?;
    match stamp.ripens_in(proof::file_time()) {
        // What we have just written is always young. Whoever comes meanwhile waits, as for any last close.
        pause if pause <= SHORT_PAUSE => wait_there(attached, database, pause),
        pause => return Err(written(Stay::Young(pause))),
    }
    let now = proof::stamp_of(&attached.descriptor).map_err(failed)?;
    if !stamp.is_but_for_its_name(now) {
        return Ok(None);
    }
    let renamed = |stay| Unfinished { stay, written: Some(now) };
    match attached.replaced(database) {
        Some(reason) => Err(renamed(Stay::Broken(reason))),
        // Moved away and back, or given a second name.
        None if now != stamp => Err(renamed(Stay::Later)),
        None => Ok(Some(stamp)),
    }
}

/// Waits for so long, or until another file is at the path: whoever opens that must not meet our WAL.
fn wait_there(attached: &Attached, database: &Path, pause: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < pause && attached.replaced(database).is_none() {
        std::thread::sleep(RENAME_PAUSE);
    }
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
