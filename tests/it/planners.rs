//! Plans from listings alone.

use crate::support::history::{index, segment};
use wal_agent::core::inventory::{GenerationObjects, Inventory, Listed};
use wal_agent::core::names::Object;
use wal_agent::core::position::{Generation, Offset};
use wal_agent::core::restore::{Note, RestoreGap, RestorePlan, Target, plan_restore};

fn generation(number: u64) -> Generation {
    Generation::from_random(number)
}

/// A generation whose objects carry these names, all written at `time`.
fn objects(number: u64, time: Option<i64>, snapshots: &[&str], segments: &[&str]) -> GenerationObjects {
    GenerationObjects::new(generation(number), listed(snapshots, time), listed(segments, time))
}

fn listed<'a>(names: &'a [&'a str], modified: Option<i64>) -> impl Iterator<Item = Listed<'a>> {
    names.iter().map(move |name| Listed { name, size: 10, modified })
}

fn plan(generations: Vec<GenerationObjects>) -> Result<RestorePlan, RestoreGap> {
    plan_restore(&Inventory { generations }, Target::Newest)
}

/// Of one generation; segments by index and offset.
fn plan_one(snapshots: &[u32], segments: &[(u32, u32)]) -> Result<RestorePlan, RestoreGap> {
    let snapshots: Vec<String> = snapshots.iter().map(|k| format!("{k:08x}.snapshot.lz4")).collect();
    let segments: Vec<String> = segments.iter().map(|(k, at)| format!("{k:08x}_{at:08x}.wal.lz4")).collect();
    let snapshots: Vec<&str> = snapshots.iter().map(String::as_str).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    plan(vec![objects(1, Some(1), &snapshots, &segments)])
}

/// The snapshot, and how many segments of which index.
fn shape(plan: &RestorePlan) -> (u32, Vec<(u32, usize)>) {
    let indexes = plan.indexes.iter().map(|index| (index.index.get(), index.segments.len()));
    (plan.snapshot.index.get(), indexes.collect())
}

fn hole(index_number: usize, found: (usize, u64)) -> RestoreGap {
    let with_generation = |object| match object {
        Object::Segment { index, start, .. } => Object::Segment { generation: generation(1), index, start },
        snapshot => snapshot,
    };
    RestoreGap::Hole {
        missing: with_generation(segment(index_number, 0)),
        found: with_generation(segment(found.0, found.1)),
    }
}

/// The snapshot, and how many segments of which index.
type Planned = (u32, Vec<(u32, usize)>);
/// Snapshots, segments, and what the plan is.
type Case<T> = (&'static [u32], &'static [(u32, u32)], T);

#[test]
fn a_plan_begins_at_the_newest_snapshot_and_takes_everything_from_there_on() {
    let cases: [Case<Planned>; 6] = [
        (&[0], &[(0, 0)], (0, vec![(0, 1)])),
        (&[0], &[(1, 0), (0, 4152), (0, 0)], (0, vec![(0, 2), (1, 1)])),
        (&[0, 2], &[(0, 0), (1, 0), (2, 0), (3, 0)], (2, vec![(2, 1), (3, 1)])),
        (&[0], &[], (0, vec![])),
        (&[0, 5], &[(0, 0), (1, 0)], (5, vec![])),
        (&[2], &[(0, 4152), (2, 0)], (2, vec![(2, 1)])),
    ];
    for (snapshots, segments, expected) in cases {
        assert_eq!(shape(&plan_one(snapshots, segments).unwrap()), expected, "{snapshots:?} {segments:?}");
    }
}

#[test]
fn a_hole_names_what_is_missing_and_what_lies_behind_it() {
    let cases: [Case<RestoreGap>; 5] = [
        (&[0], &[(0, 4152)], hole(0, (0, 4152))),
        (&[0], &[(1, 0)], hole(0, (1, 0))),
        (&[0], &[(0, 0), (2, 0)], hole(1, (2, 0))),
        (&[0], &[(0, 0), (1, 4152), (2, 0)], hole(1, (1, 4152))),
        (&[0, 1], &[(0, 0), (2, 4152)], hole(1, (2, 4152))),
    ];
    for (snapshots, segments, expected) in cases {
        assert_eq!(plan_one(snapshots, segments).unwrap_err(), expected, "{snapshots:?} {segments:?}");
    }
}

#[test]
fn nothing_and_folders_without_objects_are_no_backup() {
    assert_eq!(plan(vec![]).unwrap_err(), RestoreGap::Empty);
    assert_eq!(plan(vec![objects(1, Some(1), &[], &[])]).unwrap_err(), RestoreGap::Empty);
    assert_eq!(plan(vec![objects(1, Some(1), &["x"], &["y"])]).unwrap_err(), RestoreGap::Empty);
}

#[test]
fn segments_without_any_snapshot_are_said_to_be_that() {
    let gap = plan_one(&[], &[(0, 0)]).unwrap_err();
    assert_eq!(gap, RestoreGap::NoSnapshot { generation: generation(1) });
}

#[test]
fn foreign_names_are_left_out() {
    let snapshots = [
        "00000000.snapshot.lz4",
        "00000001.snapshot.lz4.tmp",
        "0000000A.snapshot.lz4",
        "000000001.snapshot.lz4",
        "7fffffff.snapshot.lz4",
        ".snapshot.lz4",
        "+0000001.snapshot.lz4",
    ];
    let segments = [
        "00000000_00000000.wal.lz4",
        "00000005_00000000.wal.lz4.tmp",
        "00000005-00000000.wal.lz4",
        "00000005_0000000g.wal.lz4",
        "00000005_100000000.wal.lz4",
        "00000005.wal.lz4",
        "_.wal.lz4",
        "é0000005_00000000.wal.lz4",
    ];
    let plan = plan(vec![objects(1, Some(1), &snapshots, &segments)]).unwrap();
    assert_eq!(shape(&plan), (0, vec![(0, 1)]));
    assert_eq!(plan.wanted().map(|wanted| wanted.size).collect::<Vec<_>>(), [10, 10]);
}

const SNAPSHOT: &[&str] = &["00000000.snapshot.lz4"];
const WAL: &[&str] = &["00000000_00000000.wal.lz4"];

#[test]
fn the_generation_with_the_newest_object_is_taken() {
    for (times, expected) in [([10, 20], 2), ([20, 10], 1)] {
        let generations = (1..).zip(times).map(|(number, time)| objects(number, Some(time), SNAPSHOT, WAL));
        let plan = plan(generations.collect()).unwrap();
        assert_eq!((plan.generation, plan.notes), (generation(expected), vec![]));
    }
}

#[test]
fn a_newer_generation_without_a_snapshot_does_not_hide_an_older_complete_one() {
    let generations = vec![
        objects(1, Some(10), SNAPSHOT, WAL),
        objects(2, Some(20), &[], WAL),
        objects(3, Some(30), &[], &[]),
    ];
    let plan = plan(generations).unwrap();
    assert_eq!((plan.generation, plan.notes), (generation(1), vec![Note::NoSnapshotYet(generation(2))]));
}

#[test]
fn an_older_generation_without_a_snapshot_is_not_worth_a_word() {
    let plan = plan(vec![objects(1, Some(10), SNAPSHOT, WAL), objects(2, Some(5), &[], WAL)]).unwrap();
    assert_eq!((plan.generation, plan.notes), (generation(1), vec![]));
}

#[test]
fn a_hole_in_the_newest_generation_is_not_answered_with_an_older_one() {
    let holed = objects(2, Some(20), SNAPSHOT, &["00000001_00000000.wal.lz4"]);
    let gap = plan(vec![objects(1, Some(10), SNAPSHOT, WAL), holed]).unwrap_err();
    let Object::Segment { index: found, .. } = segment(1, 0) else { unreachable!() };
    let missing = Object::Segment { generation: generation(2), index: index(0), start: Offset::ZERO };
    let found = Object::Segment { generation: generation(2), index: found, start: Offset::ZERO };
    assert_eq!(gap, RestoreGap::Hole { missing, found });
}

#[test]
fn generations_of_the_same_time_are_told_apart_by_their_beginning_or_said_to_be_equal() {
    let with_start = |number, start| {
        let file = |name, modified| Listed { name, size: 1, modified: Some(modified) };
        let (snapshot, segment) = (file(SNAPSHOT[0], start), file(WAL[0], 50));
        GenerationObjects::new(generation(number), [snapshot], [segment])
    };
    let plan_of = |first, second| plan(vec![with_start(1, first), with_start(2, second)]).unwrap();
    let later = plan_of(10, 20);
    assert_eq!((later.generation, later.notes), (generation(2), vec![]));
    let later = plan_of(20, 10);
    assert_eq!((later.generation, later.notes), (generation(1), vec![]));
    let equal = plan_of(10, 10);
    assert_eq!((equal.generation, equal.notes), (generation(2), vec![Note::SameAge(generation(1))]));
}

#[test]
fn a_generation_that_began_later_than_the_one_written_to_last_is_named() {
    let of_times = |number, snapshot, segment| {
        let file = |name, modified| Listed { name, size: 1, modified: Some(modified) };
        GenerationObjects::new(generation(number), [file(SNAPSHOT[0], snapshot)], [file(WAL[0], segment)])
    };
    let chosen = plan(vec![of_times(1, 10, 50), of_times(2, 30, 40)]).unwrap();
    assert_eq!((chosen.generation, chosen.notes), (generation(1), vec![Note::BeganLater(generation(2))]));
    let chosen = plan(vec![of_times(1, 10, 30), of_times(2, 30, 40)]).unwrap();
    assert_eq!((chosen.generation, chosen.notes), (generation(2), vec![]));
}

#[test]
fn a_server_without_times_still_restores_a_single_generation() {
    assert_eq!(shape(&plan(vec![objects(1, None, SNAPSHOT, WAL)]).unwrap()), (0, vec![(0, 1)]));
}
