//! That whoever may use a database may use its `-wal` and `-shm`: we may be the ones who make them, before a deployment
//! has given the database to its application; and we hold them for as long as that has it open.

use super::attach::AttachRequest;
use super::refusal::Refusal;
use super::{Source, State, Task};
use crate::core::names;
use crate::core::rights::Rights;
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::rights;
use log::info;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is asked though no event tells.
const PAUSE: Duration = Duration::from_secs(5);

impl Source {
    /// Gives `-wal` and `-shm` the rights of the database, if it is time. Where that cannot be, and its application cannot
    /// use them, they go as soon as nobody else has it open.
    pub(super) fn look_at_rights(&mut self, is_asked: bool, now: Instant) {
        let is_told = std::mem::take(&mut self.dirty.rights) || is_asked;
        if !is_told && self.rights_at.is_some_and(|at| now < at) {
            return;
        }
        let State::Attached(attached) = &self.state else { return };
        self.rights_at = Some(now + PAUSE);
        match share(&attached.descriptor, &self.settings.database, attached.guard.index().file()) {
            Ok(()) => self.solved(Task::Rights),
            Err(refusal) => {
                self.failed(Task::Rights, &refusal.to_string());
                // Whoever looks around plans to let go.
                self.dirty.closed = true;
            }
        }
    }

    /// Whether the application cannot use the files that we hold.
    pub(super) fn shuts_out(&self) -> bool {
        self.problems.contains_key(&Task::Rights)
    }
}

/// Gives a database's `-wal` and `-shm`, of which the latter is open, the rights of the database.
///
/// # Errors
/// They are ours, and its owner and group cannot use them. What else cannot be done stays as it is.
pub(super) fn share(database: &DatabaseFile, path: &Path, wal_index: &File) -> Result<(), Refusal> {
    let Ok(wanted) = rights::of(database) else { return Ok(()) };
    let wal = names::beside(path, "-wal");
    // No lock is dropped when it is closed.
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&wal);
    let shared = file.map_or(Ok(()), |file| share_one(&wanted, &file, &wal));
    share_one(&wanted, wal_index, &names::beside(path, "-shm")).and(shared)
}

fn share_one(wanted: &Rights, file: &File, path: &Path) -> Result<(), Refusal> {
    let Ok(present) = rights::of(file) else { return Ok(()) };
    let aim = wanted.beside(&present);
    // With a second name it may be anything.
    let has_one_name = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1);
    if present == aim || !has_one_name || FileIdentity::of_path(path) != FileIdentity::of_file(file).ok() {
        return Ok(());
    }
    let serves = |rights: &Rights| rights.serves(wanted, rights::maker());
    let given = rights::give(file, &present, &aim);
    let ours = rights::of(file).unwrap_or_else(|_| present.clone());
    if ours != present {
        let path = path.display();
        info!("{path}: has {ours} now, for whoever may use the database ({wanted}); it had {present}");
    }
    if serves(&ours) { Ok(()) } else { Err(shuts_out(ours, wanted, given)) }
}

/// Refuses to be the first to open a database whose application could not use the files that we would make.
///
/// # Errors
/// That is so.
pub(super) fn refuse_to_shut_out(request: &AttachRequest, database: &DatabaseFile) -> Result<(), Refusal> {
    let are_there = request.wal.exists() && request.wal_index.exists();
    let (Ok(wanted), Some(folder)) = (rights::of(database), request.database.parent()) else { return Ok(()) };
    if are_there || wanted.owner == rights::maker() {
        return Ok(());
    }
    // If no file can be made there, SQLite says so.
    let Ok((ours, given)) = rights::to_be_had(folder, &wanted) else { return Ok(()) };
    if ours.serves(&wanted, rights::maker()) { Ok(()) } else { Err(shuts_out(ours, &wanted, given)) }
}

fn shuts_out(ours: Rights, database: &Rights, given: io::Result<()>) -> Refusal {
    let reason = given.map_or_else(|error| error.to_string(), |()| "they stay as they are".to_owned());
    Refusal::ShutsOut { ours, database: database.clone(), reason }
}
