//! Stopping: what was committed before is sent first, if anybody is there to take it.

use crate::support::agent::Agent;
use crate::support::compare::assert_holds;
use crate::support::process::signal;
use crate::support::scene::{Scene, restore, state};
use crate::support::sqlite::Writer;
use rustix::process::Signal;

#[test]
fn an_agent_told_to_stop_under_load_sends_everything_committed_before() {
    let scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--rows", "1-3", "--size", "1-300"]);
    let mut agent = scene.start_agent();
    agent.wait_for_status("it streams", |status| state(status) == "streaming");
    let count = writer.committed().len() + 50;
    writer.wait_for(count);
    let committed = writer.committed().to_vec();
    signal(agent.pid(), Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0), "{}", agent.log());
    assert!(writer.finish().len() > committed.len(), "it was under load");
    let output = scene.folder.path().join("restored.db");
    restore(&agent, &scene.database, &output, &[]);
    assert_holds(&output, 0, &committed);
    let agent = Agent::start_again(agent.configuration());
    scene.wait_until_restores(&agent);
}

/// An agent that has sent a commit to a server that is gone now.
fn everything_acknowledged_and_no_server() -> (Scene, Writer, Agent) {
    let mut scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--step"]);
    writer.step();
    let agent = scene.start_agent();
    scene.wait_until_restores(&agent);
    scene.server.stop();
    (scene, writer, agent)
}

#[test]
fn an_agent_told_to_stop_without_a_server_says_what_was_not_acknowledged() {
    let (mut scene, mut writer, mut agent) = everything_acknowledged_and_no_server();
    writer.step();
    agent.wait_for_status("it is failing", |status| state(status) == "failing");
    let wal = scene.folder.path().join("app.db-wal");
    signal(agent.pid(), Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(1));
    let said = format!("not acknowledged: {}", scene.database.display());
    assert!(agent.log().contains(&said), "{}", agent.log());
    assert!(wal.exists(), "the WAL was removed, and with it what nobody else has");
    scene.server.start_again(&["ed25519"]);
    let agent = Agent::start_again(agent.configuration());
    scene.wait_until_restores(&agent);
}

#[test]
fn an_agent_told_to_stop_does_not_wait_for_a_server_that_has_acknowledged_everything() {
    let (mut scene, _writer, mut agent) = everything_acknowledged_and_no_server();
    signal(agent.pid(), Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0), "{}", agent.log());
    scene.server.start_again(&["ed25519"]);
    let agent = Agent::start_again(agent.configuration());
    scene.wait_until_restores(&agent);
}

#[test]
fn a_second_signal_ends_an_agent_that_waits_for_a_server() {
    let mut scene = Scene::new();
    let writer = Writer::start(&scene.database, &["--commits", "3"]);
    let mut agent = scene.start_agent();
    writer.finish();
    scene.wait_until_restores(&agent);
    scene.server.stop();
    Writer::start(&scene.database, &["--commits", "1"]).finish();
    agent.wait_for_status("it is failing", |status| state(status) == "failing");
    signal(agent.pid(), Signal::TERM);
    agent.wait_for_log("stopping");
    signal(agent.pid(), Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(1));
    assert!(agent.log().contains("a second signal"), "{}", agent.log());
    assert!(!agent.log().contains("not acknowledged"), "it waited to its end:\n{}", agent.log());
    assert!(scene.folder.path().join("app.db-wal").exists(), "the WAL stays");
}
