//! Where the WAL on a replica ends, and what is to be done there next.

use super::super::job::{Job, SegmentStart, SentSnapshot};
use super::super::page_table::DatabaseState;
use super::super::position::{Index, Offset};
use super::super::shadow::ShadowExtent;
use std::time::{Duration, Instant};

/// A segment is sealed, and the next begun, once it holds so many bytes of WAL.
pub const SEGMENT_LENGTH: u64 = 8 << 20;
/// A segment is sealed at this age, when something new comes: Litestream's `-timestamp` sees a segment's mtime.
pub const SEGMENT_AGE: Duration = Duration::from_secs(60);
/// No more cuts by age behind this many segments of one index: Litestream's restore opens all of them at once.
const MOST_SEGMENTS_BY_AGE: u32 = 300;
/// Names have 8 digits: no segment begins at or beyond 4 GiB.
const NAMEABLE: u64 = 1 << 32;
/// Where a segment that begins at `start` is cut: behind the first commit there. Never, if none could begin then.
pub fn cut_of(start: Offset) -> Offset {
    let cut = start.plus(SEGMENT_LENGTH);
    if cut.get() < NAMEABLE { cut } else { Offset::new(u64::MAX) }
}

/// The segment that is appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenSegment {
    pub(super) name: SegmentStart,
    pub(super) length: u64,
    pub(super) opened: Instant,
}

/// Where the WAL on the replica ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) index: Index,
    pub(super) end: Offset,
    pub(super) open: Option<OpenSegment>,
    /// The last segment, sealed though its index may turn out to end there.
    pub(super) closed: Option<OpenSegment>,
    /// An object that begins at `end` is there, in doubt.
    pub(super) replace: bool,
    /// Segments of this index so far.
    pub(super) segments: u32,
    /// What the database was at `end`, where that was known.
    pub(super) state: Option<DatabaseState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshot {
    Missing,
    Sent {
        sent: SentSnapshot,
        valid_from: (Index, Offset),
        state: Option<DatabaseState>,
    },
    Published,
    /// The same, but another generation was written to later, by the server's clock.
    /// Until everything before `behind` is there, a restore of the other one gives more.
    Older {
        index: Index,
        behind: (Index, Offset),
    },
}

impl Tail {
    pub(super) fn at(index: Index, end: Offset) -> Self {
        Tail { index, end, open: None, closed: None, replace: false, segments: 0, state: None }
    }

    /// Moves the end; what the database is there is known if the shadow ended there when that was handed out.
    pub(super) fn move_to(&mut self, end: Offset, ahead: Option<(Offset, DatabaseState)>) {
        self.end = end;
        self.state = ahead.filter(|(at, _)| *at == end).map(|(_, state)| state);
    }

    /// Moves on to the next index, which there is unless the names are used up.
    pub(super) fn leave_index(&mut self) -> Option<Index> {
        let next = self.index.next()?;
        *self = Tail::at(next, Offset::ZERO);
        Some(next)
    }

    /// When the open segment is sealed though nothing new comes: what it ends with can be proven then.
    pub(super) fn seals_at(&self, shadow: &ShadowExtent) -> Option<Instant> {
        let open = self.open.filter(|_| self.state_here(shadow).is_some())?;
        (self.segments < MOST_SEGMENTS_BY_AGE && self.end.get() < NAMEABLE).then(|| open.opened + SEGMENT_AGE)
    }

    fn state_here(&self, shadow: &ShadowExtent) -> Option<DatabaseState> {
        self.state.or_else(|| shadow.state_at(self.index, self.end))
    }

    pub(super) fn seal(&self, segment: OpenSegment, last_of_index: bool, shadow: &ShadowExtent) -> Job {
        Job::Seal {
            segment: segment.name,
            length: segment.length,
            end: self.end,
            last_of_index,
            state: self.state_here(shadow),
        }
    }

    pub(super) fn open_is_full(&self, open: &OpenSegment, now: Instant) -> bool {
        let cut_by_age =
            now.saturating_duration_since(open.opened) >= SEGMENT_AGE && self.segments < MOST_SEGMENTS_BY_AGE;
        let full = self.end >= cut_of(open.name.start);
        (full || cut_by_age) && self.end.get() < NAMEABLE
    }
}

/// The next job of a replica that holds the WAL up to `tail`; moves the tail over an index boundary.
pub(super) fn next_streaming_job(
    tail: &mut Tail,
    snapshot: Snapshot,
    shadow: &ShadowExtent,
    now: Instant,
) -> Option<Job> {
    if let Snapshot::Missing = snapshot {
        return Some(Job::SendSnapshot { index: shadow.index });
    }
    if let Snapshot::Sent { sent, valid_from, state } = snapshot
        && (tail.index, tail.end) >= valid_from
    {
        let state = state.or_else(|| shadow.state_at(valid_from.0, valid_from.1));
        return Some(Job::PublishSnapshot { sent, valid_from, state });
    }
    if let Snapshot::Older { index, behind } = snapshot
        && (tail.index, tail.end) >= behind
    {
        return Some(Job::RenewSnapshot { index });
    }
    // An index that a restart ended before its first commit leaves no segment.
    let to = shadow.end_of(tail.index)?;
    let is_over = tail.index < shadow.index;
    match tail.open {
        Some(open) if tail.end == to && is_over => Some(tail.seal(open, true, shadow)),
        Some(open) if tail.end == to => {
            let is_due = tail.seals_at(shadow).is_some_and(|at| now >= at);
            is_due.then(|| tail.seal(open, false, shadow))
        }
        Some(open) if tail.open_is_full(&open, now) => Some(tail.seal(open, false, shadow)),
        Some(open) => Some(Job::Extend { segment: open.name, length: open.length, from: tail.end, to }),
        None if tail.end < to => {
            let segment = SegmentStart { index: tail.index, start: tail.end };
            let replace = tail.replace;
            let is_one_segment = is_over && to <= cut_of(tail.end);
            Some(match is_one_segment {
                true => Job::SendSealed { segment, end: to, replace, state: shadow.state_at(tail.index, to) },
                false => Job::Begin { segment, to, replace },
            })
        }
        None if is_over && tail.closed.is_some() => tail.closed.map(|closed| tail.seal(closed, true, shadow)),
        None if is_over => {
            tail.leave_index()?;
            next_streaming_job(tail, snapshot, shadow, now)
        }
        None => None,
    }
}
