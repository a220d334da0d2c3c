//! When the shadow need not be durable: beside writers that never pause, as long as the replicas keep up.

use super::job::LocalJob;
use super::{LONGEST_RETRY_PAUSE, Source, State};
use crate::core::sync::Break;
use crate::shadow::{Durability, DurabilityChange};
use log::{debug, error};
use std::io;
use std::time::{Duration, Instant};

/// A replica that lacks more bytes does not keep up: a fraction of a second of such a writer.
const LITTLE: u64 = 64 << 20;
/// It must have come so near before.
const VERY_LITTLE: u64 = 16 << 20;
/// Writers that have paused for so long may not go on at once, and what they have written is made durable. Shorter than
/// letting go takes.
const PAUSE: Duration = Duration::from_millis(500);
/// Each change costs some fsyncs: not again before this.
const CHANGE_PAUSE: Duration = Duration::from_secs(1);

/// What a source knows of how durable its shadow should be.
#[derive(Default)]
pub struct DurabilityWork {
    /// Every replica can be restored from.
    replicas_are_whole: bool,
    /// When the writers had not paused for long, the last time.
    tireless_at: Option<Instant>,
    /// The agent is about to stop.
    is_ending: bool,
    /// It must stay durable until then.
    not_before: Option<Instant>,
}

impl Source {
    /// Takes in whether there are replicas, and every one can be restored from.
    pub fn rely_on_replicas(&mut self, are_whole: bool) {
        self.durability.replicas_are_whole = are_whole;
    }

    /// From now on everything is made durable.
    pub fn prepare_to_end(&mut self) {
        self.durability.is_ending = true;
        self.hot = true;
    }

    /// Whether the agent stops.
    pub(super) fn is_ending(&self) -> bool {
        self.durability.is_ending
    }

    /// Whether everything is as durable as it is when writers pause, and nothing says otherwise.
    pub fn is_durable(&self) -> bool {
        match &self.state {
            State::Attached(attached) => attached.capture.shadow.durability() == Durability::Durable,
            _ => true,
        }
    }

    /// Whether a power cut may cost the shadow, and with it the generation.
    fn may_be_volatile(&self, is_volatile: bool, now: Instant) -> bool {
        let DurabilityWork { replicas_are_whole, tireless_at, is_ending, not_before } = self.durability;
        let is_over =
            is_ending || !replicas_are_whole || self.let_go_at.is_some() || self.scarcity().is_some();
        if is_volatile {
            let has_paused = tireless_at.is_none_or(|at| now >= at + PAUSE);
            return !is_over && self.behind <= LITTLE && !has_paused;
        }
        let may_begin = not_before.is_none_or(|at| now >= at);
        !is_over && self.behind <= VERY_LITTLE && may_begin && self.pace.is_tireless(now)
    }

    /// When the shadow must be durable if the writers pause from now on, or the agent is about to stop.
    pub(super) fn durable_at(&self, now: Instant) -> Option<Instant> {
        let is_free = !self.job_in_flight && !self.table.is_volatile();
        let pauses_at = self.durability.tireless_at.filter(|_| !self.durability.is_ending);
        let at = pauses_at.map_or(now, |at| at + PAUSE);
        (is_free && !self.is_durable()).then_some(at)
    }

    /// The job that makes the shadow as durable as it should be, if it is not.
    pub(super) fn durability_job(&mut self, now: Instant) -> Option<LocalJob> {
        if self.pace.is_tireless(now) {
            self.durability.tireless_at = Some(now);
        }
        let State::Attached(attached) = &self.state else { return None };
        let durability = attached.capture.shadow.durability();
        let may_be_volatile = self.may_be_volatile(matches!(durability, Durability::Volatile(_)), now);
        // What is being written into the table without a sync would be missing.
        let may_settle = !self.table.is_volatile();
        let State::Attached(attached) = &mut self.state else { return None };
        let (capture, meta) = (&mut attached.capture, &self.settings.meta);
        let change = match durability {
            Durability::Durable if may_be_volatile => capture.shadow.to_mark(meta),
            Durability::Volatile(_) if may_be_volatile => None,
            Durability::Volatile(_) | Durability::Marked if may_settle => {
                Some(capture.shadow.settle(meta, capture.table.files()))
            }
            _ => None,
        };
        change.map(LocalJob::Durability)
    }

    pub(super) fn on_durability(&mut self, change: &DurabilityChange, result: io::Result<()>, now: Instant) {
        let name = self.settings.database.display();
        let pause = match (&result, change.is_to_volatile()) {
            (Ok(()), true) => {
                debug!(
                    "{name}: writers never pause: the shadow WAL is not made durable while the replicas keep up"
                );
                Duration::ZERO
            }
            (Ok(()), false) => {
                debug!("{name}: the shadow WAL is durable");
                CHANGE_PAUSE
            }
            (Err(e), true) => {
                // It costs the writer something, and nothing else.
                debug!("{name}: cannot write {}: {e}", self.settings.meta.display());
                LONGEST_RETRY_PAUSE
            }
            (Err(e), false) => {
                error!("{name}: cannot make the shadow WAL durable: {e}");
                // Another one may have begun since.
                if self.shadow().is_some_and(|shadow| shadow.is_its(change)) {
                    self.request_generation(Break::ShadowSyncFailed);
                }
                LONGEST_RETRY_PAUSE
            }
        };
        let not_before = self.durability.not_before.max(Some(now + pause));
        self.durability.not_before = not_before;
        if let (Ok(()), State::Attached(attached)) = (result, &mut self.state) {
            attached.capture.shadow.on_changed(change);
        }
    }
}
