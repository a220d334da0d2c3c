//! Who else has a database open, and keeping all others out for a moment: SQLite's locks on the database file, by the
//! one descriptor of it. And who holds which lock on its wal-index, by the one descriptor of that. `/proc/locks` is read
//! only where milliseconds do not matter: the kernel waits for all who lock anything while it makes the list.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
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
const WRITE_LOCK: libc::off_t = 120;
/// So many bytes are locks in `-shm`, from that one on; whoever works with it has the last one (os_unix.c,
/// `UNIX_SHM_DMS`).
const INDEX_LOCKS: libc::off_t = 9;
/// The byte of the checkpoint lock, next to it.
const CHECKPOINT_LOCK: libc::off_t = 121;
/// The byte of read lock 0, which a checkpoint holds while it writes (wal.c, `WAL_READ_LOCK(0)`).
const READ_LOCK_ZERO: libc::off_t = 123;

/// Whether another process is in a checkpoint that waits for readers: it holds the checkpoint lock, and the write
/// lock, too, and does not write into the database file. `false` where that cannot be seen, as across PID namespaces.
pub fn has_waiting_checkpoint(wal_index: &File) -> bool {
    let holders = || {
        let checkpoint = holder(wal_index, CHECKPOINT_LOCK)?;
        // Only of the few who checkpoint more is asked.
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        let (write, read_zero) = (holder(wal_index, WRITE_LOCK)?, holder(wal_index, READ_LOCK_ZERO)?);
        let is_waiting = is_waiting(checkpoint, write, read_zero);
        // It may have ended meanwhile, and begun to write.
        Ok::<_, io::Error>(holder(wal_index, CHECKPOINT_LOCK)?.filter(|&now| is_waiting && now == checkpoint))
    };
    holders().is_ok_and(|waiting| waiting.is_some())
}

/// The process that has a write lock on this byte; the kernel shows none of other PID namespaces (0).
fn holder(wal_index: &File, byte: libc::off_t) -> io::Result<Option<libc::pid_t>> {
    // What a read lock would have to wait for.
    let mut lock = flock(libc::F_RDLCK, byte, 1);
    fcntl(wal_index, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid))
}

fn is_waiting(checkpoint: libc::pid_t, write: Option<libc::pid_t>, read_zero: Option<libc::pid_t>) -> bool {
    checkpoint > 0 && write == Some(checkpoint) && read_zero != Some(checkpoint)
}

/// Whether every other process that has a lock on a database has one on this wal-index, too, and so works with the WAL
/// that is beside it. `false` where that cannot be seen. Takes milliseconds: the kernel waits for all who lock anything.
pub fn all_share_index(database: &File, wal_index: &File) -> bool {
    let inode = |file: &File| file.metadata().ok().map(|metadata| metadata.ino());
    let (Some(database), Some(wal_index)) = (inode(database), inode(wal_index)) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    share_index(&locks, database, wal_index, u64::from(std::process::id()))
}

/// Whether a connection of another process works with this wal-index. We must not: `-shm` is opened and closed here.
///
/// # Errors
/// The kernel's.
pub fn is_index_shared(wal_index: &Path) -> io::Result<bool> {
    let file = File::open(wal_index)?;
    let mut lock = flock(libc::F_WRLCK, WRITE_LOCK, INDEX_LOCKS);
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// A POSIX lock.
struct Lock {
    process: u64,
    inode: u64,
}

/// Lines are `1: POSIX  ADVISORY  WRITE 4711 fe:00:10357871 120 121`: kind, pid, device and inode, first and last byte.
fn parse_locks(locks: &str) -> impl Iterator<Item = Lock> {
    locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_posix = words.next()? == "POSIX";
        let process = words.nth(2)?.parse().ok()?;
        let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
        is_posix.then_some(Lock { process, inode })
    })
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
    use super::*;

    #[test]
    fn a_checkpoint_waits_if_one_other_process_has_both_locks_and_does_not_write() {
        assert!(is_waiting(7, Some(7), None));
        assert!(is_waiting(7, Some(7), Some(8)), "somebody else has just had it");
        assert!(!is_waiting(7, None, None), "a passive checkpoint waits for nobody");
        assert!(!is_waiting(7, Some(7), Some(7)), "it waits for nobody any more");
        assert!(!is_waiting(7, Some(8), None), "a writer beside a passive checkpoint");
        assert!(!is_waiting(0, Some(0), None), "two that cannot be told apart");
    }

    #[test]
    fn who_has_a_write_lock_is_seen_and_who_has_a_read_lock_is_not() {
        let file = tempfile::tempfile().expect("there is room");
        let lock = |kind, byte| {
            // One of an open file is another's than that of a process.
            fcntl(&file, FcntlArg::F_OFD_SETLK(&flock(kind, byte, 1))).expect("nobody else has it");
        };
        lock(libc::F_WRLCK, WRITE_LOCK);
        lock(libc::F_RDLCK, READ_LOCK_ZERO);
        let seen = |byte| holder(&file, byte).expect("it can be asked").is_some();
        assert!(seen(WRITE_LOCK) && !seen(READ_LOCK_ZERO) && !seen(CHECKPOINT_LOCK));
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
