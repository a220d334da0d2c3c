//! A database whose name goes away while the agent holds it, and what comes to its path later: the same file, after
//! others have worked on it, or another one, perhaps after a restart of the agent.

use crate::moved_away::{
    COUNT, GONE, PATIENT, assert_replicated, kept_wals, place_with_a_wal, put_another_in_place, rename,
};
use crate::support::agent::Agent;
use crate::support::mounted::Mounted;
use crate::support::place::{Place, first, is_streaming, wait_for_page_table};
use crate::support::process::signal;
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::control::{self, Request};

const DEADLINE: Duration = Duration::from_secs(60);
pub const BACK: &str = "the database was moved away and back";

/// Removes all rows but two, under whatever name.
pub fn work_on(database: &Path) {
    let mut other = Shell::open(database);
    other.run("DELETE FROM t WHERE rowid > 2; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
    other.close();
}

/// Works on it, so that only a page changes that is in the old WAL, too.
fn work_on_one_page(database: &Path) {
    let mut other = Shell::open(database);
    other.run("UPDATE t SET data = 'other' WHERE rowid = 1; PRAGMA wal_checkpoint(TRUNCATE)");
    other.close();
}

/// Works on it, and leaves what was done in a WAL, because the agent's own lock keeps it from the file.
fn work_on_its_own_wal(database: &Path) {
    let mut other = Shell::open(database);
    other.run("UPDATE t SET data = 'other' WHERE rowid = 1");
    other.close();
}

pub fn hold(agent: &Agent) {
    signal(agent.pid(), Signal::STOP);
}

pub fn go_on(agent: &Agent) {
    signal(agent.pid(), Signal::CONT);
}

/// What the log says of where a WAL is kept, and the WAL.
#[track_caller]
pub fn assert_is_kept(place: &Place, agent: &Agent) -> Vec<u8> {
    wait_until(&format!("one WAL is kept in {}", place.path("").display()), DEADLINE, || {
        kept_wals(place).len() == 1
    });
    let kept = &kept_wals(place)[0];
    agent.wait_for_log(&format!("is kept as {}", kept.display()));
    fs::read(kept).expect("it is there")
}

#[test]
fn a_file_that_was_worked_on_under_another_name_and_moved_back_is_what_was_made_of_it() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    work_on(&place.path("aside.db"));
    rename(&place.path("aside.db"), &place.database());
    agent.wait_for_log(BACK);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "2", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

#[test]
fn a_file_that_was_worked_on_before_the_agent_saw_that_it_is_renamed_never_gets_its_old_wal_again() {
    for work in [work_on, work_on_one_page, work_on_its_own_wal] {
        let (place, agent, application) = place_with_a_wal();
        application.close();
        hold(&agent);
        rename(&place.database(), &place.path("aside.db"));
        let aside = place.path("aside.db");
        work(&aside);
        go_on(&agent);
        agent.wait_for_log(GONE);
        let rows = "SELECT count(*) || max(data) || min(data) FROM t";
        let mut reader = Shell::open(&aside);
        let expected = reader.value(rows);
        reader.close();
        rename(&aside, &place.database());
        agent.wait_for_log(BACK);
        assert_eq!(Shell::open(&place.database()).value(rows), expected, "{}", agent.log());
        assert_is_kept(&place, &agent);
        assert_replicated(&place, agent);
    }
}

#[test]
fn a_file_that_was_worked_on_after_its_application_ended_under_another_name_keeps_what_was_made_of_it() {
    let (place, agent, application) = place_with_a_wal();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    application.close();
    work_on(&place.path("aside.db"));
    let rows = Shell::open(&place.path("aside.db")).value(COUNT);
    rename(&place.path("aside.db"), &place.database());
    agent.wait_for_log(BACK);
    assert_eq!(Shell::open(&place.database()).value(COUNT), rows, "{}", agent.log());
    assert_is_kept(&place, &agent);
    assert_replicated(&place, agent);
}

#[test]
fn a_renamed_file_has_every_commit_under_its_new_name_and_so_has_a_copy_of_it_alone() {
    let (place, agent, application) = place_with_a_wal();
    application.kill();
    let aside = place.path("aside.db");
    rename(&place.database(), &aside);
    agent.wait_for_log("everything committed is in the file that was there");
    fs::copy(&aside, place.path("copy.db")).expect("the folder is ours");
    assert_eq!(Shell::open(&place.path("copy.db")).value(COUNT), "11");
    assert_eq!(Shell::open(&aside).value(COUNT), "11");
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    place.stop(agent);
}

#[test]
fn a_database_moved_to_another_folder_with_its_wal_has_every_commit_there_and_leaves_nothing() {
    for is_open in [false, true] {
        let (place, agent, application) = place_with_a_wal();
        let running = if is_open {
            Some(application)
        } else {
            application.kill();
            None
        };
        let moved = place.path("moved");
        fs::create_dir(&moved).expect("the folder is ours");
        rename(&place.database(), &moved.join("app.db"));
        agent.wait_for_log(GONE);
        for name in ["app.db-wal", "app.db-shm"] {
            rename(&place.path(name), &moved.join(name));
        }
        if let Some(application) = running {
            application.kill();
        }
        assert_eq!(Shell::open(&moved.join("app.db")).value(COUNT), "11", "{}", agent.log());
        put_another_in_place(&place, "another");
        agent.wait_for_status("follows the new file", is_streaming);
        assert_eq!(Shell::open(&place.database()).value(COUNT), "1", "{}", agent.log());
        assert_eq!(kept_wals(&place), Vec::<PathBuf>::new(), "it has a name elsewhere");
        assert_replicated(&place, agent);
    }
}

/// How an agent is restarted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Restart {
    Killed,
    Stopped,
    Reloaded,
}

pub const RESTARTS: [Restart; 3] = [Restart::Killed, Restart::Stopped, Restart::Reloaded];

/// Restarts the agent, with `meanwhile` before it looks again.
pub fn restart(agent: Agent, how: Restart, meanwhile: impl FnOnce()) -> Agent {
    let configuration = agent.configuration().to_owned();
    match how {
        Restart::Killed => agent.kill(),
        Restart::Stopped => {
            agent.stop();
        }
        Restart::Reloaded => {
            let log = agent.log().len();
            signal(agent.pid(), Signal::HUP);
            wait_until("it begins anew", DEADLINE, || {
                agent.log()[log..].contains(GONE) || agent.log()[log..].contains("attached")
            });
            meanwhile();
            return agent;
        }
    }
    meanwhile();
    Agent::start_again(&configuration)
}

#[track_caller]
fn assert_is_another(place: &Place, agent: &Agent) {
    agent.wait_for_status("follows the new file", is_streaming);
    let mut new = Shell::open(&place.database());
    assert_eq!(new.value("SELECT group_concat(data) FROM t"), "another", "{}", agent.log());
    assert_eq!(new.value("PRAGMA integrity_check"), "ok");
    new.run("INSERT INTO t VALUES ('new')");
    new.close();
}

#[test]
fn another_file_moved_in_after_a_restart_of_the_agent_is_the_database_and_the_old_one_is_whole() {
    for how in RESTARTS {
        let (place, agent, application) = place_with_a_wal();
        application.close();
        rename(&place.database(), &place.path("aside.db"));
        agent.wait_for_log(GONE);
        let agent = restart(agent, how, || put_another_in_place(&place, "another"));
        assert_is_another(&place, &agent);
        assert_eq!(Shell::open(&place.path("aside.db")).value(COUNT), "11", "{how:?}");
        assert_replicated(&place, agent);
    }
}

#[test]
fn another_file_moved_in_while_the_agent_was_down_never_gets_the_wal_of_the_old_one() {
    for how in [Restart::Killed, Restart::Stopped] {
        let (place, agent, application) = place_with_a_wal();
        application.close();
        let agent = restart(agent, how, || {
            rename(&place.database(), &place.path("aside.db"));
            put_another_in_place(&place, "another");
        });
        assert_is_another(&place, &agent);
        assert!(!assert_is_kept(&place, &agent).is_empty(), "{how:?}");
        assert_replicated(&place, agent);
    }
}

#[test]
fn a_database_that_is_moved_with_its_wal_while_the_agent_is_down_keeps_its_commits() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let agent = restart(agent, Restart::Killed, || {
        // As a backup of the whole folder is put back: other inodes, the same content.
        for path in [place.database(), place.wal()] {
            let copy = place.path("copy");
            fs::copy(&path, &copy).expect("it is there");
            fs::remove_file(&path).expect("it is there");
            rename(&copy, &path);
        }
    });
    agent.wait_for_status("follows it", is_streaming);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "11", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

/// Makes a database with one row that has this number on its file system; `false` if somebody else got that.
fn put_one_in_place_with_inode(place: &Place, inode: u64) -> bool {
    for number in 0..100 {
        let path = place.path(&format!("new-{number}.db"));
        fs::write(&path, b"").expect("the folder is ours");
        if fs::metadata(&path).expect("it is there").ino() == inode {
            let mut new = Shell::open(&path);
            new.run("CREATE TABLE t (data); INSERT INTO t VALUES ('another'); PRAGMA journal_mode=wal");
            new.close();
            rename(&path, &place.database());
            return true;
        }
    }
    false
}

/// Removes the database, and puts one in place that has its number, while the agent is down; it is down already when
/// the database is removed, or not. `false` if the number was not to be had.
fn is_told_from_a_new_file_with_its_number(is_down: bool) -> bool {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let inode = fs::metadata(place.database()).expect("it is there").ino();
    let remove = || fs::remove_file(place.database()).expect("it is there");
    if !is_down {
        remove();
        agent.wait_for_log(GONE);
    }
    let mut has_it = false;
    let agent = restart(agent, Restart::Killed, || {
        if is_down {
            remove();
        }
        has_it = put_one_in_place_with_inode(&place, inode);
    });
    if has_it {
        assert_is_another(&place, &agent);
        assert!(!assert_is_kept(&place, &agent).is_empty());
        assert_replicated(&place, agent);
    }
    has_it
}

#[test]
fn a_new_file_with_the_number_of_the_removed_one_never_gets_its_wal() {
    for is_down in [false, true] {
        let mut tries = std::iter::repeat_with(|| is_told_from_a_new_file_with_its_number(is_down));
        assert!(tries.by_ref().take(50).any(|has_it| has_it), "the number is not given again");
    }
}

#[test]
fn a_wal_that_sqlite_removes_because_the_application_makes_its_database_anew_is_kept() {
    for is_held in [false, true] {
        let (place, agent, application) = place_with_a_wal();
        application.close();
        if is_held {
            hold(&agent);
        }
        fs::remove_file(place.database()).expect("it is there");
        if !is_held {
            agent.wait_for_log(GONE);
        }
        let mut anew = Shell::open(&place.database());
        anew.run("PRAGMA journal_mode=wal; CREATE TABLE t (data); INSERT INTO t VALUES ('another')");
        if is_held {
            go_on(&agent);
        }
        let wal = assert_is_kept(&place, &agent);
        let last = b"later";
        assert!(wal.windows(last.len()).any(|bytes| bytes == last), "with the old commits");
        if is_held {
            // The new one has joined our `-shm`: only what is kept can be asked for.
            continue;
        }
        agent.wait_for_status("follows the new one", is_streaming);
        anew.close();
        assert_is_another(&place, &agent);
        assert_replicated(&place, agent);
    }
}

#[test]
fn a_new_file_is_followed_though_the_old_application_runs_on_and_the_status_says_so() {
    let (place, agent, mut application) = place_with_a_wal();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    application.run("INSERT INTO t VALUES ('into the renamed file')");
    let is_said = |status: &serde_json::Value| {
        status["health"] == "failing" && first(status)["elsewhere"].to_string().contains("goes on writing")
    };
    agent.wait_for_status("says that a program writes elsewhere", is_said);
    let breaks = first(&agent.status().expect("it runs"))["breaks"]["count"].as_u64().expect("a number");
    put_another_in_place(&place, "another");
    agent.wait_for_status("follows the new file", is_streaming);
    let mut new = Shell::open(&place.database());
    assert_eq!(new.value("SELECT data FROM t"), "another", "{}", agent.log());
    new.run("INSERT INTO t VALUES ('new')");
    application.run("INSERT INTO t VALUES ('into the renamed file')");
    assert_eq!(application.value(COUNT), "13");
    assert_eq!(new.value(COUNT), "2");
    let status = agent.wait_for_status("goes on saying so", is_said);
    let count = first(&status)["breaks"]["count"].as_u64();
    assert_eq!(count, Some(breaks + 1), "one generation: {}", agent.log());
    application.close();
    agent.wait_for_status("is healthy again", |status| status["health"] == "healthy");
    new.close();
    assert_replicated(&place, agent);
}

#[test]
fn letting_go_when_told_to_is_tried_again_by_itself_once_it_failed() {
    let place = Place::new();
    let folder = place.path("mounted");
    fs::create_dir(&folder).expect("the folder is ours");
    let _mounted = Mounted::new(&folder, 8 << 20);
    let database = folder.join("app.db");
    let mut application = Shell::open(&database);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data)");
    let settings = PATIENT.iter().map(|line| format!("    {line}\n")).collect::<String>();
    let agent = Agent::start(
        &place.path(""),
        &format!(
            "dbs:\n  - path: {}\n    meta-path: {}\n{settings}    min-free-bytes: 1\n    replicas: [{{type: file, path: '{}'}}]\n",
            database.display(),
            place.path("meta").display(),
            place.replica().display()
        ),
    );
    agent.wait_for_status("streams", is_streaming);
    application.run(
        "PRAGMA wal_autocheckpoint=0; INSERT INTO t SELECT randomblob(1000) FROM generate_series(1, 2000)",
    );
    wait_for_page_table(&agent);
    let filler = folder.join("filler");
    let fill = |file: &mut fs::File| {
        while std::io::Write::write(file, &[0; 4096]).is_ok_and(|written| written > 0) {}
    };
    fill(&mut fs::File::create(&filler).expect("the folder is ours"));
    application.close();
    let ask =
        || control::ask(&place.path("agent.sock"), &Request::Detach(database.clone())).expect("it answers");
    // Asked once more, it would be tried once more.
    wait_until("it is told", DEADLINE, || !ask().body.contains("another process has it open"));
    agent.wait_for_log("cannot let go of it");
    agent.wait_for_status("says so", |status| status["health"] == "failing");
    fs::remove_file(&filler).expect("it is there");
    agent.wait_for_status("lets go by itself", |status| {
        first(status)["state"] == "detached" && status["health"] == "healthy"
    });
    assert!(!folder.join("app.db-wal").exists(), "{}", agent.log());
    drop(agent);
}

/// Lets a program work on after its file was renamed, kills it, renames the file back, and tells what is there.
fn rows_after(place: &Place, mut application: Shell, agent: &Agent, work: impl FnOnce(&mut Shell)) -> String {
    let aside = place.path("aside.db");
    rename(&place.database(), &aside);
    agent.wait_for_log(GONE);
    work(&mut application);
    application.kill();
    rename(&aside, &place.database());
    agent.wait_for_log(BACK);
    let mut there = Shell::open(&place.database());
    assert_eq!(there.value("PRAGMA integrity_check"), "ok", "{}", agent.log());
    let rows = there.value(COUNT);
    there.close();
    rows
}

#[test]
fn a_file_that_its_program_checkpointed_under_another_name_has_every_commit_when_it_is_back() {
    for mode in ["PASSIVE", "RESTART", "TRUNCATE"] {
        let (place, agent, application) = place_with_a_wal();
        let rows = rows_after(&place, application, &agent, |application| {
            application.run("INSERT INTO t VALUES ('under the other name')");
            application.run(&format!("PRAGMA wal_checkpoint({mode})"));
            application.run("INSERT INTO t VALUES ('last')");
            // Who only looks changes nothing.
            let mut visitor = Shell::open(&place.path("aside.db"));
            visitor.value(COUNT);
            visitor.close();
        });
        assert_eq!(rows, "13", "{mode}: {}", agent.log());
        assert_eq!(kept_wals(&place), Vec::<PathBuf>::new(), "{mode}");
        assert_replicated(&place, agent);
    }
}

/// Somebody reads the file, as a backup does, so that nobody knows who has written it since.
#[test]
fn a_file_that_was_read_under_another_name_keeps_the_wal_that_its_program_has_gone_on_with() {
    let (place, agent, application) = place_with_a_wal();
    let rows = rows_after(&place, application, &agent, |application| {
        fs::copy(place.path("aside.db"), place.path("backup.db")).expect("a backup");
        application.run("INSERT INTO t VALUES ('under the other name'); PRAGMA wal_checkpoint(PASSIVE)");
        application.run("INSERT INTO t VALUES ('last')");
    });
    assert_eq!(rows, "13", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

#[test]
fn a_file_that_others_wrote_under_another_name_beside_its_program_never_gets_its_wal_again() {
    let (place, agent, application) = place_with_a_wal();
    let mut expected = String::new();
    let rows = rows_after(&place, application, &agent, |application| {
        application.run("INSERT INTO t VALUES ('under the other name'); PRAGMA wal_checkpoint(PASSIVE)");
        application.run("INSERT INTO t VALUES ('last')");
        let mut other = Shell::open(&place.path("aside.db"));
        other.run("UPDATE t SET data = 'other' WHERE rowid = 1; PRAGMA wal_checkpoint(TRUNCATE)");
        expected = other.value(COUNT);
        other.close();
    });
    assert_eq!(rows, expected, "{}", agent.log());
    assert_is_kept(&place, &agent);
    assert_replicated(&place, agent);
}

#[test]
fn a_file_that_was_opened_with_the_wal_of_the_one_before_is_called_mixed_until_another_is_there() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    hold(&agent);
    put_another_in_place(&place, "another");
    let mut intruder = Shell::open(&place.database());
    intruder.value("SELECT 1 FROM sqlite_schema");
    go_on(&agent);
    let is_said = |status: &serde_json::Value| {
        status["health"] == "failing" && first(status)["mixed"].to_string().contains("integrity_check")
    };
    agent.wait_for_status("says so", is_said);
    intruder.close();
    let agent = restart(agent, Restart::Stopped, || {});
    agent.wait_for_status("still says so", is_said);
    put_another_in_place(&place, "anew");
    agent.wait_for_status("is healthy again", |status| {
        status["health"] == "healthy" && is_streaming(status) && first(status)["mixed"].is_null()
    });
    assert_eq!(Shell::open(&place.database()).value("SELECT data FROM t"), "anew", "{}", agent.log());
    assert_replicated(&place, agent);
}

#[test]
fn a_file_comes_back_to_its_wal_though_a_folder_was_in_its_place_meanwhile() {
    let (place, agent, mut application) = place_with_a_wal();
    rename(&place.database(), &place.path("aside.db"));
    agent.wait_for_log(GONE);
    application.run("INSERT INTO t VALUES ('last')");
    application.kill();
    fs::create_dir(place.database()).expect("the folder is ours");
    agent.wait_for_log("it is not a regular file");
    fs::remove_dir(place.database()).expect("it is empty");
    rename(&place.path("aside.db"), &place.database());
    agent.wait_for_log(BACK);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "12", "{}", agent.log());
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new());
    assert_replicated(&place, agent);
}

#[test]
fn a_database_that_its_application_makes_anew_while_its_wal_is_empty_is_not_called_mixed() {
    let (place, agent, mut application) = place_with_a_wal();
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    application.close();
    assert_eq!(fs::metadata(place.wal()).expect("the agent holds it").len(), 0);
    hold(&agent);
    fs::remove_file(place.database()).expect("it is there");
    let mut anew = Shell::open(&place.database());
    anew.run("CREATE TABLE t (data); BEGIN");
    anew.value(COUNT);
    go_on(&agent);
    agent.wait_for_log("another file was put in the database's place");
    anew.run("COMMIT; PRAGMA journal_mode=wal");
    let status = agent.wait_for_status("follows the new one", is_streaming);
    assert!(first(&status)["mixed"].is_null(), "{status}: {}", agent.log());
    anew.run("INSERT INTO t VALUES ('another')");
    anew.close();
    assert_is_another(&place, &agent);
    assert_replicated(&place, agent);
}
