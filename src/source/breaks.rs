//! What a source does when continuity is lost: it compares, begins a new generation, or lets go.

use super::attach::AttachOutcome;
use super::compare::{Compared, Doubt, can_settle, report};
use super::job::LocalJob;
use super::kept_out;
use super::leave::{LeaveOutcome, LeaveRequest};
use super::left_behind::Fate;
use super::look::{LONGEST_PLACE_PAUSE, PLACE_PAUSE};
use super::newcomer::Door;
use super::recheck::Recheck;
use super::refusal::Refusal;
use super::{BREAK_PAUSE, LONGEST_BREAK_PAUSE, LONGEST_RETRY_PAUSE, RETRY_PAUSE, Source, State, Task};
use crate::core::position::Generation;
use crate::core::settling::SETTLE_PAUSE;
use crate::core::sync::{Break, Dirty};
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::locks;
use crate::page_table::TableError;
use log::{info, warn};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Instant;

const USED: &str = "a program goes on writing into the file that was at this path before, and that is not replicated; \
                    end it, and start it again";

const MIXED: &str = "a program opened this file with the WAL of the one that was there before; check it with PRAGMA \
                     integrity_check, and put it, or a restore, in place again as a new file";

impl Source {
    pub(super) fn on_break(&mut self, reason: Break) {
        match reason {
            // Whoever renames the database may remove its WAL directly after that.
            Break::WalReplaced => {
                let replaced = self.replaced().filter(|found| *found == Break::DatabaseReplaced);
                self.leaving = replaced.or(Some(reason));
            }
            // Another generation would find the same.
            Break::DatabaseReplaced
            | Break::DatabaseOverwritten
            | Break::WalOverwritten
            | Break::WalIndexReplaced
            | Break::HeaderInvalid
            | Break::ChainBroken => self.leaving = Some(reason),
            reason if can_settle(&reason) || reason == Break::WalContinued && self.passes_over() => {
                self.gaps = self.gaps.wrapping_add(1);
                self.to_compare = Some(reason);
            }
            reason => self.request_generation(reason),
        }
    }

    /// Whether what is lent comes back first, or the page table can be compared with a moment later.
    pub(super) fn awaits_table(&self) -> bool {
        let is_written =
            matches!(&self.state, State::Attached(attached) if attached.capture.table.is_being_written());
        self.job_in_flight || is_written && self.table.is_in_flight()
    }

    /// Whether what is held must not be let go of yet: something of it is lent, or the pages of a renamed file may have
    /// to be compared. Else it is a matter of milliseconds: who makes the database anew must not meet our `-shm`.
    pub(super) fn must_stay(&self) -> bool {
        let has_name = |file: &File| file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        match &self.state {
            State::Attached(attached)
                if self.leaving == Some(Break::DatabaseReplaced) && has_name(&attached.descriptor) =>
            {
                self.awaits_table()
            }
            _ => self.job_in_flight,
        }
    }

    /// Lends everything to a worker that compares, once nothing of it is lent.
    pub(super) fn compare_job(&mut self, generation: Generation) -> Option<LocalJob> {
        if self.awaits_table() {
            return None;
        }
        self.take_back_table();
        (self.recheck, self.place_at, self.backfill_at, self.let_go_at) = (None, None, None, None);
        self.dirty.closed = false;
        Some(LocalJob::Compare {
            attached: self.lend_interruptibly()?,
            database: self.settings.database.clone(),
            wal: self.wal.clone(),
            next_generation: generation,
        })
    }

    pub(super) fn on_compared(&mut self, result: &Result<Compared, Doubt>, now: Instant) {
        if let Err(Doubt::Table(TableError::Cancelled)) = result
            && self.loan.interruption.is_set()
        {
            return; // what was held is left, or compared again
        }
        self.sighting = result.as_ref().ok().map(|compared| compared.seen);
        self.look_around_at = Some(Recheck::now(now));
        if self.passes_over() {
            // Whoever continues that WAL makes it be compared again.
            self.compare_at = Some(Recheck::after(self.compare_at, RETRY_PAUSE, LONGEST_RETRY_PAUSE, now));
        }
        if let Err(doubt) = result
            && self.must_settle()
        {
            if !self.close_written_over(now) {
                let problem = format!("what was written over it cannot be copied yet: {doubt}");
                self.failed(Task::BeginGeneration, &problem);
            }
            return;
        }
        let Some(reason) = self.to_compare.take() else { return };
        report(&self.settings.database, &reason, result);
        if result.is_err() {
            self.request_generation(reason);
        }
    }

    /// A replica, or a look, found that the generation cannot go on; the next turn begins a new one.
    pub fn request_generation(&mut self, reason: Break) {
        self.requested_break = Some(reason);
    }

    /// Begins the generation that is asked for; `false` if it must wait.
    pub(super) fn begin_requested(&mut self, now: Instant, generation: Generation) -> bool {
        if self.must_settle() {
            self.to_compare = self.to_compare.take().or_else(|| self.requested_break.clone());
            return true;
        }
        let (Some(reason), State::Attached(attached)) = (self.requested_break.clone(), &mut self.state)
        else {
            return false;
        };
        if self.break_at.is_some_and(|r| now < r.at) {
            // Nobody can backfill while read lock 0 is held, or behind the mark of a slot that others have, and that may be
            // long; a failure is that of the next look, too.
            let is_in_place = attached.guard.forbid_restart().is_ok_and(|is_ours| is_ours);
            self.place_at =
                (!is_in_place).then(|| Recheck::after(self.place_at, PLACE_PAUSE, LONGEST_PLACE_PAUSE, now));
            // Events would only find the same again.
            self.dirty = Dirty::default();
            self.failed(Task::BeginGeneration, &format!("{reason}; that comes back in every generation"));
            return false;
        }
        self.break_at = Some(Recheck::after(self.break_at, BREAK_PAUSE, LONGEST_BREAK_PAUSE, now));
        match attached.begin_generation(&self.disk, &self.settings.meta, generation) {
            Ok(()) => {
                self.count_break(reason);
                (self.requested_break, self.to_compare) = (None, None);
                self.rely_on_replicas(false);
                (self.recheck, self.place_at, self.backfill_at, self.uncopied) = (None, None, None, None);
                self.hot = true;
                true
            }
            Err(e) => {
                let problem = format!("cannot begin a new generation ({reason}): {e}");
                self.failed(Task::BeginGeneration, &problem);
                false
            }
        }
    }

    pub(super) fn count_break(&mut self, reason: Break) {
        let name = self.settings.database.display();
        let generation = self.shadow_extent().map(|e| format!(" {}", e.generation)).unwrap_or_default();
        info!("{name}: begins generation{generation}: {reason}");
        self.breaks += u32::from(reason != Break::FirstRun);
        self.last_break = Some(reason);
    }

    /// Lets go of what is not the database, or not its WAL, any more, once nothing of it is lent.
    pub(super) fn detach(&mut self, now: Instant) -> Option<LocalJob> {
        (self.recheck, self.place_at, self.backfill_at, self.let_go_at) = (None, None, None, None);
        self.hot = false;
        if self.must_stay() {
            return None;
        }
        self.take_back_table();
        let reason = self.leaving.take()?;
        // What is still to be inspected was seen after it was written.
        let seen = self.sighting.filter(|_| self.to_inspect.is_none());
        let before_others = self.seen_alone();
        let attached = self.take_held()?;
        // What is damaged may be found again in the next try, and each would begin a generation.
        let is_damaged = matches!(reason, Break::HeaderInvalid | Break::ChainBroken);
        (self.requested_break, self.to_compare) = (None, None);
        self.break_at = self.break_at.filter(|_| is_damaged);
        self.problems.clear();
        match reason {
            Break::NoRoom(shortage) => self.let_go_for_room(State::Attached(attached), shortage, now),
            Break::HeaderInvalid | Break::ChainBroken => {
                // What was copied stays, and goes on with what comparing the pages finds.
                attached.let_go_of_damaged_wal(&self.settings.database, seen.as_ref());
                self.refuse(Refusal::WalDamaged(reason), now);
            }
            Break::WalIndexReplaced => {
                // Without a checkpoint: what we know of the WAL may be old.
                let descriptor = attached.descriptor.clone();
                drop(attached);
                kept_out::after_closing(&descriptor);
                self.await_the_new(reason, now);
            }
            Break::WalOverwritten => {
                let name = self.settings.database.display();
                if attached.let_go_of_overwritten_wal(&self.settings.database) {
                    // What it is then, a comparison of every page tells.
                    warn!("{name}: {reason}; let go of it, so that whoever opens it reads what is there now");
                    self.let_settle(now);
                } else {
                    self.refuse(Refusal::WalDamaged(reason), now);
                }
            }
            Break::UsedApart => {
                attached.let_go_beside_others(self.paths(), before_others.as_ref());
                self.forced_break = Some(reason);
                self.refuse(Refusal::UsedApart, now);
            }
            Break::DatabaseReplaced | Break::WalReplaced => {
                let door =
                    self.loan.door.get_or_insert_with(|| Door::of(attached.descriptor.identity())).clone();
                door.make_way(&attached, self.paths());
                self.state = State::Lent;
                return Some(LocalJob::Leave(LeaveRequest {
                    attached,
                    reason,
                    database: self.settings.database.clone(),
                    wal: self.wal.clone(),
                    meta: self.settings.meta.clone(),
                    disk: Arc::clone(&self.disk),
                    seen,
                    door,
                }));
            }
            reason => {
                self.left = attached.let_go_of_overwritten(self.paths());
                self.await_the_new(reason, now);
            }
        }
        None
    }

    pub(super) fn on_left(&mut self, outcome: LeaveOutcome, now: Instant) {
        let LeaveOutcome { reason, left, used } = outcome;
        self.loan.door = None;
        (self.state, self.left) = (State::Detached, left);
        self.take_back_table();
        if used.is_some() {
            let name = self.settings.database.display();
            warn!("{name}: {USED}");
        }
        self.used = used.or(self.used.take());
        self.await_the_new(reason, now);
    }

    /// Whether the database may be mixed with the one that was there before, and what to do.
    pub fn mixed(&self) -> Option<&'static str> {
        self.is_mixed.then_some(MIXED)
    }

    /// Whether a program goes on writing into a file that was at the path before, and why that matters.
    pub fn used_elsewhere(&self) -> Option<&'static str> {
        self.used.as_ref().filter(|file| self.is_used_elsewhere(file)).map(|_| USED)
    }

    fn is_used_elsewhere(&self, file: &DatabaseFile) -> bool {
        let has_name = file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        let is_back = FileIdentity::of_path(&self.settings.database) == Some(file.identity());
        has_name && !is_back && locks::is_shared(file).unwrap_or(false)
    }

    /// Whether a file is only kept open because a program has it open, of which no event tells when it ends.
    pub(super) fn awaits_program(&self) -> bool {
        self.used.is_some() || self.left.as_ref().is_some_and(|left| left.database.is_some())
    }

    /// The file at the path, if the agent has it open for another database.
    pub fn wanted_file(&self) -> Option<FileIdentity> {
        let is_open = matches!(self.state, State::Refused(Refusal::StillOpen));
        is_open.then(|| FileIdentity::of_path(&self.settings.database)).flatten()
    }

    /// Closes a file that other sources want, unless a program goes on with the WAL that it had here.
    pub fn leave_to_others(&mut self, wanted: &[FileIdentity]) {
        let has_wal = self.left.as_ref().is_some_and(|left| left.database.is_some());
        let is_held = matches!(self.state, State::Attached(_) | State::Lent) || self.is_busy();
        if !has_wal && !is_held {
            self.used.take_if(|file| wanted.contains(&file.identity()));
        }
    }

    /// Closes such a file once nobody uses it, or it is back. Not while we are attached to it again: that would drop
    /// SQLite's locks.
    pub(super) fn forget_unused(&mut self) {
        if let Some(mut left) = self.left.take() {
            left.release(self.paths());
            self.left = Some(left);
        }
        let Some(file) = &self.used else { return };
        let is_open = match &self.state {
            State::Attached(attached) => attached.descriptor.identity() == file.identity(),
            _ => self.is_busy() || matches!(self.state, State::Lent),
        };
        if !is_open && !self.is_used_elsewhere(file) {
            self.used = None;
        }
    }

    /// What was at the database's path is gone; something else is, or will be.
    pub(super) fn await_the_new(&mut self, reason: Break, now: Instant) {
        let name = self.settings.database.display();
        warn!("{name}: {reason}; let go of the old one, the new one begins a new generation");
        self.forced_break = Some(reason);
        self.let_settle(now);
    }

    pub(super) fn let_settle(&mut self, now: Instant) {
        (self.settle_at, self.settling) = (Some(now + SETTLE_PAUSE), None);
        (self.dirty, self.retry) = (Dirty::ALL, None);
    }

    /// Whether no WAL of another file is in the way of attaching to what is at the database's path.
    pub(super) fn settle_left(&mut self, now: Instant) -> bool {
        let Some(mut left) = self.left.take() else { return true };
        let fate = left.settle(self.paths(), None);
        match fate {
            Fate::NoDatabase => {
                left.release(self.paths());
                self.left = Some(left);
                (self.dirty, self.settle_at) = (Dirty::default(), None);
                self.on_attach(AttachOutcome::Absent, now);
                return false;
            }
            Fate::Later(refusal) => {
                left.release(self.paths());
                self.left = Some(left);
                self.dirty = Dirty::default();
                self.refuse(refusal, now);
                return false;
            }
            Fate::Back | Fate::BackChanged => self.forced_break = Some(Break::DatabaseMoved),
            Fate::Mixed | Fate::Gone | Fate::MovedAway(_) => {}
        }
        self.state = State::Detached;
        self.let_settle(now);
        true
    }
}
