//! What our locks on the wal-index do to SQLite's connections, and what theirs do to ours.

use crate::support::place::Place;
use crate::support::sqlite::{Shell, readers_in_all_slots};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wal_agent::core::wal::WalHeader;
use wal_agent::core::wal_index::WalExtent;
use wal_agent::locks::WalIndex;
use wal_agent::sqlite::Handle;

/// Enough to meet a writer in the middle of its header many times.
const COMMITS: u32 = 50_000;

/// A database with a few frames in its WAL, somebody who has it open, and its wal-index.
fn opened(place: &Place) -> (Shell, WalIndex) {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
    application.run(".timeout 1");
    let index = WalIndex::open(&place.path("app.db-shm")).expect("it is there");
    (application, index)
}

/// Whether a commit begins the WAL anew.
fn restarts(place: &Place, application: &mut Shell) -> bool {
    let header = |place: &Place| std::fs::read(place.wal()).expect("readable")[..32].to_vec();
    let before = header(place);
    application.run("INSERT INTO t VALUES (1)");
    header(place) != before
}

/// Frames in the WAL and in the file, as a checkpoint of that mode says; busy or not.
fn checkpoint(application: &mut Shell, mode: &str) -> (bool, u32, u32) {
    let answer = application.value(&format!("PRAGMA wal_checkpoint({mode})"));
    let numbers: Vec<u32> = answer.split('|').map(|n| n.parse().expect("a number")).collect();
    (numbers[0] == 1, numbers[1], numbers[2])
}

#[test]
fn a_slot_forbids_to_restart_and_nothing_else() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    let slot = index.take_slot(None).expect("it locks").expect("nobody is in the way");
    assert!(slot.is_ours);
    for _ in 0..5 {
        assert!(!restarts(&place, &mut application));
        let (is_busy, frames, backfilled) = checkpoint(&mut application, "FULL");
        assert!(!is_busy && frames == backfilled, "{backfilled} of {frames} frames");
    }
    assert!(checkpoint(&mut application, "RESTART").0, "the WAL may be restarted");
    index.release(slot).expect("it is ours");
    assert!(!checkpoint(&mut application, "RESTART").0, "the slot is still taken");
    assert!(restarts(&place, &mut application));
}

#[test]
fn read_lock_zero_lets_restart_once() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    checkpoint(&mut application, "FULL");
    assert!(index.take_zero().expect("it locks"));
    assert!(restarts(&place, &mut application), "everything is in the file");
    for _ in 0..5 {
        let (_, frames, backfilled) = checkpoint(&mut application, "PASSIVE");
        assert!(frames > 0 && backfilled == 0, "{backfilled} of {frames} frames");
        assert!(checkpoint(&mut application, "TRUNCATE").0);
        assert!(!restarts(&place, &mut application), "what nobody has copied is gone");
    }
    index.release_zero().expect("it is ours");
    assert!(!checkpoint(&mut application, "TRUNCATE").0);
}

#[test]
fn it_says_without_a_lock_what_sqlite_says() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        application.run("INSERT INTO t VALUES (zeroblob(10000))");
        let (_, frames, backfilled) = checkpoint(&mut application, mode);
        let salt = index.extent().and_then(|extent| extent.salt);
        let said = WalExtent { frames, backfilled, salt };
        assert_eq!(index.extent(), Some(said), "after {mode}");
        let header = fs::read(place.wal()).expect("it is there").first_chunk().copied();
        let header = header.map(|bytes| WalHeader::parse(&bytes).expect("SQLite has written it"));
        assert_eq!(header.map(|header| Some(header.salt())), header.map(|_| salt), "after {mode}");
    }
}

#[test]
fn one_that_stays_half_written_is_none_until_sqlite_has_made_it_anew() {
    let place = Place::new();
    let (_application, index) = opened(&place);
    let query = Handle::open(&place.database()).expect("it can be opened");
    let before = query.wal_extent().expect("nobody is in the way");
    assert_eq!(index.extent().map(|extent| WalExtent { salt: None, ..extent }), Some(before));
    // As a writer leaves it that is killed between its two copies.
    index.file().write_all_at(&[1; 8], 48 + 16).expect("it is open for writing");
    assert_eq!(index.extent(), None);
    assert_eq!(query.wal_extent().map(|extent| extent.frames), Ok(before.frames));
    assert_eq!(index.extent().map(|extent| extent.frames), Some(before.frames));
}

/// SQLite takes the write lock if it meets a writer in the middle of its header: one in some thousand of such readings.
#[test]
fn reading_it_without_a_pause_is_in_no_writers_way() {
    let place = Place::new();
    let (_application, index) = opened(&place);
    let writer = rusqlite::Connection::open(place.database()).expect("it can be opened");
    writer.busy_timeout(Duration::ZERO).expect("any timeout will do");
    writer.pragma_update(None, "synchronous", "off").expect("it is a setting");
    let is_written = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut readings, mut last) = (0_u64, 0);
            while is_written.load(Ordering::Relaxed) {
                let Some(extent) = index.extent() else { continue };
                assert!(extent.frames >= last, "{} frames after {last}", extent.frames);
                (readings, last) = (readings + 1, extent.frames);
            }
            readings
        });
        let slot = index.take_slot(None).expect("it locks").expect("nobody is in the way");
        let mut insert = writer.prepare("INSERT INTO t VALUES (1)").expect("it is there");
        let written = (0..COMMITS).try_for_each(|_| insert.execute([]).map(drop));
        is_written.store(false, Ordering::Relaxed);
        written.expect("nobody else writes");
        assert!(reader.join().expect("its checks hold") > 1000);
        index.release(slot).expect("it is ours");
    });
}

#[test]
fn where_all_slots_are_used_one_is_shared_until_one_is_free() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    let mut readers = readers_in_all_slots(&place.database(), || {
        application.run("INSERT INTO t VALUES (1)");
    });
    let slot = index.take_slot(None).expect("it locks").expect("nobody is in the way");
    assert!(!slot.is_ours, "four readers stand on four marks");
    assert_eq!(index.take_slot(Some(slot)).expect("it locks"), Some(slot));
    readers.iter_mut().for_each(|reader| drop(reader.run("COMMIT")));
    application.run("INSERT INTO t VALUES (1)");
    let (_, frames, backfilled) = checkpoint(&mut application, "PASSIVE");
    assert!(backfilled < frames, "the mark of the slot that we share holds, {backfilled} of {frames}");
    let own = index.take_slot(Some(slot)).expect("it locks").expect("it was held");
    assert!(own.is_ours);
    let (_, frames, backfilled) = checkpoint(&mut application, "PASSIVE");
    assert_eq!(backfilled, frames);
    assert!(!restarts(&place, &mut application));
    readers.iter_mut().for_each(|reader| assert_ne!(reader.value("SELECT count(*) FROM t"), ""));
}

#[test]
fn while_readers_are_shut_out_nobody_commits_and_a_reader_forbids_it() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    application.run("INSERT INTO t VALUES (1)");
    let slot = index.take_slot(None).expect("it locks").expect("nobody is in the way");
    let mut reader = Shell::open(&place.database());
    reader.run(".timeout 1");
    reader.run("BEGIN; SELECT count(*) FROM t");
    assert!(!index.shut_out_readers(slot).expect("it locks"), "it is read");
    assert_eq!(application.value("SELECT count(*) FROM t"), "1", "nobody is shut out");
    reader.run("COMMIT");
    assert!(index.shut_out_readers(slot).expect("it locks"));
    let before = index.extent().expect("nobody writes it");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| application.run("INSERT INTO t VALUES (2)"));
        let (is_busy, frames, backfilled) = checkpoint(&mut reader, "PASSIVE");
        assert!(
            !is_busy && frames == before.frames && backfilled == frames,
            "{backfilled} of {frames} frames"
        );
        assert!(!writer.is_finished() && index.extent().expect("nobody writes it").frames == before.frames);
        index.let_in_readers(slot).expect("they are ours");
        writer.join().expect("it has only had to wait");
    });
    assert_eq!(reader.value("SELECT count(*) FROM t"), "2");
    assert!(checkpoint(&mut reader, "RESTART").0, "the slot is still held");
}

#[test]
fn connections_of_this_process_neither_drop_our_locks_nor_ignore_them() {
    let place = Place::new();
    let (mut application, index) = opened(&place);
    let slot = index.take_slot(None).expect("it locks").expect("nobody is in the way");
    let ours = rusqlite::Connection::open(place.database()).expect("it can be opened");
    for _ in 0..8 {
        let rows: u32 = ours.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("readable");
        assert!(rows < 100);
        application.run("INSERT INTO t VALUES (1)");
    }
    drop(ours);
    checkpoint(&mut application, "FULL");
    assert!(!restarts(&place, &mut application));
    assert!(checkpoint(&mut application, "RESTART").0, "the WAL may be restarted");
    assert_eq!(index.take_slot(Some(slot)).expect("it locks"), Some(slot));
}

#[test]
fn a_slot_whose_mark_cannot_be_cleared_is_not_kept() {
    let place = Place::new();
    let path = place.path("short-shm");
    std::fs::write(&path, [0; 64]).expect("the folder is ours");
    let failing = WalIndex::open(&path).expect("it is there");
    failing.take_slot(None).expect_err("it has no marks");
    std::fs::write(&path, [0; 32768]).expect("the folder is ours");
    let other = WalIndex::open(&path).expect("it is there");
    let beside = other.take_slot(None).expect("it locks").expect("nobody is in the way");
    other.release(beside).expect("it is ours");
    drop(failing);
    assert_eq!(other.take_slot(None).expect("it locks"), Some(beside), "it was locked all the time");
}
