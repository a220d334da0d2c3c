//! Restores of whole replicas.

use crate::support::history::{
    History, Objects, Rows, Style, committed_end, encode, generation, index, lz4, rows, scratch, segment,
};
use crate::support::memory::{Server, restore_checked, restore_from};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use wal_agent::core::names::{Object, parse_segment};
use wal_agent::core::position::{Index, Offset, Position};
use wal_agent::core::restore::{Check, Note, RestoreGap};
use wal_agent::core::segment::append;
use wal_agent::remote::{FailureKind, RemoteError};
use wal_agent::restore::{Damage, Progress, RestoreError, RestoreOptions, RestoreReport, restore};

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
const STYLES: [Style; 2] = [Style::Ours, Style::Litestream];

fn restored(objects: Objects) -> Rows {
    let folder = scratch();
    let output = folder.path().join("out.db");
    restore_checked(&Server::new(objects), &output, Check::Full).unwrap();
    rows(&output)
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_page_size_and_every_cut_comes_back() {
    for page_size in PAGE_SIZES {
        let history = History::new(page_size, &[5, 1, 4], 3000);
        for style in STYLES {
            for commits in [1, 2, 5] {
                assert!(
                    restored(history.objects(style, commits)) == *history.newest(),
                    "{page_size} {style:?}"
                );
            }
        }
    }
}

#[test]
fn the_report_says_where_it_ends_and_nothing_else_is_left_in_the_folder() {
    let history = History::new(4096, &[3, 2], 500);
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report =
        restore_checked(&Server::new(history.objects(Style::Ours, 2)), &output, Check::Quick).unwrap();
    let end = history.states.last().unwrap().end;
    assert_eq!(report.position, Position::new(generation(), index(1), Offset::new(end)));
    assert_eq!((report.snapshot, report.indexes, report.cut, report.notes), (Index::ZERO, 2, None, vec![]));
    assert_eq!(report.pages * 4096, std::fs::metadata(&output).unwrap().len());
    assert_eq!(names(&folder), ["out.db"]);
}

#[test]
fn a_snapshot_alone_is_a_database() {
    let history = History::new(4096, &[3, 2], 500);
    let mut objects = Objects::new();
    history.add_snapshot(&mut objects, Style::Litestream, 1);
    assert!(restored(objects) == history.states[2].rows);
}

#[test]
fn a_newer_snapshot_saves_the_older_wal() {
    let history = History::new(4096, &[3, 2, 2], 500);
    let mut objects = history.objects(Style::Ours, 1);
    history.add_snapshot(&mut objects, Style::Ours, 2);
    objects.retain(|path, _| !path.contains("/wal/00000000") && !path.contains("/wal/00000001"));
    assert!(restored(objects) == *history.newest());
}

#[test]
fn segments_may_be_cut_anywhere() {
    let history = History::new(512, &[4, 3], 700);
    for step in [1u64, 31, 33, 100, 535, 537, 2000] {
        let mut objects = Objects::new();
        history.add_snapshot(&mut objects, Style::Litestream, 0);
        for k in 0..2 {
            let length = history.wals[k].len() as u64;
            let step = step.max(length / 100);
            let ends: Vec<u64> =
                (1..).map(|n| (n * step).min(length)).take_while(|&end| end < length).collect();
            history.add_wal(&mut objects, Style::Litestream, k, &[ends, vec![length]].concat());
        }
        assert!(restored(objects) == *history.newest(), "{step}");
    }
}

#[test]
fn every_kind_of_lz4_frame_is_read() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameInfo};
    let history = History::new(4096, &[30, 2], 9000);
    let kinds: [fn(FrameInfo) -> FrameInfo; 5] = [
        |info| info.block_mode(BlockMode::Linked).block_size(BlockSize::Max64KB).content_checksum(true),
        |info| info.block_mode(BlockMode::Linked).block_size(BlockSize::Max4MB).content_checksum(true),
        |info| info.block_size(BlockSize::Max256KB).block_checksums(true).content_checksum(true),
        |info| info.block_size(BlockSize::Max1MB).content_checksum(true),
        |info| info.block_size(BlockSize::Max64KB).content_checksum(true).block_checksums(true),
    ];
    for kind in kinds {
        let mut objects = Objects::new();
        let snapshot = Object::Snapshot { generation: generation(), index: Index::ZERO };
        objects.insert(snapshot.path(), lz4(&history.databases[0], kind));
        for (k, wal) in history.wals.iter().enumerate() {
            objects.insert(segment(k, 0).path(), lz4(wal, kind));
        }
        assert!(restored(objects) == *history.newest());
    }
}

#[test]
fn frames_behind_the_last_commit_never_reach_the_file() {
    let history = History::new(512, &[2, 3], 900);
    let ends = history.ends(1);
    for end in (ends[1] + 1..ends[2]).step_by(97) {
        let mut objects = history.objects(Style::Ours, 10);
        objects.insert(segment(1, 0).path(), encode(Style::Ours, &history.wals[1][..end as usize], None));
        let folder = scratch();
        let output = folder.path().join("out.db");
        let report = restore_from(&Server::new(objects), &output).unwrap();
        assert_eq!(report.position.offset.get(), ends[1]);
        let cut = report.cut.unwrap();
        assert_eq!((cut.torn, cut.bytes), (false, end - ends[1]));
        assert!(rows(&output) == history.states[3].rows);
    }
}

#[test]
fn a_transaction_larger_than_memory_is_allowed_waits_on_disk() {
    const SIZE: usize = 17 << 20;
    let history = History::new(4096, &[1, 1], SIZE);
    assert!(restored(history.objects(Style::Ours, 1)) == *history.newest());
    let wal = &history.wals[1];
    let mut objects = history.objects(Style::Ours, 1);
    objects.insert(segment(1, 0).path(), encode(Style::Ours, &wal[..wal.len() - 4120], None));
    assert!(restored(objects) == history.states[0].rows);
}

#[test]
fn a_database_that_shrinks_and_grows_again_has_the_right_size() {
    let folder = scratch();
    let path = folder.path().join("app.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size=1024; PRAGMA auto_vacuum=FULL; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<200)
             INSERT INTO t SELECT i, randomblob(900) FROM n;",
        )
        .unwrap();
    let _: i64 = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
    let database = std::fs::read(&path).unwrap();
    connection.execute_batch("DELETE FROM t WHERE id > 20; VACUUM; DELETE FROM t WHERE id > 10").unwrap();
    let wal = std::fs::read(folder.path().join("app.db-wal")).unwrap();
    let mut objects = Objects::new();
    let snapshot = Object::Snapshot { generation: generation(), index: Index::ZERO };
    objects.insert(snapshot.path(), encode(Style::Litestream, &database, None));
    objects.insert(segment(0, 0).path(), encode(Style::Litestream, &wal[..committed_end(&wal)], None));
    let output = folder.path().join("out.db");
    let report = restore_checked(&Server::new(objects), &output, Check::Full).unwrap();
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    assert_eq!(
        (report.pages, std::fs::metadata(&output).unwrap().len()),
        (pages as u64, pages as u64 * 1024)
    );
}

#[test]
fn nothing_is_restored_over_or_beside_what_is_there() {
    let history = History::new(4096, &[1], 100);
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let folder = scratch();
        let in_the_way = folder.path().join(format!("out.db{suffix}"));
        std::fs::write(&in_the_way, "precious").unwrap();
        let server = Server::new(history.objects(Style::Ours, 1));
        let error = restore_from(&server, &folder.path().join("out.db")).unwrap_err();
        assert!(matches!(&error, RestoreError::Exists { path } if *path == in_the_way), "{error}");
        assert_eq!(server.connections(), 0, "nothing is fetched in vain");
        assert_eq!(std::fs::read(&in_the_way).unwrap(), b"precious");
    }
}

#[test]
fn an_output_that_appears_meanwhile_is_not_replaced() {
    let history = History::new(4096, &[1], 100);
    for suffix in ["", "-wal"] {
        let folder = scratch();
        let in_the_way = folder.path().join(format!("out.db{suffix}"));
        let made = in_the_way.clone();
        let server = Server::new(history.objects(Style::Ours, 1)).on_read(move |_, _, _| {
            std::fs::write(&made, "precious").unwrap();
            Ok(())
        });
        let error = restore_from(&server, &folder.path().join("out.db")).unwrap_err();
        assert!(matches!(error, RestoreError::Exists { .. }), "{error}");
        assert_eq!(std::fs::read(&in_the_way).unwrap(), b"precious");
        assert_eq!(names(&folder).len(), 1);
    }
}

#[test]
fn folders_are_made_and_odd_names_are_fine() {
    let history = History::new(4096, &[1], 100);
    let folder = scratch();
    let output = folder.path().join("not there/yet/ä b?c#d%41.db");
    restore_checked(&Server::new(history.objects(Style::Ours, 1)), &output, Check::Full).unwrap();
    assert!(rows(&output) == *history.newest());
}

#[test]
fn nothing_there_is_not_the_same_as_not_reached() {
    let folder = scratch();
    let output = folder.path().join("out.db");
    let error = restore_from(&Server::new(Objects::new()), &output).unwrap_err();
    assert!(error.to_string().contains("there is no backup"), "{error}");
    let unreachable = || RemoteError {
        kind: FailureKind::Disconnected,
        action: "connect".into(),
        reason: "refused".into(),
    };
    let error = restore(RestoreOptions {
        remotes: &|| Err(unreachable()),
        root: "",
        output,
        check: Check::None,
        progress: &mut |_: Progress| {},
    })
    .unwrap_err();
    assert!(
        matches!(&error, RestoreError::Remote(error) if error.kind == FailureKind::Disconnected),
        "{error}"
    );
    assert!(names(&folder).is_empty());
}

#[test]
fn the_root_is_put_before_every_path() {
    let history = History::new(4096, &[2], 100);
    let objects: Objects = history
        .objects(Style::Ours, 1)
        .into_iter()
        .map(|(path, bytes)| (format!("a/b/{path}"), bytes))
        .collect();
    let server = Server::new(objects);
    for root in ["a/b", "a/b/"] {
        let folder = scratch();
        let output = folder.path().join("out.db");
        let mut last = None;
        let options = RestoreOptions {
            remotes: &|| Ok(server.connect()),
            root,
            output: output.clone(),
            check: Check::None,
            progress: &mut |progress| last = Some(progress),
        };
        restore(options).unwrap();
        assert!(rows(&output) == *history.newest());
        assert!(last.is_some());
    }
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let history = History::new(4096, &[1, 1], 3 << 20);
    let broken = AtomicBool::new(false);
    let server = Server::new(history.objects(Style::Ours, 1)).on_read(move |_, _, at| {
        match at > 0 && !broken.swap(true, Ordering::Relaxed) {
            true => Err(FailureKind::Disconnected),
            false => Ok(()),
        }
    });
    let folder = scratch();
    let output = folder.path().join("out.db");
    restore_from(&server, &output).unwrap();
    assert_eq!(server.connections(), 2);
    assert!(rows(&output) == *history.newest());
}

#[test]
fn an_object_that_retention_removed_leads_to_a_new_plan() {
    let history = History::new(4096, &[2, 2, 2], 300);
    let mut newer = history.objects(Style::Ours, 1);
    newer.retain(|path, _| path.contains("/wal/00000002"));
    history.add_snapshot(&mut newer, Style::Ours, 2);
    let server = Server::new(history.objects(Style::Ours, 1)).on_read(move |objects, path, _| {
        if path.contains("/wal/") {
            *objects = newer.clone();
        }
        Ok(())
    });
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_from(&server, &output).unwrap();
    assert_eq!(report.snapshot, index(2));
    assert!(rows(&output) == *history.newest());
}

/// A replica of twenty indexes, made while it is listed: whether the n-th listing of them has an index.
fn while_listed(has: impl Fn(usize, usize) -> bool + Send + 'static) -> Result<RestoreReport, RestoreError> {
    let history = History::new(4096, &[1; 20], 300);
    let mut listings = 0;
    let server = Server::new(history.objects(Style::Ours, 1)).on_list(move |folder, entries| {
        if folder.ends_with("/wal") {
            listings += 1;
            let index = |name: &str| parse_segment(name).expect("a segment").0.get() as usize;
            entries.retain(|entry| has(listings, index(&entry.name)));
        }
    });
    restore_from(&server, &scratch().path().join("out.db"))
}

#[test]
fn segments_that_are_made_while_a_listing_goes_on_are_no_holes() {
    // Each has what was there when it began, and of three that were made meanwhile the last one.
    let report = while_listed(|listing, index| index < 3 * listing || index == 3 * listing + 2);
    // The second listing holds all that was made before the newest one of the first.
    assert_eq!(report.expect("nothing is missing").position.index, index(5));
}

#[test]
fn a_hole_stays_a_hole_beside_segments_that_are_made() {
    let error = while_listed(|listing, index| index < 3 * listing && index != 1);
    let error = error.expect_err("an index is missing");
    assert!(matches!(error, RestoreError::Gap(RestoreGap::Hole { .. })), "{error}");
}

#[test]
fn a_listing_that_never_holds_still_is_given_up() {
    let history = History::new(4096, &[2], 300);
    let tries = AtomicUsize::new(0);
    let server = Server::new(history.objects(Style::Ours, 1)).on_read(move |objects, path, _| {
        if path.contains("/wal/") {
            let n = tries.fetch_add(1, Ordering::Relaxed);
            objects.insert(segment(9, n as u64).path(), Vec::new());
            return Err(FailureKind::NotFound);
        }
        Ok(())
    });
    let folder = scratch();
    assert!(restore_from(&server, &folder.path().join("out.db")).is_err());
    assert!(names(&folder).is_empty());
}

#[test]
fn a_segment_that_grows_while_it_is_read_gives_its_old_or_its_new_content() {
    let history = History::new(512, &[4], 20_000);
    let ends = history.ends(0);
    let wal = &history.wals[0];
    let old = encode(Style::Ours, &wal[..ends[2] as usize], None);
    let mut blocks = Vec::new();
    wal_agent::core::segment::push_block(&mut blocks, &wal[ends[2] as usize..]);
    let length = old.len() as u64;
    let writes: Vec<(usize, Vec<u8>)> =
        append(length, &mut blocks).iter().map(|write| (write.at as usize, write.bytes.to_vec())).collect();
    let all: Vec<u8> = (0..writes.iter().map(|(at, bytes)| at + bytes.len()).max().unwrap())
        .map(|at| old.get(at).copied().unwrap_or(0))
        .collect();
    for reads_before in 0..4 {
        let mut objects = history.objects(Style::Ours, 10);
        objects.insert(segment(0, 0).path(), old.clone());
        let (writes, mut all) = (writes.clone(), all.clone());
        let reads = AtomicUsize::new(0);
        let server = Server::new(objects).on_read(move |objects, path, _| {
            if path.contains("/wal/") && reads.fetch_add(1, Ordering::Relaxed) == reads_before {
                for (at, bytes) in &writes {
                    all[*at..at + bytes.len()].copy_from_slice(bytes);
                }
                objects.insert(path.to_owned(), all.clone());
            }
            Ok(())
        });
        let folder = scratch();
        let output = folder.path().join("out.db");
        restore_from(&server, &output).unwrap();
        let rows = rows(&output);
        assert!(rows == history.states[2].rows || rows == history.states[3].rows);
    }
}

#[test]
fn a_snapshot_whose_wal_is_not_there_yet_is_passed_over() {
    let history = History::new(4096, &[2, 2], 300);
    let with_valid_from = |valid_from| {
        let mut objects = history.objects(Style::Ours, 1);
        let snapshot = Object::Snapshot { generation: generation(), index: index(1) };
        let trailer = history.snapshot_trailer(1, valid_from);
        objects.insert(snapshot.path(), encode(Style::Ours, &history.databases[1], Some(trailer)));
        objects
    };
    let end = history.states.last().unwrap().end;
    let try_it = |objects: Objects, expected: usize, passed_over: usize| {
        let folder = scratch();
        let output = folder.path().join("out.db");
        let report = restore_from(&Server::new(objects), &output).unwrap();
        assert_eq!((report.snapshot, report.notes.len()), (index(expected), passed_over));
        assert!(rows(&output) == *history.newest());
    };
    try_it(with_valid_from((1, end)), 1, 0);
    try_it(with_valid_from((1, end + 4120)), 0, 1);
    try_it(with_valid_from((2, 0)), 0, 1);

    let mut alone = with_valid_from((1, end + 4120));
    alone.retain(|path, _| !path.contains("00000000.snapshot"));
    let folder = scratch();
    let error = restore_from(&Server::new(alone), &folder.path().join("out.db")).unwrap_err();
    assert!(matches!(error, RestoreError::SnapshotTooNew { .. }), "{error}");
}

#[test]
fn an_index_that_was_sealed_counts_as_the_start_of_the_next() {
    let history = History::new(4096, &[2, 2, 1], 300);
    let mut objects = history.objects(Style::Ours, 1);
    objects.retain(|path, _| !path.contains("/wal/00000002"));
    let snapshot = Object::Snapshot { generation: generation(), index: index(1) };
    let trailer = history.snapshot_trailer(1, (2, 0));
    objects.insert(snapshot.path(), encode(Style::Ours, &history.databases[1], Some(trailer)));
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_from(&Server::new(objects), &output).unwrap();
    assert_eq!((report.snapshot, report.notes), (index(1), vec![]));
    assert!(rows(&output) == history.states[3].rows);
}

#[test]
fn a_damaged_snapshot_is_replaced_by_an_older_one_of_its_generation_only() {
    let history = History::new(4096, &[2, 2], 300);
    let mut objects = history.objects(Style::Ours, 1);
    history.add_snapshot(&mut objects, Style::Ours, 1);
    let newer = Object::Snapshot { generation: generation(), index: index(1) }.path();
    objects.get_mut(&newer).unwrap()[40] ^= 1;
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_from(&Server::new(objects.clone()), &output).unwrap();
    assert!(matches!(&report.notes[..], [Note::PassedOver { .. }]), "{report}");
    assert!(rows(&output) == *history.newest());

    let older = Object::Snapshot { generation: generation(), index: index(0) }.path();
    let stranger = objects.remove(&older).unwrap();
    objects.insert(older.replace("feedbeef", "0badcafe"), stranger);
    let server = Server::new(objects).with_time("feedbeef", 200).with_time("0badcafe", 100);
    let error = restore_from(&server, &folder.path().join("other.db")).unwrap_err();
    assert!(matches!(&error, RestoreError::Damaged { object, .. } if object.path() == newer), "{error}");
}

#[test]
fn a_newer_generation_without_a_snapshot_is_said_and_left_out() {
    let history = History::new(4096, &[2], 300);
    let mut objects = history.objects(Style::Ours, 1);
    objects.insert(segment(0, 0).path().replace("feedbeef", "0badcafe"), vec![0; 10]);
    let server = Server::new(objects).with_time("feedbeef", 100).with_time("0badcafe", 200);
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_from(&server, &output).unwrap();
    assert!(matches!(&report.notes[..], [Note::NoSnapshotYet(_)]), "{report}");
    assert!(rows(&output) == *history.newest());
}

#[test]
fn a_segment_that_was_set_aside_stands_in_until_its_successor_has_its_name() {
    let history = History::new(4096, &[2, 2], 300);
    let mut objects = history.objects(Style::Ours, 10);
    let last = segment(1, 0);
    let whole = objects.remove(&last.path()).unwrap();
    let first_commit = &history.wals[1][..history.ends(1)[0] as usize];
    objects.insert(last.set_aside_path(7), encode(Style::Ours, first_commit, None));
    objects.insert(last.set_aside_path(u64::MAX), whole.clone());
    objects.insert(last.temporary_path(8), b"half".to_vec());
    assert!(restored(objects.clone()) == *history.newest());
    objects.insert(last.set_aside_path(7), vec![0; 100_000]);
    objects.insert(last.path(), whole);
    assert!(restored(objects) == *history.newest());
}

#[test]
fn an_encrypted_replica_is_named_as_such() {
    let history = History::new(4096, &[1], 100);
    let mut objects = history.objects(Style::Litestream, 1);
    objects.values_mut().for_each(|bytes| *bytes = b"age-encryption.org/v1\n-> X25519 abc".to_vec());
    let folder = scratch();
    let error = restore_from(&Server::new(objects), &folder.path().join("out.db")).unwrap_err();
    assert!(error.to_string().contains("age"), "{error}");
}

#[test]
fn sqlite_is_asked_and_its_answer_counts() {
    let history = History::new(4096, &[6], 300);
    let mut database = history.databases[0].clone();
    database.truncate(4096);
    let mut objects = Objects::new();
    let snapshot = Object::Snapshot { generation: generation(), index: Index::ZERO };
    objects.insert(snapshot.path(), encode(Style::Litestream, &database, None));
    let folder = scratch();
    let output = folder.path().join("out.db");
    let error = restore_checked(&Server::new(objects), &output, Check::Quick).unwrap_err();
    assert!(matches!(error, RestoreError::Check(_)), "{error}");
    assert!(names(&folder).is_empty());
}

#[test]
fn a_wal_of_another_database_is_refused() {
    let (small, large) = (History::new(512, &[2], 300), History::new(4096, &[2], 300));
    let mut objects = small.objects(Style::Litestream, 1);
    objects.retain(|path, _| path.contains("snapshot"));
    large.add_wal(&mut objects, Style::Litestream, 0, &large.ends(0));
    let folder = scratch();
    let error = restore_from(&Server::new(objects), &folder.path().join("out.db")).unwrap_err();
    assert!(matches!(&error, RestoreError::Damaged { damage: Damage::Wal(_), .. }), "{error}");
}
