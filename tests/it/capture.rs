//! Copying what is committed, and nothing else, whatever the application does with its transactions and pages.

use crate::support::agent::Agent;
use crate::support::place::{Place, first, is_streaming, rows, wait_for_page_table};
use crate::support::process::output;
use crate::support::scene::{files, of_databases};
use crate::support::sqlite::{Shell, Writer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An application with a table.
fn application(database: &Path, pragmas: &str) -> Shell {
    let mut application = Shell::open(database);
    application.run(pragmas);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application
}

/// Rows of `size` bytes.
fn insert(count: u32, size: u32) -> String {
    format!("INSERT INTO t (data) SELECT randomblob({size}) FROM generate_series(1, {count});")
}

#[test]
fn transactions_taken_back_leave_nothing() {
    let place = Place::new();
    let mut application = application(&place.database(), "");
    application.run("PRAGMA cache_size=10");
    let agent = place.streaming_agent(&[]);
    for round in 0..5 {
        application.run(&insert(3, 2000));
        // Spilled into the WAL, taken back, and overwritten by a shorter one.
        application.run(&format!("BEGIN; {} ROLLBACK", insert(200, 5000)));
        place.wait_until_replicated(&agent);
        application.run(&insert(1 + round, 4000));
        place.wait_until_replicated(&agent);
        let savepoints = format!(
            "BEGIN; {0} SAVEPOINT a; {1} SAVEPOINT b; {1} ROLLBACK TO b; {0} RELEASE b; ROLLBACK TO a; {0} COMMIT",
            insert(1, 3000),
            insert(60, 5000),
        );
        application.run(&savepoints);
        place.wait_until_replicated(&agent);
    }
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_first_transaction_after_a_restart_that_is_rolled_back_changes_nothing() {
    let place = Place::new();
    let mut application = application(&place.database(), "");
    application.run("PRAGMA cache_size=10; PRAGMA journal_size_limit=0");
    application.run(".timeout 50");
    let agent = place.streaming_agent(&[]);
    for _ in 0..5 {
        application.run(&insert(20, 4000));
        let mut tries = 0;
        while !application.value("PRAGMA wal_checkpoint(RESTART)").starts_with("0|") {
            tries += 1;
            assert!(tries < 40, "the application cannot restart its WAL");
        }
        application.run(&format!("BEGIN; {} ROLLBACK", insert(200, 5000)));
        application.run(&format!("BEGIN; {} ROLLBACK", insert(100, 5000)));
        place.wait_until_replicated(&agent);
        application.run(&insert(1, 3000));
        place.wait_until_replicated(&agent);
    }
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn connections_that_come_and_go_for_every_write_are_followed() {
    let place = Place::new();
    let database = place.database();
    let one_shot = |sql: &str| {
        output(Command::new("sqlite3").args(["-batch", "-cmd", ".timeout 5000"]).arg(&database).arg(sql))
    };
    one_shot("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 20"]);
    let writer = Writer::start(&database, &["--mode", "one-shot", "--commits", "150", "--size", "1-9000"]);
    for _ in 0..30 {
        one_shot("INSERT INTO t (data) VALUES (randomblob(5000))");
    }
    writer.finish();
    place.wait_until_replicated(&agent);
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_that_grows_shrinks_and_is_vacuumed_is_followed() {
    let place = Place::new();
    let mut application =
        application(&place.database(), "PRAGMA auto_vacuum=incremental; PRAGMA page_size=1024");
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 100"]);
    let steps = [
        insert(100, 10_000),
        "DELETE FROM t WHERE id % 3 <> 0".to_owned(),
        "PRAGMA incremental_vacuum(300)".to_owned(),
        insert(10, 2000),
        "VACUUM".to_owned(),
        "DELETE FROM t".to_owned(),
        "PRAGMA incremental_vacuum".to_owned(),
        insert(50, 10_000),
        "CREATE INDEX by_data ON t (data)".to_owned(),
        "DROP INDEX by_data".to_owned(),
        "VACUUM".to_owned(),
    ];
    for step in steps {
        application.run(&step);
        place.wait_until_replicated(&agent);
    }
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}

/// The most memory that a process ever had, in bytes.
fn most_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}

/// A second database in the same folder. The kernel tells of changes in a folder in their order: once a commit of this
/// one is replicated, the agent has heard of all that was written into the first one before it.
struct Second(Shell);

impl Second {
    fn commit(&mut self, agent: &Agent) {
        let position = |status: &Value| status["databases"][1]["position"].clone();
        let before = position(&agent.status().expect("the agent runs"));
        self.0.run(&insert(1, 3000));
        agent.wait_for_status("sends the second database's commit", |status| {
            position(status) != before
                && status["databases"][1]["replicas"][0]["position"] == position(status)
        });
    }
}

/// Everything that the agent has made of the first database, byte for byte, and where it stands.
fn made(place: &Place, agent: &Agent) -> (Value, BTreeMap<PathBuf, Vec<u8>>) {
    let status = agent.status().expect("the agent runs");
    let files = [place.replica(), place.path(".app.db-agent")].map(|folder| files(&folder)).concat();
    let content = |path: PathBuf| (path.clone(), fs::read(&path).expect("it stays"));
    (first(&status)["position"].clone(), files.into_iter().map(content).collect())
}

/// What is in the WAL behind 50 MB.
fn middle(wal: &Path) -> [u8; 100] {
    let mut bytes = [0; 100];
    let wal = File::open(wal).expect("the WAL is there");
    wal.read_exact_at(&mut bytes, 50_000_000).expect("half of the transaction is in the WAL");
    bytes
}

#[test]
fn a_transaction_of_100_mb_is_replicated_when_it_is_committed_and_in_little_memory() {
    let place = Place::new();
    let other = place.path("other.db");
    let mut second = Second(application(&other, ""));
    let mut application = application(&place.database(), "");
    application.run("PRAGMA cache_size=100");
    let in_folder = |replica: PathBuf| vec![format!("{{type: file, path: '{}'}}", replica.display())];
    let databases =
        [(&*place.database(), in_folder(place.replica())), (&*other, in_folder(place.path("other-replica")))];
    let agent = Agent::start(&place.path(""), &of_databases(databases));
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    second.commit(&agent);
    let before = made(&place, &agent);
    let mut spilled = None;
    for end in ["ROLLBACK", "COMMIT"] {
        application.run(&format!("BEGIN; {}", insert(1000, 100_000)));
        let last = spilled.replace(middle(&place.wal()));
        assert_ne!(last, spilled, "the transaction is not in the WAL");
        second.commit(&agent);
        assert!(made(&place, &agent) == before, "something of the open transaction was copied");
        assert_eq!(rows(&place.restore()), 0, "rows before the {end}");
        application.run(end);
        second.commit(&agent);
        if end == "ROLLBACK" {
            assert!(made(&place, &agent) == before, "something of what was rolled back was copied");
        }
    }
    place.wait_until_replicated(&agent);
    assert_eq!(rows(&place.restore()), 1000);
    let memory = most_memory(agent.pid());
    assert!(memory < 64 << 20, "the agent had {memory} bytes of memory");
    place.stop(agent);
    place.assert_restores();
}
