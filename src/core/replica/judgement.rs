//! Whether what a replica has goes on in the shadow, and what is to be done if not.

use super::super::job::{LastSegment, Listing, SegmentStart};
use super::super::position::{Index, Offset, Position};
use super::super::shadow::ShadowExtent;
use super::tail::Tail;

/// What a turn of a replica calls for beside a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing.
    Nothing,
    /// The replica holds less than it had acknowledged; it is sent again from here.
    Rewound {
        /// What it had acknowledged.
        from: Position,
        /// What it holds for certain.
        to: Position,
    },
    /// The replica's WAL does not continue in the shadow: a new generation must begin.
    Diverged,
    /// The replica has lost a part of what it had, which the shadow does not have any more: a new generation must begin.
    Incomplete,
    /// The replica holds more than the shadow: a new generation must begin, if the shadow is not only about to catch up.
    /// Until then nothing is sent, for it would take the place of what was acknowledged.
    Ahead,
    /// As [`Activity::Superseded`], for the first time.
    Superseded,
    /// The shadow WAL is damaged: a new generation must begin.
    ShadowDamaged,
}

impl Finding {
    /// Why nothing can be sent before a new generation has begun, where a look has found that.
    pub(super) fn halt(&self) -> Option<&'static str> {
        match self {
            Finding::Ahead => Some("it holds more than is in the shadow WAL by now"),
            Finding::Diverged => {
                Some("what it holds does not go on in the shadow WAL: a new generation is to begin")
            }
            Finding::Incomplete => Some("a part of what it held is missing: a new generation is to begin"),
            Finding::Nothing | Finding::Rewound { .. } | Finding::Superseded | Finding::ShadowDamaged => None,
        }
    }
}

/// Whether the WAL on a replica goes on in the shadow.
pub(super) enum Judgement {
    Continues,
    LookAgain,
    Stops(Finding),
}

/// Whether the last segment is the one that was `written` last, and holds its WAL up to what is `wanted` of that index.
pub(super) fn is_as_left(
    listing: &Listing,
    written: Option<(SegmentStart, u64)>,
    wanted: impl FnOnce(Index) -> Option<Offset>,
) -> bool {
    match (written, listing.last) {
        (None, None) => true,
        // A trailer makes it longer.
        (Some(last), Some(LastSegment::Same { end, .. })) => {
            listing.ends_with(last) && end.is_none_or(|end| Some(end) >= wanted(last.0.index))
        }
        _ => false,
    }
}

/// Judges where the replica's WAL is to go on: at `tail`, where its `last` segment is written anew, if there is one.
pub(super) fn judge_last(tail: &Tail, last: Option<LastSegment>, shadow: &ShadowExtent) -> Judgement {
    let ours = shadow.end_of(tail.index);
    let is_reached = |end: Offset| ours.is_some_and(|ours| end <= ours);
    match last {
        None if is_reached(tail.end) => Judgement::Continues,
        None | Some(LastSegment::Other) => Judgement::Stops(Finding::Diverged),
        // Its shadow is not kept any more, so that nothing tells.
        Some(_) if ours.is_none() && tail.index < shadow.index => Judgement::Stops(Finding::Diverged),
        Some(LastSegment::Unreached) if ours.is_some_and(|ours| tail.end < ours) => Judgement::LookAgain,
        // As after a power cut that took what was not durable here.
        Some(LastSegment::Unreached) => Judgement::Stops(Finding::Ahead),
        Some(LastSegment::Same { end: Some(theirs), .. }) if !is_reached(theirs) => {
            Judgement::Stops(Finding::Ahead)
        }
        Some(LastSegment::Same { compared, end: Some(theirs) }) if compared < theirs => Judgement::LookAgain,
        Some(LastSegment::Same { .. }) => Judgement::Continues,
    }
}
