//! Somebody truncates, deletes or replaces the live `-wal` while it is written and read. That destroys what was not
//! checkpointed; the agent must survive it, and what comes after must be replicated.

use crate::support::agent::Agent;
use crate::support::place::{Place, first};
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
        // Without a checkpoint in between, for a half of one that loses its WAL is a malformed database.
        Writer::start(&database, &["--commits", "1"]).finish();
        let arguments =
            ["--rows", "1-5", "--size", "1-4000", "--synchronous", "NORMAL", "--autocheckpoint", "0"];
        let mut writer = Writer::start(&database, &arguments);
        writer.wait_for(1);
        let agent = place.agent(&["min-checkpoint-page-count: 100000", "max-checkpoint-page-count: 0"]);
        // While it attaches to what it does not know, it checkpoints.
        agent.wait_for_status("it streams", |status| {
            let database = first(status);
            database["state"] == "attached" && database["replicas"][0]["state"] == "streaming"
        });
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
