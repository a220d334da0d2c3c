//! How a source takes in what a worker brings back.

use super::apart::Apart;
use super::attach::AttachOutcome;
use super::held::Held;
use super::job::{CheckpointFailure, LocalOutcome};
use super::recheck::Recheck;
use super::refusal::Refusal;
use super::round::RoundReport;
use super::{BRIEF, LONGEST_RETRY_PAUSE, RETRY_PAUSE, Source, State, Task};
use crate::core::checkpoint::Round;
use crate::core::sync::{Break, Dirty};
use crate::core::wal_index::Checkpointed;
use crate::shadow::ShadowSync;
use crate::sqlite::SqliteError;
use log::{error, info, warn};
use std::io;
use std::time::Instant;

impl Source {
    /// Takes in how the job in flight ended.
    pub fn on_outcome(&mut self, outcome: LocalOutcome, now: Instant) {
        if let LocalOutcome::Table(outcome) = outcome {
            return self.on_table(outcome);
        }
        // Whatever waited for the job is decided in the next turn.
        (self.job_in_flight, self.hot) = (false, true);
        self.take_back();
        match outcome {
            LocalOutcome::Attach(outcome) => self.on_attach(outcome, now),
            LocalOutcome::Synced(sync, result) => {
                self.on_synced(&sync, result);
            }
            LocalOutcome::Durability(change, result) => self.on_durability(&change, result, now),
            LocalOutcome::Checkpointed { checkpointer, synced, result, stamp } => {
                if let State::Attached(attached) = &mut self.state {
                    attached.checkpointer = Some(checkpointer);
                }
                // The file was written, by us; what comes later, was not.
                let before = self.sighting.take();
                let is_durable = synced.is_none_or(|(sync, result)| self.on_synced(&sync, result));
                match result {
                    Some(result) if is_durable => self.on_checkpoint(result, now),
                    _ => self.urgent_next = false,
                }
                self.sight_after_checkpoint(before, stamp);
            }
            LocalOutcome::Round(attached, report) => {
                self.state = State::Attached(attached);
                self.on_round(report, now);
            }
            LocalOutcome::Compared(attached, result) => {
                self.state = State::Attached(attached);
                self.on_compared(&result, now);
            }
            LocalOutcome::Inspected(attached, inspection) => {
                self.state = State::Attached(attached);
                self.on_inspected(inspection, now);
            }
            LocalOutcome::LetGo(outcome) => self.on_let_go(outcome, now),
            LocalOutcome::Left(outcome) => self.on_left(outcome, now),
            LocalOutcome::Table(_) => unreachable!("BUG: it was taken in above"),
            LocalOutcome::Removed(result) => {
                if let Err(e) = result {
                    let meta = self.settings.meta.display();
                    warn!("cannot remove earlier generations from {meta}: {e}; they stay");
                }
            }
        }
    }

    /// Whether the shadow is durable now. If not, it is not tried again: what should have been written may be gone
    /// from the kernel's cache.
    fn on_synced(&mut self, sync: &ShadowSync, result: io::Result<()>) -> bool {
        let State::Attached(attached) = &mut self.state else { return false };
        match result {
            Ok(()) => attached.capture.shadow.on_synced(sync),
            Err(e) => {
                let name = self.settings.database.display();
                error!("{name}: cannot make the shadow WAL durable: {e}");
                self.request_generation(Break::ShadowSyncFailed);
                return false;
            }
        }
        true
    }

    pub(super) fn on_attach(&mut self, outcome: AttachOutcome, now: Instant) {
        // Not whenever the status is asked for: that reads no disk.
        self.is_mixed = Held::is_mixed(self.paths(), std::fs::metadata(&self.settings.database));
        let name = self.settings.database.display();
        match outcome {
            AttachOutcome::Absent => {
                if !matches!(self.state, State::Absent) {
                    info!("{name}: there is no database yet; waiting for it");
                }
                self.state = State::Absent;
                self.retry = None;
            }
            AttachOutcome::Refused(refusal) => self.refuse(refusal, now),
            AttachOutcome::Resting(resting) => {
                let generation = resting.shadow.extent().generation;
                info!("{name}: nobody has it open, and nothing has changed in generation {generation}");
                self.state = State::Resting(resting);
                self.hold_nothing();
                self.dirty = Dirty::ALL;
            }
            AttachOutcome::Attached { attached, seen, reason, to_compare, to_inspect, was_switched } => {
                if was_switched {
                    info!("{name}: was not in WAL mode; it is now, and stays so");
                }
                let generation = attached.capture.shadow.extent().generation;
                info!("{name}: attached, generation {generation}");
                if let Some(reason) = reason {
                    self.count_break(reason);
                }
                self.state = State::Attached(attached);
                // The generation that was begun in the last try: no look has succeeded in it, and nothing was sent.
                self.to_compare =
                    to_compare.filter(|doubt| *doubt != Break::ShadowMissing || self.break_at.is_none());
                self.to_inspect = to_inspect;
                (self.sighting, self.look_around_at) = (seen, Some(Recheck::now(now)));
                self.apart = Some(Apart::unknown(now));
                // Nothing that was read of the file before is of one time with what is read now.
                self.gaps = self.gaps.wrapping_add(1);
                // The pause between two tries goes on growing until a look succeeds.
                self.forced_break = None;
            }
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal, now: Instant) {
        let retry = Recheck::after(self.retry, RETRY_PAUSE, LONGEST_RETRY_PAUSE, now);
        self.retry = Some(retry);
        // Whoever closes a database last, or makes one, has it for a moment.
        if refusal == Refusal::Locked && retry.pause <= BRIEF && !matches!(self.state, State::Refused(_)) {
            self.state = State::Detached;
            return;
        }
        if !matches!(&self.state, State::Refused(present) if *present == refusal) {
            let name = self.settings.database.display();
            warn!("{name}: not replicated: {refusal}; it is tried again by itself");
        }
        self.state = State::Refused(refusal);
    }

    fn on_checkpoint(&mut self, result: Result<Checkpointed, CheckpointFailure>, now: Instant) {
        let finished = match result {
            Ok(checkpointed) => {
                self.solved(Task::Checkpoint);
                self.extent = checkpointed.extent();
                self.extent.is_backfilled()
            }
            // Somebody else checkpoints: so much the better.
            Err(
                CheckpointFailure::NotBegun(SqliteError::Busy)
                | CheckpointFailure::Sqlite(SqliteError::Busy | SqliteError::Interrupted),
            ) => {
                self.urgent_next = false;
                false
            }
            Err(CheckpointFailure::NotBegun(error) | CheckpointFailure::Sqlite(error)) => {
                self.urgent_next = false;
                self.failed(Task::Checkpoint, &format!("cannot checkpoint: {error}"));
                false
            }
            Err(CheckpointFailure::Replaced(reason)) => {
                (self.urgent_next, self.leaving) = (false, Some(reason));
                return;
            }
            Err(CheckpointFailure::Overwritten) => {
                // Perhaps by an application that has come and gone: whoever looks around finds out.
                self.urgent_next = false;
                false
            }
        };
        self.urgent_next &= !finished;
        if !self.urgent_next {
            // Else the round goes on under the write lock, and counts when that is done.
            self.checkpoint.on_round(Round::Cooperative, finished, now);
        }
    }

    fn on_round(&mut self, report: RoundReport, now: Instant) {
        if let Some(held) = report.held {
            self.holds.record(held);
        }
        if let Some(round) = report.round {
            self.checkpoint.on_round(round, report.finished, now);
        }
        if report.went_on {
            // Nobody has looked meanwhile but the round.
            self.pace.on_news(true, now);
        }
        self.plan_emptying(now);
        if let Some(reason) = report.broken {
            self.on_break(reason);
        } else if let Some(error) = report.error {
            self.failed(Task::Checkpoint, &format!("cannot checkpoint: {error}"));
        } else if report.round.is_some() || report.finished {
            self.solved(Task::Checkpoint);
        }
    }
}
