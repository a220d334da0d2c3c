//! Where replicas live: an SFTP server or a folder, behind one seam.

pub mod dir;

use std::fmt;

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

/// A replica's objects. All paths are below the replica's own path, with `/`, without a leading one.
///
/// Files stay open between calls, a bounded number of them, so that an append is one round trip.
/// After any error of kind [`FailureKind::Disconnected`] the value is of no more use: make a new one.
pub trait Remote: Send {
    /// What is in a folder, in no order; nothing if there is no such folder.
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError>;
    /// Makes an empty file, and the folders above it. A file that is there is emptied: for temporary names only.
    fn create(&mut self, path: &str) -> Result<(), RemoteError>;
    /// Writes all of `bytes` at byte `at` of a file that exists.
    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError>;
    /// Makes what was written to a file survive a crash of the server. `false` if the server cannot promise it.
    fn sync(&mut self, path: &str) -> Result<bool, RemoteError>;
    /// Gives a whole file its final name, which must be free. Writes to the new path go on without opening it again.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError>;
    /// Removes a file; fine if it is not there.
    fn remove(&mut self, path: &str) -> Result<(), RemoteError>;
    /// Reads from byte `at` until `buffer` is full or the file ends; returns how many bytes.
    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError>;
    /// Closes a file that is not needed any more.
    fn close(&mut self, path: &str);
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::Disconnected => "disconnected",
            FailureKind::HostKey => "host key",
            FailureKind::Authentication => "authentication",
            FailureKind::NotFound => "not found",
            FailureKind::Denied => "denied",
            FailureKind::Full => "full",
            FailureKind::Other => "failed",
        })
    }
}
