//! A database that gets names which the agent does not know: links, and the name of another database of the same agent.

use crate::moved_away::{
    COUNT, GONE, PATIENT, assert_replicated, kept_wals, place_with_a_wal, put_another_in_place, rename,
};
use crate::moved_back::{go_on, hold};
use crate::support::agent::Agent;
use crate::support::place::{Place, is_streaming};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const SOUND: &str = "PRAGMA integrity_check";

/// Lets the agent see only what has become of it all.
fn unseen(agent: &Agent, change: impl FnOnce()) {
    hold(agent);
    change();
    go_on(agent);
}

#[test]
fn a_link_in_the_databases_place_is_another_file_and_the_old_one_is_whole() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    unseen(&agent, || {
        rename(&place.database(), &place.path("real.db"));
        symlink(place.path("real.db"), place.database()).expect("the folder is ours");
    });
    agent.wait_for_log("it is a symbolic link");
    let mut application = Shell::open(&place.database());
    assert_eq!(application.value(COUNT), "11", "{}", agent.log());
    application.run("INSERT INTO t VALUES ('through the link')");
    application.close();
    let mut real = Shell::open(&place.path("real.db"));
    assert_eq!((real.value(COUNT), real.value(SOUND)), ("12".to_owned(), "ok".to_owned()));
}

#[test]
fn a_file_that_has_another_name_by_a_hard_link_gets_nothing_written_into_it() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let copy = place.path("copy.db");
    unseen(&agent, || {
        fs::hard_link(place.database(), &copy).expect("the folder is ours");
        fs::remove_file(place.database()).expect("it is there");
        let mut other = Shell::open(&copy);
        other.run("INSERT INTO t VALUES ('beside another WAL')");
        other.close();
    });
    agent.wait_for_log(GONE);
    assert_eq!(kept_wals(&place).len(), 1, "{}", agent.log());
    let mut other = Shell::open(&copy);
    assert_eq!(other.value(SOUND), "ok", "{}", agent.log());
    assert_eq!(other.value("SELECT data FROM t ORDER BY rowid DESC LIMIT 1"), "beside another WAL");
}

/// An application whose commits stay in the WAL.
fn begin(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (data)");
    application
}

#[test]
fn two_databases_of_one_agent_that_change_places_keep_all_their_commits() {
    let place = Place::new();
    let paths = ["a.db", "b.db"].map(|name| place.path(name));
    let entries = paths.each_ref().map(|path| {
        let settings = PATIENT.map(|line| format!("    {line}\n")).concat();
        let replica = path.with_extension("replica");
        let replicas = format!("    replicas: [{{type: file, path: '{}'}}]\n", replica.display());
        format!("  - path: {}\n{settings}{replicas}", path.display())
    });
    let mut applications = paths.each_ref().map(|path| begin(path));
    let agent = Agent::start(place.path("").as_path(), &format!("dbs:\n{}", entries.concat()));
    let stream = |status: &serde_json::Value| {
        let databases = status["databases"].as_array().expect("it has databases");
        databases.iter().all(|database| is_streaming(&serde_json::json!({ "databases": [database] })))
    };
    agent.wait_for_status("both stream", stream);
    for (number, application) in applications.iter_mut().enumerate() {
        for _ in 0..10 {
            application.run(&format!("INSERT INTO t VALUES ('of the {number}.')"));
        }
    }
    agent.wait_for_status("both stream", stream);
    applications.into_iter().for_each(Shell::close);
    unseen(&agent, || {
        rename(&paths[0], &place.path("aside.db"));
        rename(&paths[1], &paths[0]);
        rename(&place.path("aside.db"), &paths[1]);
    });
    agent.wait_for_log("another file was put in the database's place");
    let rows = |path: &Path| Shell::open(path).value("SELECT count(*) || ' ' || max(data) FROM t");
    let expected = ["10 of the 1.", "10 of the 0."];
    wait_until(&format!("each has all its rows in {}", place.path("").display()), DEADLINE, || {
        agent.status().is_some_and(|status| stream(&status))
            && paths.iter().map(|path| rows(path)).eq(expected.map(str::to_owned))
    });
    for path in &paths {
        assert_eq!(Shell::open(path).value(SOUND), "ok", "{}", agent.log());
    }
}

#[test]
fn a_renamed_file_that_is_read_at_once_gets_everything_when_its_reader_has_gone() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let renamed = place.path("renamed.db");
    let mut reader = None;
    unseen(&agent, || {
        rename(&place.database(), &renamed);
        let mut visitor = Shell::open(&renamed);
        visitor.value(COUNT);
        reader = Some(visitor);
    });
    agent.wait_for_log("waiting a moment");
    reader.expect("BUG: it was opened").close();
    agent.wait_for_log("everything committed is in the file that was there");
    assert_eq!(Shell::open(&renamed).value(COUNT), "11", "{}", agent.log());
    put_another_in_place(&place, "another");
    agent.wait_for_status("follows the new file", is_streaming);
    assert_replicated(&place, agent);
}
