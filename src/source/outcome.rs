//! How a source takes in what a worker brings back.

use super::attach::{AttachOutcome, Refusal};
use super::job::{CheckpointFailure, LocalOutcome};
use super::recheck::Recheck;
use super::round::UrgentReport;
use super::{LONGEST_RETRY_PAUSE, MOVE_PAUSE, RETRY_PAUSE, Source, State};
use crate::core::position::Generation;
use crate::core::sync::Break;
use crate::sqlite::{SqliteError, WalExtent};
use log::{info, warn};
use std::sync::Arc;
use std::time::Instant;

impl Source {
    /// Takes in how the job in flight ended.
    pub fn on_outcome(&mut self, outcome: LocalOutcome, now: Instant, generation: Generation) {
        self.job_in_flight = false;
        match outcome {
            LocalOutcome::Attach(outcome) => self.on_attach(outcome, now),
            LocalOutcome::Synced(index, end, Ok(())) => {
                if let State::Attached(attached) = &mut self.state {
                    attached.capture.shadow.on_synced(index, end);
                }
                self.move_at = Some(Recheck { at: now, pause: MOVE_PAUSE, in_flight: false });
            }
            LocalOutcome::Synced(_, _, Err(e)) => {
                self.failed(&format!("cannot make the shadow WAL durable: {e}"));
                self.on_break(Break::ShadowSyncFailed, now, generation);
            }
            LocalOutcome::Checkpointed { checkpointer, synced, result } => {
                if let State::Attached(attached) = &mut self.state {
                    attached.checkpointer = Some(checkpointer);
                    if let Some((index, end)) = synced {
                        attached.capture.shadow.on_synced(index, end);
                    }
                }
                self.on_checkpoint(result, now, generation);
            }
            LocalOutcome::Urgent(attached, report) => {
                self.state = State::Attached(attached);
                self.on_urgent(report, now, generation);
            }
            LocalOutcome::Removed(result) => {
                if let Err(e) = result {
                    let meta = self.settings.meta.display();
                    warn!("cannot remove earlier generations from {meta}: {e}; they stay");
                }
            }
        }
    }

    fn on_attach(&mut self, outcome: AttachOutcome, now: Instant) {
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
            AttachOutcome::Attached { attached, reason, was_switched } => {
                if was_switched {
                    info!("{name}: was not in WAL mode; it is now, and stays so");
                }
                let generation = attached.capture.shadow.extent().generation;
                info!("{name}: attached, generation {generation}");
                if let Some(reason) = reason {
                    self.count_break(reason);
                }
                self.descriptor = Arc::downgrade(&attached.descriptor);
                self.state = State::Attached(attached);
                // The pause between two tries goes on growing until a look succeeds.
                (self.forced_break, self.hot) = (None, true);
                self.stale_generations = true;
                self.solved();
            }
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal, now: Instant) {
        let retry = Recheck::after(self.retry, RETRY_PAUSE, now);
        self.retry = Some(Recheck { at: retry.at.min(now + LONGEST_RETRY_PAUSE), ..retry });
        if !matches!(&self.state, State::Refused(present) if *present == refusal) {
            let name = self.settings.database.display();
            warn!("{name}: not replicated: {refusal}; it is tried again by itself");
        }
        self.state = State::Refused(refusal);
    }

    fn on_checkpoint(
        &mut self,
        result: Result<WalExtent, CheckpointFailure>,
        now: Instant,
        next: Generation,
    ) {
        match result {
            Ok(extent) => {
                self.checkpoint.on_round(extent.is_backfilled(), now);
                self.urgent_next &= !extent.is_backfilled();
            }
            Err(CheckpointFailure::Sqlite(SqliteError::Busy)) => {
                // Somebody else checkpoints: so much the better.
                self.urgent_next = false;
                self.checkpoint.on_round(false, now);
            }
            Err(CheckpointFailure::Sqlite(error)) => {
                self.urgent_next = false;
                self.checkpoint.on_round(false, now);
                self.failed(&format!("cannot checkpoint: {error}"));
            }
            Err(CheckpointFailure::Sync(error)) => {
                self.urgent_next = false;
                self.failed(&format!("cannot make the shadow WAL durable: {error}"));
                self.on_break(Break::ShadowSyncFailed, now, next);
            }
            Err(CheckpointFailure::Replaced) => {
                self.urgent_next = false;
                self.detach(Break::DatabaseReplaced);
                return;
            }
        }
        // The reader may now stand in the way of a restart.
        self.hot = true;
    }

    fn on_urgent(&mut self, report: UrgentReport, now: Instant, generation: Generation) {
        if let Some(held) = report.held {
            self.holds.record(held);
        }
        self.checkpoint.on_round(report.finished, now);
        self.hot = true;
        if let Some(reason) = report.broken {
            self.on_break(reason, now, generation);
        } else if let Some(error) = report.error {
            self.failed(&format!("cannot checkpoint: {error}"));
        }
    }
}
