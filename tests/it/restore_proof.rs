//! A restore is compared with the checksums that the source had at exact positions, and refused where they differ.

use crate::support::history::{
    self, History, Objects, Style, encode, generation, index, rows, scratch, segment,
};
use crate::support::memory::{Server, restore_checked};
use wal_agent::core::checksum::Crc64;
use wal_agent::core::names::Object;
use wal_agent::core::page::{PageCount, PageSize};
use wal_agent::core::page_table::{DatabaseChecksum, DatabaseState};
use wal_agent::core::position::{Offset, Position};
use wal_agent::core::restore::Check;
use wal_agent::core::segment::{SegmentTrailer, SnapshotTrailer, Trailer};
use wal_agent::core::wal::WalHeader;
use wal_agent::restore::{Damage, RestoreError, RestoreReport};

const PAGE: u32 = 512;
const FRAME: usize = 24 + PAGE as usize;

fn history() -> History {
    History::new(PAGE, &[2, 3], 60)
}

/// The database after a WAL up to `end` was replayed on it.
fn replayed(database: &[u8], wal: &[u8], end: u64) -> Vec<u8> {
    history::replayed(database, &wal[..end as usize], PAGE)
}

fn state_at(history: &History, k: usize, end: u64) -> DatabaseState {
    history::state_of(&replayed(&history.databases[k], &history.wals[k], end), PAGE)
}

/// A replica with a segment for each index, whose WALs are `wals`, while the source's states were those of `history`.
fn replica(history: &History, wals: &[Vec<u8>], with_states: bool) -> Objects {
    let mut objects = Objects::new();
    history.add_snapshot(&mut objects, Style::Ours, 0);
    for (k, wal) in wals.iter().enumerate() {
        let end = wal.len() as u64;
        let trailer = Trailer::Segment(SegmentTrailer {
            index: index(k),
            start: Offset::ZERO,
            end: Offset::new(end),
            last_of_index: k + 1 < wals.len(),
            crc: Crc64::of(wal),
            state: with_states.then(|| state_at(history, k, end)),
        });
        objects.insert(segment(k, 0).path(), encode(Style::Ours, wal, Some(trailer)));
    }
    objects
}

/// Gives the snapshot of index 0 a state at `valid_from`.
fn set_snapshot_state(
    history: &History,
    objects: &mut Objects,
    valid_from: (usize, u64),
    state: DatabaseState,
) {
    let Trailer::Snapshot(trailer) = history.snapshot_trailer(0, valid_from) else { panic!("it is one") };
    let trailer = Trailer::Snapshot(SnapshotTrailer { state: Some(state), ..trailer });
    let path = Object::Snapshot { generation: generation(), index: index(0) }.path();
    objects.insert(path, encode(Style::Ours, &history.databases[0], Some(trailer)));
}

/// The same WAL with other content in one page: every checksum in it is right.
fn with_page_changed(wal: &[u8], frame: usize) -> Vec<u8> {
    let mut wal = wal.to_vec();
    wal[32 + frame * FRAME + 24 + PAGE as usize - 1] ^= 0x55;
    let header = WalHeader::parse(wal.first_chunk().unwrap()).unwrap();
    let mut checksum = header.checksum();
    for frame in wal[32..].chunks_exact_mut(FRAME) {
        checksum = checksum.extend(header.order(), &frame[..8]).extend(header.order(), &frame[24..]);
        frame[16..20].copy_from_slice(&checksum.0.to_be_bytes());
        frame[20..24].copy_from_slice(&checksum.1.to_be_bytes());
    }
    wal
}

fn restore(objects: Objects) -> Result<(RestoreReport, Vec<u8>), RestoreError> {
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_checked(&Server::new(objects), &output, Check::Quick)?;
    Ok((report, std::fs::read(&output).unwrap()))
}

fn assert_is_not_the_source(
    result: Result<(RestoreReport, Vec<u8>), RestoreError>,
    object: Object,
    at: (usize, u64),
) {
    match result {
        Err(RestoreError::Damaged { object: found, damage: Damage::NotTheSource { at: found_at, .. } }) => {
            assert_eq!((found, found_at), (object, (index(at.0), Offset::new(at.1))));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restore_says_where_it_was_proven_equal_to_the_source() {
    let history = history();
    let (report, restored) = restore(replica(&history, &history.wals, true)).unwrap();
    let end = history.wals[1].len() as u64;
    assert_eq!(report.proven, Some(report.position));
    assert_eq!(report.position, Position::new(generation(), index(1), Offset::new(end)));
    assert_eq!(history::state_of(&restored, PAGE), state_at(&history, 1, end));
    assert!(report.to_string().contains("\nproven equal to the source at that position"), "{report}");
}

#[test]
fn a_restore_without_states_claims_no_proof() {
    let history = history();
    let (report, _) = restore(replica(&history, &history.wals, false)).unwrap();
    assert_eq!(report.proven, None);
    assert!(!report.to_string().contains("proven"), "{report}");
}

#[test]
fn what_lies_behind_the_last_state_is_not_called_proven() {
    let history = history();
    let mut objects = replica(&history, &history.wals, true);
    objects.insert(segment(1, 0).path(), encode(Style::Ours, &history.wals[1], None));
    let (report, _) = restore(objects).unwrap();
    let end = Offset::new(history.wals[0].len() as u64);
    assert_eq!(report.proven, Some(Position::new(generation(), index(0), end)));
    assert!(report.to_string().contains(&format!("equal to the source at {}", report.proven.unwrap())));
}

#[test]
fn a_replica_that_is_refused_can_be_restored_as_it_is() {
    let history = history();
    let mut wals = history.wals.clone();
    wals[1] = with_page_changed(&wals[1], (wals[1].len() - 32) / FRAME - 1);
    let objects = replica(&history, &wals, true);
    assert!(restore(objects.clone()).is_err());
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_checked(&Server::new(objects), &output, Check::None).unwrap();
    assert_eq!(report.proven, None);
}

#[test]
fn a_frame_of_another_valid_history_is_refused() {
    let history = history();
    for k in 0..2 {
        for frame in 0..(history.wals[k].len() - 32) / FRAME {
            let mut wals = history.wals.clone();
            wals[k] = with_page_changed(&wals[k], frame);
            let end = wals[k].len() as u64;
            let is_final = replayed(&history.databases[k], &wals[k], end)
                != replayed(&history.databases[k], &history.wals[k], end);
            let result = restore(replica(&history, &wals, true));
            if is_final {
                assert_is_not_the_source(result, segment(k, 0), (k, end));
            } else {
                // A later frame of the same page: what comes out is right.
                result.unwrap();
            }
        }
    }
    // Nothing but the states shows it.
    let wals = [with_page_changed(&history.wals[0], 0), history.wals[1].clone()];
    restore(replica(&history, &wals, false)).unwrap();
}

#[test]
fn a_snapshot_is_compared_with_the_source_where_it_becomes_exact() {
    let history = history();
    let last = |k: usize| (k, history.wals[k].len() as u64);
    let ends = history.ends(0);
    let places = [(0, 0), (0, ends[0]), last(0), (1, 0), (1, history.ends(1)[1]), last(1)];
    for (k, end) in places {
        let mut objects = replica(&history, &history.wals, false);
        set_snapshot_state(&history, &mut objects, (k, end), state_at(&history, k, end));
        let (report, _) = restore(objects.clone()).unwrap();
        let proven = report.proven.unwrap();
        assert_eq!((proven.index, proven.offset), (index(k), Offset::new(end)));

        let checksum = DatabaseChecksum::new(1);
        let wrong = DatabaseState { checksum, ..state_at(&history, k, end) };
        set_snapshot_state(&history, &mut objects, (k, end), wrong);
        let snapshot = Object::Snapshot { generation: generation(), index: index(0) };
        assert_is_not_the_source(restore(objects), snapshot, (k, end));
    }
}

#[test]
fn nothing_is_compared_before_the_snapshot_is_exact() {
    let history = history();
    let mut objects = replica(&history, &history.wals, true);
    // The snapshot was read while index 1 was written: its pages are those of its end already.
    let end = history.wals[1].len() as u64;
    let content = replayed(&history.databases[1], &history.wals[1], end);
    let trailer = Trailer::Snapshot(SnapshotTrailer {
        index: index(0),
        valid_from: (index(1), Offset::new(end)),
        page_size: PageSize::new(PAGE).unwrap(),
        page_count: PageCount::new(content.len() as u32 / PAGE).unwrap(),
        crc: Crc64::of(&content),
        state: None,
    });
    let path = Object::Snapshot { generation: generation(), index: index(0) }.path();
    objects.insert(path, encode(Style::Ours, &content, Some(trailer)));
    let (report, restored) = restore(objects).unwrap();
    assert_eq!(report.proven, Some(report.position));
    assert_eq!(history::state_of(&restored, PAGE), state_at(&history, 1, end));
}

#[test]
fn the_end_of_the_last_index_proves_the_whole_restore() {
    let history = history();
    let mut objects = replica(&history, &history.wals[..1], false);
    let wal = &history.wals[0];
    let end = Offset::new(wal.len() as u64);
    let crc = Crc64::of(wal);
    let trailer =
        SegmentTrailer { index: index(0), start: Offset::ZERO, end, last_of_index: true, crc, state: None };
    objects.insert(segment(0, 0).path(), encode(Style::Ours, wal, Some(Trailer::Segment(trailer))));
    set_snapshot_state(&history, &mut objects, (1, 0), state_at(&history, 1, 0));
    let (report, _) = restore(objects).unwrap();
    assert_eq!(report.proven, Some(report.position));
}

#[test]
fn an_older_snapshot_stands_in_for_one_that_is_not_the_source() {
    let history = history();
    let mut objects = replica(&history, &history.wals, true);
    let mut content = history.databases[1].clone();
    let at = content.len() - 1;
    content[at] ^= 0x55;
    let trailer = Trailer::Snapshot(SnapshotTrailer {
        index: index(1),
        valid_from: (index(1), Offset::ZERO),
        page_size: PageSize::new(PAGE).unwrap(),
        page_count: PageCount::new(content.len() as u32 / PAGE).unwrap(),
        crc: Crc64::of(&content),
        state: Some(state_at(&history, 1, 0)),
    });
    let path = Object::Snapshot { generation: generation(), index: index(1) }.path();
    objects.insert(path, encode(Style::Ours, &content, Some(trailer)));
    let folder = scratch();
    let output = folder.path().join("out.db");
    let report = restore_checked(&Server::new(objects), &output, Check::Quick).unwrap();
    assert_eq!(rows(&output), *history.newest());
    assert_eq!((report.snapshot, report.proven), (index(0), Some(report.position)));
}
