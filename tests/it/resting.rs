//! As if we were not there: a database that nobody else has open is let go of, and followed again when somebody does.

use crate::support::agent::Agent;
use crate::support::compare::assert_same;
use crate::support::mounted::Mounted;
use crate::support::place::{Place, first, is_resting, is_streaming, wait_for_page_table};
use crate::support::process::{output, process_with};
use crate::support::sqlite::Shell;
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const INSERT: &str = "INSERT INTO t (data) VALUES (randomblob(3000))";

fn application(place: &Place) -> Shell {
    let mut application = Shell::open(&place.database());
    application
        .run("PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, data BLOB)");
    application
}

fn wal_index(place: &Place) -> PathBuf {
    place.path("app.db-shm")
}

/// Waits until nothing is held, and everything is in the file and on the replica.
#[track_caller]
fn wait_until_resting(place: &Place, agent: &Agent) {
    agent.wait_for_status("lets go", |status| is_resting(status) && !place.wal().exists());
    assert!(!wal_index(place).exists(), "-shm is still there");
}

/// A database that an agent has replicated, and let go of.
fn at_rest() -> (Place, Agent) {
    let place = Place::new();
    application(&place).close();
    let agent = place.streaming_agent(&["let-go-after: 100ms"]);
    wait_until_resting(&place, &agent);
    (place, agent)
}

fn position(agent: &Agent) -> (String, u64) {
    let status = agent.status().expect("the agent runs");
    let database = first(&status);
    let generation = database["generation"].as_str().expect("a generation").to_owned();
    (generation, database["breaks"]["count"].as_u64().expect("a number"))
}

#[test]
fn when_the_last_connection_is_closed_the_file_alone_is_the_database() {
    let place = Place::new();
    let mut first_run = application(&place);
    let agent = place.streaming_agent(&[]);
    first_run.run(INSERT);
    first_run.close();
    wait_until_resting(&place, &agent);
    let open_files = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent runs");
    let links = open_files.filter_map(|entry| fs::read_link(entry.expect("readable").path()).ok());
    assert!(!links.into_iter().any(|file| file == place.database()), "the agent has it open");
    fs::copy(place.database(), place.path("copy.db")).expect("the folder is ours");
    let mut copy = Shell::open(&place.path("copy.db"));
    assert_eq!(copy.value("SELECT count(*) FROM t"), "1");
    place.assert_restores();
    place.stop(agent);
}

#[test]
fn the_generation_goes_on_each_time_the_application_comes_back() {
    let (place, agent) = at_rest();
    let before = position(&agent);
    for run in 1..=10 {
        let mut application = application(&place);
        agent.wait_for_status("attaches", |status| first(status)["state"] == "attached");
        (0..run).for_each(|_| drop(application.run(INSERT)));
        application.close();
        wait_until_resting(&place, &agent);
    }
    assert_eq!(position(&agent), before, "another generation has begun");
    assert_eq!(place.objects("snapshots").len(), 1);
    place.assert_restores();
    place.stop(agent);
}

/// Writes with `run` a hundred times, and each time waits until that is replicated and the agent has let go again.
fn a_hundred_runs(run: impl Fn(&Place)) {
    let place = Place::new();
    application(&place).close();
    let agent = place.streaming_agent(&["let-go-after: 100ms"]);
    let is_known = |status: &Value| is_resting(status) && first(status)["proof"].is_string();
    agent.wait_for_status("lets go, with a page table", is_known);
    let before = position(&agent);
    for _ in 0..100 {
        let status = agent.status().expect("the agent runs");
        run(&place);
        let is_replicated =
            |now: &Value| first(now)["position"] != first(&status)["position"] && is_known(now);
        agent.wait_for_status("lets go again", is_replicated);
        wait_until_resting(&place, &agent);
    }
    assert_eq!(position(&agent), before, "another generation has begun");
    assert_eq!(place.objects("snapshots").len(), 1);
    let sent: u64 = place.object_lengths("wal").iter().sum();
    assert!(sent < 100 * PAGES_OF_A_RUN * 4096, "{sent} bytes were sent, for a row of 3,000 bytes each time");
    place.assert_restores();
    place.stop(agent);
}

/// A row of 3,000 bytes is at most three pages: its leaf, the first page, and the one above.
const PAGES_OF_A_RUN: u64 = 3;

#[test]
fn an_application_that_restarts_a_hundred_times_sends_what_it_writes_and_nothing_else() {
    a_hundred_runs(|place| {
        let mut application = application(place);
        application.run(INSERT);
        application.close();
    });
}

#[test]
fn a_sqlite3_command_from_time_to_time_sends_what_it_writes_and_nothing_else() {
    // In the moment in which the agent attaches, a program that does not wait can meet its recovery of the WAL.
    let patient = ["-cmd", ".timeout 10000"];
    a_hundred_runs(|place| {
        output(Command::new("sqlite3").args(patient).arg(place.database()).arg(INSERT));
    });
}

/// Its checkpoint counts as a restart of the WAL, which SQLite writes into the header; but nothing was lost by it.
#[test]
fn a_program_that_empties_the_wal_before_it_writes_need_not_be_compared() {
    let (place, agent) = at_rest();
    let before = position(&agent);
    let configuration = agent.configuration().to_owned();
    place.stop(agent);
    let mut application = application(&place);
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    application.run(INSERT);
    let agent = Agent::start_again(&configuration);
    place.wait_until_replicated(&agent);
    assert_eq!(position(&agent), before, "another generation has begun");
    assert!(!agent.log().contains("compared"), "{}", agent.log());
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn what_was_let_go_of_goes_on_after_the_agent_was_restarted() {
    let (place, agent) = at_rest();
    let before = position(&agent);
    place.stop(agent);
    let agent = place.agent(&["let-go-after: 100ms"]);
    agent.wait_for_log("nobody has it open, and nothing has changed");
    assert!(!place.wal().exists(), "the agent has opened a database at rest");
    let mut application = application(&place);
    application.run(INSERT);
    place.wait_until_replicated(&agent);
    assert_eq!(position(&agent), before, "another generation has begun");
    assert_eq!(place.objects("snapshots").len(), 1);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_changed_while_the_agent_was_down_is_compared() {
    let (place, agent) = at_rest();
    wait_for_page_table(&agent);
    place.stop(agent);
    let mut unseen = application(&place);
    unseen.run(INSERT);
    unseen.close();
    assert!(!place.wal().exists());
    let agent = place.agent(&[]);
    agent.wait_for_log(
        "the database was changed while the agent did not hold it; compared with the page table",
    );
    place.wait_until_replicated(&agent);
    assert_eq!(place.objects("snapshots").len(), 1);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_held_by_a_child_without_locks_is_not_let_go_of() {
    let place = Place::new();
    let application = application(&place);
    let agent = place.streaming_agent(&["let-go-after: 100ms"]);
    // POSIX locks are not inherited: what holds the WAL here is only a descriptor.
    let held = fs::File::open(place.wal()).expect("the WAL is there");
    let child = process_with(held);
    application.close();
    agent.wait_for_log("stays attached: sleep (process");
    assert!(place.wal().exists());
    drop(child);
    wait_until("the WAL goes when the child has gone", DEADLINE, || !place.wal().exists());
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_stays_attached_if_it_is_never_to_be_let_go_of() {
    let place = Place::new();
    let mut first_run = application(&place);
    let agent = place.streaming_agent(&["let-go-after: never"]);
    first_run.run(INSERT);
    first_run.close();
    place.wait_until_replicated(&agent);
    let second_run = application(&place);
    second_run.close();
    assert!(place.wal().exists());
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["state"], "attached");
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_whose_disk_is_too_full_to_let_go_of_it_says_so_and_is_not_read_again_and_again() {
    let place = Place::new();
    let folder = place.path("mounted");
    fs::create_dir(&folder).expect("the folder is ours");
    let _mounted = Mounted::new(&folder, 40 << 20);
    let database = folder.join("app.db");
    let mut application = Shell::open(&database);
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (data)");
    let configuration = format!(
        "dbs:\n  - path: {}\n    meta-path: {}\n    checkpoint-interval: 1h\n    let-go-after: 100ms\n    \
         replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        place.path("meta").display(),
        place.replica().display()
    );
    let agent = Agent::start(&place.path(""), &configuration);
    agent.wait_for_status("streams", is_streaming);
    application.run("INSERT INTO t VALUES (randomblob(3000000))");
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    let ballast = folder.join("ballast");
    let written =
        fs::File::create(&ballast).map(|mut file| std::io::copy(&mut std::io::repeat(1), &mut file));
    written.expect("it can be created").expect_err("the disk is full");
    application.close();
    agent.wait_for_status("says so", |status| status.to_string().contains("cannot let go of it"));
    let written_at =
        || fs::metadata(&database).and_then(|metadata| metadata.modified()).expect("it is there");
    for _ in 0..3 {
        let before = written_at();
        wait_until("it is tried again", DEADLINE, || written_at() != before);
    }
    let inspections = || agent.log().matches("checkpoint that was not seen").count();
    assert_eq!(inspections(), 0, "what it wrote itself is asked about: {}", agent.log());
    fs::remove_file(&ballast).expect("it is there");
    agent.wait_for_status("lets go", is_resting);
    assert_eq!(inspections(), 0, "{}", agent.log());
    assert_eq!(Shell::open(&database).value("SELECT count(*) FROM t"), "1");
    agent.stop();
    assert_same(&database, &place.restore());
}

#[test]
fn a_database_that_is_opened_again_and_again_by_who_does_not_use_it_is_let_go_of() {
    let place = Place::new();
    let mut application = application(&place);
    application.run(INSERT);
    let agent = place.streaming_agent(&["let-go-after: 500ms"]);
    application.close();
    wait_until("it is let go of", BEFORE_THE_SLOW_LOOK, || {
        fs::File::options().append(true).open(place.database()).expect("it is there");
        !place.wal().exists()
    });
    agent.wait_for_status("lets go", is_resting);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn an_application_that_commits_ever_again_into_a_new_file_without_a_wal_is_followed() {
    let (place, agent) = at_rest();
    let mut application = Shell::open(&place.path("new.db"));
    application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.close();
    fs::rename(place.path("new.db"), place.database()).expect("the folder is ours");
    let mut application = Shell::open(&place.database());
    assert_eq!(application.value("PRAGMA journal_mode"), "delete");
    wait_until("it is attached to", BEFORE_THE_SLOW_LOOK, || {
        application.run(INSERT);
        agent.status().is_some_and(|status| first(&status)["state"] == "attached")
    });
    agent.wait_for_log("was not in WAL mode; it is now");
    place.wait_until_replicated(&agent);
    application.close();
    place.stop(agent);
    place.assert_restores();
}

/// What `agent detach` answers: its exit code, and what it says.
fn detach(place: &Place, agent: &Agent) -> (Option<i32>, String) {
    let database = place.database();
    let answer = agent.run("detach", &[database.to_str().expect("a plain name")]);
    (answer.status.code(), String::from_utf8_lossy(&answer.stderr).into_owned())
}

#[test]
fn detach_lets_go_at_once_and_says_why_it_cannot() {
    let place = Place::new();
    let mut application = application(&place);
    application.run(INSERT);
    let agent = place.streaming_agent(&["let-go-after: never"]);
    let other = agent.run("detach", &["/no/such.db"]);
    assert_eq!(other.status.code(), Some(2));
    application.close();
    assert_eq!(detach(&place, &agent), (Some(0), String::new()));
    assert!(!place.wal().exists() && !wal_index(&place).exists());
    let mut copy = Shell::open(&place.database());
    assert_eq!(copy.value("SELECT count(*) FROM t"), "1");
    agent.wait_for_status("comes back", |status| first(status)["state"] == "attached");
    place.stop(agent);
    place.assert_restores();
}

/// A backup with the same schema and other rows: frames of the database would fit only too well.
fn backup(place: &Place) -> PathBuf {
    let path = place.path("backup.db");
    let mut backup = Shell::open(&path);
    backup.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    backup.run("INSERT INTO t (data) SELECT 'backup' || value FROM generate_series(1, 500)");
    backup.close();
    assert!(!place.path("backup.db-wal").exists());
    path
}

/// An application writes and closes, `program` puts a backup in place so long afterwards, and the application starts
/// when the agent has seen it: it must read the backup's rows and nothing else, and so must a restore.
fn a_backup_put_in_place(program: &str, closed_before: Duration) {
    let place = Place::new();
    let backup = backup(&place);
    let mut first_run = application(&place);
    let agent = place.streaming_agent(&[]);
    for _ in 0..20 {
        first_run.run("INSERT INTO t (data) SELECT 'app' || value FROM generate_series(1, 20)");
    }
    place.wait_until_replicated(&agent);
    first_run.close();
    // Not waiting for a condition: the moment is what is tested.
    thread::sleep(closed_before);
    output(Command::new(program).arg("-f").arg(&backup).arg(place.database()));
    // How soon it is seen is for a benchmark.
    wait_until("the old WAL is gone", DEADLINE, || !place.wal().exists());
    let mut second_run = Shell::open(&place.database());
    second_run.run(".timeout 10000");
    let when = format!("{program} {closed_before:?}: {}", agent.log());
    assert_eq!(second_run.value("PRAGMA integrity_check"), "ok", "{when}");
    assert_eq!(second_run.value("SELECT count(*), min(data LIKE 'backup%') FROM t"), "500|1", "{when}");
    second_run.run(INSERT);
    place.wait_until_replicated(&agent);
    assert_same(&place.database(), &place.restore());
    place.stop(agent);
    place.assert_restores();
}

fn backups_put_in_place(program: &str, closed_before: &[u64]) {
    closed_before.iter().for_each(|millis| a_backup_put_in_place(program, Duration::from_millis(*millis)));
}

#[test]
fn a_backup_moved_into_place_is_the_database() {
    let moments = [0, 5, 20, 100, 500, 950, 1000, 1050, 1200, 2000];
    backups_put_in_place("mv", &moments);
}

/// A backup of an application that was killed: commits of it are in its `-wal`.
fn backup_with_a_wal(place: &Place) {
    let path = place.path("backup/app.db");
    fs::create_dir_all(place.path("backup")).expect("the folder is ours");
    let mut killed = Shell::open(&path);
    killed.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    killed.run("INSERT INTO t (data) SELECT 'backup' || value FROM generate_series(1, 500)");
    killed.run("PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t (data) VALUES ('backup, in its WAL')");
    killed.kill();
}

/// Both files are copied over those that the agent holds, one after the other.
fn a_backup_with_a_wal_is_copied_into_place(suffixes: [&str; 2], last: &str) {
    let place = Place::new();
    backup_with_a_wal(&place);
    let mut first_run = application(&place);
    let agent = place.streaming_agent(&[]);
    first_run.run("INSERT INTO t (data) SELECT 'app' || value FROM generate_series(1, 1000)");
    first_run.run(last);
    place.wait_until_replicated(&agent);
    first_run.close();
    let files = suffixes.map(|suffix| place.path(&format!("backup/app.db{suffix}")));
    output(Command::new("cp").args(&files).arg(place.path("")));
    wait_until("the agent has let go", DEADLINE, || !wal_index(&place).exists());
    let mut second_run = Shell::open(&place.database());
    second_run.run(".timeout 10000");
    let when = format!("{suffixes:?} {last}: {}", agent.log());
    assert_eq!(second_run.value("PRAGMA integrity_check"), "ok", "{when}");
    assert_eq!(second_run.value("SELECT count(*), min(data LIKE 'backup%') FROM t"), "501|1", "{when}");
    second_run.run(INSERT);
    place.wait_until_replicated(&agent);
    assert_same(&place.database(), &place.restore());
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_backup_with_a_wal_that_is_copied_into_place_is_the_database_with_that_wal() {
    for suffixes in [["", "-wal"], ["-wal", ""]] {
        for last in [INSERT, "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint(FULL)"] {
            a_backup_with_a_wal_is_copied_into_place(suffixes, last);
        }
    }
}

/// As a writer leaves it that is killed at the very beginning: a new wal-index says nothing of it.
#[test]
fn a_wal_of_nothing_but_a_header_is_nobodys_backup() {
    let place = Place::new();
    let mut killed = application(&place);
    killed.run(INSERT);
    killed.kill();
    let wal = fs::read(place.wal()).expect("it is there");
    Shell::open(&place.database()).close();
    fs::write(place.wal(), &wal[..32]).expect("the folder is ours");
    let agent = place.agent(&[]);
    agent.wait_for_status("lets go", is_resting);
    assert!(!agent.log().contains("written over"), "{}", agent.log());
    place.stop(agent);
    place.assert_restores();
}

/// `cp` writes into the file itself. If that falls into the millisecond in which the agent writes it, too, as the last
/// who has it open, neither can know of the other; so not directly after the close, nor a second later.
#[test]
fn a_backup_copied_into_place_is_the_database() {
    backups_put_in_place("cp", &[50, 200, 500, 1500, 2000]);
}
