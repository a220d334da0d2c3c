//! Commits that SQLite would not find again if it recovered the WAL, and that only the wal-index tells of: those without a
//! checksum, which SQLite 3.40.1 leaves after a `ROLLBACK TO` in a transaction that was spilled, and those that something
//! has damaged. Without an agent the last close brings them into the file; beside one it is not the last.

use crate::support::agent::Agent;
use crate::support::place::{Place, first, rows};
use crate::support::process::{output, signal};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
/// Of an agent that does not checkpoint by itself.
const PATIENT: [&str; 1] = ["checkpoint-interval: 1h"];
const FRAME: u64 = 24 + 4096;

fn wal_length(place: &Place) -> u64 {
    fs::metadata(place.wal()).map_or(0, |metadata| metadata.len())
}

/// An application with five rows, all of them copied.
fn application(place: &Place) -> (Shell, Agent) {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    insert(&mut application, 5);
    let agent = place.streaming_agent(&PATIENT);
    place.wait_until_replicated(&agent);
    (application, agent)
}

fn insert(application: &mut Shell, count: u32) {
    application
        .run(&format!("INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, {count})"));
}

/// Leaves out the checksums of all frames from an offset on, as SQLite does that is still to sum them.
fn leave_out_checksums(wal: &Path, from: u64) {
    let file = File::options().write(true).open(wal).expect("there is a WAL");
    let end = file.metadata().expect("a file").len();
    for at in (from..end).step_by(FRAME as usize) {
        file.write_all_at(&[0; 16], at + 8).expect("it can be written");
    }
}

/// Five rows without checksums.
fn insert_unsummed(place: &Place, application: &mut Shell) {
    let before = wal_length(place);
    insert(application, 5);
    leave_out_checksums(&place.wal(), before);
}

/// A reader, who keeps the WAL from being emptied.
fn reader(place: &Place) -> Shell {
    let mut reader = Shell::open(&place.database());
    reader.run("BEGIN; SELECT count(*) FROM t");
    reader
}

#[track_caller]
fn assert_no_break(agent: &Agent) {
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
}

#[test]
fn an_application_that_closes_after_each_such_commit_loses_none() {
    let place = Place::new();
    let sqlite = |sql: &str| {
        let mut command = Command::new("sqlite3");
        command.args(["-batch", "-cmd", ".timeout 5000", "-cmd", "PRAGMA cache_size=10"]);
        output(command.arg(place.database()).arg(sql))
    };
    sqlite(
        "PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB);
         INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 40)",
    );
    let agent = place.streaming_agent(&[]);
    for committed in 0..12 {
        let found = sqlite(
            "SELECT count(*) FROM t;
             BEGIN; INSERT INTO t (data) VALUES (randomblob(3000)); SAVEPOINT a;
             UPDATE t SET data = randomblob(3000);
             UPDATE t SET data = randomblob(3000) WHERE id > 30; ROLLBACK TO a; COMMIT",
        );
        assert_eq!(found.lines().last(), Some((40 + committed).to_string().as_str()), "{}", agent.log());
    }
    place.wait_until_replicated(&agent);
    assert_no_break(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn commits_without_a_checksum_are_replicated_and_brought_into_the_file() {
    let place = Place::new();
    let (mut application, agent) = application(&place);
    let (reader, before) = (reader(&place), wal_length(&place));
    signal(agent.pid(), Signal::STOP);
    insert_unsummed(&place, &mut application);
    insert(&mut application, 1);
    insert(&mut application, 3);
    signal(agent.pid(), Signal::CONT);
    place.wait_until_replicated(&agent);
    insert(&mut application, 1);
    place.wait_until_replicated(&agent);
    assert_no_break(&agent);
    assert!(wal_length(&place) > before, "the reader needs it");
    reader.close();
    // Without another commit, of which an event would tell.
    wait_until("the WAL is empty", DEADLINE, || wal_length(&place) == 0);
    agent.kill();
    application.kill();
    assert_eq!(rows(&place.database()), 15);
    let agent = place.streaming_agent(&PATIENT);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn who_is_the_first_to_see_such_commits_copies_them_too() {
    let place = Place::new();
    let (mut application, agent) = application(&place);
    place.stop(agent);
    insert_unsummed(&place, &mut application);
    insert(&mut application, 1);
    let agent = place.streaming_agent(&PATIENT);
    place.wait_until_replicated(&agent);
    assert_no_break(&agent);
    wait_until("the WAL is empty", DEADLINE, || wal_length(&place) == 0);
    application.kill();
    place.stop(agent);
    place.assert_restores();
    assert_eq!(rows(&place.database()), 11);
}

#[test]
fn commits_behind_a_damaged_frame_are_not_lost_when_the_application_closes() {
    let place = Place::new();
    let (mut application, agent) = application(&place);
    signal(agent.pid(), Signal::STOP);
    let marker = "m".repeat(3000);
    application.run(&format!("INSERT INTO t (data) VALUES ('{marker}')"));
    insert(&mut application, 3);
    let bytes = fs::read(place.wal()).expect("there is a WAL");
    let at = bytes.windows(marker.len()).position(|window| window == marker.as_bytes());
    let file = File::options().write(true).open(place.wal()).expect("there is a WAL");
    file.write_all_at(b"n", at.expect("the row is in it") as u64).expect("it can be written");
    application.close();
    signal(agent.pid(), Signal::CONT);
    agent.wait_for_log("the WAL holds frames that are not valid");
    wait_until("it is let go of", DEADLINE, || !place.wal().exists());
    assert_eq!(rows(&place.database()), 9);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_wal_without_checksums_that_nobody_else_has_open_is_let_go_of_at_once() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let agent = place.streaming_agent(&["checkpoint-interval: 1h", "let-go-after: never"]);
    insert(&mut application, 5);
    place.wait_until_replicated(&agent);
    signal(agent.pid(), Signal::STOP);
    insert_unsummed(&place, &mut application);
    application.close();
    signal(agent.pid(), Signal::CONT);
    wait_until("it is let go of", DEADLINE, || !place.wal().exists());
    assert_eq!(rows(&place.database()), 10);
    place.wait_until_replicated(&agent);
    assert_no_break(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn an_agent_that_begins_beside_such_a_wal_follows_it_in_its_first_generation() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    insert(&mut application, 5);
    insert_unsummed(&place, &mut application);
    insert(&mut application, 1);
    // What is there cannot be compared either.
    let reader = reader(&place);
    insert(&mut application, 1);
    let agent = place.streaming_agent(&PATIENT);
    place.wait_until_replicated(&agent);
    insert(&mut application, 1);
    place.wait_until_replicated(&agent);
    assert_no_break(&agent);
    reader.close();
    wait_until("the WAL is empty", DEADLINE, || wal_length(&place) == 0);
    application.close();
    place.stop(agent);
    place.assert_restores();
    assert_eq!(rows(&place.database()), 13);
}

#[test]
fn an_agent_that_stops_leaves_no_such_wal_to_whoever_comes_next() {
    for waits in [true, false] {
        let place = Place::new();
        let (mut application, mut agent) = application(&place);
        let reader = reader(&place);
        signal(agent.pid(), Signal::STOP);
        insert_unsummed(&place, &mut application);
        insert(&mut application, 1);
        signal(agent.pid(), Signal::CONT);
        place.wait_until_replicated(&agent);
        signal(agent.pid(), Signal::STOP);
        reader.close();
        application.close();
        signal(agent.pid(), Signal::TERM);
        signal(agent.pid(), Signal::CONT);
        if !waits {
            // It goes at once.
            signal(agent.pid(), Signal::TERM);
        }
        agent.wait_for_exit();
        assert_eq!(rows(&place.database()), 11, "{}", agent.log());
        place.assert_restores();
    }
}
