//! When the shadow need not be durable: beside writers that never pause, as long as the replicas keep up.

use super::job::LocalJob;
use super::{LONGEST_RETRY_PAUSE, Source, State};
use crate::core::sync::Break;
use crate::shadow::DurabilityChange;
use log::{debug, error};
use std::io;
use std::time::Instant;

/// What a source knows of how durable its shadow should be.
#[derive(Default, Clone, Copy)]
pub struct DurabilityWork {
    /// Every replica can be restored from, and has nearly all of the shadow.
    replicas_keep_up: bool,
    /// The agent is about to stop.
    is_ending: bool,
    /// The mark could not be written: not before.
    not_before: Option<Instant>,
}

impl Source {
    /// Takes in whether every replica can be restored from, and has nearly all of the shadow.
    pub fn rely_on_replicas(&mut self, keep_up: bool) {
        self.durability.replicas_keep_up = keep_up;
    }

    /// From now on everything is made durable.
    pub fn prepare_to_end(&mut self) {
        self.durability.is_ending = true;
    }

    /// Whether a power cut may leave anything of the shadow.
    pub fn is_volatile(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.capture.shadow.is_volatile())
    }

    /// Whether a power cut may cost the shadow and nothing else: the generation.
    fn may_be_volatile(&self, now: Instant) -> bool {
        let DurabilityWork { replicas_keep_up, is_ending, not_before } = self.durability;
        let is_possible = !is_ending && not_before.is_none_or(|at| now >= at) && self.scarcity().is_none();
        self.pace.is_tireless(now) && replicas_keep_up && is_possible
    }

    /// The job that makes the shadow as durable as it should be, if it is not.
    pub(super) fn durability_job(&mut self, now: Instant) -> Option<LocalJob> {
        let may_be_volatile = self.may_be_volatile(now);
        let State::Attached(attached) = &mut self.state else { return None };
        let capture = &mut attached.capture;
        let meta = &self.settings.meta;
        match (capture.shadow.is_volatile(), may_be_volatile) {
            (false, true) => Some(LocalJob::Durability(capture.shadow.to_mark(meta))),
            // What is being written into the table without a sync would be missing.
            (true, false) if !self.table.is_volatile() => {
                Some(LocalJob::Durability(capture.shadow.settle(meta, capture.table.files())))
            }
            _ => None,
        }
    }

    pub(super) fn on_durability(&mut self, change: &DurabilityChange, result: io::Result<()>, now: Instant) {
        let name = self.settings.database.display();
        match (result, &mut self.state) {
            (Ok(()), State::Attached(attached)) if change.is_to_volatile() => {
                debug!(
                    "{name}: writers never pause: the shadow WAL is not made durable while the replicas keep up"
                );
                attached.capture.shadow.on_marked(change);
            }
            (Ok(()), _) => debug!("{name}: the shadow WAL is durable again"),
            (Err(e), _) if change.is_to_volatile() => {
                // It costs the writer something, and nothing else.
                debug!("{name}: cannot write {}: {e}", self.settings.meta.display());
                self.durability.not_before = Some(now + LONGEST_RETRY_PAUSE);
            }
            (Err(e), _) => {
                error!("{name}: cannot make the shadow WAL durable: {e}");
                self.request_generation(Break::ShadowSyncFailed);
            }
        }
    }
}
