//! SIGHUP: another configuration is taken on, or refused, and nothing that goes on is lost.

use crate::support::agent::Agent;
use crate::support::compare::assert_holds;
use crate::support::process::signal;
use crate::support::sqlite::Writer;
use crate::support::temporary_folder;
use crate::support::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A folder of databases `NAME.db`, each replicated to `NAME` beside it.
struct Several(TempDir);

impl Several {
    fn new() -> Several {
        Several(temporary_folder())
    }

    fn database(&self, name: &str) -> PathBuf {
        self.0.path().join(name).with_extension("db")
    }

    fn replica(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn configuration(&self, names: &[&str]) -> String {
        let database = |name: &&str| {
            let (path, replica) = (self.database(name), self.replica(name));
            format!("  - path: {}\n    replicas: [{{path: {}}}]\n", path.display(), replica.display())
        };
        format!("dbs:\n{}", names.iter().map(database).collect::<String>())
    }

    /// Commits some rows; another connection stays open, so that the WAL stays.
    fn application(&self, name: &str) -> Writer {
        let mut writer = Writer::start(&self.database(name), &["--step"]);
        writer.step();
        writer
    }

    fn wait_until_restores(&self, name: &str, committed: &[i64]) {
        let output = self.0.path().join(format!("{name}.restored"));
        wait_until(&format!("{name} has arrived"), Duration::from_secs(60), || {
            let _ = fs::remove_file(&output);
            let url = format!("file://{}", self.replica(name).display());
            let mut restore = Command::new(env!("CARGO_BIN_EXE_agent"));
            restore.args(["restore", "-o"]).arg(&output).arg(url);
            restore.output().expect("the agent can be run").status.success()
                && count(&output) == committed.len()
        });
        assert_holds(&output, 0, committed);
    }
}

fn count(database: &Path) -> usize {
    let connection = rusqlite::Connection::open(database).expect("a database");
    let sql = "SELECT count(DISTINCT batch) FROM rows";
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_or(0, |count| count as usize)
}

fn paths(status: &Value) -> Vec<&str> {
    let databases = status["databases"].as_array().expect("a status has databases");
    databases.iter().map(|database| database["path"].as_str().expect("a path")).collect()
}

fn streams(status: &Value) -> bool {
    let databases = status["databases"].as_array().expect("a status has databases");
    databases.iter().all(|database| database["replicas"][0]["state"] == "streaming")
}

#[test]
fn a_reload_takes_databases_on_and_lets_go_of_others_and_the_rest_keep_their_generation() {
    let several = Several::new();
    let mut writers = ["stays", "leaves", "comes"].map(|name| several.application(name));
    let agent = Agent::start(several.0.path(), &several.configuration(&["stays", "leaves"]));
    let before = agent.wait_for_status("both stream", streams);
    let (pid, generation) = (before["pid"].clone(), before["databases"][0]["generation"].clone());
    writers.iter_mut().for_each(Writer::step);
    agent.reload(&several.configuration(&["stays", "comes"]));
    let comes = several.database("comes").display().to_string();
    let after = agent.wait_for_status("the other two stream", |status| {
        paths(status).contains(&comes.as_str()) && streams(status)
    });
    assert_eq!((&after["pid"], &after["databases"][0]["generation"]), (&pid, &generation));
    assert_eq!(fs::read_dir(several.replica("stays").join("generations")).expect("a folder").count(), 1);
    writers[0].step();
    writers[2].step();
    for (name, writer) in ["stays", "leaves", "comes"].into_iter().zip(writers) {
        several.wait_until_restores(name, &writer.finish());
    }
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_wrong_configuration_is_refused_loudly_and_the_old_one_stays_in_effect() {
    let several = Several::new();
    let mut writer = several.application("app");
    let agent = Agent::start(several.0.path(), &several.configuration(&["app"]));
    let started = agent.wait_for_status("it streams", streams)["started"].clone();
    agent.reload("dbs: [{path: /a.db, replica: []}]\n");
    agent.wait_for_log("the new configuration is wrong, and the old one stays in effect");
    let place = format!("{}:2:21: replica is not supported", agent.configuration().display());
    assert!(agent.log().contains(&place), "{}", agent.log());
    writer.step();
    several.wait_until_restores("app", &writer.finish());
    let status = agent.status().expect("it still answers");
    assert_eq!(status["started"]["unix_millis"], started["unix_millis"], "the agent began anew");
}

#[test]
fn reloads_under_load_lose_nothing_and_leak_nothing() {
    let several = Several::new();
    let mut writer = Writer::start(&several.database("app"), &["--rows", "1-3", "--size", "1-300"]);
    let agent = Agent::start(several.0.path(), &several.configuration(&["app"]));
    agent.wait_for_status("it streams", streams);
    let open_files = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it lives").count();
    let mut counts = Vec::new();
    for round in 1..=4 {
        let target = writer.committed().len() + 20;
        writer.wait_for(target);
        agent.reload(&several.configuration(&["app"]));
        wait_until("it has begun anew", Duration::from_secs(30), || {
            agent.log().matches("the configuration is read anew").count() == round
                && agent.log().matches("everything is acknowledged").count() == round
        });
        agent.wait_for_status("it streams again", streams);
        counts.push(open_files());
    }
    let committed = writer.finish();
    several.wait_until_restores("app", &committed);
    let (first, last) = (counts[0], counts[3]);
    assert!(last <= first + 4, "descriptors after each reload: {counts:?}"); // a few come and go with the load
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn signals_to_reload_that_follow_each_other_closely_never_end_the_agent() {
    let several = Several::new();
    let writer = several.application("app");
    let agent = Agent::start(several.0.path(), &several.configuration(&["app"]));
    agent.wait_for_status("it streams", streams);
    wait_until("it has begun anew often", Duration::from_secs(60), || {
        signal(agent.pid(), Signal::HUP);
        agent.log().matches("the configuration is read anew").count() >= 10
    });
    agent.wait_for_status("it streams again", streams);
    several.wait_until_restores("app", &writer.finish());
    // The last one may just be followed.
    assert_eq!(agent.stop().code(), Some(0), "it stops as at any time");
}

#[test]
fn a_signal_to_stop_during_a_reload_stops_for_good() {
    let several = Several::new();
    let writer = several.application("app");
    let mut agent = Agent::start(several.0.path(), &several.configuration(&["app"]));
    agent.wait_for_status("it streams", streams);
    signal(agent.pid(), Signal::STOP);
    signal(agent.pid(), Signal::HUP);
    signal(agent.pid(), Signal::TERM);
    signal(agent.pid(), Signal::CONT);
    assert_eq!(agent.wait_for_exit().code(), Some(0), "{}", agent.log());
    several.wait_until_restores("app", &writer.finish());
}

#[test]
fn an_agent_without_a_configuration_ends_with_its_terminal() {
    let several = Several::new();
    let mut writer = several.application("app");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_agent"));
    agent.arg("replicate").arg("--socket").arg(several.0.path().join("agent.sock"));
    agent.arg(several.database("app")).arg(format!("file://{}", several.replica("app").display()));
    let mut agent = crate::support::process::Killed(agent.spawn().expect("the agent can be run"));
    let committed = writer.committed().to_vec();
    several.wait_until_restores("app", &committed);
    signal(agent.0.id(), Signal::HUP);
    let ended = crate::support::wait::wait_for("it ends", Duration::from_secs(30), || {
        agent.0.try_wait().expect("it is our child")
    });
    assert_eq!(ended.code(), Some(0));
}
