//! Who else has a database open, and keeping all others out for a moment: SQLite's locks on the database file, by the
//! one descriptor of it. And who holds which lock on its wal-index, by `/proc/locks`: `-shm` itself is never opened,
//! since closing it would drop SQLite's locks.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where every connection in WAL mode holds a read lock as long as it is open (os.h, `SHARED_FIRST`).
const SHARED_FIRST: libc::off_t = 0x4000_0002;
/// How many bytes (os.h, `SHARED_SIZE`).
const SHARED_SIZE: libc::off_t = 510;

fn shared_bytes(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: SHARED_FIRST,
        l_len: SHARED_SIZE,
        l_pid: 0,
    }
}

/// Whether a connection of another process has the database open. Our own are never seen; nor are those of a process
/// that was forked with the connection open.
///
/// # Errors
/// The kernel's.
pub fn is_shared(database: &File) -> io::Result<bool> {
    let mut lock = shared_bytes(libc::F_WRLCK);
    fcntl(database, FcntlArg::F_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
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

/// The first other process that has a file open, by name and number; locks do not show a child that inherited its
/// connection. Processes that we may not look into are passed over.
pub fn process_with(file: &Path) -> Option<String> {
    let (wanted, name) = (std::fs::metadata(file).ok()?, file.file_name()?);
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: u32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        // The name first: looking at whatever else is open there could hang, as with a network file system.
        let is_named = |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.file_name() == Some(name));
        let paths = descriptors.map(|entry| entry.path()).filter(is_named);
        let mut files = paths.filter_map(|path| std::fs::metadata(path).ok());
        files.any(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    };
    let pid = pids.find(|pid| *pid != std::process::id() && has_it(*pid))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (process {pid})", name.trim()))
}

/// Whether this process has a file open.
pub fn is_open_here(file: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(file) else { return false };
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut files = open.filter_map(|entry| std::fs::metadata(entry.path()).ok());
    files.any(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
}

/// The byte of SQLite's write lock in `-shm` (wal.c, `WAL_WRITE_LOCK`).
const WRITE_LOCK: u64 = 120;
/// The byte of the checkpoint lock, next to it.
const CHECKPOINT_LOCK: u64 = 121;
/// The byte of read lock 0, which a checkpoint holds while it writes (wal.c, `WAL_READ_LOCK(0)`).
const READ_LOCK_ZERO: u64 = 123;

/// Whether another process is in a checkpoint that waits for readers: it holds the checkpoint lock, and the write
/// lock, too, and does not write into the database file. `false` where that cannot be seen, as across PID namespaces.
pub fn has_waiting_checkpoint(wal_index: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(wal_index) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    is_waiting(&locks, metadata.ino(), u64::from(std::process::id()))
}

/// Whether every other process that has a lock on a database has one on this wal-index, too, and so works with the WAL
/// that is beside it. `false` where that cannot be seen.
pub fn all_share_index(database: &File, wal_index: &Path) -> bool {
    let inode = |metadata: io::Result<Metadata>| metadata.ok().map(|metadata| metadata.ino());
    let (database, wal_index) = (inode(database.metadata()), inode(std::fs::metadata(wal_index)));
    let (Some(database), Some(wal_index)) = (database, wal_index) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    share_index(&locks, database, wal_index, u64::from(std::process::id()))
}

/// A POSIX lock.
struct Lock {
    is_write: bool,
    process: u64,
    inode: u64,
    first: u64,
    last: Option<u64>,
}

/// Lines are `1: POSIX  ADVISORY  WRITE 4711 fe:00:10357871 120 121`: kind, pid, device and inode, first and last byte,
/// which may be `EOF`.
fn parse_locks(locks: &str) -> impl Iterator<Item = Lock> {
    locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_posix = words.next()? == "POSIX" && words.next().is_some();
        let is_write = words.next()? == "WRITE";
        let process = words.next()?.parse().ok()?;
        let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
        let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok());
        is_posix.then_some(Lock { is_write, process, inode, first, last })
    })
}

fn is_waiting(locks: &str, inode: u64, ourselves: u64) -> bool {
    let others = || parse_locks(locks).filter(|lock| lock.inode == inode && lock.process != ourselves);
    let holders = |byte: u64| {
        let has = move |lock: &Lock| lock.first <= byte && lock.last.is_none_or(|last| byte <= last);
        others().filter(|lock| lock.is_write).filter(has).map(|lock| lock.process)
    };
    let holds = |process, byte| holders(byte).any(|other| other == process);
    holders(CHECKPOINT_LOCK).any(|process| holds(process, WRITE_LOCK) && !holds(process, READ_LOCK_ZERO))
}

fn share_index(locks: &str, database: u64, wal_index: u64, ourselves: u64) -> bool {
    let holders = |inode: u64| {
        let theirs = move |lock: &Lock| lock.inode == inode && lock.process != ourselves;
        parse_locks(locks).filter(theirs).map(|lock| lock.process)
    };
    let mut with_database = holders(database).peekable();
    with_database.peek().is_some()
        && with_database.all(|process| holders(wal_index).any(|other| other == process))
}

#[cfg(test)]
mod tests {
    use super::{is_waiting, share_index};

    #[test]
    fn a_checkpoint_waits_if_one_other_process_has_both_locks_and_does_not_write() {
        let line =
            |pid, kind, inode, bytes| format!("1: POSIX  ADVISORY  {kind} {pid} fe:00:{inode} {bytes}\n");
        let both = line(7, "WRITE", 5, "120 121");
        let apart = line(7, "WRITE", 5, "120 120") + &line(7, "WRITE", 5, "121 121");
        for waiting in [&both, &apart] {
            assert!(is_waiting(waiting, 5, 1), "{waiting}");
            assert!(!is_waiting(waiting, 6, 1), "of another file: {waiting}");
            assert!(!is_waiting(waiting, 5, 7), "our own: {waiting}");
        }
        assert!(!is_waiting(&line(7, "WRITE", 5, "121 121"), 5, 1), "a passive checkpoint waits for nobody");
        let writes = line(7, "WRITE", 5, "120 121") + &line(7, "WRITE", 5, "123 123");
        assert!(!is_waiting(&writes, 5, 1), "it waits for nobody any more");
        let two = line(7, "WRITE", 5, "121 121") + &line(8, "WRITE", 5, "120 120");
        assert!(!is_waiting(&two, 5, 1), "a writer beside a passive checkpoint");
        assert!(!is_waiting("1: -> POSIX\ngarbage\n", 5, 1));
    }

    #[test]
    fn who_works_with_another_wal_index_or_none_does_not_share_it() {
        let line = |pid, inode| format!("1: POSIX  ADVISORY  READ {pid} fe:00:{inode} 128 128\n");
        let (ours, theirs) = (line(1, 5) + &line(1, 6), line(7, 5) + &line(7, 6));
        assert!(share_index(&(ours.clone() + &theirs), 5, 6, 1));
        assert!(!share_index(&(theirs.clone() + &line(8, 5)), 5, 6, 1), "one more without the index");
        assert!(!share_index(&(line(8, 5) + &line(8, 9) + &theirs), 5, 6, 1), "with another one");
        assert!(!share_index(&ours, 5, 6, 1), "nobody is seen");
    }
}
