//! The agent stops, or is killed, and starts again: what was begun goes on, or a new generation says why it does not.

use crate::support::agent::Agent;
use crate::support::compare::assert_holds;
use crate::support::place::{Place, first};
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::wait_until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// A database with some rows, and an agent that has replicated it.
fn replicated(place: &Place) -> (Shell, Agent) {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run(INSERT);
    let agent = place.streaming_agent(&[]);
    (application, agent)
}

const INSERT: &str = "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 10)";

fn generation(agent: &Agent) -> String {
    let status =
        agent.wait_for_status("knows its generation", |status| first(status)["generation"].is_string());
    first(&status)["generation"].as_str().expect("a text").to_owned()
}

#[test]
fn a_restart_while_nothing_is_written_goes_on_without_a_snapshot() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (_application, agent) = replicated(&place);
        let (generation_before, configuration) = (generation(&agent), agent.configuration().to_owned());
        let snapshots = place.objects("snapshots");
        assert_eq!(snapshots, ["00000000.snapshot.lz4"]);
        if is_killed {
            agent.kill();
        } else {
            place.stop(agent);
        }
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        assert_eq!(generation(&agent), generation_before);
        assert_eq!(place.objects("snapshots"), snapshots);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn a_restart_after_writes_into_the_same_wal_goes_on() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (mut application, agent) = replicated(&place);
        let (generation_before, configuration) = (generation(&agent), agent.configuration().to_owned());
        if is_killed {
            agent.kill();
        } else {
            place.stop(agent);
        }
        application.run(INSERT);
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        application.run(INSERT);
        place.wait_until_replicated(&agent);
        assert_eq!(generation(&agent), generation_before);
        assert_eq!(place.objects("snapshots").len(), 1);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn a_restart_after_the_application_restarted_the_wal_begins_a_generation_and_says_why() {
    for checkpoint in ["RESTART", "TRUNCATE"] {
        let place = Place::new();
        let (mut application, agent) = replicated(&place);
        let (generation_before, configuration) = (generation(&agent), agent.configuration().to_owned());
        place.stop(agent);
        application.run(INSERT);
        let done = application.value(&format!("PRAGMA wal_checkpoint({checkpoint})"));
        assert!(done.starts_with("0|"), "{done}");
        application.run(INSERT);
        let agent = Agent::start_again(&configuration);
        agent.wait_for_log("the WAL was restarted while the agent did not hold it");
        place.wait_until_replicated(&agent);
        assert_ne!(generation(&agent), generation_before);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn a_restart_after_the_application_removed_the_wal_begins_a_generation_and_says_why() {
    let place = Place::new();
    let (mut application, agent) = replicated(&place);
    let (generation_before, configuration) = (generation(&agent), agent.configuration().to_owned());
    place.stop(agent);
    application.run(INSERT);
    application.close();
    assert!(!place.wal().exists(), "the last close removes the WAL");
    let agent = Agent::start_again(&configuration);
    agent.wait_for_log("the WAL was restarted while the agent did not hold it");
    place.wait_until_replicated(&agent);
    assert_ne!(generation(&agent), generation_before);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn an_agent_killed_again_and_again_under_load_loses_nothing() {
    let place = Place::new();
    let database = place.database();
    let arguments = ["--rows", "1-5", "--size", "1-4000", "--synchronous", "NORMAL"];
    let mut writer = Writer::start(&database, &arguments);
    writer.wait_for(1);
    let mut random = StdRng::seed_from_u64(6);
    let mut agent = place.agent(&["min-checkpoint-page-count: 50"]);
    let configuration = agent.configuration().to_owned();
    for _ in 0..15 {
        // At any moment: between its start and some commits later.
        let commits = writer.committed().len() + random.random_range(0..150);
        writer.wait_for(commits);
        agent.kill();
        agent = Agent::start_again(&configuration);
    }
    let position = || first(&agent.status()?)["replicas"][0]["position"].as_str().map(str::to_owned);
    wait_until("the replica is followed again", Duration::from_secs(60), || position().is_some());
    let committed = writer.finish();
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    assert_holds(&place.restore(), 0, &committed);
}
