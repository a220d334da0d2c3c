//! What is on a replica, as types: its generations, their snapshots and their segments.
//!
//! Made from listings, without reading any object. Names that are not ours or Litestream's are left out.

use super::names::{Object, parse_segment, parse_snapshot};
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
    /// Bytes, compressed.
    pub size: u64,
    /// Seconds since 1970 by the server's clock, where it tells.
    pub modified: Option<i64>,
}

/// The objects of one generation. Invariant: snapshots are sorted by index, segments by index and start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationObjects {
    generation: Generation,
    snapshots: Vec<Snapshot>,
    segments: Vec<Segment>,
}

impl GenerationObjects {
    /// Sorts the files of a generation's two folders; other names are left out.
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
            let (index, start) = parse_segment(file.name)?;
            Some(Segment { index, start, size: file.size, modified: file.modified })
        };
        let mut snapshots: Vec<_> = snapshots.into_iter().filter_map(snapshot).collect();
        let mut segments: Vec<_> = segments.into_iter().filter_map(segment).collect();
        snapshots.sort_by_key(|snapshot| snapshot.index);
        segments.sort_by_key(|segment| (segment.index, segment.start));
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
}

/// All generations of a replica, in no order: their names are random.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// What was found in the folder of each generation.
    pub generations: Vec<GenerationObjects>,
}
