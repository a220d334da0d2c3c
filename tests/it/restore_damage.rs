//! Damaged replicas: a restore fails, or gives a committed state and says if it is not the newest. Never wrong rows.

use crate::support::history::{
    History, Objects, Rows, Style, generation, index, rows, scratch, segment, with_salt,
};
use crate::support::memory::{Server, restore_from};
use wal_agent::core::names::Object;
use wal_agent::core::restore::RestoreGap;
use wal_agent::core::wal::Salt;
use wal_agent::restore::{Damage, RestoreError, RestoreReport};

const STYLES: [Style; 2] = [Style::Ours, Style::Litestream];

/// SQLite is not asked: everything here must be found by us.
fn try_restore(objects: Objects) -> Result<(RestoreReport, Rows), RestoreError> {
    let folder = scratch();
    let output = folder.path().join("out.db");
    let result = restore_from(&Server::new(objects), &output);
    if result.is_err() {
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a failed restore leaves nothing");
    }
    result.map(|report| (report, rows(&output)))
}

/// Fails unless a restore of `objects` fails, or gives the newest rows, or older ones and says so.
fn never_wrong(history: &History, objects: Objects, may_be_silent: bool, what: &str) {
    let Ok((report, rows)) = try_restore(objects) else { return };
    assert!(history.knows(&rows), "{what}: wrong rows");
    let said = report.cut.is_some() || !report.notes.is_empty();
    assert!(rows == *history.newest() || said || may_be_silent, "{what}: silently short");
}

fn small(style: Style) -> (History, Objects) {
    let history = History::new(512, &[2, 3], 60);
    let objects = history.objects(style, 2);
    (history, objects)
}

#[test]
fn no_flipped_byte_of_any_object_gives_wrong_rows() {
    for style in STYLES {
        let (history, objects) = small(style);
        let last = objects.keys().next_back().unwrap();
        for (path, bytes) in &objects {
            for at in 0..bytes.len() {
                let bits = if path == last { 0..8 } else { at % 8..at % 8 + 1 };
                for bit in bits {
                    let mut damaged = objects.clone();
                    damaged.get_mut(path).unwrap()[at] ^= 1 << bit;
                    never_wrong(&history, damaged, false, &format!("{style:?} {path} byte {at} bit {bit}"));
                }
            }
        }
    }
}

#[test]
fn no_length_of_any_object_gives_wrong_rows() {
    for style in STYLES {
        let (history, objects) = small(style);
        let last = objects.keys().next_back().unwrap().clone();
        for (path, bytes) in &objects {
            for length in 0..bytes.len() {
                let mut damaged = objects.clone();
                damaged.get_mut(path).unwrap().truncate(length);
                let what = format!("{style:?} {path} cut to {length}");
                never_wrong(&history, damaged.clone(), false, &what);
                if *path == last {
                    let (report, rows) = try_restore(damaged).unwrap();
                    assert!(report.cut.unwrap().torn, "{what}");
                    assert!(rows == *history.newest() || rows == history.states[3].rows, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_cut_that_is_not_at_the_very_end_names_the_segment() {
    for style in STYLES {
        let (_, mut objects) = small(style);
        let path = segment(0, 0).path();
        objects.get_mut(&path).unwrap().truncate(30);
        let error = try_restore(objects).unwrap_err();
        let expected = |error: &RestoreError| matches!(error, RestoreError::Damaged { object, damage: Damage::CutShort } if object.path() == path);
        assert!(expected(&error), "{error}");
    }
}

#[test]
fn a_changed_block_length_at_the_end_is_damage_and_not_a_cut() {
    for style in STYLES {
        let (_, objects) = small(style);
        let (path, bytes) = objects.iter().next_back().unwrap();
        for bit in 0..31 {
            let mut damaged = objects.clone();
            let length = u32::from_le_bytes(bytes[7..11].try_into().unwrap()) ^ (1 << bit);
            damaged.get_mut(path).unwrap()[7..11].copy_from_slice(&length.to_le_bytes());
            let error = try_restore(damaged).unwrap_err();
            assert!(matches!(error, RestoreError::Damaged { .. }), "{style:?} bit {bit}: {error}");
        }
    }
}

#[test]
fn a_missing_segment_is_named() {
    for style in STYLES {
        let history = History::new(512, &[4, 3], 300);
        let objects = history.objects(style, 1);
        let ends = history.ends(0);
        for (start, found) in [(0, segment(0, ends[0])), (ends[0], segment(0, ends[1]))] {
            let mut holed = objects.clone();
            holed.remove(&segment(0, start).path());
            let error = try_restore(holed).unwrap_err();
            let hole = RestoreGap::Hole { missing: segment(0, start), found };
            assert!(matches!(&error, RestoreError::Gap(gap) if *gap == hole), "{error}");
        }
    }
}

#[test]
fn the_missing_end_of_an_index_is_seen_where_segments_are_sealed() {
    let history = History::new(512, &[4, 3], 300);
    let mut objects = history.objects(Style::Ours, 1);
    let ends = history.ends(0);
    objects.remove(&segment(0, ends[2]).path());
    let error = try_restore(objects).unwrap_err();
    let hole = RestoreGap::Hole { missing: segment(0, ends[2]), found: segment(1, 0) };
    assert!(matches!(&error, RestoreError::Gap(gap) if *gap == hole), "{error}");
}

#[test]
fn an_index_inside_the_history_must_end_with_a_commit() {
    let history = History::new(512, &[2, 2], 2000);
    let mut objects = history.objects(Style::Litestream, 5);
    let wal = &history.wals[0];
    let cut = crate::support::history::encode(Style::Litestream, &wal[..wal.len() - 536], None);
    objects.insert(segment(0, 0).path(), cut);
    let error = try_restore(objects).unwrap_err();
    assert!(matches!(error, RestoreError::Damaged { damage: Damage::NoCommit, .. }), "{error}");
}

#[test]
fn no_mutation_of_a_replica_gives_wrong_rows() {
    for style in STYLES {
        let history = History::new(512, &[3, 2, 3], 200);
        for commits in [1, 3] {
            let mut objects = history.objects(style, commits);
            if style == Style::Ours {
                history.add_snapshot(&mut objects, style, 1);
            }
            for (what, mutated, may_be_silent) in mutations(&objects) {
                if style == Style::Litestream && ends_an_index(&history, &what) {
                    continue;
                }
                never_wrong(&history, mutated, may_be_silent, &format!("{style:?}: {what}"));
            }
        }
    }
}

/// Litestream marks no end of an index: without its last segment, an index just looks shorter.
fn ends_an_index(history: &History, what: &str) -> bool {
    (0..history.wals.len() - 1).any(|k| {
        let ends = history.ends(k);
        ends.iter().any(|&end| what == format!("delete {}", segment(k, end).path()))
    })
}

/// What, the replica after it, and whether nobody can know that it is shorter than it was.
fn mutations(objects: &Objects) -> Vec<(String, Objects, bool)> {
    let last = objects.keys().next_back().unwrap();
    let with = |path: &str, bytes: Vec<u8>| {
        let mut replica = objects.clone();
        replica.insert(path.to_owned(), bytes);
        replica
    };
    let mut all = Vec::new();
    for (path, bytes) in objects {
        let mut deleted = objects.clone();
        deleted.remove(path);
        all.push((format!("delete {path}"), deleted, path == last));
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let zero_tail = [first, &vec![0; second.len()]].concat();
        all.push((format!("empty {path}"), with(path, Vec::new()), false));
        all.push((format!("halve {path}"), with(path, first.to_vec()), false));
        all.push((format!("zero {path}"), with(path, vec![0; bytes.len()]), false));
        all.push((format!("zero the second half of {path}"), with(path, zero_tail), false));
        for (other, other_bytes) in objects.iter().filter(|(other, _)| *other != path) {
            let copied = with(path, other_bytes.clone());
            let mut exchanged = copied.clone();
            exchanged.insert(other.clone(), bytes.clone());
            all.push((format!("copy {other} over {path}"), copied, false));
            all.push((format!("exchange {path} and {other}"), exchanged, false));
        }
    }
    all
}

#[test]
fn a_snapshot_that_nothing_vouches_for_is_refused() {
    let (history, mut objects) = small(Style::Ours);
    let snapshot = Object::Snapshot { generation: generation(), index: index(0) };
    objects
        .insert(snapshot.path(), crate::support::history::encode(Style::Ours, &history.databases[0], None));
    let error = try_restore(objects).unwrap_err();
    assert!(matches!(error, RestoreError::Damaged { damage: Damage::Unverifiable, .. }), "{error}");
}

/// An application that is started thousands of times has as many WALs with random salts. Some of them follow on one that
/// is a little larger.
#[test]
fn a_salt_that_goes_back_by_chance_is_no_damage_where_trailers_say_which_index_it_is() {
    let mut history = History::new(512, &[2, 2, 2, 2], 60);
    for (k, wal) in (0..).zip(&mut history.wals) {
        *wal = with_salt(wal, Salt(1000 - k, 7 + k));
    }
    let (_, restored) = try_restore(history.objects(Style::Ours, 2)).unwrap();
    assert_eq!(restored, *history.newest());
    let error = try_restore(history.objects(Style::Litestream, 2)).unwrap_err();
    assert!(matches!(error, RestoreError::Damaged { damage: Damage::OutOfOrder, .. }), "{error}");
}

#[test]
fn a_wal_that_was_there_before_is_refused_wherever_it_stands() {
    let history = History::new(512, &[2, 2, 2], 60);
    for style in STYLES {
        let mut objects = history.objects(style, 2);
        // The last segment is open: it has no trailer.
        let last = objects[&segment(2, 0).path()].clone();
        objects.insert(segment(0, 0).path(), last);
        let error = try_restore(objects).unwrap_err();
        assert!(matches!(error, RestoreError::Damaged { damage: Damage::OutOfOrder, .. }), "{error}");
    }
}
