//! What is on a replica, as types: its generations, their snapshots and their segments.
//!
//! Made from listings, without reading any object. Names that are not ours or Litestream's are left out.

use super::names::{Object, parse_segment, parse_set_aside, parse_snapshot};
use super::position::{Generation, Index, Offset};

/// One file of a listing, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The last part of its path.
    pub name: &'a str,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970 by the server's clock, where it tells.
    pub modified: Option<i64>,
}

/// A snapshot on a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The WAL to replay on it, from offset 0.
    pub index: Index,
    /// Bytes, compressed.
    pub size: u64,
    /// Seconds since 1970 by the server's clock, where it tells.
    pub modified: Option<i64>,
}

/// A segment on a replica. Where it ends, only its content or its trailer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The WAL it is a part of.
    pub index: Index,
    /// Where in that WAL it begins.
    pub start: Offset,
    /// The attempt that set it aside to replace it, and has not done so yet.
    pub set_aside: Option<u64>,
    /// Bytes, compressed.
    pub size: u64,
    /// Seconds since 1970 by the server's clock, where it tells.
    pub modified: Option<i64>,
}

/// The objects of one generation. Invariant: snapshots are sorted by index, segments by index and start, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationObjects {
    generation: Generation,
    snapshots: Vec<Snapshot>,
    segments: Vec<Segment>,
}

impl GenerationObjects {
    /// Sorts the files of a generation's two folders; other names are left out. A segment that was set aside stands in
    /// for itself while there is none under its name: it holds what was acknowledged.
    pub fn new<'a>(
        generation: Generation,
        snapshots: impl IntoIterator<Item = Listed<'a>>,
        segments: impl IntoIterator<Item = Listed<'a>>,
    ) -> Self {
        let snapshot = |file: Listed| {
            let index = parse_snapshot(file.name)?;
            Some(Snapshot { index, size: file.size, modified: file.modified })
        };
        let segment = |file: Listed| {
            let set_aside = parse_set_aside(file.name);
            let (index, start) = parse_segment(set_aside.map_or(file.name, |(name, _)| name))?;
            let set_aside = set_aside.map(|(_, attempt)| attempt);
            Some(Segment { index, start, set_aside, size: file.size, modified: file.modified })
        };
        let mut snapshots: Vec<_> = snapshots.into_iter().filter_map(snapshot).collect();
        let mut segments: Vec<_> = segments.into_iter().filter_map(segment).collect();
        snapshots.sort_by_key(|snapshot| snapshot.index);
        // What is under its own name comes first; of several that were set aside, the longest holds the most.
        segments.sort_by_key(|s| (s.index, s.start, s.set_aside.is_some(), std::cmp::Reverse(s.size)));
        segments.dedup_by_key(|segment| (segment.index, segment.start));
        GenerationObjects { generation, snapshots, segments }
    }

    /// The history these objects belong to.
    pub fn generation(&self) -> Generation {
        self.generation
    }
    /// Its snapshots, by index.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }
    /// Its segments, by index and start.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    /// Whether there is no object at all.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.segments.is_empty()
    }
    /// When its newest object was written, by the server's clock, where it tells.
    pub fn newest(&self) -> Option<i64> {
        self.times().max()
    }
    /// When its oldest object was written, by the server's clock, where it tells.
    pub fn oldest(&self) -> Option<i64> {
        self.times().min()
    }

    /// Forgets a snapshot which turned out to be of no use.
    pub fn remove_snapshot(&mut self, index: Index) {
        self.snapshots.retain(|snapshot| snapshot.index != index);
    }

    /// Leaves out segments behind a position, unless the newest snapshot is behind it, too.
    fn cut_behind(&mut self, last: (Index, Offset)) {
        if self.snapshots.last().is_none_or(|snapshot| snapshot.index <= last.0) {
            self.segments.retain(|segment| (segment.index, segment.start) <= last);
        }
    }

    fn times(&self) -> impl Iterator<Item = i64> {
        let snapshots = self.snapshots.iter().filter_map(|snapshot| snapshot.modified);
        snapshots.chain(self.segments.iter().filter_map(|segment| segment.modified))
    }
}

impl Snapshot {
    /// Its name in a generation.
    pub fn object(&self, generation: Generation) -> Object {
        Object::Snapshot { generation, index: self.index }
    }
}

impl Segment {
    /// Its name in a generation.
    pub fn object(&self, generation: Generation) -> Object {
        Object::Segment { generation, index: self.index, start: self.start }
    }

    /// The path it is found at, below the replica's.
    pub fn path(&self, generation: Generation) -> String {
        let object = self.object(generation);
        self.set_aside.map_or_else(|| object.path(), |attempt| object.set_aside_path(attempt))
    }
}

/// All generations of a replica, in no order: their names are random.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// What was found in the folder of each generation.
    pub generations: Vec<GenerationObjects>,
}

impl Inventory {
    /// Leaves out the segments behind those that an `earlier` listing has. A listing lacks any of the segments that are made
    /// while it goes on, and may have later ones; what the one before it has, was there when it began, and all that was
    /// made before that.
    #[must_use]
    pub fn up_to(mut self, earlier: &Inventory) -> Inventory {
        for objects in &mut self.generations {
            let same = |other: &&GenerationObjects| other.generation == objects.generation;
            let last = earlier.generations.iter().find(same).and_then(|other| other.segments.last());
            if let Some(last) = last {
                objects.cut_behind((last.index, last.start));
            }
        }
        self
    }
}
