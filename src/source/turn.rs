//! A source's turn: when it is due, what is looked at in it, and which job follows.

use super::attach::AttachRequest;
use super::job::LocalJob;
use super::left_behind::has_no_name;
use super::recheck::Recheck;
use super::round::{LOCK_PATIENCE, RoundPlan};
use super::{Source, State, Task};
use crate::core::checkpoint::Round;
use crate::core::position::Generation;
use crate::core::sync::{Break, Dirty};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is asked whether a program has ended that has a renamed file open.
const PROGRAM_PAUSE: Duration = Duration::from_secs(1);

impl Source {
    /// When the next turn is due though nothing happens.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let asks = self.awaits_program().then(|| now + PROGRAM_PAUSE);
        // Whoever listens to events must hear then that they matter again.
        let times = [self.timeout_of_state(now), asks, self.needs_events_at(now)];
        times.into_iter().flatten().min()
    }

    fn timeout_of_state(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Lent => self.dirty.folder.then_some(now),
            State::Absent | State::Detached | State::Resting(_) | State::Refused(_) if self.is_busy() => {
                (self.may_settle_left() && self.dirty.any()).then_some(now)
            }
            State::Absent => self.dirty.any().then_some(now),
            State::Resting(_) => self.resting_timeout(now),
            State::Detached if self.settle_at.is_some() => self.resting_timeout(now),
            State::Refused(_) if self.room.given_up.is_some() => Some(now),
            State::Detached | State::Refused(_) => Some(self.retry.map_or(now, |retry| retry.at)),
            State::Attached(_) => self.attached_timeout(now),
        }
    }

    fn attached_timeout(&self, now: Instant) -> Option<Instant> {
        if self.leaving.is_some() && self.must_stay() {
            return self.dirty.folder.then_some(now);
        }
        if self.leaving.is_some() || self.dirty.folder || self.dirty.rights {
            return Some(now);
        }
        if let Some(at) = self.compare_timeout(now).filter(|_| self.to_inspect.is_none()) {
            return Some(at);
        }
        if self.to_inspect.is_none() && self.requested_break.is_some() {
            let place = self.place_at.map(|r| r.at);
            return [self.break_at.map_or(now, |r| r.at)].into_iter().chain(place).min();
        }
        if self.is_comparing() {
            return (!self.awaits_table()).then_some(now);
        }
        if self.hot || self.dirty.any() {
            return Some(now);
        }
        let at = |recheck: Option<Recheck>| recheck.map(|r| r.at);
        let checkpoint = self.checkpoint.next_timeout(&self.settings.checkpoint, self.extent);
        let checkpoint = checkpoint.filter(|_| self.may_checkpoint() && !self.is_unsummed());
        let let_go = self.let_go_at.filter(|_| !self.job_in_flight);
        let listens = self.pace.next_timeout(now);
        let (place, backfill) = (at(self.place_at), at(self.backfill_at));
        let around = self.look_around_timeout();
        let durable = self.durable_at(now);
        let apart = self.apart_timeout();
        let (rights, emptying) = (self.rights_at, self.emptying_timeout().filter(|_| self.may_checkpoint()));
        let looks = [at(self.recheck), place, backfill, listens, around, apart, rights];
        let times = looks.into_iter().chain([checkpoint, emptying, let_go, durable]);
        times.flatten().min()
    }

    fn may_checkpoint(&self) -> bool {
        !self.job_in_flight && !self.problems.contains_key(&Task::Look) && self.written_beside.is_none()
    }

    /// Takes a turn: looks if there is reason to, and returns the job that is due. `generation` is for the case that
    /// a new one must begin.
    pub fn turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        self.forget_unused();
        let job = match &self.state {
            State::Attached(_) => self.attached_turn(now, generation),
            State::Lent => {
                if std::mem::take(&mut self.dirty.folder) {
                    self.loan.is_folder_unheeded = true;
                    self.keep_newcomer_out();
                }
                None
            }
            State::Absent | State::Detached | State::Resting(_) | State::Refused(_) => {
                self.let_newcomer_in();
                self.attach_turn(now, generation)
            }
        };
        self.job_in_flight |= job.is_some();
        job
    }

    /// Whether a worker still has something of the last attachment.
    pub(super) fn is_busy(&self) -> bool {
        self.job_in_flight || self.table.is_in_flight()
    }

    /// Whether a WAL that was left behind can be looked after: for that, a page table that is still being written is no
    /// hindrance, and whoever opens what has come to the path must not meet that WAL meanwhile.
    fn may_settle_left(&self) -> bool {
        self.left.is_some() && !self.job_in_flight
    }

    fn attach_turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        if !self.is_busy()
            && let Some(folder) = self.room.given_up.take()
        {
            return Some(LocalJob::Remove { paths: vec![folder], disk: Arc::clone(&self.disk) });
        }
        let is_retried = self.retry.is_some_and(|retry| now >= retry.at);
        if (self.dirty.any() || is_retried) && self.may_settle_left() && !self.settle_left(now) {
            return None;
        }
        let is_awaited = self.let_come(now);
        let is_due = match self.state {
            State::Absent => self.dirty.any(),
            _ if self.is_busy() => false,
            State::Resting(_) => self.is_wanted(now),
            State::Detached if self.settle_at.is_some() => self.is_wanted(now),
            _ => self.retry.is_none_or(|retry| now >= retry.at),
        };
        if self.is_busy() || !is_due {
            // A refused database may be written without a pause: it is tried again by the clock only.
            if matches!(self.state, State::Refused(_)) {
                self.dirty = Dirty::default();
            }
            return None;
        }
        (self.dirty, self.settle_at, self.settling) = (Dirty::default(), None, None);
        let resting = match std::mem::replace(&mut self.state, State::Detached) {
            State::Resting(resting) => Some(resting),
            other => {
                self.state = other;
                None
            }
        };
        Some(LocalJob::Attach(AttachRequest {
            database: self.settings.database.clone(),
            wal: self.wal.clone(),
            wal_index: self.wal_index.clone(),
            meta: self.settings.meta.clone(),
            disk: Arc::clone(&self.disk),
            next_generation: generation,
            forced_break: self.forced_break.clone(),
            resting,
            is_needed: self.is_needed || self.requested_break.is_some(),
            is_awaited,
        }))
    }

    fn attached_turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        // No event tells, beside writers that never pause.
        let is_unheeded = std::mem::take(&mut self.loan.is_folder_unheeded);
        let is_told = std::mem::take(&mut self.dirty.folder) || is_unheeded;
        let is_asked = is_told || self.needs_no_events(now);
        if is_asked {
            self.leaving = self.replaced().or(self.leaving.take());
        }
        self.let_newcomer_in();
        if is_told {
            self.look_around_at = Some(Recheck::now(now));
        }
        if self.leaving.is_none() {
            self.look_at_rights(is_asked, now);
            self.look_around(now);
            self.look_apart(now);
        }
        if self.leaving.is_some() {
            // At once: until a worker leaves it, milliseconds may pass.
            self.keep_newcomer_out();
            return self.detach(now);
        }
        if self.to_inspect.is_some() {
            // Inspecting copies, too.
            return if self.has_no_room(0, now) { None } else { self.inspect_job() };
        }
        if self.compare_timeout(now).is_some() {
            // Events would only find the same again.
            self.dirty = Dirty::default();
            return None;
        }
        if self.requested_break.is_some() && !self.begin_requested(now, generation) {
            return None;
        }
        if self.to_compare.is_some() {
            return self.compare_job(generation);
        }
        let is_due = |recheck: Option<Recheck>| recheck.is_some_and(|r| now >= r.at);
        if self.dirty.any() || self.hot || is_due(self.recheck) || is_due(self.backfill_at) {
            self.look(now);
        } else if is_due(self.place_at) {
            self.bring_in_place(now);
        }
        let waits = self.job_in_flight || self.leaving.is_some();
        if waits { None } else { self.job(now).or_else(|| self.let_go_job(now)) }
    }

    /// What was put in the place of a file that is held, or removed.
    pub(super) fn replaced(&self) -> Option<Break> {
        let State::Attached(attached) = &self.state else { return None };
        let reason = attached.replaced(&self.settings.database)?;
        // Whoever removes both removes them one after the other; a WAL without a name is kept.
        let is_wal_gone = attached.capture.live_file().is_some_and(has_no_name);
        Some(if reason == Break::WalIndexReplaced && is_wal_gone { Break::WalReplaced } else { reason })
    }

    /// The job that is due while we hold the database and none is in flight.
    fn job(&mut self, now: Instant) -> Option<LocalJob> {
        if let Some(job) = self.durability_job(now) {
            return Some(job);
        }
        let State::Attached(attached) = &mut self.state else { return None };
        let stale = attached.capture.shadow.take_stale();
        if !stale.is_empty() {
            return Some(LocalJob::Remove { paths: stale, disk: Arc::clone(&self.disk) });
        }
        if std::mem::take(&mut self.needs_sync)
            && let Some(sync) = attached.capture.shadow.to_sync()
        {
            return Some(LocalJob::Sync(sync));
        }
        if std::mem::take(&mut self.urgent_next) {
            return self.round_job(RoundPlan::Urgent { budget: self.settings.max_write_block });
        }
        self.checkpoint_job(now)
    }

    fn checkpoint_job(&mut self, now: Instant) -> Option<LocalJob> {
        if !self.may_checkpoint() {
            return None;
        }
        // What is brought into the file beside a reader would, after a crash, have older pages laid over it.
        if self.is_unsummed() {
            return self.emptying_job(now);
        }
        let is_endless = self.pace.is_endless(now);
        let round = self.checkpoint.due(&self.settings.checkpoint, self.extent, is_endless, now)?;
        if round == Round::Following {
            let most_frames = self.settings.checkpoint.unhelped_pages();
            return self.round_job(RoundPlan::Following { most_frames });
        }
        let State::Attached(attached) = &mut self.state else { return None };
        let sync = attached.capture.shadow.to_sync();
        let files = attached.files(&self.settings.database).ok()?;
        let checkpointer = attached.checkpointer.take()?;
        self.urgent_next = round == Round::Urgent;
        let stamp = self.sighting.filter(|sighting| sighting.alone).map(|sighting| sighting.stamp);
        let patience = if self.urgent_next { LOCK_PATIENCE } else { Duration::ZERO };
        Some(LocalJob::Checkpoint { checkpointer, sync, files, stamp, patience })
    }

    pub(super) fn round_job(&mut self, plan: RoundPlan) -> Option<LocalJob> {
        let database = self.settings.database.clone();
        let attached = self.lend()?;
        self.loan.is_for_round = true;
        Some(LocalJob::Round { attached, database, plan })
    }
}
