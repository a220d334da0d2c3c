//! A database that gets names which the agent does not know: links, and the name of another database of the same agent.

use crate::moved_away::{
    COUNT, GONE, PATIENT, assert_replicated, kept_wals, place_with_a_wal, place_with_a_wal_and,
    put_another_in_place, rename,
};
use crate::moved_back::{Restart, assert_is_kept, go_on, hold, restart, work_on};
use crate::support::agent::Agent;
use crate::support::gate::Gate;
use crate::support::oracle::{Answer, Process};
use crate::support::place::{Place, first, is_streaming};
use crate::support::scene::of_database;
use crate::support::sqlite::Shell;
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::core::names;

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
fn a_link_that_leads_to_another_file_later_is_followed() {
    let place = Place::new();
    let (releases, next) = (["v1.db", "v2.db", "v3.db"].map(|name| place.path(name)), place.path("next"));
    symlink(&releases[0], place.database()).expect("the folder is ours");
    let agent = place.agent(&[]);
    for release in &releases {
        symlink(release, &next).expect("the folder is ours");
        rename(&next, &place.database());
        let mut application = Shell::open(&place.database());
        application.run("PRAGMA journal_mode=wal; CREATE TABLE t (x)");
        application.run(&format!("INSERT INTO t VALUES ('{}')", release.display()));
        let name = release.display().to_string();
        wait_until("the agent has followed the link", DEADLINE, || {
            agent.status().is_some_and(|status| first(&status)["path"] == name && is_streaming(&status))
        });
        application.run("INSERT INTO t VALUES ('another row')");
        place.wait_until_replicated(&agent);
        application.close();
        place.assert_restores();
    }
}

/// Makes a database in a folder that replaces the one at a path while the agent holds the database there; it is followed.
fn a_folder_that_becomes_another_one_is_followed(place_folder: fn(&Path, &Path)) {
    let place = Place::new();
    let (folder, database) = (place.path("current"), place.path("current/app.db"));
    let (old, new) = (place.path("old"), place.path("new"));
    let application = |folder: &Path, row: &str| {
        let mut application = Shell::open(&folder.join("app.db"));
        application
            .run(&format!("PRAGMA journal_mode=wal; CREATE TABLE t (data); INSERT INTO t VALUES ('{row}')"));
        application
    };
    fs::create_dir(&old).expect("the folder is ours");
    fs::create_dir(&new).expect("the folder is ours");
    place_folder(&old, &folder);
    let before = application(&folder, "old");
    let replica = format!("{{path: {}}}", place.replica().display());
    let agent = Agent::start(&place.path(""), &of_database(&database, &[&replica]));
    agent.wait_for_status("streams", is_streaming);
    let mut after = application(&new, "new");
    place_folder(&new, &folder);
    let output = place.path("output.db");
    let has = |rows: &str| {
        let paths = [output.to_str(), database.to_str()].map(|path| path.expect("a plain name"));
        let _ = fs::remove_file(&output);
        let is_restored = agent.run("restore", &["-o", paths[0], paths[1]]).status.success();
        let mut restored = Shell::open(&output);
        let is_there = is_restored && restored.value("SELECT group_concat(data) FROM t") == rows;
        // What it keeps beside the file goes with it.
        restored.close();
        is_there
    };
    wait_until("the new folder's database is replicated", BEFORE_THE_SLOW_LOOK, || has("new"));
    after.run("INSERT INTO t VALUES ('later')");
    wait_until("it is followed", BEFORE_THE_SLOW_LOOK, || has("new,later"));
    drop(before);
}

#[test]
fn a_folder_that_is_renamed_for_another_one_is_followed() {
    a_folder_that_becomes_another_one_is_followed(|from, to| {
        let _ = fs::rename(to, to.with_extension("away"));
        rename(from, to);
    });
}

#[test]
fn a_folder_that_is_a_link_to_another_one_later_is_followed() {
    a_folder_that_becomes_another_one_is_followed(|from, to| {
        let next = to.with_extension("next");
        symlink(from, &next).expect("the folder is ours");
        rename(&next, to);
    });
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

/// SQLite makes another `-wal` beside it. As long as we have the file open, its last close does not bring that in.
#[test]
fn a_program_that_has_the_database_open_by_another_name_is_told_of_and_left_alone() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data); INSERT INTO t VALUES ('before')");
    application.close();
    let other = place.path("other.db");
    fs::hard_link(place.database(), &other).expect("the folder is ours");
    let mut program = Shell::open(&other);
    program.run("INSERT INTO t VALUES ('by another name')");
    let agent = place.agent(&[]);
    let status = agent.wait_for_status("says so", |status| first(status)["state"] == "refused");
    let why = &first(&status)["refused_because"];
    assert!(why.to_string().contains("by another name"), "{status}");
    assert_eq!(status["health"], "failing", "{status}");
    program.run("INSERT INTO t VALUES ('while nobody sees it')");
    program.close();
    assert!(!place.path("other.db-wal").exists(), "its last commits are not in the file");
    agent.wait_for_status("streams", is_streaming);
    let mut again = Shell::open(&place.database());
    assert_eq!((again.value(COUNT), again.value(SOUND)), ("3".to_owned(), "ok".to_owned()));
    again.close();
    assert_replicated(&place, agent);
}

/// What is in our WAL and in the file, too, would be read over what is written into the file by another name.
#[test]
fn beside_a_program_that_writes_by_another_name_no_old_wal_stays() {
    let (place, agent, mut application) = place_with_a_wal();
    application.run("PRAGMA wal_checkpoint(FULL)");
    application.close();
    let other = place.path("other.db");
    fs::hard_link(place.database(), &other).expect("the folder is ours");
    let mut program = Shell::open(&other);
    program.run("UPDATE t SET data = 'by another name'");
    agent.wait_for_status("says so", |status| first(status)["state"] == "refused");
    program.close();
    assert_eq!(fs::metadata(place.wal()).map_or(0, |wal| wal.len()), 0, "{}", agent.log());
    agent.wait_for_status("streams", is_streaming);
    let mut again = Shell::open(&place.database());
    let changed = again.value("SELECT count(*) FROM t WHERE data = 'by another name'");
    assert_eq!((changed, again.value(SOUND)), ("11".to_owned(), "ok".to_owned()));
    again.close();
    assert_replicated(&place, agent);
}

/// What is in our WAL alone does not continue what others write into the file by another name. It is kept, and they lose
/// nothing; nor does the file.
#[test]
fn beside_a_program_that_writes_by_another_name_a_wal_that_is_not_in_the_file_is_kept() {
    let (place, agent, application) = place_with_a_wal_and(&[("RUST_LOG", "debug")]);
    application.close();
    wait_until("it is seen that nobody is there", DEADLINE, || {
        agent.log().contains("nobody else has it open")
    });
    let other = place.path("other.db");
    fs::hard_link(place.database(), &other).expect("the folder is ours");
    let mut program = Shell::open(&other);
    program.run("CREATE TABLE u (data); INSERT INTO u VALUES ('by another name')");
    agent.wait_for_status("says so", |status| first(status)["state"] == "refused");
    program.close();
    agent.wait_for_status("streams", is_streaming);
    let mut again = Shell::open(&place.database());
    assert_eq!(
        (again.value("SELECT count(*) FROM u"), again.value(SOUND)),
        ("1".to_owned(), "ok".to_owned())
    );
    assert_eq!(kept_wals(&place).len(), 1, "{}", agent.log());
    again.close();
    assert_replicated(&place, agent);
}

/// POSIX drops all locks that a process has on a file when it closes any descriptor of it: then the kernel knows of no lock
/// on the wal-index, and all the same nobody works with another one.
#[test]
fn a_program_that_has_lost_its_locks_on_the_wal_index_is_not_taken_for_one_with_another_name() {
    lost_locks(false);
}

/// Of them, only a list tells, which is read once a minute.
#[test]
fn nor_is_it_beside_another_that_has_them() {
    lost_locks(true);
}

fn lost_locks(is_beside_another: bool) {
    let place = Place::new();
    let mut program = Process::start();
    let mut tell = |line: String| assert!(matches!(program.tell(&line), Answer::Ok(_)), "{line}");
    tell(format!("open c {}", place.database().display()));
    tell("sql c PRAGMA journal_mode=wal; CREATE TABLE t (data)".to_owned());
    let another = is_beside_another.then(|| {
        let mut another = Shell::open(&place.database());
        another.value(COUNT);
        another
    });
    let agent = place.agent_with(&PATIENT, &[("RUST_LOG", "debug")]);
    agent.wait_for_status("streams", is_streaming);
    tell(format!("copy {} {}", place.path("app.db-shm").display(), place.path("copy").display()));
    agent.wait_for_log("has lost its locks on it");
    tell("sql c INSERT INTO t VALUES ('later')".to_owned());
    place.wait_until_replicated(&agent);
    another.into_iter().for_each(Shell::close);
    tell("close c".to_owned());
    assert!(!agent.log().contains("by another name"), "{}", agent.log());
    assert_replicated(&place, agent);
}

/// It only reads: what is in our WAL continues the file as before.
#[test]
fn beside_a_program_that_reads_by_another_name_nothing_is_lost() {
    let (place, agent, application) = place_with_a_wal();
    application.close();
    let other = place.path("other.db");
    fs::hard_link(place.database(), &other).expect("the folder is ours");
    let mut program = Shell::open(&other);
    program.value(SOUND);
    agent.wait_for_status("says so", |status| first(status)["state"] == "refused");
    program.close();
    agent.wait_for_status("streams", is_streaming);
    let mut again = Shell::open(&place.database());
    assert_eq!(
        (again.value(COUNT), again.value(SOUND)),
        ("11".to_owned(), "ok".to_owned()),
        "{}",
        agent.log()
    );
    again.close();
    assert_replicated(&place, agent);
}

/// Beside one that works with our wal-index, the other is found all the same, if not as soon; and once both have gone,
/// there is one new generation.
#[test]
fn a_program_that_has_it_open_by_another_name_is_told_of_beside_one_that_has_it_open_by_its_own() {
    let (place, agent, mut application) = place_with_a_wal();
    let other = place.path("other.db");
    fs::hard_link(place.database(), &other).expect("the folder is ours");
    let mut program = Shell::open(&other);
    program.run("INSERT INTO t VALUES ('by another name')");
    let why =
        || agent.status().map(|status| first(&status)["refused_because"].to_string()).unwrap_or_default();
    wait_until("it says so", BEFORE_THE_SLOW_LOOK.max(DEADLINE * 2), || why().contains("by another name"));
    program.run("DELETE FROM t WHERE data = 'by another name'");
    program.close();
    application.run("INSERT INTO t VALUES ('by its own name')");
    agent.wait_for_status("streams", is_streaming);
    assert_eq!(agent.log().matches("by another name, beside which").count(), 1, "{}", agent.log());
    application.close();
}

/// An application whose later commits stay in the WAL.
fn begin(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data); PRAGMA wal_checkpoint(TRUNCATE)");
    application.run("PRAGMA wal_autocheckpoint=0");
    application
}

/// An agent with two databases, and their applications with ten commits each in the WAL.
struct Two {
    place: Place,
    agent: Agent,
    paths: [PathBuf; 2],
    applications: [Shell; 2],
}

fn two_databases() -> Two {
    two_databases_in(Place::new(), &[])
}

/// The same, with an agent that has these variables in its environment.
fn two_databases_in(place: Place, environment: &[(&str, &str)]) -> Two {
    let paths = ["a.db", "b.db"].map(|name| place.path(name));
    let entries = paths.each_ref().map(|path| {
        let settings = PATIENT.map(|line| format!("    {line}\n")).concat();
        let replica = path.with_extension("replica");
        let replicas = format!("    replicas: [{{type: file, path: '{}'}}]\n", replica.display());
        format!("  - path: {}\n{settings}{replicas}", path.display())
    });
    let mut applications = paths.each_ref().map(|path| begin(path));
    let configuration = format!("dbs:\n{}", entries.concat());
    let agent = Agent::start_with(place.path("").as_path(), &configuration, environment);
    agent.wait_for_status("both stream", |status| (0..2).all(|number| streams(status, number)));
    for (number, application) in applications.iter_mut().enumerate() {
        for _ in 0..10 {
            application.run(&format!("INSERT INTO t VALUES ('of the {number}.')"));
        }
    }
    agent.wait_for_status("both stream", |status| (0..2).all(|number| streams(status, number)));
    Two { place, agent, paths, applications }
}

fn streams(status: &serde_json::Value, number: usize) -> bool {
    is_streaming(&serde_json::json!({ "databases": [status["databases"][number]] }))
}

fn rows(path: &Path) -> String {
    Shell::open(path).value("SELECT count(*) || ' ' || max(data) FROM t")
}

#[test]
fn two_databases_of_one_agent_that_change_places_keep_all_their_commits() {
    let Two { place, agent, paths, applications } = two_databases();
    applications.into_iter().for_each(Shell::close);
    unseen(&agent, || {
        rename(&paths[0], &place.path("aside.db"));
        rename(&paths[1], &paths[0]);
        rename(&place.path("aside.db"), &paths[1]);
    });
    agent.wait_for_log("another file was put in the database's place");
    let expected = ["10 of the 1.", "10 of the 0."];
    wait_until(&format!("each has all its rows in {}", place.path("").display()), DEADLINE, || {
        agent.status().is_some_and(|status| (0..2).all(|number| streams(&status, number)))
            && paths.iter().map(|path| rows(path)).eq(expected.map(str::to_owned))
    });
    for path in &paths {
        assert_eq!(Shell::open(path).value(SOUND), "ok", "{}", agent.log());
    }
}

/// What is done with the old file takes as long as it takes; by then, its WAL is not beside the other one any more.
#[test]
fn a_database_that_gets_the_name_of_another_one_is_opened_while_that_is_still_being_left() {
    let place = Place::new();
    let gate = Gate::at_fsyncs(&place, ".old.db");
    let Two { place, agent, paths, applications } = two_databases_in(place, &gate.environment());
    applications.into_iter().for_each(Shell::close);
    gate.shut();
    let old = place.path("a.old.db");
    unseen(&agent, || {
        rename(&paths[0], &old);
        rename(&paths[1], &paths[0]);
    });
    gate.wait_until_reached();
    let mut application = Shell::open(&paths[0]);
    application.run(".timeout 60000");
    application.run("INSERT INTO t VALUES ('of the 1, renamed')");
    assert_eq!(application.value("SELECT count(*) || max(data) FROM t"), "11of the 1.");
    assert_eq!(application.value(SOUND), "ok", "{}", agent.log());
    gate.open();
    agent.wait_for_status("is followed", |status| streams(status, 0));
    assert_eq!(rows(&old), "10 of the 0.", "{}", agent.log());
    assert!(!agent.log().contains("may be mixed"), "{}", agent.log());
}

/// Gives the first database the name of the second, which is gone, and waits until it is followed there.
fn is_followed_under_the_name_of_another(end: impl Fn(Shell), is_renamed_first: bool) {
    let Two { place, agent, paths, applications } = two_databases();
    let [first, second] = applications;
    second.close();
    fs::remove_file(&paths[1]).expect("it is there");
    agent.wait_for_log(&format!("{}: {GONE}", paths[1].display()));
    let end_and_rename = || {
        if is_renamed_first {
            rename(&paths[0], &paths[1]);
            agent.wait_for_log("a program goes on writing into the file that was at this path before");
            end(first);
        } else {
            end(first);
            rename(&paths[0], &paths[1]);
        }
    };
    end_and_rename();
    agent.wait_for_status("the second is followed", |status| {
        streams(status, 1) && status["databases"][0]["state"] == "absent"
    });
    let mut application = Shell::open(&paths[1]);
    application.run("INSERT INTO t VALUES ('later')");
    assert_eq!(application.value(SOUND), "ok", "{}", agent.log());
    application.close();
    drop(place);
}

#[test]
fn a_database_that_gets_the_name_of_another_one_is_followed_there() {
    for end in [Shell::close, Shell::kill] {
        for is_renamed_first in [false, true] {
            is_followed_under_the_name_of_another(end, is_renamed_first);
        }
    }
}

#[test]
fn a_database_that_gets_the_name_of_another_one_with_its_wal_is_followed_there_while_its_program_runs() {
    let Two { place, agent, paths, applications } = two_databases();
    let [mut first, second] = applications;
    second.close();
    unseen(&agent, || {
        for suffix in ["", "-wal", "-shm"] {
            rename(&names::beside(&paths[0], suffix), &names::beside(&paths[1], suffix));
        }
    });
    agent.wait_for_status("the second is followed", |status| {
        streams(status, 1) && status["databases"][0]["state"] == "absent" && status["health"] == "healthy"
    });
    first.run("INSERT INTO t VALUES ('of the first, renamed')");
    assert_eq!(rows(&paths[1]), "11 of the first, renamed", "{}", agent.log());
    first.close();
    assert_eq!(Shell::open(&paths[1]).value(SOUND), "ok", "{}", agent.log());
    drop(place);
}

#[test]
fn a_database_that_was_another_one_for_a_while_has_what_was_made_of_it_when_it_is_back() {
    let Two { place, agent, paths, applications } = two_databases();
    let [first, second] = applications;
    second.close();
    fs::remove_file(&paths[1]).expect("it is there");
    agent.wait_for_log(&format!("{}: {GONE}", paths[1].display()));
    rename(&paths[0], &paths[1]);
    agent.wait_for_log("a program goes on writing into the file that was at this path before");
    first.kill();
    agent.wait_for_status("the second is followed", |status| streams(status, 1));
    let mut application = Shell::open(&paths[1]);
    application.run("DELETE FROM t; INSERT INTO t VALUES ('as the second'); PRAGMA wal_checkpoint(TRUNCATE)");
    application.run("INSERT INTO t VALUES ('as the second')");
    application.close();
    rename(&paths[1], &paths[0]);
    agent.wait_for_status("the first is followed again", |status| streams(status, 0));
    assert_eq!(rows(&paths[0]), "2 as the second", "{}", agent.log());
    let status = agent.wait_for_status("is healthy", |status| status["health"] == "healthy");
    assert!(status["databases"][0]["mixed"].is_null(), "{status}");
    drop(place);
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

/// Its program went on with a WAL that the agent does not know, and was killed; then others worked on the file.
#[test]
fn what_others_made_of_a_renamed_file_is_kept_though_the_agent_was_restarted() {
    let (place, agent, mut application) = place_with_a_wal();
    let aside = place.path("aside.db");
    application.run("PRAGMA wal_checkpoint(PASSIVE)");
    rename(&place.database(), &aside);
    agent.wait_for_log(GONE);
    application.run("INSERT INTO t VALUES ('in the next WAL')");
    application.kill();
    let agent = restart(agent, Restart::Stopped, || ());
    work_on(&aside);
    rename(&aside, &place.database());
    assert_is_kept(&place, &agent);
    assert_eq!(Shell::open(&place.database()).value(COUNT), "2", "{}", agent.log());
    assert_replicated(&place, agent);
}
