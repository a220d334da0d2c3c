//! What a worker is asked to do on a replica, and what it answers.

use super::page_table::DatabaseState;
use super::position::{Index, Offset};
use super::restore::first_hole;
use super::segment::{EMPTY_LENGTH, SnapshotTrailer};

/// A segment by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentStart {
    /// The WAL it is a part of.
    pub index: Index,
    /// Its first byte.
    pub start: Offset,
}

/// What a worker is to do on the replica. Workers only carry: everything they need is here. What they remember, they could
/// read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// List what the replica holds of the generation, ask when others were written last, and touch nothing.
    Survey,
    /// List what the replica holds of the generation, and remove its unfinished objects.
    Look {
        /// The segment that this run has written last, with its length on the replica then. If the last one there is just
        /// that, its beginning is compared with the shadow; otherwise all of it, and it is found out where the WAL in it ends.
        written: Option<(SegmentStart, u64)>,
    },
    /// Stream the database file to the temporary name of a snapshot.
    SendSnapshot {
        /// The WAL that is to be replayed on it.
        index: Index,
    },
    /// Complete a snapshot with its trailer and give it its name.
    PublishSnapshot {
        /// What was sent.
        sent: SentSnapshot,
        /// Everything up to here is acknowledged.
        valid_from: (Index, Offset),
        /// What the database was there.
        state: Option<DatabaseState>,
    },
    /// Give a published snapshot a later time: a restore takes the generation that was written to last.
    RenewSnapshot {
        /// Its index.
        index: Index,
    },
    /// Write a new segment, whole, under a temporary name, and give it its name.
    Begin {
        /// Its name.
        segment: SegmentStart,
        /// Where the shadow ends; the segment is cut at the first commit beyond [`SEGMENT_LENGTH`](super::replica::SEGMENT_LENGTH).
        to: Offset,
        /// Whether an object of that name is there, in doubt, and is to be removed.
        replace: bool,
    },
    /// Write all that is left of an index that is over, as one segment, sealed.
    SendSealed {
        /// Its name.
        segment: SegmentStart,
        /// Where the index ends.
        end: Offset,
        /// As with `Begin`.
        replace: bool,
        /// What the database was there.
        state: Option<DatabaseState>,
    },
    /// Append to the open segment.
    Extend {
        /// Its name.
        segment: SegmentStart,
        /// Its length on the replica.
        length: u64,
        /// What it holds so far.
        from: Offset,
        /// Where the shadow ends; the segment is cut as with `Begin`.
        to: Offset,
    },
    /// Write the trailer of a segment that is complete.
    Seal {
        /// Its name.
        segment: SegmentStart,
        /// Its length on the replica.
        length: u64,
        /// Where its content ends.
        end: Offset,
        /// Whether its WAL ends there, too.
        last_of_index: bool,
        /// What the database was there.
        state: Option<DatabaseState>,
    },
}

impl Job {
    /// Whether it belongs to the thread for snapshots of its destination, and not to the one for the WAL.
    pub fn is_of_snapshots(&self) -> bool {
        match self {
            Job::SendSnapshot { .. } | Job::PublishSnapshot { .. } | Job::Survey => true,
            Job::Look { .. }
            | Job::RenewSnapshot { .. }
            | Job::Begin { .. }
            | Job::SendSealed { .. }
            | Job::Extend { .. }
            | Job::Seal { .. } => false,
        }
    }
}

/// A snapshot that is on the replica under its temporary name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentSnapshot {
    /// Which attempt it was, for its temporary name.
    pub attempt: u64,
    /// Its length on the replica, EndMark included.
    pub length: u64,
    /// What its trailer will say, but for `valid_from`.
    pub trailer: SnapshotTrailer,
}

/// A listing of one generation on the replica.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The indexes of its snapshots, and their lengths on the replica.
    pub snapshots: Vec<(Index, u64)>,
    /// Its segments and their lengths on the replica.
    pub segments: Vec<(SegmentStart, u64)>,
    /// What the last segment is; `None` if there is none.
    pub last: Option<LastSegment>,
    /// Whether another generation was written to that is not older by the server's clock, so that a restore may take it.
    pub is_older: bool,
}

/// What is on a replica beside what is in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Of the generation, without the last segment's content.
    pub listing: Listing,
    /// When anything of it was last written, in seconds since 1970 by the server's clock.
    pub ours: Option<i64>,
    /// The same of the other generations that a restore could take, as far as they were looked into.
    pub others: Option<i64>,
}

impl Surveyed {
    /// The present snapshot, if a restore would take another generation.
    pub fn superseded(&self) -> Option<Index> {
        self.listing.snapshot().filter(|_| self.others.is_some() && self.others >= self.ours)
    }
}

impl Listing {
    /// Whether the last segment is `name`, of at least this length.
    pub fn ends_with(&self, (name, length): (SegmentStart, u64)) -> bool {
        self.segments.iter().max().is_some_and(|&(last, listed)| last == name && listed >= length)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<Index> {
        self.snapshots.iter().map(|(index, _)| *index).max()
    }

    /// Whether there is a snapshot, and everything behind it, as [`Listing::is_whole_from`] tells.
    pub fn is_whole(&self) -> bool {
        self.snapshot().is_some_and(|first| self.is_whole_from(first))
    }

    /// Whether everything from WAL `first` on is there, as far as names and lengths tell. A server that lost power may have
    /// kept a name, and nothing of what was written under it. The last segment is compared with the shadow.
    pub fn is_whole_from(&self, first: Index) -> bool {
        let mut segments: Vec<_> = self.segments.iter().filter(|(name, _)| name.index >= first).collect();
        segments.sort();
        let is_empty = |(_, length): &&(SegmentStart, u64)| *length <= EMPTY_LENGTH;
        let before_last = segments.split_last().map_or(&[][..], |(_, before)| before);
        let starts = segments.iter().map(|(name, _)| (name.index, name.start));
        !before_last.iter().any(is_empty) && first_hole(first, starts).is_none()
    }
}

/// The last segment on a replica beside the shadow of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSegment {
    /// The same as far as both were compared.
    Same {
        /// Where that ends.
        compared: Offset,
        /// Where the WAL in the segment ends, if that was asked.
        end: Option<Offset>,
    },
    /// Of another history, or of one that nobody can compare it with any more.
    Other,
    /// The shadow did not reach its beginning when it was looked at.
    Unreached,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people: what, where, why.
    pub message: String,
    /// What decides about the next try.
    pub cause: FailureCause,
}

/// Why a job failed, as far as it decides about the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// The server could not be reached, or did not answer in time.
    Disconnected,
    /// Another job had just found that the server cannot be reached, and so it was not tried.
    NotTried,
    /// The shadow WAL itself could not be read, or was not valid: trying again will not help.
    ShadowDamaged,
    /// The disk failed to read the shadow WAL.
    ShadowUnreadable,
    /// Anything else.
    Other,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What `Survey` found.
    Surveyed(Result<Surveyed, Failure>),
    /// What `Look` found.
    Found(Listing),
    /// `SendSnapshot` has read and sent everything.
    SnapshotSent(SentSnapshot),
    /// The snapshot has its name.
    SnapshotPublished {
        /// As in [`Listing`].
        is_older: bool,
    },
    /// The snapshot was to get another time.
    SnapshotRenewed {
        /// Whether its generation is the newest now.
        is_newest: bool,
    },
    /// `Begin`, `SendSealed` or `Extend`: the replica holds everything before `end`.
    Appended {
        /// The end of the last commit that was sent.
        end: Offset,
        /// The segment's new length on the replica.
        length: u64,
    },
    /// The trailer is written.
    Sealed,
    /// Not done, or nobody knows.
    Failed(Failure),
}

impl Outcome {
    /// That of a job that was not done.
    pub fn failed(job: &Job, failure: Failure) -> Outcome {
        match job {
            Job::Survey => Outcome::Surveyed(Err(failure)),
            _ => Outcome::Failed(failure),
        }
    }
}
