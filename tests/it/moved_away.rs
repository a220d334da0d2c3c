//! A database whose name goes away while the agent holds it: what is in its WAL is neither lost nor read as another
//! file's.

use crate::moved_back::{go_on, hold};
use crate::support::agent::Agent;
use crate::support::gate::Gate;
use crate::support::mounted::Mounted;
use crate::support::place::{Place, first, is_streaming, wait_for_page_table};
use crate::support::process::signal;
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::locks;

const DEADLINE: Duration = Duration::from_secs(60);
/// Of an agent that neither checkpoints nor lets go by itself.
pub const PATIENT: [&str; 2] = ["checkpoint-interval: 1h", "let-go-after: never"];
pub const GONE: &str = "there is no database yet; waiting for it";
pub const COUNT: &str = "SELECT count(*) FROM t";

/// An application with eleven rows, ten of them in the WAL only.
pub fn place_with_a_wal() -> (Place, Agent, Shell) {
    place_with_a_wal_and(&[])
}

/// The same, with an agent that has these variables in its environment.
pub fn place_with_a_wal_and(environment: &[(&str, &str)]) -> (Place, Agent, Shell) {
    let place = Place::new();
    let (agent, application) = with_a_wal(&place, environment);
    (place, agent, application)
}

pub fn with_a_wal(place: &Place, environment: &[(&str, &str)]) -> (Agent, Shell) {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
    application.run("INSERT INTO t VALUES ('first')");
    application.close();
    let agent = place.agent_with(&PATIENT, environment);
    agent.wait_for_status("streams", is_streaming);
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA wal_autocheckpoint=0");
    for _ in 0..10 {
        application.run("INSERT INTO t VALUES ('later')");
    }
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    (agent, application)
}

pub fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).expect("the folder is ours");
}

/// Another database with one row, and the rename that puts it in place.
pub fn put_another_in_place(place: &Place, row: &str) {
    let path = place.path("another.db");
    let mut another = Shell::open(&path);
    another.run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
    another.run(&format!("INSERT INTO t VALUES ('{row}')"));
    another.close();
    rename(&path, &place.database());
}

pub fn kept_wals(place: &Place) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.path(".app.db-agent")).expect("there is a meta folder").flatten();
    let is_kept = |path: &PathBuf| path.to_string_lossy().contains("replaced-wal-");
    entries.map(|entry| entry.path()).filter(is_kept).collect()
}

/// Though that is never to be done.
pub fn wait_until_let_go(place: &Place) {
    let is_held = || place.wal().exists() || place.path("app.db-shm").exists();
    wait_until("it is let go of", DEADLINE, || !is_held());
}

#[track_caller]
pub fn assert_replicated(place: &Place, agent: Agent) {
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_renamed_and_back_has_every_commit_though_its_application_was_killed() {
    let (place, agent, application) = place_with_a_wal();
    application.kill();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    rename(&place.path("aside.db"), &place.database());
    agent.wait_for_log("the database was moved away and back");
    let mut again = Shell::open(&place.database());
    assert_eq!(again.value(COUNT), "11", "{}", agent.log());
    again.run("INSERT INTO t VALUES ('again')");
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

/// Its times change with its name.
#[test]
fn a_database_that_is_renamed_while_it_is_let_go_of_is_left_as_any_other_and_its_wal_with_nothing() {
    let place = Place::new();
    Shell::open(&place.database()).run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
    let agent = place.streaming_agent(&["let-go-after: 100ms"]);
    let modified = || fs::metadata(place.database()).and_then(|metadata| metadata.modified()).ok();
    for row in 0..10 {
        let mut application = Shell::open(&place.database());
        application.run(&format!("INSERT INTO t VALUES ({row})"));
        agent.wait_for_status("streams", is_streaming);
        let before = modified();
        application.close();
        // Our last checkpoint writes it, and waits until its times are good enough.
        wait_until("it is being let go of", DEADLINE, || modified() != before);
        rename(&place.database(), &place.path("aside.db"));
        wait_until("its WAL has nothing", DEADLINE, || {
            fs::metadata(place.wal()).map_or(0, |metadata| metadata.len()) == 0
        });
        rename(&place.path("aside.db"), &place.database());
        let mut again = Shell::open(&place.database());
        assert_eq!(again.value("SELECT max(data) FROM t"), row.to_string(), "{}", agent.log());
        again.close();
    }
    assert!(!agent.log().contains("something other than SQLite"), "{}", agent.log());
    assert_replicated(&place, agent);
}

/// Moved away first, and then another one is put there: by then the old one is being left.
#[test]
fn a_file_that_is_put_in_place_while_the_old_ones_fsync_takes_long_is_opened_when_that_is_done() {
    let place = Place::new();
    let gate = Gate::at_fsyncs(&place, ".db");
    let (agent, application) = with_a_wal(&place, &gate.environment());
    application.close();
    gate.shut();
    rename(&place.database(), &place.path("aside.db"));
    gate.wait_until_reached();
    put_another_in_place(&place, "another");
    let new = File::options().read(true).write(true).open(place.database()).expect("it is there");
    wait_until("the agent has heard of it", DEADLINE, || locks::is_shared(&new).expect("it is open"));
    let mut another = Shell::open(&place.database());
    another.try_run("SELECT count(*) FROM t").expect_err("it would be mixed with the old WAL");
    gate.open();
    another.run(".timeout 60000");
    another.run("INSERT INTO t VALUES ('into the new file')");
    assert_eq!(another.value("SELECT group_concat(data) FROM t"), "another,into the new file");
    assert_eq!(Shell::open(&place.path("aside.db")).value(COUNT), "11");
    another.close();
    assert_replicated(&place, agent);
}

#[test]
fn a_database_moved_to_another_file_system_takes_its_wal_along() {
    let (place, agent, application) = place_with_a_wal();
    application.kill();
    // As `mv` does it: one file after the other is copied and removed.
    let moved = place.path("moved");
    fs::create_dir(&moved).expect("the folder is ours");
    fs::copy(place.database(), moved.join("app.db")).expect("it is there");
    fs::remove_file(place.database()).expect("it is there");
    agent.wait_for_log(GONE);
    let files = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it runs").flatten();
    let is_removed = |path: PathBuf| path.to_string_lossy().ends_with("/app.db (deleted)");
    let keeps_it = || files().any(|file| fs::read_link(file.path()).is_ok_and(is_removed));
    wait_until("the removed file takes no room any more", DEADLINE, || !keeps_it());
    fs::copy(place.wal(), moved.join("app.db-wal")).expect("it is still there");
    fs::remove_file(place.wal()).expect("it is there");
    assert_eq!(Shell::open(&moved.join("app.db")).value(COUNT), "11");
    // Who removed it cannot be told: it may have been the only copy.
    wait_until("it is kept", DEADLINE, || kept_wals(&place).len() == 1);
    agent.wait_for_log(&format!("is kept as {}", kept_wals(&place)[0].display()));
    put_another_in_place(&place, "another");
    agent.wait_for_status("follows the new file", is_streaming);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "1");
    assert_replicated(&place, agent);
}

#[test]
fn an_application_that_has_a_renamed_file_open_and_others_that_come_later_see_each_other() {
    let (place, agent, mut first) = place_with_a_wal();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    rename(&place.path("aside.db"), &place.database());
    let mut second = Shell::open(&place.database());
    assert_eq!(second.value(COUNT), "11", "{}", agent.log());
    second.run("INSERT INTO t VALUES ('second')");
    first.run("INSERT INTO t VALUES ('first')");
    assert_eq!((first.value(COUNT), second.value(COUNT)), ("13".to_owned(), "13".to_owned()));
    place.wait_until_replicated(&agent);
    first.close();
    second.close();
    assert_eq!(Shell::open(&place.database()).value("PRAGMA integrity_check"), "ok");
    assert_replicated(&place, agent);
}

#[test]
fn a_file_put_in_place_while_its_application_runs_is_the_database_and_what_that_commits_is_kept() {
    let (place, agent, mut application) = place_with_a_wal();
    put_another_in_place(&place, "another");
    wait_until("the WAL is moved away", DEADLINE, || !place.wal().exists());
    application.run("INSERT INTO t VALUES ('into the old file')");
    assert_eq!(application.value(COUNT), "12");
    application.kill();
    let kept = kept_wals(&place);
    assert_eq!(kept.len(), 1, "{}", agent.log());
    agent.wait_for_log(&format!("is kept as {}", kept[0].display()));
    let wal = fs::read(&kept[0]).expect("it is there");
    let last = b"into the old file";
    assert!(wal.windows(last.len()).any(|bytes| bytes == last), "what was committed last is in it");
    assert_eq!(Shell::open(&place.database()).value("SELECT data FROM t"), "another");
    assert_replicated(&place, agent);
}

#[test]
fn every_wal_of_a_replaced_file_is_kept_up_to_eight() {
    let (place, agent, mut application) = place_with_a_wal();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..10 {
        application.run("INSERT INTO t VALUES ('into the WAL')");
        agent.wait_for_status("streams", is_streaming);
        let generation = agent.generation();
        application.kill();
        // The file is gone for a moment, too.
        fs::remove_file(place.database()).expect("it is there");
        agent.wait_for_status("it is gone", |status| !is_streaming(status));
        put_another_in_place(&place, &format!("another {round}"));
        let name = place.path(".app.db-agent").join(format!("replaced-wal-{generation}"));
        wait_until("the WAL is kept", DEADLINE, || name.exists());
        seen.insert(name);
        agent.wait_for_status("follows the new file", |status| {
            is_streaming(status) && !status.to_string().contains(&generation)
        });
        application = Shell::open(&place.database());
        assert_eq!(application.value("SELECT data FROM t"), format!("another {round}"));
        application.run("PRAGMA wal_autocheckpoint=0");
    }
    assert_eq!((seen.len(), kept_wals(&place).len()), (10, 8));
    application.close();
    assert_replicated(&place, agent);
}

#[test]
fn a_wal_that_cannot_be_renamed_into_the_meta_folder_is_kept_beside_the_database() {
    let place = Place::new();
    let elsewhere = place.path("mounted");
    fs::create_dir(&elsewhere).expect("the folder is ours");
    let _mounted = Mounted::new(&elsewhere, 40 << 20);
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (data)");
    let meta = format!("meta-path: {}", elsewhere.display());
    let agent = place.streaming_agent(&[PATIENT[0], PATIENT[1], &meta]);
    application.run("INSERT INTO t VALUES ('into the WAL')");
    agent.wait_for_status("streams", is_streaming);
    let (wal, generation) = (fs::read(place.wal()).expect("it is there"), agent.generation());
    application.kill();
    put_another_in_place(&place, "another");
    let kept = place.path(&format!("app.db-wal-replaced-wal-{generation}"));
    wait_until("the WAL is kept", DEADLINE, || kept.exists());
    assert!(fs::read(&kept).expect("it is there") == wal, "all of it");
    wait_until("the WAL is moved away", DEADLINE, || !place.wal().exists());
    assert_eq!(Shell::open(&place.database()).value("SELECT data FROM t"), "another");
    assert_replicated(&place, agent);
}

#[test]
fn commits_made_with_the_wal_that_was_moved_along_are_not_emptied_out_of_it() {
    for removes_index in [false, true] {
        let (place, agent, application) = place_with_a_wal();
        let (moved, was_moved) = (place.path("moved.db"), |suffix| place.path(&format!("moved.db{suffix}")));
        hold(&agent);
        application.close();
        rename(&place.database(), &moved);
        rename(&place.wal(), &was_moved("-wal"));
        // Its `-shm` is another one, and its last close is not the last.
        let mut other = Shell::open(&moved);
        other.run("INSERT INTO t VALUES ('other'); INSERT INTO t VALUES ('other')");
        other.close();
        if removes_index {
            fs::remove_file(was_moved("-shm")).expect("it was left there");
        }
        go_on(&agent);
        agent.wait_for_log(GONE);
        assert_eq!(Shell::open(&moved).value(COUNT), "13", "{}", agent.log());
        put_another_in_place(&place, "another");
        assert_replicated(&place, agent);
        assert_eq!(Shell::open(&moved).value(COUNT), "13");
    }
}

#[test]
fn a_file_that_nobody_wrote_keeps_its_wal_though_a_strange_one_lay_beside_its_other_name() {
    let (place, agent, application) = place_with_a_wal();
    application.kill();
    fs::write(place.path("aside.db-wal"), "of something else").expect("the folder is ours");
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    rename(&place.path("aside.db"), &place.database());
    agent.wait_for_log("the database was moved away and back");
    assert_eq!(Shell::open(&place.database()).value(COUNT), "11", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

/// The agent sees all of it at once: the last commit, which it has not copied, and that the file has another name and its WAL
/// none.
#[test]
fn a_renamed_file_has_the_last_commit_though_its_wal_was_removed_before_that_was_copied() {
    let (place, agent, mut application) = place_with_a_wal();
    signal(agent.pid(), Signal::STOP);
    application.run("INSERT INTO t VALUES ('last')");
    application.close();
    rename(&place.database(), &place.path("aside.db"));
    for removed in [place.wal(), place.path("app.db-shm")] {
        fs::remove_file(removed).expect("it is held");
    }
    signal(agent.pid(), Signal::CONT);
    agent.wait_for_log("everything committed is in the file that was there");
    assert_eq!(Shell::open(&place.path("aside.db")).value(COUNT), "12", "{}", agent.log());
}

#[test]
fn a_wal_that_is_moved_away_beside_nobody_is_brought_into_the_file_and_keeps_nobody_from_opening_it() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    rename(&place.wal(), &place.path("aside-wal"));
    agent.wait_for_log("its -wal was moved away");
    wait_until_let_go(&place);
    let mut again = Shell::open(&place.database());
    assert_eq!(again.value(COUNT), "11", "as after any last close");
    again.run("INSERT INTO t VALUES ('after')");
    again.close();
    assert_replicated(&place, agent);
}

#[test]
fn a_wal_that_is_moved_away_beside_its_application_is_replicated_and_brought_into_the_file() {
    let (place, agent, mut application) = place_with_a_wal();
    rename(&place.wal(), &place.path("aside-wal"));
    let is_said = |status: &Value| first(status)["mixed"].to_string().contains("its -wal was moved away");
    agent.wait_for_status("says so", |status| status["health"] == "failing" && is_said(status));
    application.run("INSERT INTO t VALUES ('after')");
    application.close();
    wait_until_let_go(&place);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "12");
    assert_replicated(&place, agent);
}
