//! What a service manager hears: as systemd listens, on a datagram socket.

use crate::support::agent::Agent;
use crate::support::place::{Place, is_streaming};
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::wait_until;
use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

/// A service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: String,
    heard: RefCell<Vec<String>>,
}

impl Manager {
    fn new(place: &Place) -> Manager {
        let path = place.path("notify.sock").display().to_string();
        let socket = UnixDatagram::bind(&path).expect("the folder is ours");
        socket.set_nonblocking(true).expect("a socket can be");
        Manager { socket, path, heard: RefCell::default() }
    }

    /// Every message so far, its lines joined by blanks.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]).trim().replace('\n', " ");
            self.heard.borrow_mut().push(message);
        }
        self.heard.borrow().clone()
    }

    #[track_caller]
    fn wait_for(&self, beginning: &str) -> String {
        self.wait_for_nth(1, beginning)
    }

    #[track_caller]
    fn wait_for_nth(&self, n: usize, beginning: &str) -> String {
        let find = || self.heard().into_iter().filter(|message| message.starts_with(beginning)).nth(n - 1);
        wait_until(&format!("{n} times {beginning}"), DEADLINE, || find().is_some());
        find().expect("it was found")
    }
}

fn configuration(place: &Place) -> String {
    let (database, replica) = (place.database(), place.replica());
    format!("dbs:\n  - path: {}\n    replicas: [{{path: {}}}]\n", database.display(), replica.display())
}

#[test]
fn many_databases_are_followed_though_few_files_are_allowed_at_first() {
    let place = Place::new();
    let databases: Vec<_> = (0..12).map(|number| place.path(&format!("{number}.db"))).collect();
    let entry = |path: &PathBuf| {
        let replica = path.with_extension("replica");
        format!(
            "  - path: {}\n    replicas: [{{type: file, path: '{}'}}]\n",
            path.display(),
            replica.display()
        )
    };
    let configuration = format!("dbs:\n{}", databases.iter().map(entry).collect::<String>());
    let applications: Vec<_> = databases
        .iter()
        .map(|path| {
            let mut application = Shell::open(path);
            application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
            application
        })
        .collect();
    let agent = Agent::start_with_files(&place.path(""), &configuration, "100:4096");
    agent.wait_for_status("all are followed", |status| {
        let each = status["databases"].as_array().expect("it has databases");
        each.iter().all(|database| is_streaming(&serde_json::json!({ "databases": [database] })))
    });
    applications.into_iter().for_each(Shell::close);
}

#[test]
fn a_service_manager_hears_of_start_reload_and_stop() {
    let place = Place::new();
    let mut writer = Writer::start(&place.database(), &["--step"]);
    writer.step();
    let manager = Manager::new(&place);
    let agent = Agent::start_with(
        place.path("").as_path(),
        &configuration(&place),
        &[("NOTIFY_SOCKET", &manager.path)],
    );
    let ready = manager.wait_for("READY=1");
    assert!(agent.status().is_some(), "ready, and nobody answers");
    assert!(ready.starts_with("READY=1 STATUS=") && ready.ends_with("1 database"), "{ready}");
    agent.wait_for_status("streams", is_streaming);

    agent.reload(&configuration(&place));
    let reloading = manager.wait_for("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait_for_nth(2, "READY=1");

    agent.reload("dbs: []\n");
    let refused = manager.wait_for_nth(3, "READY=1");
    assert!(refused.contains("the new configuration is wrong"), "{refused}");
    assert_eq!(manager.heard().iter().filter(|message| message.starts_with("STOPPING")).count(), 0);

    assert_eq!(agent.stop().code(), Some(0));
    manager.wait_for("STOPPING=1");
    let pings = manager.heard().iter().filter(|message| message.contains("WATCHDOG")).count();
    assert_eq!(pings, 0, "there is no watchdog");
}

#[test]
fn a_loop_that_turns_feeds_the_watchdog_and_says_how_it_is() {
    let place = Place::new();
    let mut writer = Writer::start(&place.database(), &["--step"]);
    writer.step();
    let manager = Manager::new(&place);
    let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "200000")];
    let agent = Agent::start_with(place.path("").as_path(), &configuration(&place), &environment);
    agent.wait_for_status("streams", is_streaming);
    manager.wait_for("WATCHDOG=1 STATUS=healthy, 1 database");
    let before = manager.heard().len();
    manager.wait_for_nth(before + 3, "");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_journal_gets_levels_and_no_times() {
    let place = Place::new();
    let mut writer = Writer::start(&place.database(), &["--step"]);
    writer.step();
    // The log of the tests is a file; for the agent, it is the journal.
    let log = place.path("agent.log");
    File::create(&log).expect("the folder is ours");
    let metadata = fs::metadata(&log).expect("it is there");
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let agent =
        Agent::start_with(place.path("").as_path(), &configuration(&place), &[("JOURNAL_STREAM", &stream)]);
    agent.wait_for_status("streams", is_streaming);
    agent.reload("dbs: []\n");
    agent.wait_for_log("dbs is missing or empty");
    let log = agent.log();
    let is_leveled = |line: &str| ["<3>", "<4>", "<6>"].iter().any(|level| line.starts_with(level));
    assert!(log.lines().all(is_leveled), "{log}");
    assert!(log.contains("<3>the new configuration is wrong"), "{log}");
}
