//! One replica's course: look what is there, send the snapshot, append the WAL; after any doubt, look again.
//!
//! There is no queue. The next job is computed from the difference between what the shadow WAL holds and what the
//! replica has acknowledged, and there is at most one job in flight.

mod activity;
mod judgement;
mod lengths;
mod listing;
mod tail;

use super::page_table::DatabaseState;
use super::position::{Generation, Index, Offset, Position};
use super::segment::TRAILER_LENGTH;
use super::shadow::ShadowExtent;
use std::time::{Duration, Instant};
use tail::{OpenSegment, Snapshot, Tail, next_streaming_job};

pub use super::job::{
    Failure, FailureCause, Job, LastSegment, Listing, Outcome, SegmentStart, SentSnapshot, Surveyed,
};
pub use activity::{Activity, SUPERSEDED};
pub use judgement::Finding;
pub use lengths::Lengths;
pub use tail::{SEGMENT_AGE, SEGMENT_LENGTH, cut_of};

/// The pause after the first failure; doubled after each, and shortened by up to a half at random.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The least time between two pushes of an index that writers who never pause have not left yet.
const TIRELESS_INTERVAL: Duration = Duration::from_millis(20);
/// A shadow that the disk fails to read is damaged after so many failures in a row: a new generation costs a snapshot, and
/// a disk may fail for a moment.
const MOST_UNREADABLE: u32 = 3;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The pause before a server that did not let us change a time is asked again.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause of whoever tried, and could not reach the server: such a try costs little, and it is for the
/// server's return that everybody waits. The others hear of it by [`Replica::on_server_answers`].
const LONGEST_PAUSE_UNREACHED: Duration = Duration::from_secs(5);

#[expect(clippy::large_enum_variant, reason = "there is one to a replica, and it streams most of its life")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody knows what the replica holds.
    Unknown,
    /// The replica holds nothing of this generation.
    Empty,
    /// The replica holds the WAL up to a tail.
    Streaming { tail: Tail, snapshot: Snapshot },
}

/// One replica of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    generation: Generation,
    phase: Phase,
    in_flight: Option<Job>,
    /// Where the shadow ended when the job in flight was handed out, and what the database was there.
    state_ahead: Option<(Offset, DatabaseState)>,
    acked: Option<(Index, Offset)>,
    /// Failures since something was last sent, or found to be there.
    failures: u32,
    /// How often the shadow could not be read since it last could.
    unreadable: u32,
    retry_at: Option<Instant>,
    /// Whether the pause is only for a server that could not be reached.
    is_unreached: bool,
    /// When the last try after a failure was due.
    last_retry: Option<Instant>,
    /// The pause is only for a new generation, which need not wait for its end.
    awaits_generation: bool,
    last_push: Option<Instant>,
    /// Looks in a row that could not be judged.
    looks_again: u32,
    /// What there was at the last push: it follows without a pause, however many indexes it is.
    push_until: Option<(Index, Offset)>,
    /// The segment that was written last, and its length when that was acknowledged.
    last_segment: Option<(SegmentStart, u64)>,
    lengths: Option<Lengths>,
    /// A part of what was there seems to be missing, and nothing else is in doubt.
    is_to_be_looked_at: bool,
    /// The snapshot that a restore does not take, and when its time is to be changed again.
    superseded: Option<(Index, Instant)>,
    sync_interval: Duration,
    /// The writers never pause, and what they have committed is there in a moment anyway.
    is_beside_tireless: bool,
    /// The agent is about to stop, and nothing behind this is sent any more.
    finish_at: Option<Position>,
    last_error: Option<String>,
}

impl Replica {
    /// A replica of which nothing is known. `sync_interval` is the least time between two pushes.
    pub fn new(generation: Generation, sync_interval: Duration) -> Self {
        Replica {
            generation,
            phase: Phase::Unknown,
            in_flight: None,
            state_ahead: None,
            acked: None,
            failures: 0,
            unreadable: 0,
            retry_at: None,
            is_unreached: false,
            last_retry: None,
            awaits_generation: false,
            last_push: None,
            looks_again: 0,
            push_until: None,
            last_segment: None,
            lengths: None,
            is_to_be_looked_at: false,
            superseded: None,
            sync_interval,
            is_beside_tireless: false,
            finish_at: None,
            last_error: None,
        }
    }

    /// A part of what was there seems to be missing: it is looked at before anything else is sent.
    pub fn look_again(&mut self) {
        self.is_to_be_looked_at = true;
    }

    /// A restore would not take the snapshot of an index: its time is to be changed.
    pub fn renew(&mut self, index: Index, now: Instant) {
        self.superseded.get_or_insert((index, now));
    }

    /// The segment that this run has written last, and its length when that was acknowledged.
    pub fn last_segment(&self) -> Option<(SegmentStart, u64)> {
        self.last_segment
    }

    /// How long what it holds must be, as far as this run knows.
    pub fn lengths(&self) -> Option<Lengths> {
        self.lengths
    }

    /// Turns to a new generation; what the old one still lacked is not sent any more.
    pub fn begin_generation(&mut self, generation: Generation) {
        if self.awaits_generation {
            (self.retry_at, self.last_retry) = (None, None);
        }
        *self = Replica {
            failures: self.failures,
            retry_at: self.retry_at,
            is_unreached: self.is_unreached,
            last_retry: self.last_retry,
            last_error: self.last_error.take(),
            ..Replica::new(generation, self.sync_interval)
        };
    }

    /// Whether the server may still write what was sent to it: nobody knows what became of that.
    pub fn is_in_doubt(&self) -> bool {
        let is_unknown = matches!(self.phase, Phase::Unknown) && self.acked.is_some();
        is_unknown || !matches!(self.in_flight, None | Some(Job::Look { .. }))
    }

    /// The history that is replicated.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Pushes and tries again without pauses from now on: the agent is about to stop.
    pub fn hurry(&mut self) {
        (self.sync_interval, self.retry_at) = (Duration::ZERO, None);
    }

    /// Whether it stands beside writers that never pause: each push takes the processor from them, so that fewer are made.
    pub fn stand_beside_tireless(&mut self, is_tireless: bool) {
        self.is_beside_tireless = is_tireless;
    }

    /// The least time between two pushes.
    fn interval(&self, shadow: &ShadowExtent) -> Duration {
        let is_present = matches!(&self.phase, Phase::Streaming { tail, .. } if tail.index == shadow.index);
        // An index that is over would only be waited for.
        let tireless = if self.is_beside_tireless && is_present { TIRELESS_INTERVAL } else { Duration::ZERO };
        self.sync_interval.max(tireless)
    }

    /// Whether it waits only for the server to be reached.
    pub fn is_unreached(&self) -> bool {
        self.is_unreached && self.retry_at.is_some()
    }

    /// The server has answered another replica: one that waits only for it to be reached looks again at once.
    pub fn on_server_answers(&mut self) {
        if self.is_unreached() {
            self.retry_at = None;
        }
    }

    /// Sends nothing any more once everything before `position` is there, but for the trailer of the last segment.
    pub fn finish_at(&mut self, position: Position) {
        self.finish_at = Some(position);
    }

    /// Whether the replica holds everything before `position`, in segments that are sealed.
    pub fn is_finished(&self, position: Position) -> bool {
        let is_open = matches!(self.phase, Phase::Streaming { tail: Tail { open: Some(_), .. }, .. });
        self.holds(position) && !is_open
    }

    /// Everything before this is on the replica.
    pub fn acked(&self) -> Option<Position> {
        self.acked.map(|(index, offset)| Position::new(self.generation, index, offset))
    }

    /// The lowest index whose shadow this replica may still need; `None` while nobody knows.
    pub fn needs_from(&self) -> Option<Index> {
        let next = match &self.phase {
            Phase::Streaming { tail, .. } => Some(tail.index),
            Phase::Unknown | Phase::Empty => self.acked.map(|(index, _)| index),
        };
        // After any failure, the last segment that is there tells what is: it is written anew.
        next.map(|next| self.last_segment.map_or(next, |(segment, _)| segment.index.min(next)))
    }

    /// Whether the present generation can be restored from it.
    pub fn is_restorable(&self) -> bool {
        matches!(self.phase, Phase::Streaming { snapshot: Snapshot::Published, .. })
    }

    /// Whether the replica holds everything before `position` and can be restored from.
    pub fn holds(&self, position: Position) -> bool {
        self.is_restorable() && self.acked().is_some_and(|acked| acked >= position)
    }

    /// The last failure, until a job succeeds.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// What the replica is doing.
    pub fn activity(&self) -> Activity {
        match (&self.phase, self.retry_at.or(self.last_retry)) {
            (_, Some(retry_at)) => Activity::Failing { retry_at },
            (Phase::Unknown, _) => Activity::Connecting,
            (Phase::Streaming { snapshot: Snapshot::Published, .. }, _) => match self.superseded {
                Some((_, retry_at)) => Activity::Superseded { retry_at },
                None => Activity::Streaming,
            },
            (Phase::Empty | Phase::Streaming { .. }, _) => Activity::SendingSnapshot,
        }
    }

    /// When [`Replica::next_job`] may answer differently though nothing was committed. Asked after it answered `None`.
    pub fn next_timeout(&self, shadow: &ShadowExtent) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        if self.retry_at.is_some() {
            return self.retry_at;
        }
        if self.finish_at.is_some_and(|end| self.is_finished(end)) {
            return None; // what is committed after the end is for the next run
        }
        let renewal_at = self.superseded.map(|(_, at)| at).filter(|_| self.may_renew());
        if self.acked() != Some(shadow.position()) {
            return self.last_push.map(|at| at + self.interval(shadow)).into_iter().chain(renewal_at).min();
        }
        match &self.phase {
            Phase::Streaming { tail, .. } => [tail.seals_at(shadow), renewal_at].into_iter().flatten().min(),
            Phase::Unknown | Phase::Empty => None,
        }
    }

    /// Whether everything is acked that is to be sent before the agent stops.
    fn is_finishing(&self) -> bool {
        self.acked().zip(self.finish_at).is_some_and(|(acked, at)| acked >= at)
    }

    /// Whether the server may be asked what nothing waits for but the truth: whether it takes times by now, and what is there.
    pub fn may_renew(&self) -> bool {
        self.is_restorable() && self.finish_at.is_none()
    }

    /// Whether the next job reads the database file.
    pub fn wants_database(&self) -> bool {
        matches!(self.phase, Phase::Empty | Phase::Streaming { snapshot: Snapshot::Missing, .. })
    }

    /// The next job, which the caller must carry out and answer with [`Replica::on_outcome`].
    pub fn next_job(&mut self, shadow: &ShadowExtent, now: Instant) -> Option<Job> {
        let waits = self.retry_at.is_some_and(|at| now < at);
        if self.in_flight.is_some() || waits || shadow.generation != self.generation {
            return None;
        }
        if self.may_renew() && std::mem::take(&mut self.is_to_be_looked_at) {
            self.in_flight = Some(Job::Look { written: self.last_segment });
            return self.in_flight.clone();
        }
        let (is_finishing, interval) = (self.is_finishing(), self.interval(shadow));
        let renewal = self.superseded.filter(|(_, at)| now >= *at && self.may_renew());
        let job = match &mut self.phase {
            Phase::Unknown => Some(Job::Look { written: self.last_segment }),
            Phase::Empty => Some(Job::SendSnapshot { index: shadow.index }),
            Phase::Streaming { tail, snapshot } => {
                let job = match (is_finishing, *snapshot) {
                    (true, Snapshot::Published) => tail.open.map(|open| tail.seal(open, false, shadow)),
                    (_, snapshot) => next_streaming_job(tail, snapshot, shadow, now),
                };
                let is_push =
                    matches!(job, Some(Job::Begin { .. } | Job::SendSealed { .. } | Job::Extend { .. }));
                self.state_ahead =
                    shadow.end_of(tail.index).and_then(|end| Some((end, shadow.state_at(tail.index, end)?)));
                let is_rest = self.push_until.is_some_and(|end| (tail.index, tail.end) < end);
                let too_early = !is_rest && self.last_push.is_some_and(|at| now < at + interval);
                if is_push && !too_early && !is_rest {
                    self.last_push = Some(now);
                    self.push_until = (!self.sync_interval.is_zero()).then_some((shadow.index, shadow.end));
                }
                job.filter(|_| !(is_push && too_early))
            }
        };
        let is_caught_up = self.acked() == Some(shadow.position());
        if job.is_none() && is_caught_up && !matches!(self.phase, Phase::Unknown) {
            self.works_again();
        }
        let renewal = renewal.map(|(index, _)| Job::RenewSnapshot { index });
        let job = job.or(renewal);
        self.in_flight.clone_from(&job);
        job
    }

    fn works_again(&mut self) {
        (self.retry_at, self.last_retry, self.last_error) = (None, None, None);
        if self.is_restorable() {
            // Before, all would be sent again without a pause where only the last step fails.
            (self.failures, self.unreadable) = (0, 0);
        }
    }

    /// Takes in how the job in flight ended. `chance` is a random number from 0 to 1.
    pub fn on_outcome(
        &mut self,
        outcome: Outcome,
        shadow: &ShadowExtent,
        now: Instant,
        chance: f64,
    ) -> Finding {
        let Some(job) = self.in_flight.take() else { return Finding::Nothing };
        if let Outcome::Failed(failure) = outcome {
            let finding = self.on_failure(&job, failure, now, chance);
            self.awaits_generation = finding == Finding::ShadowDamaged;
            return finding;
        }
        match job {
            // That the server answers does not mean that it takes anything.
            Job::Look { .. } => self.retry_at = None,
            _ => self.works_again(),
        }
        let was_acked = self.acked;
        let finding = self.on_success(job, outcome, shadow, now);
        let halt = finding.halt();
        self.awaits_generation = halt.is_some();
        if let Some(why) = halt {
            // Another look would say the same, and hold up the line of all databases.
            self.is_unreached = false;
            self.try_later(why.to_owned(), LONGEST_PAUSE, now, chance);
        }
        // A replica that holds nothing at all any more begins again with a snapshot.
        let to = self.acked.unwrap_or((Index::ZERO, Offset::ZERO));
        match was_acked {
            Some(from) if to < from && finding == Finding::Nothing => {
                let position = |(index, offset)| Position::new(self.generation, index, offset);
                Finding::Rewound { from: position(from), to: position(to) }
            }
            _ => finding,
        }
    }

    fn on_failure(&mut self, job: &Job, failure: Failure, now: Instant, chance: f64) -> Finding {
        self.phase = Phase::Unknown;
        // Where looking was answered and something was sent, it would all be sent again with each try.
        let (longest, is_unreached) = match (job, failure.cause) {
            (Job::Look { .. }, FailureCause::Disconnected) => (LONGEST_PAUSE_UNREACHED, true),
            (Job::Look { .. }, FailureCause::NotTried) => (LONGEST_PAUSE, true),
            _ => (LONGEST_PAUSE, false),
        };
        self.is_unreached = is_unreached;
        self.try_later(failure.message, longest, now, chance);
        self.unreadable += u32::from(failure.cause == FailureCause::ShadowUnreadable);
        match failure.cause {
            FailureCause::ShadowDamaged => Finding::ShadowDamaged,
            FailureCause::ShadowUnreadable if self.unreadable >= MOST_UNREADABLE => Finding::ShadowDamaged,
            FailureCause::ShadowUnreadable
            | FailureCause::Disconnected
            | FailureCause::NotTried
            | FailureCause::Other => Finding::Nothing,
        }
    }

    fn try_later(&mut self, reason: String, longest: Duration, now: Instant, chance: f64) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0));
        self.last_retry = self.retry_at;
        self.last_error = Some(reason);
    }

    fn on_success(&mut self, job: Job, outcome: Outcome, shadow: &ShadowExtent, now: Instant) -> Finding {
        match (job, outcome) {
            (Job::Look { .. }, Outcome::Found(listing)) => {
                // It may be another server by now, which takes times.
                self.superseded = self.superseded.map(|(index, _)| (index, now));
                if self.is_confirmed_by(&listing, shadow) {
                    return Finding::Nothing;
                }
                return self.on_listing(&listing, shadow);
            }
            (Job::SendSnapshot { index }, Outcome::SnapshotSent(sent)) => {
                // The reading is over, so nothing in it is newer than what the shadow holds now.
                let state = shadow.state_at(shadow.index, shadow.end);
                self.lengths = Some(Lengths::beginning(index));
                let snapshot = Snapshot::Sent { sent, valid_from: (shadow.index, shadow.end), state };
                match &mut self.phase {
                    Phase::Streaming { snapshot: present, .. } => *present = snapshot,
                    Phase::Unknown | Phase::Empty => {
                        let tail = Tail::at(index, Offset::ZERO);
                        self.phase = Phase::Streaming { tail, snapshot };
                        self.acked = Some((index, Offset::ZERO));
                    }
                }
            }
            (
                Job::PublishSnapshot { sent, valid_from: behind, .. },
                Outcome::SnapshotPublished { is_older },
            ) => {
                if let Phase::Streaming { snapshot, .. } = &mut self.phase {
                    let index = sent.trailer.index;
                    *snapshot =
                        if is_older { Snapshot::Older { index, behind } } else { Snapshot::Published };
                }
                self.superseded = self.superseded.filter(|_| is_older);
                let published = sent.length + TRAILER_LENGTH as u64;
                self.lengths.iter_mut().for_each(|lengths| lengths.on_published(published));
            }
            (Job::RenewSnapshot { index }, Outcome::SnapshotRenewed { is_newest }) => {
                if let Phase::Streaming { snapshot, .. } = &mut self.phase {
                    *snapshot = Snapshot::Published;
                }
                let was_superseded = self.superseded.is_some();
                self.superseded = (!is_newest).then_some((index, now + RENEWAL_PAUSE));
                if !is_newest && !was_superseded {
                    return Finding::Superseded;
                }
            }
            (Job::Begin { segment, .. }, Outcome::Appended { end, length }) => {
                if let Phase::Streaming { tail, .. } = &mut self.phase {
                    let open = Some(OpenSegment { name: segment, length, opened: now });
                    *tail = Tail { open, closed: None, replace: false, segments: tail.segments + 1, ..*tail };
                    tail.move_to(end, self.state_ahead);
                    // A segment that is written anew may be the last of an index that is acknowledged as a whole.
                    self.acked = self.acked.max(Some((tail.index, end)));
                    self.has_written(segment, length);
                }
            }
            (Job::SendSealed { segment, .. }, Outcome::Appended { length, .. }) => {
                if let Phase::Streaming { tail, .. } = &mut self.phase {
                    // It may be written anew, and more be acknowledged already.
                    self.acked = self.acked.max(tail.leave_index().map(|next| (next, Offset::ZERO)));
                    self.has_written(segment, length);
                }
            }
            (Job::Extend { segment, .. }, Outcome::Appended { end, length }) => {
                if let Phase::Streaming { tail, .. } = &mut self.phase {
                    tail.open = tail.open.map(|open| OpenSegment { length, ..open });
                    tail.move_to(end, self.state_ahead);
                    self.acked = Some((tail.index, end));
                    self.has_written(segment, length);
                }
            }
            (Job::Seal { segment, length, last_of_index, .. }, Outcome::Sealed) => {
                let sealed = length + TRAILER_LENGTH as u64;
                self.lengths.iter_mut().for_each(|lengths| lengths.on_written(segment, sealed));
                if let Phase::Streaming { tail, .. } = &mut self.phase {
                    tail.closed = tail.open.take();
                    if last_of_index && let Some(next) = tail.leave_index() {
                        self.acked = Some((next, Offset::ZERO));
                    }
                }
            }
            (job, outcome) => unreachable!("BUG: {outcome:?} does not answer {job:?}"),
        }
        Finding::Nothing
    }

    fn has_written(&mut self, segment: SegmentStart, length: u64) {
        self.last_segment = Some((segment, length));
        self.lengths.iter_mut().for_each(|lengths| lengths.on_written(segment, length));
    }
}
