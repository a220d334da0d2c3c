//! A database file that was written while nobody has it open: by a checkpoint that was killed, or by something that is
//! not SQLite. In the first case its WAL holds commits that are nowhere else.

use crate::support::agent::Agent;
use crate::support::place::{Place, is_streaming, wait_for_page_table};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
/// Of an agent that neither checkpoints nor lets go by itself.
const PATIENT: [&str; 2] = ["checkpoint-interval: 1h", "let-go-after: never"];

/// A database of which some rows are in the file, and later ones in the WAL only; nobody has it open but the agent.
fn place_with_a_wal() -> (Place, Agent) {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run("INSERT INTO t (data) SELECT zeroblob(3000) FROM generate_series(1, 100)");
    let agent = place.streaming_agent(&PATIENT);
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    application.run("UPDATE t SET data = randomblob(3000) WHERE id % 10 = 0");
    agent.wait_for_status("streams", is_streaming);
    wait_for_page_table(&agent);
    application.close();
    (place, agent)
}

/// The frames of a WAL: page numbers and pages (file format 4).
fn frames(wal: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = fs::read(wal).expect("there is a WAL");
    let frames = bytes[32..].chunks_exact(24 + PAGE);
    let number = |frame: &[u8]| u32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
    frames.map(|frame| (number(frame), frame[24..].to_vec())).collect()
}

/// Writes a page into the file, again and again: the agent may not have seen yet that the application has gone.
fn write_until_said(place: &Place, agent: &Agent, number: u32, page: &[u8], text: &str) {
    let file = fs::File::options().write(true).open(place.database()).expect("it is there");
    wait_until(text, DEADLINE, || {
        file.write_all_at(page, u64::from(number - 1) * PAGE as u64).expect("the folder is ours");
        agent.log().contains(text)
    });
}

#[test]
fn what_a_killed_checkpoint_has_left_is_not_taken_for_another_file() {
    let (place, agent) = place_with_a_wal();
    let frames = frames(&place.wal());
    let (number, page) = frames.iter().find(|(number, _)| *number > 1).expect("rows have changed");
    write_until_said(&place, &agent, *number, page, "was written by a checkpoint that did not end");
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

#[test]
fn a_page_that_is_in_no_wal_and_was_written_over_shows_another_file_with_the_same_header() {
    let (place, agent) = place_with_a_wal();
    let in_wal: Vec<u32> = frames(&place.wal()).into_iter().map(|(number, _)| number).collect();
    let pages = fs::metadata(place.database()).expect("it is there").len() / PAGE as u64;
    let number =
        (2..=pages as u32).rev().find(|number| !in_wal.contains(number)).expect("not all have changed");
    let text = "something other than SQLite has written over the database";
    write_until_said(&place, &agent, number, &[0x55; PAGE], text);
    wait_until("the old WAL is gone", DEADLINE, || !place.wal().exists());
    drop(agent);
}
