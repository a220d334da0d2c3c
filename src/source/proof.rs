//! The evidence that a database at rest is still what was copied: gathered from its file, kept in the meta folder.

use crate::core::evidence::{DatabaseHeader, Evidence, Stamp};
use crate::core::position::WAL_HEADER_LENGTH;
use crate::core::wal::{WalHeader, WalHeaderBytes};
use crate::disk::Disk;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const EVIDENCE_FILE: &str = "evidence";

fn stamp(metadata: &Metadata) -> Stamp {
    // Before 1970 is as good as 1970: such a file is old either way.
    let since_1970 = |seconds: i64, nanos: i64| {
        Duration::new(seconds.try_into().unwrap_or_default(), nanos.try_into().unwrap_or_default())
    };
    Stamp {
        inode: metadata.ino(),
        size: metadata.len(),
        modified: since_1970(metadata.mtime(), metadata.mtime_nsec()),
        changed: since_1970(metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// Of an open file.
///
/// # Errors
/// The kernel's.
pub fn stamp_of(file: &File) -> io::Result<Stamp> {
    file.metadata().map(|metadata| stamp(&metadata))
}

/// Of the file at a path, if there is one.
pub fn stamp_at(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| stamp(&metadata))
}

/// The database's own header.
pub fn header_of(file: &File) -> DatabaseHeader {
    let mut header = [0; 100];
    // A file that is shorter is being written over; nobody else leaves less than a page.
    let _ = file.read_exact_at(&mut header, 0);
    header
}

/// The wall clock, as file systems write it into their times.
pub fn file_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The header of the WAL at a path, if there is a valid one.
pub fn wal_header(path: &Path) -> Option<WalHeader> {
    File::open(path).ok().and_then(|wal| wal_header_of(&wal))
}

/// The header of a WAL that is open, if it is valid.
pub fn wal_header_of(wal: &File) -> Option<WalHeader> {
    wal_header_bytes(wal).ok().and_then(|bytes| WalHeader::parse(&bytes).ok())
}

/// The first bytes of a WAL that is open.
///
/// # Errors
/// The kernel's; `UnexpectedEof` if it is shorter.
pub fn wal_header_bytes(wal: &File) -> io::Result<WalHeaderBytes> {
    let mut bytes = [0; WAL_HEADER_LENGTH as usize];
    wal.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Keeps the evidence for the next run.
///
/// # Errors
/// The disk's.
pub fn keep(disk: &dyn Disk, meta: &Path, evidence: &Evidence) -> io::Result<()> {
    disk.replace(&meta.join(EVIDENCE_FILE), evidence.to_line().as_bytes())
}

/// What an earlier run kept, if it can be read.
pub fn kept(disk: &dyn Disk, meta: &Path) -> Option<Evidence> {
    let text = disk.read(&meta.join(EVIDENCE_FILE)).ok().flatten()?;
    Evidence::parse(&String::from_utf8(text).ok()?)
}

/// Forgets it. Must happen before a newer frame is copied. (After a power cut it may be there again, and proves nothing
/// in another boot.)
///
/// # Errors
/// The disk's; then the database must not be attached to.
pub fn forget(disk: &dyn Disk, meta: &Path) -> io::Result<()> {
    disk.remove(&meta.join(EVIDENCE_FILE))
}
