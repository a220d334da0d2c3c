//! When a checkpoint is due.

use super::wal_index::WalExtent;
use std::time::{Duration, Instant};

/// When to checkpoint, as the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// Frames from which on a cooperative round is worth it.
    pub min_pages: u32,
    /// Frames from which on an urgent round, which takes the write lock, is due; `None` never.
    pub max_pages: Option<u32>,
    /// The longest that committed frames stay out of the database file; `None` for ever.
    pub interval: Option<Duration>,
}

impl CheckpointPolicy {
    /// Frames from which on it is clear that the application does not checkpoint by itself, beside writers that never pause.
    pub fn unhelped_pages(&self) -> u32 {
        self.min_pages.saturating_add(self.min_pages / 2)
    }
}

/// A checkpoint round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// A passive checkpoint beside the writers; it never takes the write lock.
    Cooperative,
    /// Beside writers that never pause: between two of their commits, the WAL may be ready to be restarted.
    Following,
    /// A passive checkpoint follows the writers, and then, under the write lock, the rest.
    Urgent,
}

/// When a round may begin, and what the last one achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointState {
    /// When the frames now in the WAL began to wait; `None` while all are backfilled.
    waiting_since: Option<Instant>,
    /// Not before: the last round could not finish.
    not_before: Option<Instant>,
    /// Rounds in a row that did not finish, and got nowhere.
    unfinished: u32,
    /// Frames in the database file when the last round was due.
    backfilled: u32,
}

/// The pause after the first round that could not finish; doubled after each that got nowhere.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The same after a round that followed the writers.
const FOLLOWING_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause: another reader that stays for hours costs one try a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl CheckpointState {
    /// Nothing waits, nothing failed.
    pub fn new() -> Self {
        CheckpointState { waiting_since: None, not_before: None, unfinished: 0, backfilled: 0 }
    }

    /// The round that is due now, if any. `extent` is the wal-index now; `is_endless`, that writers never pause.
    pub fn due(
        &mut self,
        policy: &CheckpointPolicy,
        extent: WalExtent,
        is_endless: bool,
        now: Instant,
    ) -> Option<Round> {
        if extent.frames <= extent.backfilled {
            *self = CheckpointState::new();
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let is_urgent = policy.max_pages.is_some_and(|max| extent.frames >= max);
        let overdue = policy.interval.is_some_and(|interval| now >= since + interval);
        // The moment must be waited for before it comes.
        let is_followed = is_endless && extent.frames >= policy.min_pages - policy.min_pages / 8;
        if !is_urgent && !is_followed && extent.frames < policy.min_pages && !overdue {
            return None;
        }
        if extent.backfilled != self.backfilled {
            // No reader stands in the way: the writers were faster, and longer pauses would give them a longer WAL.
            (self.backfilled, self.unfinished) = (extent.backfilled, 0);
        }
        Some(match (is_urgent, is_followed) {
            (true, _) => Round::Urgent,
            (false, true) => Round::Following,
            (false, false) => Round::Cooperative,
        })
    }

    /// When [`CheckpointState::due`] may answer differently though nobody writes.
    pub fn next_timeout(&self, policy: &CheckpointPolicy, extent: WalExtent) -> Option<Instant> {
        let since = self.waiting_since?;
        let by_size = extent.frames >= policy.min_pages;
        let overdue = if by_size { Some(since) } else { policy.interval.map(|interval| since + interval) };
        overdue.map(|at| self.not_before.map_or(at, |pause| at.max(pause)))
    }

    /// Takes in how a round ended: `finished` if it copied all frames that there were when it began.
    pub fn on_round(&mut self, round: Round, finished: bool, now: Instant) {
        let first = if round == Round::Following { FOLLOWING_PAUSE } else { FIRST_PAUSE };
        if finished {
            // Writers that never pause are given a moment, or rounds would follow each other without end.
            *self = CheckpointState { not_before: Some(now + first), ..CheckpointState::new() };
            return;
        }
        let pause = first.saturating_mul(1 << self.unfinished.min(10)).min(LONGEST_PAUSE);
        self.unfinished = self.unfinished.saturating_add(1);
        self.not_before = Some(now + pause);
    }
}

impl Default for CheckpointState {
    fn default() -> Self {
        CheckpointState::new()
    }
}
