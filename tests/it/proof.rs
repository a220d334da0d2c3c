//! The page table beside a real application: restores are proven equal to the source, whatever it does.

use crate::support::agent::Agent;
use crate::support::compare::assert_same;
use crate::support::place::{Place, first, wait_for_page_table};
use crate::support::sqlite::{Shell, Writer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::fs;

/// Whether everything copied is acknowledged, and the page table knows what it is.
fn is_provable(status: &Value) -> bool {
    let database = first(status);
    let replica = &database["replicas"][0];
    database["proof"].is_string()
        && database["proof"] == database["position"]
        && replica["position"] == database["position"]
        && replica["state"] == "streaming"
}

#[track_caller]
fn wait_until_provable(agent: &Agent) {
    agent.wait_for_status("everything is acknowledged and provable", is_provable);
}

/// Stops the agent; what is restored then is the source, and proven to be, up to its end.
#[track_caller]
fn stop_and_prove(place: &Place, agent: Agent) {
    wait_until_provable(&agent);
    place.stop(agent);
    let (restored, report) = place.restore_with_report();
    assert_same(&place.database(), &restored);
    assert_eq!(report.proven, Some(report.position), "{report}");
    assert_same(&place.database(), &place.restore_by_litestream());
}

#[test]
fn a_graceful_stop_leaves_a_replica_that_proves_itself() {
    for page_size in ["512", "4096", "65536"] {
        let place = Place::new();
        let arguments = ["--mode", "churn", "--rows", "1-5", "--size", "1-3000", "--autocheckpoint", "20"];
        let mut writer =
            Writer::start(&place.database(), &[&arguments[..], &["--page-size", page_size]].concat());
        let agent = place.agent(&["min-checkpoint-page-count: 20"]);
        wait_until_provable_in_passing(&agent);
        let enough = writer.committed().len() + 100;
        writer.wait_for(enough);
        writer.finish();
        place.wait_until_replicated(&agent);
        stop_and_prove(&place, agent);
    }
}

#[test]
fn whatever_an_application_does_a_restore_is_proven() {
    for seed in 0..3 {
        let place = Place::new();
        let mut application = Shell::open(&place.database());
        application.run("PRAGMA page_size=1024; PRAGMA auto_vacuum=incremental; PRAGMA journal_mode=wal");
        application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB); PRAGMA cache_size=20");
        let agent = place.agent(&["min-checkpoint-page-count: 50"]);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..150 {
            let (count, size) = (random.random_range(1..60), random.random_range(1..4000));
            let insert =
                format!("INSERT INTO t (data) SELECT randomblob({size}) FROM generate_series(1, {count})");
            let delete = format!("DELETE FROM t WHERE id % {} = 0", random.random_range(1..8));
            let update = format!("UPDATE t SET data = randomblob({size}) WHERE id % 5 = {}", count % 5);
            let sql = match random.random_range(0..14) {
                0..4 => insert,
                4..6 => update,
                6 => delete,
                7 => format!("BEGIN; {insert}; {insert}; ROLLBACK"),
                8 => format!("BEGIN; {update}; SAVEPOINT s; {insert}; ROLLBACK TO s; {insert}; COMMIT"),
                9 => "PRAGMA incremental_vacuum".to_owned(),
                10 => "VACUUM".to_owned(),
                11 => "DELETE FROM t".to_owned(),
                12 => "PRAGMA wal_checkpoint(PASSIVE)".to_owned(),
                _ => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
            };
            application.run(&sql);
        }
        place.wait_until_replicated(&agent);
        stop_and_prove(&place, agent);
    }
}

#[test]
fn a_page_table_built_while_the_application_writes_is_right() {
    let place = Place::new();
    let arguments = ["--mode", "churn", "--rows", "1-20", "--size", "1-8000", "--autocheckpoint", "50"];
    let mut writer = Writer::start(&place.database(), &arguments);
    for _ in 0..4 {
        let enough = writer.committed().len() + 60;
        writer.wait_for(enough);
        let agent = place.agent(&["min-checkpoint-page-count: 50"]);
        wait_until_provable_in_passing(&agent);
        agent.kill();
        fs::remove_file(place.page_table()).expect("it is ours");
    }
    let agent = place.agent(&[]);
    writer.finish();
    place.wait_until_replicated(&agent);
    stop_and_prove(&place, agent);
}

/// While somebody writes, there is always something on its way.
#[track_caller]
fn wait_until_provable_in_passing(agent: &Agent) {
    wait_for_page_table(agent);
}

#[test]
fn an_agent_that_is_killed_again_and_again_keeps_a_right_table() {
    let place = Place::new();
    let arguments = ["--mode", "churn", "--rows", "1-5", "--size", "1-4000", "--synchronous", "NORMAL"];
    let mut writer = Writer::start(&place.database(), &arguments);
    writer.wait_for(1);
    let mut random = StdRng::seed_from_u64(11);
    let mut agent = place.agent(&["min-checkpoint-page-count: 20"]);
    let configuration = agent.configuration().to_owned();
    for _ in 0..12 {
        if random.random_bool(0.7) {
            wait_until_provable_in_passing(&agent);
        }
        let commits = writer.committed().len() + random.random_range(0..150);
        writer.wait_for(commits);
        agent.kill();
        agent = Agent::start_again(&configuration);
    }
    writer.finish();
    place.wait_until_replicated(&agent);
    stop_and_prove(&place, agent);
}

#[test]
fn a_damaged_page_table_is_built_anew() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
    application.run("INSERT INTO t SELECT randomblob(3000) FROM generate_series(1, 100)");
    let agent = place.agent(&[]);
    wait_until_provable(&agent);
    let configuration = agent.configuration().to_owned();
    place.stop(agent);
    for damage in [Damage::Entry, Damage::Header, Damage::Short, Damage::Empty] {
        let path = place.page_table();
        let mut bytes = fs::read(&path).expect("it is ours");
        match damage {
            Damage::Entry => bytes[64 + 8 * 7] ^= 1,
            Damage::Header => bytes[20] ^= 1,
            Damage::Short => bytes.truncate(64 + 8 * 20),
            Damage::Empty => bytes.clear(),
        }
        fs::write(&path, bytes).expect("it is ours");
        application.run("UPDATE t SET data = randomblob(3000) WHERE rowid % 3 = 0");
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        stop_and_prove(&place, agent);
    }
}

#[derive(Clone, Copy)]
enum Damage {
    Entry,
    Header,
    Short,
    Empty,
}
