//! Who holds which lock on a wal-index, by `/proc/locks`: `-shm` itself is never opened, since closing it would drop
//! SQLite's locks.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The byte of SQLite's write lock in `-shm` (wal.c, `WAL_WRITE_LOCK`).
const WRITE_LOCK: u64 = 120;
/// The byte of the checkpoint lock, next to it.
const CHECKPOINT_LOCK: u64 = 121;

/// Whether another process is in a checkpoint that waits for readers: it holds the checkpoint lock, and the write
/// lock, too. `false` where that cannot be seen, as across PID namespaces.
pub fn has_waiting_checkpoint(wal_index: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(wal_index) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    holds_both(&locks, metadata.ino(), u64::from(std::process::id()))
}

/// Lines are `1: POSIX  ADVISORY  WRITE 4711 fe:00:10357871 120 121`: kind, pid, device and inode, first and last byte.
fn holds_both(locks: &str, inode: u64, ourselves: u64) -> bool {
    let holders = |byte: u64| {
        locks.lines().filter_map(move |line| {
            let mut words = line.split_whitespace().skip(1);
            let is_write = words.next()? == "POSIX" && words.next().is_some() && words.next()? == "WRITE";
            let pid: u64 = words.next()?.parse().ok()?;
            let is_ours = words.next()?.rsplit(':').next()?.parse() == Ok(inode);
            let (first, last): (u64, u64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            (is_write && is_ours && pid != ourselves && (first..=last).contains(&byte)).then_some(pid)
        })
    };
    holders(CHECKPOINT_LOCK).any(|pid| holders(WRITE_LOCK).any(|other| other == pid))
}

#[cfg(test)]
mod tests {
    use super::holds_both;

    #[test]
    fn a_checkpoint_waits_if_one_other_process_has_both_locks() {
        let line =
            |pid, kind, inode, bytes| format!("1: POSIX  ADVISORY  {kind} {pid} fe:00:{inode} {bytes}\n");
        let both = line(7, "WRITE", 5, "120 121");
        let apart = line(7, "WRITE", 5, "120 120") + &line(7, "WRITE", 5, "121 121");
        for waiting in [&both, &apart] {
            assert!(holds_both(waiting, 5, 1), "{waiting}");
            assert!(!holds_both(waiting, 6, 1), "of another file: {waiting}");
            assert!(!holds_both(waiting, 5, 7), "our own: {waiting}");
        }
        assert!(!holds_both(&line(7, "WRITE", 5, "121 121"), 5, 1), "a passive checkpoint waits for nobody");
        let two = line(7, "WRITE", 5, "121 121") + &line(8, "WRITE", 5, "120 120");
        assert!(!holds_both(&two, 5, 1), "a writer beside a passive checkpoint");
        assert!(!holds_both("1: -> POSIX\ngarbage\n", 5, 1));
    }
}
