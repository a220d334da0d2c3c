//! Which databases the agent attaches to, which it waits for, and which it refuses.

use crate::support::agent::Agent;
use crate::support::at_once::agent_of;
use crate::support::compare::assert_same;
use crate::support::place::{Place, first, restore};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_for;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use wal_agent::agent::Now;
use wal_agent::core::status::SourceState;
use wal_agent::core::sync::Dirty;

const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)";
const INSERT: &str = "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 10)";

/// A new application that writes; it stays.
fn application(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run("PRAGMA journal_mode=wal");
    application.run(TABLE);
    application.run(INSERT);
    application
}

fn is_refused(status: &Value) -> bool {
    first(status)["state"] == "refused"
}

#[test]
fn a_database_that_does_not_exist_yet_is_waited_for() {
    let place = Place::new();
    let agent = place.agent(&[]);
    agent.wait_for_status("is absent", |status| first(status)["state"] == "absent");
    assert!(!place.database().exists(), "the agent has made the database");
    let _application = application(&place.database());
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_whose_folder_does_not_exist_yet_is_waited_for() {
    let place = Place::new();
    let (folder, replica) = (place.path("later"), place.replica());
    let database = folder.join("app.db");
    let configuration = format!(
        "dbs:\n  - path: {}\n    replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        replica.display()
    );
    let agent = Agent::start(&place.path(""), &configuration);
    agent.wait_for_status("is absent", |status| first(status)["state"] == "absent");
    fs::create_dir(&folder).expect("the folder is ours");
    let _application = application(&database);
    agent.wait_for_status("streams", crate::support::place::is_streaming);
    place.stop(agent);
    let restored = place.path("restored.db");
    restore(&replica, &restored);
    assert_same(&database, &restored);
}

#[test]
fn an_empty_file_is_no_database_yet() {
    let place = Place::new();
    fs::write(place.database(), "").expect("the folder is ours");
    let agent = place.agent(&[]);
    agent.wait_for_status("is absent", |status| first(status)["state"] == "absent");
    let mut first_connection = Shell::open(&place.database());
    first_connection.run("PRAGMA page_size=512");
    first_connection.run("PRAGMA journal_mode=wal");
    first_connection.run(TABLE);
    first_connection.run(INSERT);
    assert_eq!(first_connection.value("PRAGMA page_size"), "512", "the agent has chosen the page size");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let place = Place::new();
    let garbage = b"this is not a database, and long enough to be one. ".repeat(200);
    fs::write(place.database(), &garbage).expect("the folder is ours");
    let agent = place.agent(&[]);
    let status = agent.wait_for_status("is refused", is_refused);
    let reason = first(&status)["refused_because"].as_str().expect("a reason");
    assert!(reason.contains("not an SQLite database"), "{reason}");
    assert_eq!(agent.run("status", &[]).status.code(), Some(2));
    let database = place.database();
    let detached = agent.run("detach", &[database.to_str().expect("a plain name")]);
    assert_eq!(detached.status.code(), Some(0), "nothing is held: {detached:?}");
    assert_eq!(fs::read(place.database()).expect("the file is there"), garbage);
    // A database put in its place is followed without a restart.
    let _application = application(&place.path("new.db"));
    drop(_application);
    fs::rename(place.path("new.db"), place.database()).expect("the folder is ours");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_in_rollback_journal_mode_is_set_to_wal_and_that_is_said() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run(TABLE);
    application.run(INSERT);
    assert_eq!(application.value("PRAGMA journal_mode"), "delete");
    let agent = place.streaming_agent(&[]);
    agent.wait_for_log("was not in WAL mode; it is now");
    application.run(INSERT);
    assert_eq!(application.value("PRAGMA journal_mode"), "wal");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_held_exclusively_is_refused_until_it_is_released() {
    let place = Place::new();
    let mut exclusive = Shell::open(&place.database());
    exclusive.run("PRAGMA locking_mode=EXCLUSIVE");
    exclusive.run("PRAGMA journal_mode=wal");
    exclusive.run(TABLE);
    exclusive.run(INSERT);
    let agent = place.agent(&[]);
    let status = agent.wait_for_status("is refused", is_refused);
    let reason = first(&status)["refused_because"].as_str().expect("a reason");
    assert!(reason.contains("locked"), "{reason}");
    assert_eq!(agent.run("status", &[]).status.code(), Some(2));
    exclusive.run(INSERT);
    exclusive.close();
    place.wait_until_replicated(&agent);
    assert_eq!(agent.run("status", &[]).status.code(), Some(0));
    place.stop(agent);
    place.assert_restores();
}

/// The states of a database that is locked for three seconds, in the first half second, at their end, and later.
fn states_beside_a_lock() -> [SourceState; 5] {
    let place = Place::new();
    let mut exclusive = Shell::open(&place.database());
    exclusive.run("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=wal");
    exclusive.run(TABLE);
    let began = Instant::now();
    let now = |millis| Now { mono: began + Duration::from_millis(millis), wall: SystemTime::now() };
    let mut agent = agent_of(&place, now(0));
    let mut state_after = |millis| {
        for _ in 0..5 {
            agent.step(now(millis), &mut |_| Dirty::ALL);
        }
        agent.status(now(millis)).databases[0].state.clone()
    };
    let [first, second, third, last] = [0, 250, 500, 3000].map(&mut state_after);
    exclusive.close();
    [first, second, third, last, state_after(6000)]
}

#[test]
fn a_database_that_is_locked_for_a_moment_is_not_refused() {
    let is_refused_for = |why: &str, state: &SourceState| match state {
        SourceState::Refused(reason) => reason.contains(why),
        _ => false,
    };
    // A process that another test starts just now holds a copy of the agent's own lock for a moment.
    let states = wait_for("no other process has the agent's lock", Duration::from_secs(60), || {
        let states = states_beside_a_lock();
        (!states.iter().any(|state| is_refused_for("another agent", state))).then_some(states)
    });
    assert!(states[..3].iter().all(|state| *state == SourceState::Attaching), "{states:?}");
    assert!(is_refused_for("locked", &states[3]) && states[4] == SourceState::Attached, "{states:?}");
}

#[test]
fn a_database_replaced_by_rename_is_replicated_anew_without_frames_of_the_old_one() {
    let place = Place::new();
    let mut old = application(&place.database());
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 100000", "max-checkpoint-page-count: 0"]);
    for _ in 0..5 {
        old.run(INSERT);
    }
    place.wait_until_replicated(&agent);
    let before = agent.generation();
    old.close();
    assert!(fs::metadata(place.wal()).expect("the agent keeps the WAL").len() > 0);
    // The same schema and pages: old frames would fit only too well.
    let mut new = application(&place.path("new.db"));
    new.run("UPDATE t SET data = 'new'");
    new.close();
    let copy = place.path("copy.db");
    fs::copy(place.path("new.db"), &copy).expect("the folder is ours");
    fs::rename(place.path("new.db"), place.database()).expect("the folder is ours");
    agent.wait_for_log("another file was put in the database's place");
    agent.wait_for_status("follows the new file", |status| {
        crate::support::place::is_streaming(status) && first(status)["generation"] != before.as_str()
    });
    assert_same(&copy, &place.database());
    place.wait_until_replicated(&agent);
    let mut again = Shell::open(&place.database());
    again.run(INSERT);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_second_agent_on_a_database_says_so_and_replicates_nothing() {
    let place = Place::new();
    let mut application = application(&place.database());
    let agent = place.streaming_agent(&[]);
    let (other_folder, other_replica) = (place.path("other"), place.path("other/replica"));
    fs::create_dir(&other_folder).expect("the folder is ours");
    let configuration = format!(
        "dbs:\n  - path: {}\n    replicas: [{{type: file, path: '{}'}}]\n",
        place.database().display(),
        other_replica.display()
    );
    let second = Agent::start(&other_folder, &configuration);
    let status = second.wait_for_status("is refused", is_refused);
    let reason = first(&status)["refused_because"].as_str().expect("a reason");
    assert!(reason.contains("another agent"), "{reason}");
    assert_eq!(second.run("status", &[]).status.code(), Some(2), "failing");
    assert_eq!(agent.run("status", &[]).status.code(), Some(0), "healthy");
    application.run(INSERT);
    place.wait_until_replicated(&agent);
    assert!(!other_replica.exists(), "the second agent has replicated");
    // When the first one has gone, the second one takes over.
    place.stop(agent);
    second.wait_for_status("streams", crate::support::place::is_streaming);
    second.stop();
    let restored = place.path("other.db");
    restore(&other_replica, &restored);
    assert_same(&place.database(), &restored);
}
