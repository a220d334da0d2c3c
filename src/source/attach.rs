//! Attaching to a database, and letting go of it.

use super::apart::is_used_apart;
use super::capture::{Capture, Look, LookError};
use super::checkpointer::Checkpointer;
use super::found;
use super::guard::Guard;
use super::held::Held;
use super::held_files::HeldFiles;
use super::inspect::Suspicion;
use super::kept_out;
use super::left_behind::{Paths, has_no_name};
use super::let_go::Resting;
use super::proof;
use super::refusal::Refusal;
use super::rights;
use crate::core::evidence::{Evidence, Sighting, Stamp};
use crate::core::position::Generation;
use crate::core::sync::Break;
use crate::core::wal::Salt;
use crate::core::wal_index::WalExtent;
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::disk::Disk;
use crate::locks::{self, WalIndex};
use crate::processor::Processor;
use crate::shadow::ShadowWal;
use crate::sqlite::{Handle, SqliteError};
use log::warn;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything the agent holds of a database. Drop order is significant: every connection closes before the one
/// descriptor of the database file and that of `-shm`, because closing one drops SQLite's locks on it.
pub struct Attached {
    /// Asks the wal-index; never inside a transaction.
    pub query: Handle,
    /// Takes the write lock in an urgent round.
    pub write_lock: Handle,
    /// Checkpoints; with a worker while it does.
    pub checkpointer: Option<Box<Checkpointer>>,
    /// Copies the WAL.
    pub capture: Capture,
    /// Holds the WAL, by the one descriptor of `-shm`.
    pub guard: Guard,
    /// The one descriptor of the database file. Snapshots are read through it.
    pub descriptor: DatabaseFile,
    /// Keeps other agents out.
    pub lock: File,
    /// Where a writer that never pauses did not run when it was last seen.
    pub apart: Option<Processor>,
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
        // On read lock 0 the WAL could be restarted before all of it is copied; and nobody could backfill meanwhile.
        self.guard.forbid_restart()?;
        let inode = self.descriptor.identity().inode();
        let shadow = ShadowWal::begin(Arc::clone(disk), meta, generation, inode)?;
        self.capture.begin(shadow);
        Ok(())
    }

    /// Closes everything as the last one who has the database open, so that SQLite removes `-wal` and `-shm`. Others
    /// must be locked out, and everything must be in the database file.
    pub fn close(self) -> (ShadowWal, File, Result<(), SqliteError>) {
        let Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: _ } = self;
        drop((query, write_lock));
        let closed = checkpointer.map_or(Ok(()), |checkpointer| checkpointer.close_last());
        kept_out::after_closing(&descriptor);
        drop((guard, descriptor));
        (capture.shadow, lock, closed)
    }

    /// What the wal-index says.
    ///
    /// # Errors
    /// SQLite's; busy while somebody makes it anew.
    pub fn extent(&self) -> Result<WalExtent, SqliteError> {
        self.guard.extent(&self.query)
    }

    /// As [`Capture::look`].
    ///
    /// # Errors
    /// As there.
    pub fn look(&mut self) -> Result<Look, LookError> {
        let (guard, query) = (&self.guard, &self.query);
        self.capture.look(|| guard.extent(query))
    }

    /// What is seen of the file and of others just now; `None` if it cannot be told.
    pub fn sight(&self) -> Option<Sighting> {
        let alone = !locks::is_shared(&self.descriptor).ok()?;
        let before = self.in_file()?;
        let stamp = proof::stamp_of(&self.descriptor).ok()?;
        let header = proof::header_of(&self.descriptor);
        // A checkpoint that wrote before the stamp was read holds its lock still, or was cut off, or there is more in the
        // file by now: asked in this order.
        let is_held = self.guard.index().is_checkpointed().ok()?;
        let cut_off = locks::cut_off(self.guard.index().file()).ok()?;
        let (backfilled, is_backfilled) = self.in_file()?;
        let is_checkpointed = is_held || backfilled != before.0;
        Some(Sighting { is_backfilled, stamp, backfilled, cut_off, is_checkpointed, alone, header })
    }

    /// How much of which WAL is in the file, and whether that is all; `None` while somebody writes it.
    pub(super) fn in_file(&self) -> Option<((Salt, u32), bool)> {
        // SQLite makes it anew where somebody was killed in writing it.
        let made_anew = || self.extent().ok().and_then(|_| self.guard.index().extent());
        self.guard.index().extent().or_else(made_anew)?.in_file()
    }

    /// Whether the file that is open is the one at its path.
    pub fn is_at_path(&self, path: &Path) -> bool {
        is_at_path(&self.descriptor, path)
    }

    /// Whether the WAL has been moved away from its path, or replaced there, and still has a name.
    pub fn is_wal_elsewhere(&self, wal: &Path) -> bool {
        let moved = |file: &File| {
            FileIdentity::of_path(wal) != FileIdentity::of_file(file).ok() && !has_no_name(file)
        };
        self.capture.live_file().is_some_and(moved)
    }

    /// Which files are held.
    ///
    /// # Errors
    /// The kernel's.
    pub fn files(&self, database: &Path) -> io::Result<HeldFiles> {
        HeldFiles::of(database, &self.descriptor, self.guard.index().file())
    }

    /// What was put in the place of a file that is held, or removed.
    pub fn replaced(&self, database: &Path) -> Option<Break> {
        self.files(database).map_or(Some(Break::DatabaseReplaced), |files| files.replaced())
    }
}

pub(super) fn is_at_path(file: &DatabaseFile, path: &Path) -> bool {
    FileIdentity::of_path(path) == Some(file.identity())
}

/// What a worker needs to attach.
pub struct AttachRequest {
    /// The database file.
    pub database: PathBuf,
    /// Its `-wal`.
    pub wal: PathBuf,
    /// Its `-shm`.
    pub wal_index: PathBuf,
    /// Our state.
    pub meta: PathBuf,
    /// Where our state is.
    pub disk: Arc<dyn Disk>,
    /// The generation to begin if the last one cannot go on.
    pub next_generation: Generation,
    /// Why the last one cannot, if that is known.
    pub forced_break: Option<Break>,
    /// What is known of it since we let go.
    pub resting: Option<Box<Resting>>,
    /// Whether it must be held even if nobody else has it open and nothing has changed.
    pub is_needed: bool,
    /// Whether there was none a moment ago: what has come since is seen in the next turn, and settles first.
    pub is_awaited: bool,
}

impl AttachRequest {
    pub(super) fn paths(&self) -> Paths<'_> {
        Paths { database: &self.database, wal: &self.wal, meta: &self.meta, disk: &*self.disk }
    }
}

/// What came of attaching.
pub enum AttachOutcome {
    /// There is no database at the path, or an empty file.
    Absent,
    /// Nobody has it open, and it is what was copied: it is left alone.
    Resting(Box<Resting>),
    /// Attached.
    Attached {
        /// What is held.
        attached: Box<Attached>,
        /// The file, with its WAL held: what is written into it from then on is asked about.
        seen: Option<Sighting>,
        /// Why the last generation does not go on; `None` if it may.
        reason: Option<Break>,
        /// What only comparing its pages can tell, before anything is copied.
        to_compare: Option<Break>,
        /// What its pages are to tell.
        to_inspect: Option<Suspicion>,
        /// It was not in WAL mode, and is now.
        was_switched: bool,
    },
    /// There is a database, but it cannot be attached to now.
    Refused(Refusal),
}

/// Attaches: opens the file once, then SQLite's connections, then begins to hold the WAL.
pub fn attach(request: AttachRequest) -> AttachOutcome {
    if request.database.is_symlink() {
        // SQLite keeps its WAL beside the file that the link leads to.
        let reason = "it is a symbolic link; name the file itself, or restart the agent".to_owned();
        return AttachOutcome::Refused(Refusal::NoAccess(reason));
    }
    match std::fs::metadata(&request.database) {
        // An empty file has no page size yet: switching it to WAL mode would choose one for the application.
        Ok(metadata) if metadata.len() > 0 && !request.is_awaited => {}
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

fn try_attach(mut request: AttachRequest) -> Result<AttachOutcome, Refusal> {
    let resting = request.resting.take();
    let request = &request;
    let path = &request.database;
    let opened = DatabaseFile::open(path).map_err(|e| Refusal::NoAccess(remedy(path, &e)))?;
    let descriptor = opened.ok_or(Refusal::StillOpen)?;
    let no_access = |e: io::Error| Refusal::NoAccess(e.to_string());
    if request.forced_break == Some(Break::UsedApart) {
        // With a lock of ours, the list says which device it is.
        let _ = locks::let_in(&descriptor);
        // Opened and closed here: no connection of ours may have it.
        let is_unlocked = !locks::is_index_shared(&request.wal_index).unwrap_or(false);
        if is_used_apart(&descriptor, &request.wal_index, is_unlocked) {
            return Err(Refusal::UsedApart);
        }
    }
    let stamp = proof::stamp_of(&descriptor).map_err(no_access)?;
    let past = Past::of(request, resting, stamp.inode)?;
    found::settle(request, &descriptor)?;
    if !request.is_needed && !request.wal.exists() && past.holds(stamp) {
        return Ok(AttachOutcome::Resting(Box::new(past.into_resting()?)));
    }
    rights::refuse_to_shut_out(request, &descriptor)?;
    // Declared before the connections: whatever fails here, they close first.
    let mut guard;
    // First of all: a program that only writes one row may be gone again in a millisecond, and with it the WAL.
    let query = Handle::open(path)?;
    let was_switched = ensure_wal_mode(&query)?;
    // The wal-index is made anew where nobody else has it open.
    query.wal_extent()?;
    guard = Guard::new(WalIndex::open(&request.wal_index).map_err(no_access)?);
    // At once, for whoever comes next. What cannot be done is found out, and said, once it is held.
    let _ = rights::share(&descriptor, path, guard.index().file());
    guard.forbid_restart().map_err(no_access)?;
    let (write_lock, checkpointer) =
        (open_ready(path)?, Checkpointer::new(open_ready(path)?, open_ready(path)?));
    if !guard.holds() {
        return Err(SqliteError::Busy.into());
    }
    // Only what is looked at after we began to hold can be trusted: from here on, no WAL ends without us.
    let in_file = guard.index().extent().and_then(WalExtent::in_file);
    let stamp = proof::stamp_of(&descriptor).map_err(no_access)?;
    // A new generation begins only if nothing can fail any more: else each try would begin one.
    let (shadow, lock, beginning) = past.go_on(request, stamp)?;
    let is_proven = beginning == Beginning::Proven;
    let mut capture = Capture::new(request.wal.clone(), shadow);
    capture.continues = is_proven;
    let checkpointer = Some(Box::new(checkpointer));
    let mut attached =
        Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: None };
    attached.capture.open_live().map_err(|e| Refusal::NoAccess(e.to_string()))?;
    let held = keep_held(&attached, request);
    held.unwrap_or_else(|e| warn!("{}: cannot write {}: {e}", path.display(), request.meta.display()));
    let seen = attached.sight();
    let seen = match is_proven {
        // What the evidence held for, and what was in the file then.
        true => seen.zip(in_file).map(|(seen, (backfilled, is_backfilled))| Sighting {
            stamp,
            backfilled,
            is_backfilled,
            ..seen
        }),
        false => seen.filter(|seen| !seen.is_checkpointed),
    };
    let (reason, to_compare, to_inspect) = match beginning {
        Beginning::Proven | Beginning::ToBeSeen => (None, None, None),
        Beginning::ToBeInspected => (None, None, Some(Suspicion::Unseen)),
        Beginning::New(reason) => (Some(reason), None, None),
        Beginning::Doubtful(reason) => (None, Some(reason), None),
    };
    let attached = Box::new(attached);
    Ok(AttachOutcome::Attached { attached, seen, reason, to_compare, to_inspect, was_switched })
}

/// Keeps which WAL is this database's now.
fn keep_held(attached: &Attached, request: &AttachRequest) -> io::Result<()> {
    let Some(wal) = attached.capture.live_file() else { return Ok(()) };
    let held = Held::of(&attached.descriptor.metadata()?, &wal.metadata()?);
    let is_mixed = Held::is_mixed(request.paths(), attached.descriptor.metadata());
    if is_mixed { held.mixed() } else { held }.keep(&*request.disk, &request.meta)
}

/// A handle asks for the mode so that it has read page 1, and with it the page size, before it is asked more.
fn open_ready(path: &Path) -> Result<Handle, Refusal> {
    let handle = Handle::open(path)?;
    handle.journal_mode()?;
    Ok(handle)
}

/// What was before we attached.
struct Past {
    lock: File,
    shadow: Result<ShadowWal, Break>,
    evidence: Option<Evidence>,
}

/// The shadow to go on from, if there is one.
fn last_shadow(request: &AttachRequest, inode: u64) -> io::Result<Result<ShadowWal, Break>> {
    if ShadowWal::is_lost(&*request.disk, &request.meta)? {
        return Ok(Err(Break::ShadowLost));
    }
    if let Err(reason) = ShadowWal::bind_to_machine(&*request.disk, &request.meta)? {
        return Ok(Err(reason));
    }
    ShadowWal::recover(&request.disk, &request.meta, inode)
}

/// How what is attached to follows on what was copied.
#[derive(PartialEq, Eq)]
enum Beginning {
    /// Nothing was missed: whatever WAL there is, is the next one.
    Proven,
    /// The first look compares the WAL with its copy.
    ToBeSeen,
    /// The same, and the file is compared with both.
    ToBeInspected,
    /// Only comparing its pages can tell.
    Doubtful(Break),
    /// It does not; a new generation has begun.
    New(Break),
}

impl Past {
    fn of(request: &AttachRequest, resting: Option<Box<Resting>>, inode: u64) -> Result<Past, Refusal> {
        if let Some(resting) = resting {
            let Resting { shadow, evidence, lock } = *resting;
            let is_same = evidence.stamp.inode == inode;
            let shadow = if is_same { Ok(shadow) } else { Err(Break::DatabaseReplaced) };
            return Ok(Past { lock, shadow, evidence: Some(evidence) });
        }
        let lock = lock_meta(request)?;
        let evidence = proof::kept(&*request.disk, &request.meta);
        let shadow = match &request.forced_break {
            Some(reason) => Err(reason.clone()),
            None => last_shadow(request, inode).map_err(|e| meta_error(request, e))?,
        };
        Ok(Past { lock, shadow, evidence })
    }

    /// Whether the file holds exactly what was copied.
    fn holds(&self, stamp: Stamp) -> bool {
        let (Ok(shadow), Some(evidence)) = (&self.shadow, &self.evidence) else { return false };
        shadow.disk().boot().is_some_and(|boot| evidence.holds(shadow.extent().position(), stamp, &boot))
    }

    fn into_resting(self) -> Result<Resting, Refusal> {
        match (self.shadow, self.evidence) {
            (Ok(shadow), Some(evidence)) => Ok(Resting { shadow, evidence, lock: self.lock }),
            _ => unreachable!("BUG: only what holds rests"),
        }
    }

    /// With the WAL held, and `stamp` taken after that.
    fn go_on(self, request: &AttachRequest, stamp: Stamp) -> Result<(ShadowWal, File, Beginning), Refusal> {
        let holds = self.holds(stamp);
        let rested_at = self.evidence.as_ref().map(|evidence| evidence.position);
        proof::forget(&*request.disk, &request.meta).map_err(|e| meta_error(request, e))?;
        let shadow = match self.shadow {
            Ok(shadow) => shadow,
            Err(reason) => {
                let disk = Arc::clone(&request.disk);
                let shadow = ShadowWal::begin(disk, &request.meta, request.next_generation, stamp.inode);
                let shadow = shadow.map_err(|e| meta_error(request, e))?;
                return Ok((shadow, self.lock, Beginning::New(reason)));
            }
        };
        let copied = shadow.facts().map(|facts| facts.header);
        let is_copied = copied.is_some() && proof::wal_header(&request.wal) == copied;
        let is_at_path = proof::stamp_at(&request.database).is_some_and(|s| s.inode == stamp.inode);
        let rested_here = rested_at == Some(shadow.extent().position());
        // Whether it is the first WAL since does not matter: what a restart loses of one is in the file.
        let beginning = if !is_copied && holds && is_at_path {
            Beginning::Proven
        } else if copied.is_none() && !rested_here {
            // Nothing was copied, so that no look could tell.
            Beginning::Doubtful(Break::ShadowMissing)
        } else if is_copied {
            Beginning::ToBeInspected
        } else if !rested_here {
            Beginning::ToBeSeen
        } else {
            Beginning::Doubtful(Break::DatabaseChanged)
        };
        Ok((shadow, self.lock, beginning))
    }
}

pub(super) fn meta_error(request: &AttachRequest, error: io::Error) -> Refusal {
    Refusal::Meta(format!("{}: {}", request.meta.display(), remedy(&request.meta, &error)))
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
            "{error}; a systemd service needs the user that the files belong to as `User=`, or \
             `AmbientCapabilities=CAP_DAC_OVERRIDE CAP_CHOWN`: systemctl edit wal-agent"
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
    let error = |e: io::Error| meta_error(request, e);
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
