//! Servers that stall, die, lie and come back: replication goes on by itself, and nothing acknowledged is lost.

use crate::support::agent::Agent;
use crate::support::process::signal;
use crate::support::scene::{Scene, count, files, is_all_acknowledged, of_database, on_server_with, state};
use crate::support::sqlite::Writer;
use crate::support::sshd::{fingerprint, home_with_known_hosts, make_key};
use crate::support::wait::wait_until;
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const NONE: Vec<PathBuf> = Vec::new();
const DEADLINE: Duration = Duration::from_secs(60);

fn kill(pids: &[u32]) {
    pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
}

#[test]
fn what_a_stopped_server_process_writes_later_changes_no_acknowledged_byte() {
    let scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--step", "--rows", "1-30", "--size", "1-9000"]);
    writer.step();
    let agent = scene.start_agent();
    scene.wait_until_restores(&agent);
    let old = scene.server.sftp_servers();
    old.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let before = agent.status().expect("the agent answers")["databases"][0]["position"].clone();
    writer.step();
    agent.wait_for_status("a write is under way", |status| {
        let database = &status["databases"][0];
        database["position"] != before && database["replicas"][0]["position"] != database["position"]
    });
    let sessions: Vec<u32> = scene.server.sessions().into_iter().filter(|pid| !old.contains(pid)).collect();
    kill(&sessions);
    for _ in 0..5 {
        writer.step();
    }
    scene.wait_until_restores(&agent);
    let read = || -> Vec<_> {
        let files = files(&scene.replica()).into_iter();
        files.map(|path| (fs::read(&path).expect("the file is there"), path)).collect()
    };
    let acknowledged = read();
    let alive = |pid: &u32| fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false);
    assert!(old.iter().any(alive), "the stopped process is still there");
    old.iter().for_each(|pid| signal(*pid, Signal::CONT));
    wait_until("the old process does what it was asked, and ends", DEADLINE, || {
        old.iter().all(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_err())
    });
    assert!(read() == acknowledged, "an acknowledged byte changed");
    scene.wait_until_restores(&agent);
}

#[test]
fn a_server_whose_processes_die_under_load_gets_every_commit() {
    let scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--rows", "1-5", "--size", "1-2000"]);
    let agent = scene.start_agent();
    agent.wait_for_status("it streams", |status| state(status) == "streaming");
    for _ in 0..3 {
        kill(&scene.server.sftp_servers());
        let count = writer.committed().len() + 20;
        writer.wait_for(count);
        wait_until("the agent is there again", DEADLINE, || !scene.server.sftp_servers().is_empty());
    }
    writer.finish();
    scene.wait_until_restores(&agent);
}

#[test]
fn a_server_that_is_away_is_failing_and_said_once_and_all_is_well_when_it_is_back() {
    let mut scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--step"]);
    writer.step();
    let agent = scene.start_agent();
    scene.wait_until_restores(&agent);
    assert_eq!(agent.run("status", &[]).status.code(), Some(0));
    scene.server.stop();
    writer.step();
    agent.wait_for_status("it is failing", |status| state(status) == "failing");
    let failures = |log: &str| count(log, "it is tried again by itself");
    let status = agent.run("status", &[]);
    assert_eq!(status.status.code(), Some(2));
    // Until the connection is refused, the text may be that of the connection that broke.
    wait_until("it is tried again", DEADLINE, || {
        String::from_utf8_lossy(&agent.run("status", &[]).stdout).contains("Connection refused")
    });
    let retry = |agent: &Agent| agent.status().expect("it answers")["databases"][0]["replicas"][0].clone();
    let mut retries = 0;
    let mut last = retry(&agent)["last_error"]["at"]["unix_millis"].clone();
    wait_until("three more tries", DEADLINE, || {
        let at = retry(&agent)["last_error"]["at"]["unix_millis"].clone();
        retries += usize::from(at != last);
        last = at;
        retries >= 3
    });
    let said = agent.log();
    let (reset, refused) = (failures(&said), count(&said, "Connection refused"));
    assert!(refused == 1 && reset <= 2, "said {reset} times, {refused} of them refused:\n{said}");
    assert_eq!(agent.run("status", &[]).status.code(), Some(2));
    // The application stays idle: nothing but the agent's own clock leads to the next try.
    scene.server.start_again(&["ed25519"]);
    agent.wait_for_status("it is healthy again", is_all_acknowledged);
    assert_eq!(agent.run("status", &[]).status.code(), Some(0));
    scene.wait_until_restores(&agent);
}

#[test]
fn a_server_with_another_key_gets_nothing_until_the_key_is_known() {
    let scene = Scene::new();
    Writer::start(&scene.database, &["--commits", "3"]).finish();
    let home = home_with_known_hosts("");
    let location = scene.server.location();
    let right = scene.server.host_key("ed25519");
    make_key(&home.path().join("other"), "ed25519");
    let wrong = format!("name: wrong, host-key: {}", fingerprint(&home.path().join("other")));
    let unknown = on_server_with(&location, "app", "name: unknown");
    let wrong = on_server_with(&location, "wrong", &wrong);
    let configuration = of_database(&scene.database, &[&unknown, &wrong]);
    let agent = Agent::start_at_home(scene.folder.path(), &configuration, home.path());
    let status = agent.wait_for_status("both are failing", |status| {
        let replicas = status["databases"][0]["replicas"].as_array();
        replicas.is_some_and(|replicas| replicas.iter().all(|replica| replica["state"] == "failing"))
    });
    assert_eq!(agent.run("status", &[]).status.code(), Some(2));
    let error = |number: usize| {
        let replica = &status["databases"][0]["replicas"][number];
        replica["failing"]["error"].as_str().expect("an error").to_owned()
    };
    assert!(error(0).contains("not known"), "{}", error(0));
    assert!(error(1).contains("NOT THE KNOWN ONE"), "{}", error(1));
    for name in ["unknown", "wrong"] {
        let output = scene.folder.path().join("never.db");
        let output = output.to_str().expect("a plain name");
        let database = scene.database.to_str().expect("a plain name");
        let restored = agent.run("restore", &["--replica", name, "-o", output, database]);
        assert_eq!(restored.status.code(), Some(5), "{}", String::from_utf8_lossy(&restored.stderr));
    }
    assert!(!scene.server.log().contains("userauth-request"), "asked to be let in:\n{}", scene.server.log());
    assert_eq!(files(&scene.server.storage()), NONE);

    let known = format!("{} {right}\n", scene.server.known_as());
    fs::write(home.path().join(".ssh/known_hosts"), known).expect("the folder is ours");
    agent.wait_for_status("the known one streams", |status| state(status) == "streaming");
    wait_until("its snapshot is there", DEADLINE, || !files(&scene.replica()).is_empty());
    assert_eq!(files(&scene.server.storage().join("wrong")), NONE);
    assert_eq!(agent.run("status", &[]).status.code(), Some(2), "one of the two is still failing");
}
