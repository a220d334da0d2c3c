//! Who else has a database open, and keeping all others out for a moment: SQLite's locks on the database file, by the
//! one descriptor of it. And locks of our own. `/proc/locks` is read only where milliseconds do not matter: the kernel
//! waits for all who lock anything while it makes the list.

mod wal_index;

pub use wal_index::{Slot, WalIndex, cut_off};

use log::debug;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where every connection in WAL mode holds a read lock as long as it is open (os.h, `SHARED_FIRST`).
const SHARED_FIRST: libc::off_t = 0x4000_0002;
/// How many bytes (os.h, `SHARED_SIZE`).
const SHARED_SIZE: libc::off_t = 510;

fn flock(kind: libc::c_int, first: libc::off_t, length: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: first,
        l_len: length,
        l_pid: 0,
    }
}

fn shared_bytes(kind: libc::c_int) -> libc::flock {
    flock(kind, SHARED_FIRST, SHARED_SIZE)
}

/// Whether another process is in the way of a lock.
fn is_locked_by_others(file: &File, mut lock: libc::flock) -> io::Result<bool> {
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether a connection of another process has the database open. Our own are never seen; nor are those of a process
/// that was forked with the connection open.
///
/// # Errors
/// The kernel's.
pub fn is_shared(database: &File) -> io::Result<bool> {
    is_locked_by_others(database, shared_bytes(libc::F_WRLCK))
}

/// Keeps everybody else from reading and opening the database; `false` if somebody has it open. The locks of our own
/// connections are the same locks, and come back with [`let_in`].
///
/// # Errors
/// The kernel's.
pub fn lock_out(database: &File) -> io::Result<bool> {
    match fcntl(database, FcntlArg::F_SETLK(&shared_bytes(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes [`lock_out`] back. Never unlocks: our connections count on their read lock.
///
/// # Errors
/// The kernel's.
pub fn let_in(database: &File) -> io::Result<()> {
    fcntl(database, FcntlArg::F_SETLK(&shared_bytes(libc::F_RDLCK)))?;
    Ok(())
}

/// Gives the lock of [`lock_out`] back, of a database that no connection of ours has open.
///
/// # Errors
/// The kernel's.
pub fn unlock(database: &File) -> io::Result<()> {
    fcntl(database, FcntlArg::F_SETLK(&shared_bytes(libc::F_UNLCK)))?;
    Ok(())
}

/// The first other process that has a file open, by name and number; locks do not show a child that inherited its
/// connection. Processes that we may not look into are passed over.
pub fn process_with(file: &Path) -> Option<String> {
    let wanted = std::fs::metadata(file).ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let pid = pids.find(|pid| *pid != u64::from(std::process::id()) && has_open(*pid, file, &wanted))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (process {pid})", name.trim()))
}

/// Whether a process has a file open, as far as we may look into it.
fn has_open(process: u64, file: &Path, wanted: &Metadata) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    // The name first: looking at whatever else is open there could hang, as with a network file system.
    let is_named =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.file_name() == file.file_name());
    let paths = descriptors.map(|entry| entry.path()).filter(is_named);
    let mut files = paths.filter_map(|path| std::fs::metadata(path).ok());
    files.any(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
}

/// Whether this process has a file open.
pub fn is_open_here(file: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(file) else { return false };
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut files = open.filter_map(|entry| std::fs::metadata(entry.path()).ok());
    files.any(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
}

/// The kernel's list of locks (proc(5)).
const LOCK_LIST: &str = "/proc/locks";
/// So many readings of it must agree.
const LOCK_LISTS: usize = 3;

/// Whether every other process that has a lock on a database has one on this wal-index, too, and so works with the WAL
/// that is beside it. `false` where that cannot be seen. Takes milliseconds: the kernel waits for all who lock anything.
pub fn all_share_index(database: &File, wal_index: &File) -> bool {
    let (Ok(database), Ok(wal_index)) = (database.metadata(), wal_index.metadata()) else { return false };
    // A list of more than a page is read in pieces, and a lock that moves in between may be in none.
    (0..LOCK_LISTS).all(|_| {
        let Ok(locks) = std::fs::read_to_string(LOCK_LIST) else { return false };
        share_index(&locks, database.ino(), wal_index.ino(), u64::from(std::process::id()))
    })
}

/// Whether another process has a lock on a database and none on this wal-index, in all readings, nor has that open. `false`
/// where that cannot be seen. As slow as [`all_share_index`].
pub fn is_any_apart(database: &Metadata, wal_index: &Path) -> bool {
    let Ok(index) = std::fs::metadata(wal_index) else { return false };
    let (device, ourselves) = (device_in_list(database.dev()), u64::from(std::process::id()));
    let apart = || {
        let locks = std::fs::read_to_string(LOCK_LIST).unwrap_or_default();
        let device = device_of_lock(&locks, database.ino(), ourselves, &device);
        processes_apart(&locks, device, database.ino(), index.ino(), ourselves)
    };
    let mut always = apart();
    for _ in 1..LOCK_LISTS {
        // Mostly there is nobody: then one reading is enough.
        if always.is_empty() {
            return false;
        }
        let again = apart();
        always.retain(|process| again.contains(process));
    }
    always.into_iter().any(|process| {
        let works_with_it = has_open(process, wal_index, &index);
        if works_with_it {
            debug!("{}: process {process} has lost its locks on it", wal_index.display());
        }
        !works_with_it
    })
}

/// Whether a connection of another process works with this wal-index. None of ours may: `-shm` is opened and closed here.
///
/// # Errors
/// The kernel's.
pub fn is_index_shared(wal_index: &Path) -> io::Result<bool> {
    is_index_used(&File::open(wal_index)?)
}

/// The byte of `-shm` that every connection with it has locked as long as it is open (os_unix.c, `UNIX_SHM_DMS`). Those
/// before it are locked for moments, also by us.
const INDEX_IN_USE: libc::off_t = 128;

/// The same, by the one descriptor of it while we have it open.
///
/// # Errors
/// The kernel's.
pub fn is_index_used(wal_index: &File) -> io::Result<bool> {
    is_locked_by_others(wal_index, flock(libc::F_WRLCK, INDEX_IN_USE, 1))
}

/// A POSIX lock.
struct Lock<'a> {
    process: u64,
    device: &'a str,
    inode: u64,
}

/// A device as the list has it: major and minor number, in hexadecimal digits.
fn device_in_list(device: u64) -> String {
    format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// The device that the list has for a file on which we have a lock: that of the file system, which on btrfs is not the
/// `usual` one, that of its files. On another file system, there may be a lock of ours on a file with the same number.
fn device_of_lock<'a>(locks: &'a str, inode: u64, ourselves: u64, usual: &'a str) -> &'a str {
    let is_ours = |lock: &Lock| lock.process == ourselves && lock.inode == inode;
    let mut ours = parse_locks(locks).filter(is_ours).map(|lock| lock.device).peekable();
    let first = ours.peek().copied().unwrap_or(usual);
    if ours.any(|device| device == usual) { usual } else { first }
}

/// Lines are `1: POSIX  ADVISORY  WRITE 4711 fe:00:10357871 120 121`: kind, pid, device and inode, first and last byte.
fn parse_locks(locks: &str) -> impl Iterator<Item = Lock<'_>> {
    locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_posix = words.next()? == "POSIX";
        let process = words.nth(2)?.parse().ok()?;
        let (device, inode) = words.next()?.rsplit_once(':')?;
        let inode = inode.parse().ok()?;
        is_posix.then_some(Lock { process, device, inode })
    })
}

/// Other processes that have a lock on a file; `device` is `None` where only its number is known for certain.
fn holders(locks: &str, device: Option<&str>, inode: u64, ourselves: u64) -> HashSet<u64> {
    let is_it = |lock: &Lock| lock.inode == inode && device.is_none_or(|device| lock.device == device);
    let theirs = parse_locks(locks).filter(|lock| is_it(lock) && lock.process != ourselves);
    theirs.map(|lock| lock.process).collect()
}

/// Those that have a lock on the database, and none on the wal-index of the same device.
fn processes_apart(locks: &str, device: &str, database: u64, wal_index: u64, ourselves: u64) -> HashSet<u64> {
    let holders = |inode| holders(locks, Some(device), inode, ourselves);
    &holders(database) - &holders(wal_index)
}

fn share_index(locks: &str, database: u64, wal_index: u64, ourselves: u64) -> bool {
    let with_database = holders(locks, None, database, ourselves);
    !with_database.is_empty() && with_database.is_subset(&holders(locks, None, wal_index, ourselves))
}

/// A lock that belongs to an open file instead of the process: SQLite's connections in this process meet it as those of
/// others do, and cannot drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnLock {
    /// Given back.
    None,
    /// Beside others that are shared.
    Shared,
    /// Beside no other.
    Exclusive,
}

/// Changes the lock of an open file on a byte in one step; `false` if others are in the way, and then it is as before.
///
/// # Errors
/// The kernel's.
fn lock_for_open_file(file: &File, lock: OwnLock, byte: u64) -> io::Result<bool> {
    let kind = match lock {
        OwnLock::None => libc::F_UNLCK,
        OwnLock::Shared => libc::F_RDLCK,
        OwnLock::Exclusive => libc::F_WRLCK,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(kind, byte as libc::off_t, 1))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether anybody but this open file has locked a byte exclusively.
///
/// # Errors
/// The kernel's.
fn is_locked_for_others(file: &File, byte: u64) -> io::Result<bool> {
    let mut lock = flock(libc::F_RDLCK, byte as libc::off_t, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_with_another_wal_index_or_none_does_not_share_it() {
        let line = |pid, inode| format!("1: POSIX  ADVISORY  READ {pid} fe:00:{inode} 128 128\n");
        let (ours, theirs) = (line(1, 5) + &line(1, 6), line(7, 5) + &line(7, 6));
        assert!(share_index(&(ours.clone() + &theirs), 5, 6, 1));
        assert!(!share_index(&(theirs.clone() + &line(8, 5)), 5, 6, 1), "one more without the index");
        assert!(!share_index(&(line(8, 5) + &line(8, 9) + &theirs), 5, 6, 1), "with another one");
        assert!(!share_index(&ours, 5, 6, 1), "nobody is seen");
        let apart = |locks: &str| processes_apart(locks, "fe:00", 5, 6, 1);
        assert_eq!(apart(&(ours.clone() + &theirs)), HashSet::new());
        assert_eq!(apart(&(ours.clone() + &theirs + &line(8, 5))), HashSet::from([8]), "beside who does");
        let elsewhere = line(8, 5).replace("fe:00", "00:1a");
        assert_eq!(
            apart(&(ours.clone() + &theirs + &elsewhere)),
            HashSet::new(),
            "another file with that number"
        );
        let device = |locks: &str, usual| device_of_lock(locks, 5, 1, usual).to_owned();
        let both = line(1, 5).replace("fe:00", "00:1a") + &ours;
        assert_eq!([device(&ours, "00:2a"), device(&theirs, "00:2a")], ["fe:00", "00:2a"], "as on btrfs");
        assert_eq!([device(&both, "fe:00"), device(&both, "00:1a")], ["fe:00", "00:1a"], "the same number");
        assert_eq!(device_in_list(rustix::fs::makedev(0xfe, 0)), "fe:00");
    }
}
