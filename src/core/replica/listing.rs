//! What a look has found, and where the replica goes on from there.

use super::super::position::Offset;
use super::super::shadow::ShadowExtent;
use super::judgement::{Finding, Judgement, is_as_left, judge_last};
use super::lengths::Lengths;
use super::tail::{Snapshot, Tail};
use super::{LastSegment, Listing, Phase, Replica, SegmentStart};

/// A shadow that grows while it is compared is looked at again so often at the most: it may have to begin, and to end.
const MOST_LOOKS_AGAIN: u32 = 3;

impl Replica {
    /// Whether there was no doubt, and everything is there as it was left.
    pub(super) fn is_confirmed_by(&self, listing: &Listing, shadow: &ShadowExtent) -> bool {
        let wanted = |index| {
            let held = self.acked.filter(|acked| acked.0 == index).map(|(_, offset)| offset);
            held.or(shadow.end_of(index))
        };
        let is_as_left = is_as_left(listing, self.last_segment, wanted);
        let is_whole = listing.is_whole() && self.are_lengths_kept(listing);
        self.is_restorable() && is_whole && is_as_left && !listing.is_older
    }

    fn are_lengths_kept(&self, listing: &Listing) -> bool {
        self.lengths.is_none_or(|lengths| lengths.are_kept_in(listing))
    }

    /// Finds the replica's place in the shadow from a listing.
    ///
    /// The last segment is in doubt (its last write may not have been answered, or may still be carried out by a
    /// stopped server process): it is written anew, from its beginning, as another file.
    pub(super) fn on_listing(&mut self, listing: &Listing, shadow: &ShadowExtent) -> Finding {
        let snapshot = match (listing.snapshot(), listing.is_older) {
            (None, _) => Snapshot::Missing,
            (Some(index), true) => Snapshot::Older { index, behind: (shadow.index, shadow.end) },
            (Some(_), false) => Snapshot::Published,
        };
        let last = listing.segments.iter().map(|(name, _)| *name).max();
        let tail = match (last, listing.snapshot()) {
            (None, None) => {
                self.phase = Phase::Empty;
                (self.acked, self.last_segment, self.lengths) = (None, None, None);
                return Finding::Nothing;
            }
            (None, Some(index)) => Tail::at(index, Offset::ZERO),
            (Some(SegmentStart { index, start }), _) => {
                let segments = listing.segments.iter().filter(|(name, _)| name.index == index).count();
                let segments = u32::try_from(segments).unwrap_or(u32::MAX).saturating_sub(1);
                Tail { replace: true, segments, ..Tail::at(index, start) }
            }
        };
        match judge_last(&tail, listing.last, shadow) {
            Judgement::Continues => {}
            // The shadow has grown since the order was made, and what it has by now was not compared.
            Judgement::LookAgain if self.looks_again < MOST_LOOKS_AGAIN => {
                self.looks_again += 1;
                return Finding::Nothing;
            }
            // It has not: its files are shorter than they were.
            Judgement::LookAgain => return Finding::Diverged,
            Judgement::Stops(finding) => return finding,
        }
        self.looks_again = 0;
        let is_whole = listing.is_whole_from(listing.snapshot().unwrap_or(shadow.index));
        if !is_whole || !self.are_lengths_kept(listing) {
            return Finding::Incomplete;
        }
        self.lengths = Lengths::of(listing);
        // What the doubtful segment holds was acknowledged; it stays in place until its successor is whole.
        // One that was written anew in larger blocks may be shorter, and hold more.
        let reaches = |acked| match listing.last {
            Some(LastSegment::Same { end: Some(end), .. }) => (tail.index, end) >= acked,
            _ => false,
        };
        if !self.last_segment.is_some_and(|last| listing.ends_with(last)) && !self.acked.is_some_and(reaches)
        {
            self.acked = Some((tail.index, tail.end));
        }
        self.phase = Phase::Streaming { tail, snapshot };
        Finding::Nothing
    }
}
