//! Database files, of which this process has one descriptor each: closing any other one would drop SQLite's locks.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Which file a path names, or a descriptor is open on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        FileIdentity { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Of the file at a path, if there is one. A symbolic link is none: SQLite keeps the WAL beside what it leads to.
    pub fn of_path(path: &Path) -> Option<Self> {
        let metadata = std::fs::symlink_metadata(path).ok().filter(|metadata| !metadata.is_symlink())?;
        Some(FileIdentity::of(&metadata))
    }

    /// Of an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| FileIdentity::of(&metadata))
    }

    /// The file's number on its file system.
    pub fn inode(self) -> u64 {
        self.inode
    }

    /// Whether it is open as a [`DatabaseFile`], for whatever database.
    pub fn is_open_database(self) -> bool {
        open_files().contains(&self)
    }
}

static OPEN: LazyLock<Mutex<HashSet<FileIdentity>>> = LazyLock::new(Mutex::default);

fn open_files() -> MutexGuard<'static, HashSet<FileIdentity>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one descriptor of a database file. Invariant: while it exists, there is no second one of this file.
#[derive(Debug, Clone)]
pub struct DatabaseFile(Arc<Opened>);

/// Drop order is significant: the file is closed before it may be opened again.
#[derive(Debug)]
struct Opened {
    file: File,
    entry: Entry,
}

/// An entry in [`OPEN`].
#[derive(Debug)]
struct Entry(FileIdentity);

impl Drop for Entry {
    fn drop(&mut self) {
        open_files().remove(&self.0);
    }
}

impl DatabaseFile {
    /// Opens a file, and never what a symbolic link leads to. `None` if this process has it open already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        // Closing a descriptor that can neither read nor write drops no locks.
        let found = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let found = File::from(found);
        let metadata = found.metadata()?;
        if metadata.is_symlink() {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let identity = FileIdentity::of(&metadata);
        let mut open = open_files();
        if open.contains(&identity) {
            return Ok(None);
        }
        // That file, whatever has come to the path by now.
        let found_name = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = File::options().read(true).write(true).open(found_name)?;
        open.insert(identity);
        Ok(Some(DatabaseFile(Arc::new(Opened { file, entry: Entry(identity) }))))
    }

    /// Whether somebody else in this process reads it, too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Which file it is.
    pub fn identity(&self) -> FileIdentity {
        self.0.entry.0
    }
}

impl Deref for DatabaseFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_once_under_all_its_names_and_again_when_it_is_closed() {
        let folder = tempfile::tempdir().expect("there is room");
        let (path, link, other) =
            (folder.path().join("app.db"), folder.path().join("link"), folder.path().join("other"));
        std::fs::write(&path, b"one").expect("the folder is ours");
        let open = |path: &Path| DatabaseFile::open(path).expect("it can be opened");
        let first = open(&path).expect("nobody has it open");
        std::fs::hard_link(&path, &other).expect("the folder is ours");
        assert!(open(&path).is_none() && open(&other).is_none());
        assert!(FileIdentity::of_path(&other).is_some_and(FileIdentity::is_open_database));
        let second = first.clone();
        drop(first);
        assert!(open(&path).is_none(), "it is still read");
        drop(second);
        assert!(open(&other).is_some());
        std::os::unix::fs::symlink(&path, &link).expect("the folder is ours");
        assert_eq!(DatabaseFile::open(&link).expect_err("a link").raw_os_error(), Some(libc::ELOOP));
    }
}
