//! Which objects bring a database back, in which order, or exactly which one is missing for that.
//!
//! Judges names and times only. That segments follow each other without a hole, only their contents tell.

use super::inventory::{GenerationObjects, Inventory, Segment, Snapshot};
use super::names::Object;
use super::position::{Generation, Index, Offset};

/// The state to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Everything the replica has.
    Newest,
}

/// What a restored database is compared with before it gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// `PRAGMA quick_check`: structure, without comparing indexes with their tables.
    #[default]
    Quick,
    /// `PRAGMA integrity_check`: everything SQLite can check.
    Full,
    /// Neither SQLite nor what the source was: for a replica that would be refused. The checksums of the WAL and of the
    /// objects are verified all the same.
    None,
}

/// One WAL of a plan, and its segments in order. Invariant: the first begins at offset 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedIndex {
    /// Which WAL.
    pub index: Index,
    /// Its segments, by start.
    pub segments: Vec<Segment>,
}

/// A snapshot and the WALs to replay on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// The history to restore.
    pub generation: Generation,
    /// Where to begin.
    pub snapshot: Snapshot,
    /// What to replay: without a gap, and from the snapshot's own index if there is any.
    pub indexes: Vec<PlannedIndex>,
    /// What somebody who restores should know about the choice.
    pub notes: Vec<Note>,
}

/// An object to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub object: Object,
    /// Where it is, below the replica's path.
    pub path: String,
    /// Bytes as listed.
    pub size: u64,
}

impl RestorePlan {
    /// What to fetch, in order.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        let snapshot = self.snapshot.object(self.generation);
        let first = Wanted { object: snapshot, path: snapshot.path(), size: self.snapshot.size };
        let segments = self.indexes.iter().flat_map(|index| &index.segments).map(|segment| Wanted {
            object: segment.object(self.generation),
            path: segment.path(self.generation),
            size: segment.size,
        });
        std::iter::once(first).chain(segments)
    }
}

/// Something that did not stop a restore, but is worth saying.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// A generation which has newer objects, but no snapshot yet.
    #[error("generation {0} is newer, but has no snapshot yet; this is the newest complete one")]
    NoSnapshotYet(Generation),
    /// Two generations whose times are the same.
    #[error("generation {0} is as new as the one restored, as far as the server's times tell")]
    SameAge(Generation),
    /// A generation whose snapshot is later than that of the one which was written to last.
    #[error(
        "generation {0} began later, and yet this one was written to last: if the database was replaced or restored since \
         this one began, restore again in two minutes, while the agent runs"
    )]
    BeganLater(Generation),
    /// A snapshot that could not be used; an older one was taken.
    #[error("{} was passed over: {reason}", snapshot.path())]
    PassedOver {
        /// The snapshot.
        snapshot: Object,
        /// Why.
        reason: String,
    },
    /// More or something else than one WAL restart between two indexes, as after `wal_checkpoint(TRUNCATE)`.
    #[error(
        "the WAL was truncated or created anew before index {first} ({count} times in all); \
         there the salts do not show that nothing is missing"
    )]
    SaltsJumped {
        /// The first index whose salts do not continue those before it.
        first: Index,
        /// How many there are.
        count: u32,
    },
    /// Bytes behind the end of the last segment.
    #[error("{} has {bytes} bytes behind its end: an append that did not finish, left out", object.path())]
    Unfinished {
        /// The segment.
        object: Object,
        /// How many.
        bytes: u64,
    },
}

/// Why there is nothing to restore, or which object is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreGap {
    /// Not one snapshot or segment.
    #[error("there is no backup: no generation with a snapshot or a segment")]
    Empty,
    /// Segments, but nothing to replay them on.
    #[error("generation {generation} has no snapshot, and no other generation has one")]
    NoSnapshot {
        /// The newest one.
        generation: Generation,
    },
    /// A hole in the newest generation.
    #[error("{} is missing, but {} is there: what lies behind the hole cannot be restored", missing.path(), found.path())]
    Hole {
        /// The first object that is missing.
        missing: Object,
        /// The next object that is there.
        found: Object,
    },
}

/// Plans the restore of the newest generation that has a snapshot.
///
/// # Errors
/// A hole in that generation is an error, and not a reason to take an older one: that would lose commits silently.
pub fn plan_restore(inventory: &Inventory, target: Target) -> Result<RestorePlan, RestoreGap> {
    let Target::Newest = target;
    let mut notes = Vec::new();
    let newest_first = newest_first(inventory);
    for (at, objects) in newest_first.iter().enumerate() {
        let Some(&snapshot) = objects.snapshots().last() else {
            notes.push(Note::NoSnapshotYet(objects.generation()));
            continue;
        };
        let same_age =
            |other: &&&GenerationObjects| age(other) == age(objects) && !other.snapshots().is_empty();
        let twins = newest_first.iter().skip(at + 1).filter(same_age);
        notes.extend(twins.map(|twin| Note::SameAge(twin.generation())));
        let is_later = |other: &&&GenerationObjects| last_snapshot(other) > last_snapshot(objects);
        let later = newest_first.iter().skip(at + 1).filter(is_later);
        notes.extend(later.map(|other| Note::BeganLater(other.generation())));
        let indexes = chain(objects, snapshot.index)?;
        return Ok(RestorePlan { generation: objects.generation(), snapshot, indexes, notes });
    }
    Err(newest_first
        .first()
        .map_or(RestoreGap::Empty, |objects| RestoreGap::NoSnapshot { generation: objects.generation() }))
}

/// When it was written, by the server's clock.
fn last_snapshot(objects: &GenerationObjects) -> Option<i64> {
    objects.snapshots().iter().filter_map(|snapshot| snapshot.modified).max()
}

/// By the newest object; where that is the same, the one that began later.
fn age(objects: &GenerationObjects) -> (Option<i64>, Option<i64>) {
    (objects.newest(), objects.oldest())
}

/// Generations that have any object. Times decide, since names are random; names only make the order certain.
fn newest_first(inventory: &Inventory) -> Vec<&GenerationObjects> {
    let mut generations: Vec<_> = inventory.generations.iter().filter(|g| !g.is_empty()).collect();
    generations.sort_by_cached_key(|objects| {
        std::cmp::Reverse((objects.newest(), objects.oldest(), objects.generation().to_string()))
    });
    generations
}

/// The WALs from `first` on, each beginning at offset 0, none missing in between.
fn chain(objects: &GenerationObjects, first: Index) -> Result<Vec<PlannedIndex>, RestoreGap> {
    let segments: Vec<Segment> =
        objects.segments().iter().filter(|segment| segment.index >= first).copied().collect();
    if let Some(hole) = first_hole(first, segments.iter().map(|s| (s.index, s.start))) {
        let generation = objects.generation();
        let (index, start) = hole.found;
        let missing = Object::Segment { generation, index: hole.expected, start: Offset::ZERO };
        return Err(RestoreGap::Hole { missing, found: Object::Segment { generation, index, start } });
    }
    let of_index =
        |segments: &[Segment]| PlannedIndex { index: segments[0].index, segments: segments.to_vec() };
    Ok(segments.chunk_by(|a, b| a.index == b.index).map(of_index).collect())
}

/// What a listing shows to be missing.
pub(super) struct Hole {
    /// The WAL whose beginning is missing.
    expected: Index,
    /// The segment behind it that is there.
    found: (Index, Offset),
}

/// The first hole in segments that are to begin with WAL `first`; they are in order.
pub(super) fn first_hole(first: Index, segments: impl Iterator<Item = (Index, Offset)>) -> Option<Hole> {
    let mut last: Option<Index> = None;
    for found in segments {
        if last == Some(found.0) {
            continue;
        }
        let expected = last.map_or(first, |last| last.next().unwrap_or(found.0));
        if found != (expected, Offset::ZERO) {
            return Some(Hole { expected, found });
        }
        last = Some(found.0);
    }
    None
}
