//! Whether what a replica has goes on in the shadow.

use super::super::job::LastSegment;
use super::super::position::Offset;
use super::super::shadow::ShadowExtent;
use super::Finding;
use super::tail::Tail;

/// Whether the WAL on a replica goes on in the shadow.
pub(super) enum Judgement {
    Continues,
    LookAgain,
    Stops(Finding),
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
