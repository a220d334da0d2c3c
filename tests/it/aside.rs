//! What happens to the WAL while our reader stands aside for a checkpoint of the application.

use crate::support::agent::Agent;
use crate::support::place::{Place, wait_for_page_table};
use crate::support::process::signal;
use crate::support::sqlite::Shell;
use crate::support::wait::{wait_for, wait_until};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything here may take; a checkpoint waits for readers so long, too.
const DEADLINE: Duration = Duration::from_secs(60);
/// The agent asks for so long whether a checkpoint waits, and then not any more before the next commit.
const ASKS: Duration = Duration::from_secs(2);
/// SQLite's read locks in `-shm` (wal.c, `WAL_READ_LOCK`).
const READ_LOCKS: std::ops::RangeInclusive<u64> = 123..=127;

/// Whether a process holds none of the read locks of a wal-index, so that the WAL may be restarted as far as it goes.
fn holds_no_read_lock(pid: u32, wal_index: &Path) -> bool {
    let inode = fs::metadata(wal_index).expect("the database is open").ino().to_string();
    let locks = fs::read_to_string("/proc/locks").expect("the kernel tells");
    !locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX", _, _, holder, file, byte, _] = words[..] else { return false };
        let is_read_lock = byte.parse().is_ok_and(|byte: u64| READ_LOCKS.contains(&byte));
        holder.parse() == Ok(pid) && file.rsplit(':').next() == Some(&inode) && is_read_lock
    })
}

/// Stops the agent's process while its reader is aside; `None` if it did not step aside.
fn stop_while_aside(agent: &Agent, wal_index: &Path) -> Option<()> {
    let end = Instant::now() + ASKS;
    while Instant::now() < end {
        if !holds_no_read_lock(agent.pid(), wal_index) {
            thread::yield_now();
            continue;
        }
        signal(agent.pid(), Signal::STOP);
        wait_until_stopped(agent.pid());
        if holds_no_read_lock(agent.pid(), wal_index) {
            return Some(());
        }
        signal(agent.pid(), Signal::CONT);
    }
    None
}

/// Waits until all threads of a process stand still.
fn wait_until_stopped(pid: u32) {
    let is_still = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    wait_until("a stopped process stands still", DEADLINE, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        threads.flatten().all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(is_still))
    });
}

#[test]
fn a_wal_that_is_restarted_while_our_reader_is_aside_is_compared_and_the_generation_goes_on() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run("INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 100)");
    application.run(".timeout 60000");
    let mut other = Shell::open(&place.database());
    let agent = place.streaming_agent(&["checkpoint-interval: 1h"]);
    wait_for_page_table(&agent);
    let before = agent.generation();
    let wal_index = place.path("app.db-shm");
    wait_for("the reader steps aside for a checkpoint that another one keeps waiting", DEADLINE, || {
        other.run("BEGIN; SELECT count(*) FROM t");
        application.run("UPDATE t SET data = randomblob(3000) WHERE id = 1");
        thread::scope(|scope| {
            let checkpoint = scope.spawn(|| application.run("PRAGMA wal_checkpoint(RESTART)"));
            let stopped = stop_while_aside(&agent, &wal_index);
            other.run("COMMIT");
            let answer = checkpoint.join().expect("the shell answers");
            assert!(answer[0].starts_with("0|"), "the checkpoint was busy: {answer:?}");
            stopped
        })
    });
    // The next commits restart the WAL, and again, unseen.
    application.run(
        "UPDATE t SET data = randomblob(3000) WHERE id BETWEEN 2 AND 5; PRAGMA wal_checkpoint(TRUNCATE)",
    );
    application.run("UPDATE t SET data = randomblob(3000) WHERE id BETWEEN 6 AND 9");
    signal(agent.pid(), Signal::CONT);
    agent.wait_for_log("the WAL was restarted while the agent did not hold it; compared with the page table");
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), before);
    assert_eq!(place.objects("snapshots").len(), 1);
    place.stop(agent);
    place.assert_restores();
}
