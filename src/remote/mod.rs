//! Where replicas live: an SFTP server or a folder, behind one seam.

pub mod dir;
mod handles;
pub mod location;
pub mod sftp;

pub use handles::MAX_OPEN;
pub use location::{Location, Secret, SftpLocation};

use crate::core::inventory::{GenerationObjects, Listed};
use crate::core::names;
use crate::core::position::Generation;
use dir::DirRemote;
use sftp::SftpRemote;
use std::fmt;
use std::path::Path;

/// Why an operation on a replica failed, as far as it decides what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The server could not be reached, did not answer in time, or the connection broke.
    Disconnected,
    /// The server's host key is not known, or not the known one. Nothing was sent to it.
    HostKey,
    /// The server did not take our credentials.
    Authentication,
    /// The file or folder is not there.
    NotFound,
    /// The name is taken.
    Exists,
    /// The server forbids it.
    Denied,
    /// The server has no space left.
    Full,
    /// Anything else the server answered.
    Other,
}

/// A failed operation: what was tried, on which server and file, and why it failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct RemoteError {
    /// What decides.
    pub kind: FailureKind,
    /// What was tried, with server and path: "write sftp://host/path/x".
    pub action: String,
    /// Why it failed, and where it helps, what to do.
    pub reason: String,
}

/// A file or folder of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its path.
    pub name: String,
    /// Bytes; 0 for a folder.
    pub size: u64,
    /// Seconds since 1970 by the server's clock, where it tells.
    pub modified: Option<i64>,
    /// Whether it is a folder.
    pub is_folder: bool,
}

/// A destination: a server and account, or this machine's folders. A thousand replicas share one.
///
/// Paths are full ones, the replica's own path included ([`join`]), with `/`. On a server, a path without a leading
/// slash is below the account's home.
///
/// Files stay open between calls, at most [`MAX_OPEN`], so that an append is one round trip.
///
/// Nothing is ever repeated in here, but for reading: after an error of [`Remote::write_at`], any part of the bytes may
/// be in the file, and more of them may still arrive (a stopped server goes on later), so that file is never to be
/// appended to again. After any error of kind [`FailureKind::Disconnected`], and after a failed write of more than one
/// packet, the value is of no more use: all it answers is `Disconnected`; make a new one.
pub trait Remote: Send {
    /// What is in a folder, in no order; nothing if there is no such folder.
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError>;
    /// Makes an empty file, and the folders above it; `true` if there was not even its folder, or, where that can be told,
    /// if it is another one than the last time. A file that is there is emptied: for temporary names only.
    fn create(&mut self, path: &str) -> Result<bool, RemoteError>;
    /// Writes all of `bytes` at byte `at` of a file that exists. Up to [`crate::core::segment::PACKET`] bytes land
    /// whole or not at all. Hand in 1 to 4 MiB at a time where there is much to write. A folder refuses to write behind a
    /// file that is shorter; a server is not asked, because that would take another round trip.
    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError>;
    /// Makes what was written to a file survive a crash of the server. `false` if the server cannot promise it.
    fn sync(&mut self, path: &str) -> Result<bool, RemoteError>;
    /// Gives a file the time at which it was last written, in seconds since 1970. Fine if the server does not let us.
    fn set_modified(&mut self, path: &str, seconds: i64) -> Result<(), RemoteError>;
    /// Gives a whole file its final name; [`FailureKind::Exists`] if that is taken. Writes to the new path go on
    /// without opening it again.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError>;
    /// Makes the name that a file was just given survive a crash of the server, where renaming has not done it. `false` as
    /// with [`Remote::sync`].
    fn sync_name(&mut self, path: &str) -> Result<bool, RemoteError> {
        // A folder cannot be synced from here. The file can, and with it its names: on ext4, XFS and Btrfs, at the least.
        self.sync(path)
    }
    /// Removes a file; fine if it is not there.
    fn remove(&mut self, path: &str) -> Result<(), RemoteError>;
    /// Reads from byte `at` until `buffer` is full or the file ends; returns how many bytes. One read after the other,
    /// 1 to 4 MiB each, is fast, because more is asked for ahead; meeting the end closes the file. Close one that is
    /// not read to its end.
    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError>;
    /// Closes a file that is not needed any more.
    fn close(&mut self, path: &str);
    /// Whether the other side still keeps the connection, as far as can be told without asking it. A server may drop
    /// an idle one; then a new login is better than a write that nobody answers.
    fn is_alive(&mut self) -> bool {
        true
    }
}

/// Connects to the destination of `location`; `home` is where `.ssh/known_hosts` is looked for.
pub fn connect(location: &Location, home: Option<&Path>) -> Result<Box<dyn Remote>, RemoteError> {
    Ok(match location {
        Location::Folder(_) => Box::new(DirRemote::new()),
        Location::Sftp(location) => Box::new(SftpRemote::connect(location, home)?),
    })
}

/// The objects of a generation of the replica at `root`. Snapshots are listed before segments, so that a snapshot that is
/// there has its WAL there.
///
/// # Errors
/// The first of `list`.
pub fn objects_of(
    generation: Generation,
    root: &str,
    mut list: impl FnMut(&str) -> Result<Vec<Entry>, RemoteError>,
) -> Result<GenerationObjects, RemoteError> {
    let snapshots = list(&join(root, &names::snapshots_folder(generation)))?;
    let segments = list(&join(root, &names::wal_folder(generation)))?;
    Ok(GenerationObjects::new(generation, files(&snapshots), files(&segments)))
}

fn files(entries: &[Entry]) -> impl Iterator<Item = Listed<'_>> {
    let files = entries.iter().filter(|entry| !entry.is_folder);
    files.map(|entry| Listed { name: &entry.name, size: entry.size, modified: entry.modified })
}

/// The full path of what is at `path` below the replica's own path `root`; an empty `root` is the account's home.
pub fn join(root: &str, path: &str) -> String {
    match root.strip_suffix('/').unwrap_or(root) {
        "" if root.is_empty() => path.to_owned(),
        root => format!("{root}/{path}"),
    }
}

/// The folder a path is in; `None` at the top.
fn parent(path: &str) -> Option<&str> {
    let (folder, _) = path.trim_end_matches('/').rsplit_once('/')?;
    (!folder.is_empty()).then_some(folder)
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::Disconnected => "disconnected",
            FailureKind::HostKey => "host key",
            FailureKind::Authentication => "authentication",
            FailureKind::NotFound => "not found",
            FailureKind::Exists => "exists",
            FailureKind::Denied => "denied",
            FailureKind::Full => "full",
            FailureKind::Other => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_joined_to_any_root() {
        assert_eq!(join("/backup/app", "x/y"), "/backup/app/x/y");
        assert_eq!(join("backup/", "x"), "backup/x");
        assert_eq!(join("/", "x"), "/x");
        assert_eq!(join("", "x"), "x");
    }

    #[test]
    fn the_parent_of_a_path_ends_at_the_top() {
        assert_eq!(parent("/a/b"), Some("/a"));
        assert_eq!(parent("a/b/"), Some("a"));
        assert_eq!(parent("/a"), None);
        assert_eq!(parent("a"), None);
    }
}
