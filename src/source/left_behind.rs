//! The WAL of a database that is not at its path any more. It must not be read as another file's, nor may it be lost:
//! the name may come back, or a program may be moving both files, one after the other. So it gets a second name at once.

use super::held::Held;
use super::kept;
use super::proof;
use super::refusal::Refusal;
use super::visits::Visits;
use super::went_on::is_written_last;
use crate::core::evidence::{DatabaseHeader, Stamp};
use crate::core::names;
use crate::core::position::Generation;
use crate::core::wal::WalHeaderBytes;
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::disk::Disk;
use crate::locks;
use log::{error, info, warn};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a database is, its WAL, and our state.
#[derive(Clone, Copy)]
pub struct Paths<'a> {
    /// The database file.
    pub database: &'a Path,
    /// Its `-wal`.
    pub wal: &'a Path,
    /// Our state.
    pub meta: &'a Path,
    /// Where that is.
    pub disk: &'a dyn Disk,
}

impl Paths<'_> {
    /// The database's `-shm`.
    pub(super) fn wal_index(&self) -> PathBuf {
        names::beside(self.database, "-shm")
    }
}

/// A database file as it was when it went away, but for its ctime, which a rename changes.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Its size and times.
    pub stamp: Stamp,
    /// Its header.
    pub header: DatabaseHeader,
}

impl Seen {
    /// The file now.
    pub fn now(file: &File) -> Option<Seen> {
        Some(Seen { stamp: proof::stamp_of(file).ok()?, header: proof::header_of(file) })
    }

    /// Whether nobody has written the file since.
    pub fn is(&self, file: &File) -> bool {
        Seen::now(file)
            .is_some_and(|now| self.stamp.is_but_for_its_name(now.stamp) && self.header == now.header)
    }
}

/// A database that we held, with its WAL.
pub struct LeftBehind {
    /// Which file it is; `None` once it is removed and cannot come back.
    pub identity: Option<FileIdentity>,
    /// Its descriptor, as long as a program has it open. It would take the room of a removed file, and keep another source
    /// of this agent from attaching to a renamed one.
    pub database: Option<DatabaseFile>,
    /// Its WAL.
    pub wal: File,
    /// The last generation it had.
    pub generation: Generation,
    /// The database file when it was left, or its program has ended; `None` if the WAL does not continue it any more.
    pub seen: Option<Seen>,
    /// Another process had it open.
    pub is_used: bool,
    /// Who has come to it since, while its program has it open; `None` if others may have been there who have another WAL.
    pub visits: Option<Visits>,
    /// What has become of the WAL's content.
    pub content: Content,
}

impl LeftBehind {
    /// A WAL that has only its name at the path, of which nobody knows the database.
    pub fn of(wal: File, generation: Generation) -> Self {
        LeftBehind {
            identity: None,
            database: None,
            wal,
            generation,
            seen: None,
            is_used: false,
            visits: None,
            content: Content::InWal,
        }
    }
}

/// Where the content of a WAL that was left behind is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the database file; the WAL is empty.
    InDatabase,
    /// In the WAL, which has this second name.
    Named(PathBuf),
    /// In the WAL alone.
    InWal,
}

/// What becomes of a WAL that was left behind.
pub enum Fate {
    /// It stays until something is at the database's path.
    NoDatabase,
    /// It is not there any more.
    Gone,
    /// The old file is at its path again.
    Back,
    /// The same, and others have written it: its WAL was moved away.
    BackChanged,
    /// It is in nobody's way. As long as the lock is held, nobody can open the new file.
    MovedAway(Option<DatabaseFile>),
    /// It lies beside a file it does not belong to, and that was said.
    Mixed,
    /// What is there cannot be opened now; nobody else has, as far as anybody knows.
    Later(Refusal),
}

impl LeftBehind {
    /// Closes the database file if it has no name any more, or its program has ended.
    pub fn release(&mut self, at: Paths) {
        let Some(file) = &self.database else { return };
        let is_removed = has_no_name(file);
        if is_removed {
            self.identity = None;
        }
        // Its program is told from others by its `-shm`, where that still is.
        let is_used = match locks::is_index_shared(&at.wal_index()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => locks::is_shared(file),
            other => other,
        };
        if is_removed || !is_used.unwrap_or(true) {
            self.see();
            (self.database, self.visits) = (None, None);
        }
    }

    /// Looks at the file once more, if only its program has written it until now.
    fn see(&mut self) {
        let (Some(file), Some(visits), Some(_)) = (&self.database, &mut self.visits, self.seen) else {
            return;
        };
        let now = Seen::now(file);
        // Asked afterwards: all that is seen is by its program then.
        if visits.are_harmless() {
            self.seen = now;
        }
    }

    /// Gives the WAL a second name. Whatever removes the first one then, its commits stay.
    pub fn name(&mut self, at: Paths) {
        if self.is_empty() || has_no_name(&self.wal) {
            return;
        }
        let [inside, beside] = kept::names_of(at, self.generation);
        let named = |to: PathBuf| kept::link(&self.wal, &to).map(|()| to);
        // Without second names, as on some file systems, it is moved away once another file is there.
        if let Ok(name) = named(inside).or_else(|_| named(beside)) {
            self.content = Content::Named(name);
        }
    }

    /// Copies the WAL if it has lost its name. Takes as long as it takes: nothing of SQLite's may be open.
    pub fn save_removed(&self, at: Paths) {
        if self.content != Content::InWal || self.is_empty() || !has_no_name(&self.wal) {
            return;
        }
        let name = at.database.display();
        let [inside, beside] = kept::names_of(at, self.generation);
        let copied = |to: PathBuf| kept::copy(&self.wal, &to).map(|()| to);
        match copied(inside).or_else(|_| copied(beside)) {
            Ok(to) => {
                let to_name = to.display();
                warn!("{name}: the -wal of the old file was removed, too; a copy is kept as {to_name}");
                kept::forget_oldest(&to);
            }
            Err(e) => warn!("{name}: the -wal of the old file was removed, too, and cannot be kept: {e}"),
        }
    }

    fn is_empty(&self) -> bool {
        self.wal.metadata().is_ok_and(|metadata| metadata.len() == 0)
    }

    fn is_at_path(&self, at: Paths) -> bool {
        FileIdentity::of_path(at.wal) == FileIdentity::of_file(&self.wal).ok()
    }

    /// Moves the WAL away if another file is at the database's path and nobody has that open. A program that still has
    /// the old file open goes on writing into its WAL, wherever that is; SQLite would leave it beside the new file. `new`
    /// is that file, if it is open for this.
    pub fn settle(&mut self, at: Paths, new: Option<&DatabaseFile>) -> Fate {
        if !self.is_at_path(at) {
            return self.wal_is_gone(at);
        }
        let new = match FileIdentity::of_path(at.database) {
            // A link: whoever follows it finds no WAL of ours there, and attaching says why it does not.
            None if self.content == Content::InDatabase && at.database.is_symlink() => return Fate::Gone,
            None => return Fate::NoDatabase,
            there if there == self.identity => return self.is_back(at),
            there if there == new.map(DatabaseFile::identity) => Ok(new.cloned()),
            Some(_) => DatabaseFile::open(at.database),
        };
        match new {
            Ok(Some(new)) if lock_out(&new) => self.move_away(at, Some(new)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Fate::NoDatabase,
            // An empty WAL is nobody's harm.
            _ if self.content == Content::InDatabase => Fate::Gone,
            // Whoever opens an empty database removes the WAL beside it, before anything is written.
            _ if std::fs::metadata(at.database).is_ok_and(|metadata| metadata.len() == 0) => Fate::NoDatabase,
            _ if !self.is_at_path(at) => self.wal_is_gone(at),
            // Somebody has it open by another name, perhaps another source of this agent.
            Ok(_) if is_index_unused(at) => self.move_away(at, None),
            Ok(Some(_)) => self.mixed(at),
            Ok(None) => Fate::Later(Refusal::StillOpen),
            Err(e) => Fate::Later(Refusal::NoAccess(e.to_string())),
        }
    }

    /// Says that others have opened the file with a WAL that is not its own.
    pub(super) fn mixed(&self, at: Paths) -> Fate {
        let name = at.database.display();
        error!(
            "{name}: another program opened the new file before the WAL of the old one could be removed: its content \
             may be mixed; check it with PRAGMA integrity_check and put it in place again"
        );
        if let Content::Named(kept) = &self.content {
            info!("{name}: the -wal of the old file is kept as {}", kept.display());
        }
        // From now on the WAL is that of what is there.
        let keep = || {
            Held::of(&std::fs::metadata(at.database)?, &self.wal.metadata()?).mixed().keep(at.disk, at.meta)
        };
        keep().unwrap_or_else(|e| warn!("{name}: cannot write {}: {e}", at.meta.display()));
        Fate::Mixed
    }

    /// The same file is at its path. Its WAL continues it if nobody has written it meanwhile but the program that had
    /// both open.
    fn is_back(&mut self, at: Paths) -> Fate {
        self.see();
        let file = match self.database.take() {
            _ if self.content == Content::InDatabase => return self.back(at),
            Some(file) => file,
            None => match DatabaseFile::open(at.database) {
                Ok(Some(file)) => file,
                Ok(None) => return Fate::Later(Refusal::StillOpen),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Fate::NoDatabase,
                Err(error) => return Fate::Later(Refusal::NoAccess(error.to_string())),
            },
        };
        if self.seen.is_some_and(|seen| seen.is(&file)) {
            return self.back(at);
        }
        if !lock_out(&file) && locks::is_index_shared(&at.wal_index()).unwrap_or(false) {
            // Its program, which works with both; or one that has opened both just now.
            return if self.is_used { self.back(at) } else { self.mixed(at) };
        }
        let name = at.database.display();
        if self.went_on(&file) {
            warn!(
                "{name}: the file was written under another name, and then its -wal, which stays with it: should others \
                 have worked on the file meanwhile, check it with PRAGMA integrity_check"
            );
            return self.back(at);
        }
        warn!("{name}: the file was written under another name, and does not continue in its -wal any more");
        let is_cut_off = File::open(at.wal_index()).and_then(|index| locks::cut_off(&index));
        match self.move_away(at, None) {
            Fate::MovedAway(_) => {
                if is_cut_off.is_ok_and(|frames| frames > 0) {
                    warn!(
                        "{name}: its program may have been killed in a checkpoint: should SQLite call the file \
                         malformed, stop everything and move that -wal back beside it"
                    );
                }
                Fate::BackChanged
            }
            fate => fate,
        }
    }

    /// Whether the program that had both has gone on with both, and been killed: SQLite recovers from the WAL then, and its
    /// commits may be nowhere else. All of both is not read here, so where the file was written last, nothing is known.
    fn went_on(&self, file: &DatabaseFile) -> bool {
        let is_last = |seen: Seen| is_written_last(&self.wal, file, seen.stamp.modified).unwrap_or(false);
        self.is_used && self.seen.is_some_and(is_last)
    }

    fn back(&mut self, at: Paths) -> Fate {
        self.take_name_back();
        // From now on the WAL is that of what is there.
        if !Held::is_mixed(at, std::fs::metadata(at.database))
            && let Err(e) = Held::forget(at.disk, at.meta)
        {
            warn!("{}: cannot write {}: {e}", at.database.display(), at.meta.display());
        }
        Fate::Back
    }

    fn take_name_back(&mut self) {
        if let Content::Named(name) = &self.content {
            // What cannot be removed is one name too many, and counts among those that are kept.
            let _ = kept::remove_name(name, &self.wal);
            self.content = Content::InWal;
        }
    }

    /// Somebody has moved the WAL, too, or removed it.
    fn wal_is_gone(&mut self, at: Paths) -> Fate {
        let names = self.wal.metadata().map_or(0, |metadata| metadata.nlink());
        match &self.content {
            Content::Named(_) if names > 1 => self.take_name_back(),
            Content::Named(name) => {
                info!("{}: the -wal of the old file is kept as {}", at.database.display(), name.display());
                kept::forget_oldest(name);
            }
            Content::InDatabase | Content::InWal => {}
        }
        self.remove_stale_index(at);
        Fate::Gone
    }

    /// Removes a `-shm` whose WAL is gone, if nobody has the file open beside which it lies.
    fn remove_stale_index(&self, at: Paths) {
        if at.wal_index().exists()
            && let Ok(Some(new)) = DatabaseFile::open(at.database)
            && lock_out(&new)
            && !at.wal.exists()
        {
            let _ = std::fs::remove_file(at.wal_index());
        }
    }

    /// Moves the WAL, which has the header of `ours`, away from its own file, whose content is another's now.
    pub fn settle_overwritten(&mut self, at: Paths, ours: Option<WalHeaderBytes>) -> Fate {
        if !self.is_at_path(at) {
            return Fate::Gone;
        }
        let fate = match &self.database {
            Some(file) if lock_out(file) => self.move_away(at, None),
            _ => self.mixed(at),
        };
        if matches!(fate, Fate::MovedAway(_)) {
            self.put_back_another(at, ours);
        }
        fate
    }

    /// Gives it the name back that it had if somebody had just opened it by that, to write another one into it. One that was
    /// empty may still be.
    fn put_back_another(&self, at: Paths, ours: Option<WalHeaderBytes>) {
        let Ok(Some(kept)) = self.kept_name(at) else { return };
        let is_awaited = || ours.is_none() && locks::process_with(&kept).is_some();
        if self.header() == ours && !is_awaited() {
            return;
        }
        match kept::link(&self.wal, at.wal).and_then(|()| kept::remove_name(&kept, &self.wal)) {
            Ok(()) => info!("{}: another -wal was just written into it; it is back", at.database.display()),
            Err(e) => {
                warn!("{}: the -wal that was just written is {}: {e}", at.database.display(), kept.display())
            }
        }
    }

    /// It is kept: should we be wrong, its commits are nowhere else. Nobody has the file open that it lies beside, so
    /// that `-shm` belongs to the old one, too: whoever opened the new one would join whoever has the old one open.
    fn move_away(&self, at: Paths, lock: Option<DatabaseFile>) -> Fate {
        let moved = match &self.content {
            // Whoever opened the new file found an empty WAL, and used it.
            Content::InDatabase if !self.is_empty() => return Fate::Gone,
            Content::InDatabase => kept::remove_name(at.wal, &self.wal).map(|()| None),
            _ => self.move_to_kept(at).map(Some),
        };
        match moved {
            Ok(to) => {
                if let Some(to) = to {
                    let (name, to) = (at.database.display(), to.as_path());
                    info!("{name}: the -wal of the old file is kept as {}", to.display());
                    kept::forget_oldest(to);
                }
                let _ = std::fs::remove_file(at.wal_index());
                Fate::MovedAway(lock)
            }
            Err(e) => {
                warn!("cannot remove {}, which belongs to the old file: {e}", at.wal.display());
                self.mixed(at)
            }
        }
    }

    fn move_to_kept(&self, at: Paths) -> io::Result<PathBuf> {
        match self.kept_name(at)? {
            Some(name) => kept::remove_name(at.wal, &self.wal).map(|()| name),
            None => kept::set_aside(&self.wal, at, self.generation),
        }
    }

    /// The name by which it is kept, if it has one.
    fn kept_name(&self, at: Paths) -> io::Result<Option<PathBuf>> {
        let ours = FileIdentity::of_file(&self.wal)?;
        match &self.content {
            Content::Named(name) if FileIdentity::of_path(name) == Some(ours) => Ok(Some(name.clone())),
            _ => kept::name_of(&self.wal, at, self.generation),
        }
    }

    /// `None` of one that is empty.
    fn header(&self) -> Option<WalHeaderBytes> {
        proof::wal_header_bytes(&self.wal).ok()
    }
}

/// Whether a file was removed.
pub(super) fn has_no_name(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Whether no program works with the `-shm` that is at the path, as whoever opens a database there does. No connection of
/// ours may.
fn is_index_unused(at: Paths) -> bool {
    match locks::is_index_shared(&at.wal_index()) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(is_shared) => !is_shared,
    }
}

fn lock_out(file: &File) -> bool {
    locks::lock_out(file).unwrap_or(false)
}
