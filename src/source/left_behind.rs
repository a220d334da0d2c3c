//! The WAL of a database that is not at its path any more. It must not be read as another file's, nor may it be lost:
//! the name may come back, or a program may be moving both files, one after the other.

use super::attach::FileIdentity;
use crate::core::names;
use crate::core::position::Generation;
use crate::locks;
use log::{error, info, warn};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// So many WALs of replaced files are kept in one folder; the oldest one goes first.
const KEPT: usize = 8;

/// Where a database is, its WAL, and our state.
#[derive(Clone, Copy)]
pub struct Paths<'a> {
    /// The database file.
    pub database: &'a Path,
    /// Its `-wal`.
    pub wal: &'a Path,
    /// Our state.
    pub meta: &'a Path,
}

/// A database that we held, with its WAL. The files stay open, so that no other file gets their inodes.
pub struct LeftBehind {
    /// The database file; `None` once it is removed and cannot come back: it would go on taking its room.
    pub database: Option<Arc<File>>,
    /// Its WAL.
    pub wal: File,
    /// The last generation it had.
    pub generation: Generation,
}

/// What becomes of a WAL that was left behind.
pub enum Fate {
    /// It stays until something is at the database's path.
    NoDatabase,
    /// It is not there any more.
    Gone,
    /// The old file is at its path again.
    Back,
    /// It is in nobody's way. As long as the lock is held, nobody can open the new file.
    MovedAway(Option<File>),
    /// It lies beside a file it does not belong to, and that was said.
    Mixed,
}

impl LeftBehind {
    /// Closes the database file if it has no name any more.
    pub fn release_removed(&mut self) {
        self.database.take_if(|file| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0));
    }

    /// Moves the WAL away if another file is at the database's path and nobody has that open. A program that still has
    /// the old file open goes on writing into its WAL, wherever that is; SQLite would leave it beside the new file.
    pub fn settle(&self, at: Paths) -> Fate {
        let is_at =
            |file: &File, there: FileIdentity| FileIdentity::of_file(file).is_ok_and(|id| id == there);
        if !FileIdentity::of_path(at.wal).is_some_and(|there| is_at(&self.wal, there)) {
            return Fate::Gone;
        }
        match FileIdentity::of_path(at.database) {
            None => return Fate::NoDatabase,
            Some(there) if self.database.as_ref().is_some_and(|file| is_at(file, there)) => {
                return Fate::Back;
            }
            Some(_) => {}
        }
        match File::options().read(true).write(true).open(at.database) {
            Ok(new) if lock_out(&new) => self.move_away(at, Some(new)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Fate::NoDatabase,
            _ => mixed(at),
        }
    }

    /// Moves the WAL away from its own file, whose content is another's now.
    pub fn settle_overwritten(&self, at: Paths) -> Fate {
        if FileIdentity::of_path(at.wal) != FileIdentity::of_file(&self.wal).ok() {
            return Fate::Gone;
        }
        match &self.database {
            Some(file) if lock_out(file) => self.move_away(at, None),
            _ => mixed(at),
        }
    }

    /// It is kept: should we be wrong, its commits are nowhere else. Another file system takes no rename.
    fn move_away(&self, at: Paths, lock: Option<File>) -> Fate {
        let inside = at.meta.join(names::replaced_wal(self.generation));
        let mut beside = at.wal.as_os_str().to_owned();
        beside.push(format!("-{}", names::replaced_wal(self.generation)));
        let move_to = |to: PathBuf| std::fs::rename(at.wal, &to).map(|()| to);
        match move_to(inside).or_else(|_| move_to(beside.into())) {
            Ok(to) => {
                info!("{}: the -wal of the old file is kept as {}", at.database.display(), to.display());
                forget_oldest(&to);
                Fate::MovedAway(lock)
            }
            Err(e) => {
                warn!("cannot remove {}, which belongs to the old file: {e}", at.wal.display());
                Fate::Mixed
            }
        }
    }
}

fn lock_out(file: &File) -> bool {
    locks::lock_out(file).unwrap_or(false)
}

fn mixed(at: Paths) -> Fate {
    error!(
        "{}: another program opened the new file before the WAL of the old one could be removed: its content may be \
         mixed; check it with PRAGMA integrity_check and put it in place again",
        at.database.display()
    );
    Fate::Mixed
}

/// Removes the oldest WALs that were moved to where this one is. One that cannot be removed stays.
fn forget_oldest(newest: &Path) {
    let (Some(folder), Some(name)) = (newest.parent(), newest.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    let stem = |name: &str| names::parse_replaced_wal(name).map(|(stem, _)| stem.to_owned());
    let ours = stem(name);
    let is_one = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).and_then(stem) == ours;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let moved_at = |path: PathBuf| Some((std::fs::symlink_metadata(&path).ok()?.modified().ok()?, path));
    let mut all: Vec<_> = entries.map(|e| e.path()).filter(is_one).filter_map(moved_at).collect();
    all.sort_unstable();
    for (_, path) in all.iter().rev().skip(KEPT).filter(|(_, path)| path != newest) {
        let _ = std::fs::remove_file(path);
    }
}
