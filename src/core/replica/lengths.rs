//! How long what a replica holds must be at the least: what is complete there never becomes shorter by itself.

use super::super::job::{Listing, SegmentStart};
use super::super::position::Index;

/// The lengths of a generation's snapshot and of its segments, as they were acknowledged, or found by a look of this run.
/// Of the segments that are complete, the sum will do: none of them ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// The index of the snapshot.
    first: Index,
    /// Its length, once it has its name.
    snapshot: Option<u64>,
    /// Bytes of all segments from the snapshot's index on, without the last one.
    complete: u64,
    last: Option<(SegmentStart, u64)>,
}

impl Lengths {
    /// Those of a snapshot that has no name yet, and no WAL.
    pub(super) fn beginning(first: Index) -> Lengths {
        Lengths { first, snapshot: None, complete: 0, last: None }
    }

    /// Those of what was listed; `None` without a snapshot.
    pub(super) fn of(listing: &Listing) -> Option<Lengths> {
        let &(first, length) = listing.snapshots.iter().max()?;
        let last = listing.segments.iter().max().copied();
        let complete = last.map_or(0, |(last, _)| sum(listing, first, last));
        Some(Lengths { first, snapshot: Some(length), complete, last })
    }

    /// The snapshot has its name.
    pub(super) fn on_published(&mut self, length: u64) {
        self.snapshot = Some(length);
    }

    /// A segment was written, up to this length. The one before it is complete.
    pub(super) fn on_written(&mut self, segment: SegmentStart, length: u64) {
        let before = self.last.filter(|(last, _)| *last < segment && last.index >= self.first);
        self.complete += before.map_or(0, |(_, length)| length);
        self.last = Some((segment, length));
    }

    /// Whether nothing that is listed was cut short. What is not listed, others miss.
    pub fn are_kept_in(&self, listing: &Listing) -> bool {
        let Some(&(_, length)) = listing.snapshots.iter().find(|(index, _)| *index == self.first) else {
            return true;
        };
        let is_there =
            |(last, _): &(SegmentStart, u64)| listing.segments.iter().any(|(name, _)| name >= last);
        let complete = self.last.filter(is_there).map(|(last, _)| sum(listing, self.first, last));
        self.snapshot.is_none_or(|least| length >= least)
            && complete.is_none_or(|there| there >= self.complete)
    }
}

/// Bytes of the segments from the index `first` on, before `last`.
fn sum(listing: &Listing, first: Index, last: SegmentStart) -> u64 {
    let complete = listing.segments.iter().filter(|(name, _)| name.index >= first && *name < last);
    complete.map(|(_, length)| length).sum()
}
