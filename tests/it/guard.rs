//! Holding the WAL: writers and checkpoints of others beside ours, and locks that must not be lost.

use crate::support::place::{Place, first, is_streaming, wait_for_page_table};
use crate::support::process::output;
use crate::support::sqlite::{Shell, Writer, readers_in_all_slots};
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use serde_json::Value;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use wal_agent::core::names::Object;
use wal_agent::core::position::{Index, Offset};

/// Two writers at their default autocheckpoint, an agent eager to checkpoint: nothing may be lost between them. They
/// write until the WAL was restarted, and until the status fulfils a condition.
fn two_writers_and_an_eager_agent(max_pages: u32, condition: impl Fn(&Value) -> bool) {
    let place = Place::new();
    let database = place.database();
    let mut writers = ["1", "2"].map(|number| {
        let rows = ["--rows", "1-5", "--size", "1-3000", "--synchronous", "NORMAL", "--mode", "churn"];
        Writer::start(&database, &[&rows[..], &["--writer", number, "--seed", number]].concat())
    });
    writers.iter_mut().for_each(|writer| writer.wait_for(1));
    let settings = [
        "min-checkpoint-page-count: 1",
        &format!("max-checkpoint-page-count: {max_pages}"),
        "max-write-block: 1s",
    ];
    let agent = place.agent(&settings);
    let application = Shell::open(&database);
    writers.iter_mut().for_each(|writer| writer.wait_for(1000));
    agent.wait_for_status("restarts the WAL", |status| place.objects("wal").len() > 1 && condition(status));
    writers.into_iter().for_each(|writer| drop(writer.finish()));
    place.wait_until_replicated(&agent);
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
    application.close();
}

#[test]
fn two_writers_and_an_agent_that_checkpoints_all_the_time_lose_nothing() {
    two_writers_and_an_eager_agent(10_000, |_| true);
}

#[test]
fn two_writers_and_urgent_rounds_lose_nothing() {
    let rounds = |status: &Value| first(status)["write_lock_holds"]["count"].as_u64();
    two_writers_and_an_eager_agent(100, |status| rounds(status) > Some(5));
}

/// Whatever is left to do under the write lock: when that is done, the writer waits no longer, whatever time there is.
#[test]
fn an_urgent_round_gives_the_write_lock_back_when_it_is_done() {
    let place = Place::new();
    let database = place.database();
    Writer::start(&database, &["--commits", "1"]).finish();
    let application = Shell::open(&database);
    let agent = place.streaming_agent(&["max-checkpoint-page-count: 2000", "max-write-block: 10s"]);
    let rows = ["--size", "1-100", "--synchronous", "OFF", "--autocheckpoint", "0"];
    let writer = Writer::start(&database, &rows);
    let holds = |status: &Value, what: &str| first(status)["write_lock_holds"][what].as_u64();
    let status = agent.wait_for_status("has held the write lock", |status| holds(status, "count") >= Some(3));
    drop(writer.finish());
    assert!(holds(&status, "max_micros") < Some(10_000_000), "{status}");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    application.close();
}

#[test]
fn the_wal_of_a_writer_that_never_pauses_is_restarted_again_and_again() {
    let place = Place::new();
    let database = place.database();
    Writer::start(&database, &["--commits", "1"]).finish();
    let application = Shell::open(&database);
    let agent = place.streaming_agent(&["max-checkpoint-page-count: 2000", "max-write-block: 1s"]);
    // After each of its commits it tries to checkpoint, and is in our way.
    let rows = ["--size", "1-100", "--synchronous", "OFF", "--autocheckpoint", "10"];
    let writer = Writer::start(&database, &rows);
    agent.wait_for_status("begins one index after another", |_| place.objects("wal").len() > 10);
    drop(writer.finish());
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    application.close();
}

/// Beside a writer that never pauses, how long its WAL gets is a matter of who gets the processor; this one pauses after
/// each commit, and its application leaves all checkpoints to the agent.
#[test]
fn a_wal_that_only_we_checkpoint_does_not_get_twice_as_long_as_it_may() {
    let place = Place::new();
    let database = place.database();
    let rows = ["--size", "1-3000", "--synchronous", "NORMAL", "--autocheckpoint", "0", "--pause", "10"];
    Writer::start(&database, &["--commits", "1"]).finish();
    let application = Shell::open(&database);
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 500", "max-checkpoint-page-count: 1000"]);
    let writer = Writer::start(&database, &rows);
    agent.wait_for_status("begins one index after another", |_| place.objects("wal").len() > 4);
    drop(writer.finish());
    // A WAL that is restarted keeps its length: it was never longer.
    let frames = std::fs::metadata(place.wal()).expect("the WAL is there").len() / (24 + 4096);
    assert!(frames < 2 * 1000, "the WAL had {frames} frames");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    application.close();
}

/// Asks for a checkpoint until it is not busy, with a busy timeout of 50 ms; how often that took.
fn checkpoint_until_done(application: &mut Shell, mode: &str) -> usize {
    application.run(".timeout 50");
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let done = (1..=MOST_TRIES).find(|_| application.value(&sql).starts_with("0|"));
    done.unwrap_or_else(|| panic!("{mode} is still busy after {MOST_TRIES} tries"))
}

/// Each waits for up to 50 ms.
const MOST_TRIES: usize = 40;

#[test]
fn the_applications_own_checkpoints_succeed_while_we_are_attached() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let agent = place.streaming_agent(&[]);
    for mode in ["TRUNCATE", "FULL", "RESTART", "TRUNCATE"] {
        application.run("INSERT INTO t (data) VALUES (randomblob(20000))");
        place.wait_until_replicated(&agent);
        checkpoint_until_done(&mut application, mode);
        application.run("INSERT INTO t (data) VALUES (randomblob(20000))");
        place.wait_until_replicated(&agent);
    }
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn the_applications_checkpoints_succeed_directly_after_a_burst() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let agent = place.streaming_agent(&[]);
    for mode in ["TRUNCATE", "FULL", "RESTART", "TRUNCATE"] {
        application.run(&"INSERT INTO t (data) VALUES (randomblob(5000));\n".repeat(50));
        checkpoint_until_done(&mut application, mode);
        if mode == "TRUNCATE" {
            let length = std::fs::metadata(place.wal()).expect("the WAL is there").len();
            assert_eq!(length, 0, "the WAL after TRUNCATE");
        }
    }
    place.wait_until_replicated(&agent);
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}

/// Makes `fdatasync` and `fsync` of a database file take three seconds.
const SLOW_FSYNC: &str = r#"
static int before_fsync(int fd)
{
    return is_named(fd, ".db") ? usleep(3000000) : 0;
}
"#;

/// It looks once at each reader's mark, and then waits for that slot, as long as its busy timeout; also if it is ours.
#[test]
fn a_checkpoint_that_waits_for_a_slot_that_we_share_gets_it_when_its_readers_have_gone() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (data BLOB)");
    let mut readers = readers_in_all_slots(&place.database(), || {
        application.run("INSERT INTO t VALUES (randomblob(3000))");
    });
    application.run("INSERT INTO t VALUES (1)");
    let agent = place.streaming_agent(&[]);
    application.run(".timeout 10000");
    readers.iter_mut().for_each(|reader| drop(reader.run("COMMIT")));
    assert_eq!(
        application.value("PRAGMA wal_checkpoint(TRUNCATE)"),
        "0|0|0",
        "it waited for its whole timeout"
    );
    place.stop(agent);
}

/// That a checkpoint is done, no event tells: it is said in `-shm` after the last fsync. For a second the checkpoint then
/// waits for our slot, with the write lock.
#[test]
fn a_checkpoint_whose_fsync_takes_long_does_not_wait_for_us_afterwards() {
    let place = Place::new();
    let library = place.preload(SLOW_FSYNC);
    let mut application = Shell::with_environment(&place.database(), &[("LD_PRELOAD", &*library)]);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let mut other = Shell::open(&place.database());
    let agent = place.streaming_agent(&["checkpoint-interval: 1h"]);
    application.run(".timeout 1000");
    for mode in ["RESTART", "TRUNCATE"] {
        application.run("INSERT INTO t (data) VALUES (randomblob(100000))");
        place.wait_until_replicated(&agent);
        let answer = application.value(&format!("PRAGMA wal_checkpoint({mode})"));
        assert!(answer.starts_with("0|"), "{mode} was busy: {answer}");
        other.run("INSERT INTO t (data) VALUES (randomblob(100))");
    }
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

/// A checkpoint that we kept waiting would hold the write lock for its whole busy timeout: here that is beyond every
/// deadline of the tests.
#[test]
fn writers_that_checkpoint_in_every_mode_never_wait_for_us_without_an_end() {
    let place = Place::new();
    let database = place.database();
    Writer::start(&database, &["--commits", "1"]).finish();
    let application = Shell::open(&database);
    let agent = place.streaming_agent(&[]);
    let mut writers = ["1", "2", "3"].map(|number| {
        let rows = ["--rows", "1-3", "--size", "1-2000", "--synchronous", "NORMAL", "--mode", "checkpoint"];
        let others = ["--busy-timeout", "3600000", "--writer", number, "--seed", number];
        Writer::start(&database, &[&rows[..], &others].concat())
    });
    writers.iter_mut().for_each(|writer| writer.wait_for(200));
    writers.into_iter().for_each(|writer| drop(writer.finish()));
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    application.close();
}

/// How many descriptors a process has of a file.
fn descriptors(pid: u32, file: &Path) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    entries
        .filter(|entry| entry.as_ref().is_ok_and(|e| std::fs::read_link(e.path()).is_ok_and(|l| l == file)))
        .count()
}

#[test]
fn the_last_close_of_a_short_connection_leaves_the_wal_whatever_the_agent_does() {
    let place = Place::new();
    let database = place.database();
    let one_shot = |sql: &str| {
        output(Command::new("sqlite3").args(["-batch", "-cmd", ".timeout 5000"]).arg(&database).arg(sql))
    };
    one_shot("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    one_shot("INSERT INTO t (data) SELECT randomblob(100000) FROM generate_series(1, 200)");
    // The snapshot is read while the connections come and go.
    let agent = place.agent(&["min-checkpoint-page-count: 5", "max-checkpoint-page-count: 20"]);
    agent.wait_for_status("is attached", |status| first(status)["state"] == "attached");
    let shm = place.path("app.db-shm");
    let count = || (descriptors(agent.pid(), &database), descriptors(agent.pid(), &shm));
    let before = count();
    assert!(before.0 > 1 && before.1 == 2, "{before:?}");
    for _ in 0..60 {
        one_shot("INSERT INTO t (data) VALUES (randomblob(9000))");
        assert!(place.wal().exists() && shm.exists(), "somebody's close has removed the WAL");
        agent.status().expect("the agent runs");
        assert_eq!(count(), before, "descriptors of the database and of -shm");
    }
    place.wait_until_replicated(&agent);
    assert_eq!(count(), before, "descriptors of the database and of -shm");
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    assert!(place.objects("wal").len() > 1, "there was no checkpoint");
    place.stop(agent);
    place.assert_restores();
}

/// Tells how often files are opened, by whomever.
struct Opens(OwnedFd);

impl Opens {
    fn of(files: &[&Path]) -> Opens {
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("there is an instance left");
        for file in files {
            add_watch(&events, *file, WatchFlags::OPEN).expect("it is there");
        }
        Opens(events)
    }

    /// Since the last time.
    fn count(&self) -> usize {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.0, &mut buffer);
        std::iter::from_fn(|| events.next().ok().map(drop)).count()
    }
}

const COMMIT: &str = "INSERT INTO t (data) VALUES (randomblob(9000))";

/// Commits until the replica has so many objects of WALs: that needs checkpoints.
fn begin_indexes(place: &Place, application: &mut Shell, count: usize) {
    wait_until("checkpoints let further indexes begin", BEFORE_THE_SLOW_LOOK, || {
        application.run(COMMIT);
        place.objects("wal").len() >= count
    });
}

/// Closing a second descriptor would drop all locks of SQLite's connections in the agent, and `/proc` shows only a moment.
/// A replica that has lost a part of what it held gets a new generation: with a snapshot, and a page table.
#[test]
fn while_it_is_attached_the_agent_opens_neither_the_database_nor_its_wal_index_again() {
    let place = Place::new();
    let (database, shm) = (place.database(), place.path("app.db-shm"));
    let mut application = Shell::open(&database);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run("INSERT INTO t (data) SELECT randomblob(100000) FROM generate_series(1, 100)");
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 5", "max-checkpoint-page-count: 20"]);
    wait_for_page_table(&agent);
    let before = agent.generation();
    let opens = Opens::of(&[&database, &shm]);
    drop(std::fs::File::open(&shm).expect("it is there"));
    assert_eq!(opens.count(), 1, "opening is not seen");
    begin_indexes(&place, &mut application, 4);
    let (replica, away) = (place.replica(), place.path("away"));
    std::fs::rename(&replica, &away).and_then(|()| std::fs::write(&replica, "")).expect("the folder is ours");
    wait_until("the next index cannot be begun there", BEFORE_THE_SLOW_LOOK, || {
        application.run(COMMIT);
        agent.status().is_some_and(|status| first(&status)["replicas"][0]["state"] == "failing")
    });
    let lost = Object::Segment {
        generation: before.parse().expect("it has a name"),
        index: Index::new(1).expect("a small number"),
        start: Offset::ZERO,
    };
    std::fs::remove_file(away.join(lost.path())).expect("it is there");
    std::fs::remove_file(&replica).and_then(|()| std::fs::rename(&away, &replica)).expect("they are ours");
    agent.wait_for_status("begins a new generation", |status| {
        is_streaming(status) && first(status)["generation"] != before.as_str()
    });
    assert_eq!(place.objects("snapshots").len(), 2, "no new snapshot");
    wait_for_page_table(&agent);
    begin_indexes(&place, &mut application, place.objects("wal").len() + 2);
    agent.wait_for_status("streams", is_streaming);
    assert_eq!(agent.run("status", &[]).status.code(), Some(0));
    assert_eq!(opens.count(), 0, "something was opened beside what is held");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}
