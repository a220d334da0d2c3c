//! Another file is put in a database's place within the second after its last close: whoever opens it meets nothing of the
//! old one, however long it takes to bring everything into that.

use crate::moved_away::{
    COUNT, GONE, PATIENT, assert_replicated, kept_wals, place_with_a_wal, put_another_in_place, rename,
    with_a_wal,
};
use crate::moved_back::{go_on, hold};
use crate::support::agent::Agent;
use crate::support::gate::Gate;
use crate::support::place::{Place, is_streaming};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::locks;

const DEADLINE: Duration = Duration::from_secs(60);

/// A database with one row whose page table is being written, up to where that is synced.
fn writing_the_page_table() -> (Place, Gate, Agent, Shell) {
    let place = Place::new();
    let gate = Gate::at_fsyncs(&place, "page-table");
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data); INSERT INTO t VALUES ('first')");
    gate.shut();
    let agent = place.agent_with(&PATIENT, &gate.environment());
    agent.wait_for_status("streams", is_streaming);
    gate.wait_until_reached();
    (place, gate, agent, application)
}

/// Waits for whoever has locked it.
fn patient(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run(".timeout 60000");
    application
}

/// Writes a row into what was put in place, which has one.
#[track_caller]
fn write_into_the_new_one(place: &Place, agent: &Agent) -> Shell {
    let mut application = patient(&place.database());
    application.run("INSERT INTO t VALUES ('later')");
    let rows = application.value("SELECT group_concat(data) FROM t");
    assert_eq!(rows, "another,later", "{}", agent.log());
    application
}

#[test]
fn a_file_that_somebody_reads_by_its_other_name_is_opened_while_the_old_one_is_being_left() {
    let place = Place::new();
    let gate = Gate::at_fsyncs(&place, ".old.db");
    let (agent, application) = with_a_wal(&place, &gate.environment());
    let (new, old) = (place.path("new.db"), place.path("app.old.db"));
    let mut reader = Shell::open(&new);
    reader.run("PRAGMA journal_mode=wal; CREATE TABLE t (data); INSERT INTO t VALUES ('another')");
    reader.run("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=delete; BEGIN; SELECT * FROM t");
    application.close();
    gate.shut();
    hold(&agent);
    rename(&place.database(), &old);
    rename(&new, &place.database());
    go_on(&agent);
    gate.wait_until_reached();
    let mut application = patient(&place.database());
    assert_eq!(application.value("SELECT group_concat(data) FROM t"), "another", "{}", agent.log());
    reader.run("COMMIT");
    reader.close();
    application.run("INSERT INTO t VALUES ('later')");
    gate.open();
    agent.wait_for_log("everything committed is in the file that was there");
    assert_eq!(application.value("SELECT group_concat(data) FROM t"), "another,later", "{}", agent.log());
    assert_eq!(patient(&old).value(COUNT), "11");
    assert!(!agent.log().contains("may be mixed"), "{}", agent.log());
    application.close();
}

#[test]
fn what_is_committed_in_a_wal_that_was_emptied_before_stays_there() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    assert_eq!(fs::metadata(place.wal()).map(|wal| wal.len()).ok(), Some(0));
    hold(&agent);
    put_another_in_place(&place, "another");
    write_into_the_new_one(&place, &agent).kill();
    go_on(&agent);
    agent.wait_for_status("follows the new file", is_streaming);
    let mut application = patient(&place.database());
    let rows = application.value("SELECT group_concat(data) FROM t");
    assert_eq!(rows, "another,later", "{}", agent.log());
    application.close();
    assert_replicated(&place, agent);
}

#[test]
fn a_hard_link_has_the_last_commits_when_another_file_gets_the_databases_name() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let link = place.path("yesterday.db");
    hold(&agent);
    fs::hard_link(place.database(), &link).expect("the folder is ours");
    put_another_in_place(&place, "another");
    go_on(&agent);
    agent.wait_for_log("everything committed is in the file that was there");
    assert_eq!(patient(&link).value(COUNT), "11", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    write_into_the_new_one(&place, &agent).close();
    assert_replicated(&place, agent);
}

#[test]
fn a_file_that_is_put_in_place_while_the_page_table_is_written_is_opened_without_the_old_wal() {
    let (place, gate, agent, application) = writing_the_page_table();
    application.close();
    fs::remove_file(place.database()).expect("it is there");
    agent.wait_for_log(GONE);
    put_another_in_place(&place, "another");
    wait_until("the old WAL is not there any more", DEADLINE, || !place.wal().exists());
    let application = write_into_the_new_one(&place, &agent);
    gate.open();
    agent.wait_for_status("follows the new file", is_streaming);
    application.close();
    assert_replicated(&place, agent);
}

/// As long as the page table is written, the old file is not left: it may come back, and then its WAL is beside it.
#[test]
fn a_file_that_comes_back_while_the_page_table_is_written_has_its_last_commits() {
    let (place, gate, agent, mut application) = writing_the_page_table();
    application.run("INSERT INTO t VALUES ('last')");
    agent.wait_for_status("streams", is_streaming);
    application.close();
    let aside = place.path("aside.db");
    rename(&place.database(), &aside);
    put_another_in_place(&place, "another");
    let new = File::options().read(true).write(true).open(place.database()).expect("it is there");
    wait_until("the agent has heard of it", DEADLINE, || locks::is_shared(&new).expect("it is open"));
    rename(&place.database(), &place.path("another.db"));
    rename(&aside, &place.database());
    gate.open();
    let mut application = patient(&place.database());
    assert_eq!(application.value("SELECT group_concat(data) FROM t"), "first,last", "{}", agent.log());
    application.close();
    assert_replicated(&place, agent);
}

#[test]
fn an_agent_that_ends_leaves_nothing_beside_a_database_that_nobody_else_has_open() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
    let agent = place.streaming_agent(&[PATIENT[0], "let-go-after: 1h"]);
    application.run("INSERT INTO t VALUES ('first')");
    application.close();
    assert!(agent.stop().success());
    assert!(!place.wal().exists() && !place.path("app.db-shm").exists());
    fs::copy(place.database(), place.path("copy.db")).expect("the folder is ours");
    assert_eq!(Shell::open(&place.path("copy.db")).value(COUNT), "1");
    place.assert_restores();
    put_another_in_place(&place, "another");
    let mut application = Shell::open(&place.database());
    assert_eq!(application.value("SELECT data FROM t"), "another");
}
