//! Database files, of which this process has one descriptor each: closing any other one would drop SQLite's locks.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

/// Which file a path names, or a descriptor is open on: also after its number was given to another one, where the file
/// system tells when files were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        FileIdentity { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() }
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
}

/// `Weak` is empty while a file is being opened.
static OPEN: LazyLock<Mutex<HashMap<FileIdentity, Weak<Opened>>>> = LazyLock::new(Mutex::default);

fn open_files() -> MutexGuard<'static, HashMap<FileIdentity, Weak<Opened>>> {
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
    keeping: Mutex<Keeping>,
}

/// Who in this process keeps all others out of a file that was renamed.
#[derive(Debug, Default)]
pub struct Keeping {
    /// Whoever holds it does.
    pub by_holder: bool,
    /// No connection of ours has it open any more.
    pub is_closed: bool,
    /// So many do to whose paths it has come.
    pub others: u32,
}

/// An entry in [`OPEN`].
#[derive(Debug)]
struct Entry(FileIdentity);

impl Entry {
    fn of(identity: FileIdentity) -> Option<Entry> {
        let mut open = open_files();
        if open.contains_key(&identity) {
            return None;
        }
        open.insert(identity, Weak::new());
        Some(Entry(identity))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        open_files().remove(&self.0);
    }
}

impl DatabaseFile {
    /// Opens a file, and never what a symbolic link leads to. `None` if this process has it open already.
    ///
    /// # Errors
    /// The kernel's; or it is a folder, for example, or somebody holds a lease of it, who is told.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        DatabaseFile::open_with(path, File::options().read(true).write(true))
    }

    /// The first bytes of a file that this process does not have open. Nobody is told that a file was written, since it is
    /// opened for reading only.
    pub fn beginning<const LENGTH: usize>(path: &Path) -> Option<[u8; LENGTH]> {
        let mut beginning = [0; LENGTH];
        let file = DatabaseFile::open_with(path, File::options().read(true)).ok().flatten()?;
        file.read_exact_at(&mut beginning, 0).ok().map(|()| beginning)
    }

    fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<Option<Self>> {
        // Closing a descriptor that can neither read nor write drops no locks.
        let found = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let found = File::from(found);
        let metadata = found.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let identity = FileIdentity::of(&metadata);
        let Some(entry) = Entry::of(identity) else { return Ok(None) };
        // That file, whatever has come to the path by now; and nobody waits for whoever has a lease of it.
        let found_name = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = options.custom_flags(libc::O_NONBLOCK).open(found_name)?;
        let opened = Arc::new(Opened { file, entry, keeping: Mutex::default() });
        open_files().insert(identity, Arc::downgrade(&opened));
        Ok(Some(DatabaseFile(opened)))
    }

    /// The file that this process has open already, if it is that one.
    pub fn of_this_process(identity: FileIdentity) -> Option<Self> {
        let opened = open_files().get(&identity).and_then(Weak::upgrade);
        opened.map(DatabaseFile)
    }

    /// Who keeps all others out of it.
    pub fn keeping(&self) -> MutexGuard<'_, Keeping> {
        self.0.keeping.lock().unwrap_or_else(PoisonError::into_inner)
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
        let second = first.clone();
        drop(first);
        assert!(open(&path).is_none(), "it is still read");
        drop(second);
        assert!(open(&other).is_some());
        std::os::unix::fs::symlink(&path, &link).expect("the folder is ours");
        for no_file in [&link, folder.path()] {
            assert_eq!(
                DatabaseFile::open(no_file).expect_err("no file").to_string(),
                "it is not a regular file"
            );
        }
    }
}
