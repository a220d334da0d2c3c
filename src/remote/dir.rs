//! A replica in a local folder. Imports rustix for the one thing std has not: a rename that never replaces.

use super::handles::{Access, Handles};
use super::{Entry, FailureKind, Remote, RemoteError, parent};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// More folders than this are not known again: as many as a thousand databases write into.
const MOST_FOLDERS: usize = 4096;

/// Which folder it is: device, inode, and when it was made, where the file system tells, because inodes are given again.
type FolderIdentity = (u64, u64, Option<SystemTime>);

/// This machine's folders as a destination.
pub struct DirRemote {
    handles: Handles<File>,
    /// Each folder that was written into: another file system may be mounted there by now.
    folders: HashMap<String, FolderIdentity>,
}

impl DirRemote {
    /// Nothing is opened until it is needed.
    pub fn new() -> Self {
        DirRemote { handles: Handles::new(), folders: HashMap::new() }
    }

    /// Whether a file's folder is another one than when a file was last made in it.
    fn is_another_folder(&mut self, path: &str) -> io::Result<bool> {
        let Some(folder) = parent(path) else { return Ok(false) };
        let metadata = fs::metadata(folder)?;
        if self.folders.len() >= MOST_FOLDERS {
            self.folders.clear();
        }
        let identity = (metadata.dev(), metadata.ino(), metadata.created().ok());
        let before = self.folders.insert(folder.to_owned(), identity);
        Ok(before.is_some_and(|before| before != identity))
    }

    fn open(&mut self, path: &str, access: Access) -> io::Result<&File> {
        let open = || match access {
            Access::Read => File::open(path),
            Access::Write => OpenOptions::new().write(true).open(path),
        };
        self.handles.get_or_open(path, access, open).map(|file| &*file)
    }
}

impl Default for DirRemote {
    fn default() -> Self {
        Self::new()
    }
}

impl Remote for DirRemote {
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(|entries| entries.filter_map(|e| entry(e).transpose()).collect()),
        };
        entries.map_err(|error| failed("list", folder, &error))
    }

    fn create(&mut self, path: &str) -> Result<bool, RemoteError> {
        self.handles.close(path);
        let mut is_new = false;
        let open = || File::create(path);
        let make = |error: io::Error| match parent(path) {
            Some(folder) if error.kind() == ErrorKind::NotFound => {
                is_new = true;
                make_folder(folder).and_then(|()| open())
            }
            _ => Err(error),
        };
        let opened = self.handles.get_or_open(path, Access::Write, || open().or_else(make)).map(drop);
        let is_another = opened.and_then(|()| self.is_another_folder(path));
        is_another.map(|is_another| is_new || is_another).map_err(|error| failed("create", path, &error))
    }

    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        let written = self.open(path, Access::Write).and_then(|file| {
            let (open, there) = (file.metadata()?, fs::metadata(path)?);
            // Else what is acknowledged would be in a file that nobody finds.
            if (open.dev(), open.ino()) != (there.dev(), there.ino()) {
                return Err(io::Error::other("another file was put in its place"));
            }
            // Somebody has put an older state of it in its place: what lies between would be zeros.
            if open.len() < at {
                return Err(io::Error::other(format!("it has {} bytes, and had {at}", open.len())));
            }
            file.write_all_at(bytes, at)
        });
        written.map_err(|error| failed("write", path, &error))
    }

    fn sync(&mut self, path: &str) -> Result<bool, RemoteError> {
        let synced = self.open(path, Access::Write).and_then(File::sync_all);
        synced.map(|()| true).map_err(|error| failed("sync", path, &error))
    }

    fn set_modified(&mut self, path: &str, seconds: i64) -> Result<(), RemoteError> {
        let Ok(seconds) = u64::try_from(seconds) else { return Ok(()) };
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        match self.open(path, Access::Write).and_then(|file| file.set_modified(time)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(failed("set the time of", path, &error)),
            _ => Ok(()),
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError> {
        let error = |error| failed("rename", &format!("{from} to {to}"), &error);
        rename_to_free_name(Path::new(from), Path::new(to)).map_err(error)?;
        self.handles.rename(from, to);
        sync_folder_of(to).map_err(error)
    }

    fn sync_name(&mut self, _: &str) -> Result<bool, RemoteError> {
        Ok(true) // the folder was synced
    }

    fn remove(&mut self, path: &str) -> Result<(), RemoteError> {
        self.handles.close(path);
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, &error)),
            _ => Ok(()),
        }
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let read = self.open(path, Access::Read).and_then(|file| read_full_at(file, at, buffer));
        if !matches!(read, Ok(length) if length == buffer.len()) {
            self.handles.close_reading(path);
        }
        read.map_err(|error| failed("read", path, &error))
    }

    fn close(&mut self, path: &str) {
        self.handles.close(path);
    }
}

/// `None` for what is removed meanwhile, and for names that are not text: none of ours.
fn entry(entry: io::Result<DirEntry>) -> io::Result<Option<Entry>> {
    let entry = entry?;
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    let since_1970 = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(entry.file_name().into_string().ok().map(|name| Entry {
        name,
        size: if metadata.is_dir() { 0 } else { metadata.len() },
        modified: since_1970.and_then(|since| i64::try_from(since.as_secs()).ok()),
        is_folder: metadata.is_dir(),
    }))
}

/// Makes a folder and those above it, each durably.
fn make_folder(folder: &str) -> io::Result<()> {
    let made = match (fs::create_dir(folder), parent(folder)) {
        (Err(error), Some(above)) if error.kind() == ErrorKind::NotFound => {
            make_folder(above).and_then(|()| fs::create_dir(folder))
        }
        (made, _) => made,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| sync_folder_of(folder)),
    }
}

/// Makes the name of a file or folder survive a crash.
fn sync_folder_of(path: &str) -> io::Result<()> {
    File::open(parent(path).unwrap_or(if path.starts_with('/') { "/" } else { "." }))?.sync_all()
}

/// Renames a file of this machine, and never replaces one.
///
/// # Errors
/// The kernel's; `AlreadyExists` if something has that name.
pub fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it; nobody but us gives names here, so looking first will do.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Err(ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

fn read_full_at(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn failed(verb: &str, path: &str, error: &io::Error) -> RemoteError {
    let kind = match error.kind() {
        ErrorKind::NotFound => FailureKind::NotFound,
        ErrorKind::AlreadyExists => FailureKind::Exists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FailureKind::Denied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => FailureKind::Full,
        _ => FailureKind::Other,
    };
    RemoteError { kind, action: format!("{verb} {path}"), reason: error.to_string() }
}
