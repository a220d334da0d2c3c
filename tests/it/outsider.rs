//! Somebody truncates, deletes or replaces the live `-wal` while it is written and read. That destroys what was not
//! checkpointed; the agent must survive it, and what comes after must be replicated.
//!
//! Or somebody removes the `-shm` behind a crash: without an agent, nobody has that open then, and it is only memory.
//! (`truncate -s 0` of a `-shm` that is in use is left out: it ends every program that has it mapped, SQLite's or ours.)

use crate::support::agent::Agent;
use crate::support::place::{Place, first, is_resting};
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::wait_for;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// How long the agent may take to notice.
const DEADLINE: Duration = Duration::from_secs(60);

fn truncate(wal: &Path) {
    File::options().write(true).open(wal).and_then(|file| file.set_len(0)).expect("the WAL is there");
}

fn delete(wal: &Path) {
    fs::remove_file(wal).expect("the WAL is there");
}

/// By something that is no WAL, as a restore from a backup of another kind might.
fn replace(wal: &Path) {
    let other = wal.with_file_name("other");
    fs::write(&other, vec![0x5a; 100_000]).expect("the folder is ours");
    fs::rename(other, wal).expect("the WAL is there");
}

/// The same content in the same file.
fn overwrite(wal: &Path) {
    fs::write(wal, vec![0x5a; 100_000]).expect("the WAL is there");
}

/// What this does to the application is its own affair: it may fail in any way, and is killed.
fn damage_under_load(damage: fn(&Path)) {
    let place = Place::new();
    let database = place.database();
    for round in 0..3 {
        // Without a checkpoint in between, for a half of one that loses its WAL is a malformed database. While the agent attaches
        // to what it does not know, it checkpoints, beside a writer perhaps only a half.
        Writer::start(&database, &["--commits", "1"]).finish();
        let settings =
            ["let-go-after: never", "min-checkpoint-page-count: 100000", "max-checkpoint-page-count: 0"];
        let agent = place.streaming_agent(&settings);
        let arguments =
            ["--rows", "1-5", "--size", "1-4000", "--synchronous", "NORMAL", "--autocheckpoint", "0"];
        let mut writer = Writer::start(&database, &arguments);
        writer.wait_for(1);
        let count = writer.committed().len() + 100 + 50 * round;
        writer.wait_for(count);
        let pid = agent.pid();
        damage(&place.wal());
        answers_on(&agent, pid);
        writer.kill();
        answers_on(&agent, pid);
        reopened(&place, &agent, round);
        answers_on(&agent, pid);
        place.stop(agent);
        place.assert_restores();
    }
}

#[track_caller]
fn answers_on(agent: &Agent, pid: u32) {
    let status = agent.status().expect("the agent runs");
    assert_eq!(status["pid"], pid);
}

/// The application opens the database again, and goes on. Before the agent has noticed, it can meet what was damaged; then
/// it is started once more.
fn reopened(place: &Place, agent: &Agent, round: usize) {
    let begin = format!("CREATE TABLE IF NOT EXISTS begun_{round} (data)");
    let mut application = wait_for("the application writes again", DEADLINE, || {
        let mut application = Shell::open(&place.database());
        application.try_run(&begin).ok().map(|_| application)
    });
    for n in 0..5 {
        application.run(&format!("CREATE TABLE after_{round}_{n} AS SELECT randomblob(5000) AS data"));
        place.wait_until_replicated(agent);
    }
    application.close();
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["state"], "attached", "{status}");
}

#[test]
fn a_live_wal_truncated_from_outside_ends_nothing() {
    damage_under_load(truncate);
}

#[test]
fn a_live_wal_deleted_from_outside_ends_nothing() {
    damage_under_load(delete);
}

#[test]
fn a_live_wal_replaced_from_outside_ends_nothing() {
    damage_under_load(replace);
}

#[test]
fn a_live_wal_overwritten_from_outside_ends_nothing() {
    damage_under_load(overwrite);
}

/// A crash, and what a start script does behind it; then the application, which finds all of its commits, and more.
fn restarted_without_wal_index(place: &Place) -> Shell {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
    application.run("PRAGMA wal_autocheckpoint=0");
    commit_rows(&mut application, 20);
    application.kill();
    fs::remove_file(place.path("app.db-shm")).expect("it was in use");
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA wal_autocheckpoint=0");
    assert_eq!(rows(&mut application), "20");
    application
}

fn commit_rows(application: &mut Shell, count: usize) {
    (0..count).for_each(|_| drop(application.run("INSERT INTO t VALUES (randomblob(2000))")));
}

fn rows(application: &mut Shell) -> String {
    application.value("SELECT count(*) FROM t")
}

#[test]
fn a_removed_wal_index_costs_nothing_when_the_agent_lets_go() {
    let place = Place::new();
    Writer::start(&place.database(), &["--commits", "1"]).finish();
    let agent = place.streaming_agent(&["let-go-after: 100ms", "min-checkpoint-page-count: 100000"]);
    let mut application = restarted_without_wal_index(&place);
    commit_rows(&mut application, 50);
    application.kill();
    agent.wait_for_status("it has let go", is_resting);
    let mut application = Shell::open(&place.database());
    assert_eq!(rows(&mut application), "70");
    assert_eq!(application.value("PRAGMA integrity_check"), "ok");
    place.wait_until_replicated(&agent);
    application.close();
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn no_checkpoint_of_ours_is_by_a_wal_index_that_was_removed() {
    let place = Place::new();
    Writer::start(&place.database(), &["--commits", "1"]).finish();
    let settings = ["let-go-after: never", "min-checkpoint-page-count: 5", "checkpoint-interval: 100ms"];
    let agent = place.streaming_agent(&settings);
    let mut application = restarted_without_wal_index(&place);
    for _ in 0..10 {
        application.run("UPDATE t SET data = randomblob(2000); PRAGMA wal_checkpoint(PASSIVE)");
        commit_rows(&mut application, 5);
    }
    place.wait_until_replicated(&agent);
    assert_eq!(rows(&mut application), "70");
    assert_eq!(application.value("PRAGMA integrity_check"), "ok");
    assert!(agent.log().contains("-shm was deleted or replaced"), "{}", agent.log());
    application.close();
    place.stop(agent);
    place.assert_restores();
}
