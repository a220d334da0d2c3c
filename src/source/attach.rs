//! Attaching to a database, and letting go of it.

use super::capture::Capture;
use super::guard::Guard;
use crate::core::position::{Generation, Index};
use crate::core::sync::Break;
use crate::disk::Disk;
use crate::shadow::ShadowWal;
use crate::sqlite::{Handle, SqliteError};
use log::{error, warn};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the agent is not attached to a database that is there. Each is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another process holds it exclusively.
    Locked,
    /// It could not be set to WAL mode.
    NotWal(String),
    /// It is not a database, or it is encrypted.
    NotADatabase,
    /// It cannot be opened or written.
    NoAccess(String),
    /// Another agent holds the meta folder.
    AnotherAgent(PathBuf),
    /// The meta folder cannot be used.
    Meta(String),
    /// A snapshot of it is still being read.
    StillReading,
    /// Its `-wal` does not hold what the wal-index says: something other than SQLite has changed it.
    WalDamaged(Break),
    /// Anything else SQLite said.
    Sqlite(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Locked => f.write_str("another process has it locked (locking_mode=EXCLUSIVE, perhaps)"),
            Refusal::NotWal(mode) => {
                write!(f, "it is in journal mode {mode} and could not be set to WAL")
            }
            Refusal::NotADatabase => f.write_str("it is not an SQLite database, or it is encrypted"),
            Refusal::NoAccess(reason) => write!(f, "it cannot be opened and written: {reason}"),
            Refusal::AnotherAgent(meta) => write!(f, "another agent is using {}", meta.display()),
            Refusal::Meta(reason) => write!(f, "the meta folder cannot be used: {reason}"),
            Refusal::StillReading => f.write_str("a snapshot of the file that was there is still being read"),
            Refusal::WalDamaged(reason) => write!(
                f,
                "{reason}: something other than SQLite has changed its -wal; end the programs that have the database \
                 open, and start them again: SQLite then recovers what is there"
            ),
            Refusal::Sqlite(reason) => f.write_str(reason),
        }
    }
}

impl From<SqliteError> for Refusal {
    fn from(error: SqliteError) -> Self {
        match error {
            SqliteError::Busy => Refusal::Locked,
            SqliteError::NotADatabase => Refusal::NotADatabase,
            SqliteError::ReadOnly(reason) | SqliteError::CannotOpen(reason) => Refusal::NoAccess(reason),
            other => Refusal::Sqlite(other.to_string()),
        }
    }
}

/// Which file a path names, or a descriptor is open on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// The file's number on its file system.
    pub fn inode(self) -> u64 {
        self.inode
    }
    /// Of the file at a path, if there is one.
    pub fn of_path(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|m| FileIdentity { device: m.dev(), inode: m.ino() })
    }
    /// Of an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|m| FileIdentity { device: m.dev(), inode: m.ino() })
    }
}

/// Everything the agent holds of a database. Drop order is significant: every connection closes before the one
/// descriptor of the database file, because closing that drops SQLite's locks on it.
pub struct Attached {
    /// Holds the WAL.
    pub guard: Guard,
    /// Takes the write lock in an urgent round.
    pub write_lock: Handle,
    /// Checkpoints; with a worker while it does.
    pub checkpointer: Option<Handle>,
    /// Copies the WAL.
    pub capture: Capture,
    /// The one descriptor of the database file. Snapshots are read through it.
    pub descriptor: Arc<File>,
    /// Keeps other agents out.
    _lock: File,
}

impl Attached {
    /// Begins a generation of what is attached; its first look is not guarded.
    ///
    /// # Errors
    /// The disk's; the present generation goes on then.
    pub fn begin_generation(
        &mut self,
        disk: &Arc<dyn Disk>,
        meta: &Path,
        generation: Generation,
    ) -> io::Result<()> {
        let inode = FileIdentity::of_file(&self.descriptor)?.inode();
        self.capture.shadow = ShadowWal::begin(Arc::clone(disk), meta, generation, inode)?;
        self.capture.guarded = false;
        Ok(())
    }

    /// Closes everything, without a checkpoint, when another file is at the database's path or none is. The `-wal`
    /// belongs to the file that is gone: beside the new one, its frames would be read as the new one's. So it is
    /// removed, unless somebody has opened the new file already; what they see then may be mixed, and is said.
    pub fn let_go_of_replaced(self, database: &Path, wal: &Path) {
        let is_ours = self.capture.live_identity().is_some_and(|id| FileIdentity::of_path(wal) == Some(id));
        if is_ours && !self.is_at_path(database) {
            // Nobody can open the new file while all of it is locked.
            let locked = match OpenOptions::new().read(true).write(true).open(database) {
                Ok(file) => {
                    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
                        .is_ok()
                        .then_some(Some(file))
                }
                Err(e) => (e.kind() == io::ErrorKind::NotFound).then_some(None),
            };
            // The lock stays until our connections are closed: a program that came in before would join our `-shm`.
            match locked.as_ref().map(|_| std::fs::remove_file(wal)) {
                Some(Ok(())) => {}
                Some(Err(e)) => warn!("cannot remove {}, which belongs to the old file: {e}", wal.display()),
                None => error!(
                    "{}: another program opened the new file before the WAL of the old one could be removed: its \
                     content may be mixed; check it with PRAGMA integrity_check and put it in place again",
                    database.display()
                ),
            }
            drop(self);
        }
    }

    /// Whether the file that is open is the one at its path.
    pub fn is_at_path(&self, path: &Path) -> bool {
        FileIdentity::of_file(&self.descriptor).ok().is_some_and(|id| FileIdentity::of_path(path) == Some(id))
    }
}

/// What a worker needs to attach.
#[derive(Clone)]
pub struct AttachRequest {
    /// The database file.
    pub database: PathBuf,
    /// Its `-wal`.
    pub wal: PathBuf,
    /// Our state.
    pub meta: PathBuf,
    /// Where our state is.
    pub disk: Arc<dyn Disk>,
    /// The generation to begin if the last one cannot go on.
    pub next_generation: Generation,
    /// Why the last one cannot, if that is known.
    pub forced_break: Option<Break>,
}

/// What came of attaching.
pub enum AttachOutcome {
    /// There is no database at the path, or an empty file.
    Absent,
    /// Attached.
    Attached {
        /// What is held.
        attached: Box<Attached>,
        /// Why the last generation does not go on; `None` if it may.
        reason: Option<Break>,
        /// It was not in WAL mode, and is now.
        was_switched: bool,
    },
    /// There is a database, but it cannot be attached to now.
    Refused(Refusal),
}

/// Attaches: opens the file once, then SQLite's connections, then begins to hold the WAL.
pub fn attach(request: &AttachRequest) -> AttachOutcome {
    if request.database.is_symlink() {
        // SQLite keeps its WAL beside the file that the link leads to.
        let reason = "it is a symbolic link; name the file itself, or restart the agent".to_owned();
        return AttachOutcome::Refused(Refusal::NoAccess(reason));
    }
    match std::fs::metadata(&request.database) {
        // An empty file has no page size yet: switching it to WAL mode would choose one for the application.
        Ok(metadata) if metadata.len() > 0 => {}
        Ok(_) => return AttachOutcome::Absent,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return match hidden(&request.database) {
                Some(reason) => AttachOutcome::Refused(Refusal::NoAccess(reason)),
                None => AttachOutcome::Absent,
            };
        }
        Err(e) => return AttachOutcome::Refused(Refusal::NoAccess(remedy(&request.database, &e))),
    }
    try_attach(request).unwrap_or_else(AttachOutcome::Refused)
}

fn try_attach(request: &AttachRequest) -> Result<AttachOutcome, Refusal> {
    let lock = lock_meta(request)?;
    let path = &request.database;
    let descriptor = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| Refusal::NoAccess(remedy(path, &e)))?;
    let query = Handle::open(path)?;
    let was_switched = ensure_wal_mode(&query)?;
    let (reader, spare) = (Handle::open(path)?, Handle::open(path)?);
    let write_lock = Handle::open(path)?;
    let checkpointer = Handle::open(path)?;
    // Handles ask for the mode so that each has read page 1, and with it the page size, before it is asked more.
    for handle in [&reader, &spare, &write_lock, &checkpointer] {
        handle.journal_mode()?;
    }
    let guard = Guard::begin(reader, spare, query, Index::ZERO)?;
    let meta_error = |e: io::Error| meta_refusal(request, &e);
    let inode = FileIdentity::of_file(&descriptor).map_err(|e| Refusal::NoAccess(e.to_string()))?.inode();
    let (shadow, reason) = match recover(request, inode).map_err(meta_error)? {
        Ok(shadow) => (shadow, None),
        Err(reason) => {
            let disk = Arc::clone(&request.disk);
            let shadow = ShadowWal::begin(disk, &request.meta, request.next_generation, inode);
            (shadow.map_err(meta_error)?, Some(reason))
        }
    };
    let attached = Attached {
        guard,
        write_lock,
        checkpointer: Some(checkpointer),
        capture: Capture::new(request.wal.clone(), shadow),
        descriptor: Arc::new(descriptor),
        _lock: lock,
    };
    Ok(AttachOutcome::Attached { attached: Box::new(attached), reason, was_switched })
}

/// The shadow of the last run, if it is of this file.
fn recover(request: &AttachRequest, inode: u64) -> io::Result<Result<ShadowWal, Break>> {
    match &request.forced_break {
        Some(reason) => Ok(Err(reason.clone())),
        None => ShadowWal::recover(Arc::clone(&request.disk), &request.meta, inode),
    }
}

fn meta_refusal(request: &AttachRequest, error: &io::Error) -> Refusal {
    Refusal::Meta(format!("{}: {}", request.meta.display(), remedy(&request.meta, error)))
}

/// An error of the kernel, and what to write into a unit whose sandbox is the reason.
fn remedy(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(path).display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!(
                "{error}; a sandboxed systemd service needs `ReadWritePaths={folder}`: systemctl edit wal-agent"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}; a systemd service needs the user that the files belong to as `User=`, or no `User=` and \
             `CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_CHOWN`: systemctl edit wal-agent"
        ),
        _ => error.to_string(),
    }
}

/// Why a file is not there, if a sandbox hides it: systemd puts a folder that nobody may enter in front of `/home`.
fn hidden(path: &Path) -> Option<String> {
    let above = path.ancestors().skip(1).find(|folder| folder.exists())?;
    let is_closed = std::fs::metadata(above).is_ok_and(|metadata| metadata.mode() & 0o777 == 0);
    is_closed.then(|| {
        format!(
            "{} is hidden from the agent; a sandboxed systemd service needs `ProtectHome=read-only` and \
             `ReadWritePaths={}`: systemctl edit wal-agent",
            above.display(),
            path.parent().unwrap_or(path).display()
        )
    })
}

/// Two agents on one database would tear each other's shadow apart.
fn lock_meta(request: &AttachRequest) -> Result<File, Refusal> {
    let error = |e: io::Error| meta_refusal(request, &e);
    request.disk.create_folder(&request.meta).map_err(error)?;
    let path = request.meta.join("lock");
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(error)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::AnotherAgent(request.meta.clone())),
        Err(e) => Err(error(e.into())),
    }
}

/// Returns whether the mode had to be set.
fn ensure_wal_mode(handle: &Handle) -> Result<bool, Refusal> {
    if handle.journal_mode()? == "wal" {
        return Ok(false);
    }
    match handle.set_wal_mode()?.as_str() {
        "wal" => Ok(true),
        mode => Err(Refusal::NotWal(mode.to_owned())),
    }
}
