//! A database file that was written while nobody has it open: by a checkpoint that was killed, or by something that is
//! not SQLite. In the first case its WAL holds commits that are nowhere else.

use crate::moved_away::assert_replicated;
use crate::support::agent::Agent;
use crate::support::at_once::agent_of;
use crate::support::place::{Place, first, is_streaming, wait_for_page_table};
use crate::support::process::signal;
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use wal_agent::agent::Now;
use wal_agent::core::sync::Dirty;

const DEADLINE: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
/// Of an agent that neither checkpoints nor lets go by itself.
const PATIENT: [&str; 2] = ["checkpoint-interval: 1h", "let-go-after: never"];

/// A database of which some rows are in the file, and later ones in the WAL, too; `last` runs after them, and then nobody
/// has it open but the agent.
fn place_with_a_wal(last: &str) -> (Place, Agent) {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run("INSERT INTO t (data) SELECT zeroblob(3000) FROM generate_series(1, 100)");
    let agent = place.streaming_agent(&PATIENT);
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    application.run("UPDATE t SET data = randomblob(3000) WHERE id % 10 = 0");
    application.run(last);
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    application.close();
    (place, agent)
}

/// The frames of a WAL: page numbers and pages (file format 4).
fn frames(wal: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = fs::read(wal).expect("there is a WAL");
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
    let frames = bytes[32..].chunks_exact(24 + word(&bytes[8..]) as usize);
    frames.map(|frame| (word(frame), frame[24..].to_vec())).collect()
}

/// Writes a page into the file, again and again: the agent may not have seen yet that the application has gone.
fn write_until_said(place: &Place, agent: &Agent, number: u32, page: &[u8], text: &str) {
    write_until_said_after(|| {}, place, agent, number, page, text);
}

/// The same, with something else done before each time.
fn write_until_said_after(
    before: impl Fn(),
    place: &Place,
    agent: &Agent,
    number: u32,
    page: &[u8],
    text: &str,
) {
    let file = fs::File::options().write(true).open(place.database()).expect("it is there");
    wait_until(text, DEADLINE, || {
        before();
        file.write_all_at(page, u64::from(number - 1) * page.len() as u64).expect("the folder is ours");
        agent.log().contains(text)
    });
}

#[test]
fn what_a_killed_checkpoint_has_left_is_not_taken_for_another_file() {
    let (place, agent) = place_with_a_wal("");
    let frames = frames(&place.wal());
    let (number, page) = frames.iter().find(|(number, _)| *number > 1).expect("rows have changed");
    write_until_said(&place, &agent, *number, page, "was written by a checkpoint that was not seen to begin");
    assert!(place.wal().exists(), "{}", agent.log());
    let mut application = Shell::open(&place.database());
    assert_eq!(
        application.value("SELECT count(*) FROM t WHERE data <> zeroblob(3000)"),
        "10",
        "{}",
        agent.log()
    );
    application.run("INSERT INTO t (data) VALUES (1)");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

/// The page at 1 GiB is never used and in no WAL, so that it is missing from the file as long as the checkpoint that
/// makes the file longer has not ended.
#[test]
fn a_killed_checkpoint_of_a_database_that_grows_beyond_1_gib_is_not_taken_for_another_file() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA page_size=65536; PRAGMA synchronous=OFF; CREATE TABLE t (data BLOB)");
    application.run("INSERT INTO t VALUES (zeroblob(999000000)), (zeroblob(73000000))");
    application.run("PRAGMA journal_mode=wal");
    let length = || fs::metadata(place.database()).expect("it is there").len();
    assert!((1 << 29..1 << 30).contains(&length()), "{} bytes", length());
    let agent = place.streaming_agent(&PATIENT);
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    application.run("INSERT INTO t VALUES (zeroblob(4000000))");
    agent.wait_for_status("streams", is_streaming);
    application.close();
    let frames = frames(&place.wal());
    assert!(length() < 1 << 30, "it was checkpointed");
    let (number, page) = frames.iter().find(|(number, _)| *number > 1).expect("rows have been added");
    let text = "was written by a checkpoint that was not seen to begin";
    write_until_said(&place, &agent, *number, page, text);
    assert!(place.wal().exists(), "{}", agent.log());
    drop(agent);
}

#[test]
fn a_page_that_is_in_no_wal_and_was_written_over_shows_another_file_with_the_same_header() {
    let (place, agent) = place_with_a_wal("");
    let in_wal: Vec<u32> = frames(&place.wal()).into_iter().map(|(number, _)| number).collect();
    let pages = fs::metadata(place.database()).expect("it is there").len() / PAGE as u64;
    let number =
        (2..=pages as u32).rev().find(|number| !in_wal.contains(number)).expect("not all have changed");
    let text = "something other than SQLite has written over the database";
    write_until_said(&place, &agent, number, &[0x55; PAGE], text);
    wait_until("the old WAL is gone", DEADLINE, || !place.wal().exists());
    drop(agent);
}

#[test]
fn a_page_that_was_checkpointed_and_written_over_shows_another_file_though_it_is_in_the_wal() {
    let (place, agent) = place_with_a_wal("PRAGMA wal_checkpoint(FULL)");
    let frames = frames(&place.wal());
    let (number, _) = frames.iter().find(|(number, _)| *number > 1).expect("rows have changed");
    let text = "something other than SQLite has written over the database";
    write_until_said(&place, &agent, *number, &[0x55; PAGE], text);
    wait_until("the old WAL is gone", DEADLINE, || !place.wal().exists());
    drop(agent);
}

const WRITTEN_OVER: &str = "something other than SQLite has written over it while a program has it open";

/// A database that an application has open, and another one with other rows.
fn place_with_a_backup() -> (Place, Shell, PathBuf) {
    let place = Place::new();
    let backup = place.path("backup.db");
    let rows = "INSERT INTO t (data) SELECT randomblob(700) FROM generate_series(1, 300)";
    let mut maker = Shell::open(&backup);
    maker.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB, note)");
    maker.run(rows);
    maker.close();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run(rows);
    (place, application, backup)
}

/// An agent beside an application of which all commits are in the file, the last ones of them in the WAL, too.
fn agent_beside(place: &Place, application: &mut Shell) -> Agent {
    let agent = place.agent_with(&PATIENT, &[("RUST_LOG", "debug")]);
    agent.wait_for_status("streams", is_streaming);
    application.run("UPDATE t SET data = randomblob(700) WHERE id % 10 = 0");
    wait_until("all of it is in the file", DEADLINE, || {
        let answer = application.value("PRAGMA wal_checkpoint");
        answer.split('|').nth(1) == answer.split('|').nth(2)
    });
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    agent
}

/// It may be held again at once: a snapshot that was being sent begins anew.
fn wait_until_let_go(agent: &Agent) {
    agent.wait_for_status("is what was put there", |status| first(status)["mixed"].is_null());
}

/// The application is idle, and all it has committed is in the file: nothing that SQLite does can write it then.
#[test]
fn a_backup_that_is_copied_over_the_database_beside_an_idle_application_is_noticed_and_copied() {
    let (place, mut application, backup) = place_with_a_backup();
    let agent = agent_beside(&place, &mut application);
    copy(&backup, &place.database());
    agent.wait_for_status("says so", |status| {
        status["health"] == "failing" && first(status)["mixed"].to_string().contains(WRITTEN_OVER)
    });
    application.close();
    wait_until_let_go(&agent);
    let mut application = Shell::open(&place.database());
    assert_eq!(application.value("SELECT count(note) + count(*) FROM t"), "300");
    application.run("INSERT INTO t (data) VALUES (1)");
    application.close();
    assert_replicated(&place, agent);
}

/// A reader keeps the last commit from being brought into the file: SQLite reads that from the WAL, and the rest from what was
/// put into the file.
#[test]
fn of_a_wal_that_was_partly_in_a_file_that_was_written_over_no_restore_reads_that_part() {
    let (place, mut application, backup) = place_with_a_backup();
    let agent = place.streaming_agent(&PATIENT);
    application.run("UPDATE t SET data = randomblob(3000) WHERE id % 10 = 0; CREATE TABLE last (id)");
    let mut reader = reader_before(&mut application, &place, "INSERT INTO last VALUES (1)");
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    copy(&backup, &place.database());
    agent.wait_for_log(WRITTEN_OVER);
    agent.wait_for_log("what was written over it cannot be copied yet");
    application.run("INSERT INTO last VALUES (2)");
    reader.run("COMMIT");
    agent.wait_for_log("works again");
    reader.close();
    application.close();
    wait_until_let_go(&agent);
    assert_replicated(&place, agent);
}

#[test]
fn a_commit_directly_after_a_copy_does_not_hide_it() {
    for is_checkpointed in [false, true] {
        let (place, mut application, _) = place_with_a_backup();
        application.run("PRAGMA wal_checkpoint(TRUNCATE)");
        let before = place.path("before.db");
        copy(&place.database(), &before);
        let agent = agent_beside(&place, &mut application);
        copy(&before, &place.database());
        if is_checkpointed {
            agent.wait_for_log("was written, and nobody has checkpointed it");
        }
        // It begins the WAL anew.
        application.run("UPDATE t SET data = randomblob(700) WHERE id % 100 = 1");
        if is_checkpointed {
            application.run("PRAGMA wal_checkpoint");
        }
        agent.wait_for_log(WRITTEN_OVER);
        application.close();
        wait_until_let_go(&agent);
        assert_replicated(&place, agent);
    }
}

/// The agent stands still meanwhile, so that it can only see that the file was written, and that a checkpoint has ended.
#[test]
fn what_a_checkpoint_hides_is_noticed_in_the_pages() {
    let (place, mut application, _) = place_with_a_backup();
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let before = place.path("before.db");
    copy(&place.database(), &before);
    let agent = agent_beside(&place, &mut application);
    application.run("UPDATE t SET data = randomblob(700) WHERE id % 100 = 1");
    let commit = "UPDATE t SET data = randomblob(700) WHERE id % 100 = 2";
    let mut reader = reader_before(&mut application, &place, commit);
    agent.wait_for_status("streams", is_streaming);
    signal(agent.pid(), Signal::STOP);
    copy(&before, &place.database());
    reader.run("COMMIT");
    let answer = application.value("PRAGMA wal_checkpoint");
    signal(agent.pid(), Signal::CONT);
    assert_eq!(answer.split('|').nth(1), answer.split('|').nth(2), "it has ended");
    agent.wait_for_log(WRITTEN_OVER);
    reader.close();
    application.close();
    wait_until_let_go(&agent);
    assert_replicated(&place, agent);
}

/// A reader from before a commit, which it keeps from being brought into the file; what was there before is in it.
fn reader_before(application: &mut Shell, place: &Place, commit: &str) -> Shell {
    let mut reader = Shell::open(&place.database());
    reader.run("BEGIN; SELECT count(*) FROM t");
    application.run(commit);
    wait_until("a part of it is in the file", DEADLINE, || {
        let answer = application.value("PRAGMA wal_checkpoint");
        answer.split('|').nth(2) != Some("0") && answer.split('|').nth(1) != answer.split('|').nth(2)
    });
    reader
}

/// Until then, the half of it is what is replicated.
#[test]
fn a_copy_that_pauses_is_noticed_again_when_it_goes_on() {
    let (place, mut application, backup) = place_with_a_backup();
    let agent = agent_beside(&place, &mut application);
    for (part, seen) in [(vec!["count=20"], 1), (vec!["skip=20", "seek=20", "conv=notrunc"], 2)] {
        let files = [format!("if={}", backup.display()), format!("of={}", place.database().display())];
        let copied =
            Command::new("dd").arg("bs=4096").args(files).args(part).output().expect("dd can be run");
        assert!(copied.status.success(), "{copied:?}");
        wait_until("it is noticed", DEADLINE, || agent.log().matches(WRITTEN_OVER).count() == seen);
        agent.wait_for_status("streams", is_streaming);
        wait_for_page_table(&agent);
    }
    application.close();
    wait_until_let_go(&agent);
    assert_eq!(Shell::open(&place.database()).value("SELECT count(note) + count(*) FROM t"), "300");
    assert_replicated(&place, agent);
}

/// By another process: closing the file in this one would drop the locks of SQLite in it.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status().expect("cp can be run");
    assert!(copied.success());
}

#[test]
fn a_file_of_which_nothing_can_tell_keeps_its_wal_and_is_copied_anew() {
    let (place, agent) = place_with_a_wal("");
    let (number, page) = frames(&place.wal()).into_iter().find(|(number, _)| *number > 1).expect("rows");
    // Each time: an agent that has noticed makes it anew.
    let table = place.page_table();
    let empty = || {
        // It goes with its generation, once that was said.
        let _ = fs::write(&table, "");
    };
    write_until_said_after(empty, &place, &agent, number, &page, "it cannot be told by whom");
    assert!(place.wal().exists(), "{}", agent.log());
    Shell::open(&place.database()).run("INSERT INTO t (data) VALUES (1)");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_checkpoint_that_is_killed_while_a_long_wal_is_being_copied_is_not_taken_for_another_file() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (data BLOB)");
    application.run("INSERT INTO t SELECT randomblob(3500) FROM generate_series(1, 8000)");
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    for part in 0..40 {
        application.run(&format!("UPDATE t SET data = randomblob(3500) WHERE rowid % 40 = {part}"));
    }
    application.run("CREATE TABLE last (id INTEGER PRIMARY KEY)");
    drop(application); // killed, so that its WAL stays
    let last_page_1 =
        frames(&place.wal()).into_iter().rfind(|(number, _)| *number == 1).expect("the schema").1;
    fs::write(place.path("page"), last_page_1).expect("the folder is ours");
    let now = || Now { mono: Instant::now(), wall: SystemTime::now() };
    let mut agent = agent_of(&place, now());
    let copied = |agent: &wal_agent::agent::Agent| {
        agent.status(now()).databases[0].position.map(|position| position.offset.get())
    };
    let length = fs::metadata(place.wal()).expect("there is a WAL").len();
    let mut step_until_copied = |least| {
        wait_until("the WAL is copied", DEADLINE, || {
            agent.step(now(), &mut |_| Dirty::ALL);
            copied(&agent).is_some_and(|copied| copied >= least)
        });
        copied(&agent)
    };
    assert!(step_until_copied(PAGE as u64) < Some(length), "it is copied in one turn");
    // Another process: closing the file in this one would drop the locks of SQLite in it.
    let copy = Command::new("dd")
        .arg(format!("if={}", place.path("page").display()))
        .arg(format!("of={}", place.database().display()))
        .arg("conv=notrunc")
        .output();
    assert!(copy.expect("dd can be run").status.success());
    step_until_copied(length);
    for _ in 0..10 {
        agent.step(now(), &mut |_| Dirty::ALL);
    }
    assert!(place.wal().exists());
    let mut reader = Shell::open(&place.database());
    assert_eq!(reader.value("SELECT count(*) FROM last"), "0", "the last commit is lost");
}
