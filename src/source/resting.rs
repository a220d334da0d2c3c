//! Whether anybody else has the database open: letting go of it when nobody has, and coming back when somebody does.

use super::inspect::{Inspection, InspectionError, Suspicion};
use super::job::LocalJob;
use super::let_go::{LetGoOutcome, LetGoRequest, Stay};
use super::proof;
use super::recheck::Recheck;
use super::written_over::WRITTEN_OVER;
use super::{LONGEST_RETRY_PAUSE, RETRY_PAUSE, Source, State, Task};
use crate::core::checkpoint::CheckpointState;
use crate::core::evidence::{DatabaseHeader, Sighting, Stamp, Writer};
use crate::core::pace::Pace;
use crate::core::settling::Settling;
use crate::core::sync::{Break, Dirty};
use crate::core::wal_index::WalExtent;
use crate::database_file::DatabaseFile;
use crate::page_table::TableError;
use crate::rights;
use log::{debug, error, info, warn};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whoever opens a database, and is not seen to have it open, and does not write, may have failed to. That puts letting
/// go off by so many times `let-go-after` at most.
const MOST_PUT_OFF: u32 = 10;
/// Where no event tells of what is written, it is looked at so often.
const UNTOLD_PAUSE: Duration = Duration::from_secs(1);
/// Letting go did not work: the first pause before it is tried again without an event, doubled up to the longest.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_AGAIN_PAUSE: Duration = Duration::from_secs(60);

impl Source {
    /// Whether a replica needs the database file; then it is held even if nobody else has it open. How many bytes of the
    /// shadow the replica lacks that lacks the most, and whether one fails or does not follow.
    pub fn need(&mut self, is_needed: bool, behind: u64, lets_fill: bool) {
        (self.is_needed, self.behind, self.lets_fill) = (is_needed, behind, lets_fill);
        self.on_behind();
    }

    /// Notices who is there, and a file that was written by nobody who is. Only where that can have changed: a busy
    /// application's every commit need not be asked about.
    pub(super) fn look_around(&mut self, now: Instant) {
        let dirty = self.dirty;
        let is_alone = self.sighting.is_none_or(|sighting| sighting.alone);
        if dirty.closed {
            self.let_go_again = None;
        }
        let has_event = dirty.database || dirty.closed || is_alone && dirty.any();
        let is_due = self.look_around_at.is_some_and(|look| now >= look.at);
        if self.sighting.is_some() && !has_event && !is_due {
            return;
        }
        if !self.may_look_around() {
            self.look_around_at = Some(Recheck::now(now));
            return;
        }
        let State::Attached(attached) = &self.state else { return };
        let shadow = &attached.capture.shadow;
        // What is not copied yet may be in the file all the same.
        let is_in_wal = |header: &DatabaseHeader| {
            let is_copied = attached.capture.holds(attached.extent().ok()?);
            is_copied.then_some(shadow.headers().ok()?.contains(header))
        };
        let before = self.sighting.map(|before| {
            let has_grown = attached.capture.has_grown_beyond(before.backfilled);
            Sighting { is_backfilled: before.is_backfilled && !has_grown, ..before }
        });
        // While somebody checkpoints, its times say nothing: there must be something to be remembered instead.
        let is_of_use = |seen: &Sighting| before.is_some() || !seen.is_checkpointed;
        let seen = attached.sight().filter(is_of_use).and_then(|seen| {
            let writer = before.map_or(Some(Writer::Sqlite), |before| before.writer(&seen, is_in_wal));
            Some((seen, writer?))
        });
        let Some((sighting, writer)) = seen else {
            let again = Recheck::after(self.look_around_at, RETRY_PAUSE, LONGEST_RETRY_PAUSE, now);
            self.look_around_at = Some(again);
            return;
        };
        if let Some(reason) = self.replaced() {
            // Under another name others may have written it: that says nothing of its WAL.
            self.leaving = Some(reason);
            return;
        }
        if sighting.alone && attached.is_wal_overwritten() {
            self.leaving = Some(Break::WalOverwritten);
            return;
        }
        let is_wal_elsewhere = attached.is_wal_elsewhere(&self.wal);
        if is_wal_elsewhere && sighting.alone && self.wal.exists() {
            self.leaving = Some(Break::WalReplaced);
            return;
        }
        self.on_wal_elsewhere(is_wal_elsewhere);
        if sighting.alone && !is_alone {
            debug!("{}: nobody else has it open", self.settings.database.display());
        }
        // No event tells of a WAL that was moved away.
        self.look_around_at = self.is_wal_elsewhere.then(|| Recheck::at(now + UNTOLD_PAUSE));
        if self.suspect(writer, sighting, now) {
            return;
        }
        if !sighting.alone {
            if is_alone {
                self.ask_apart(now);
            }
            (self.let_go_at, self.is_told_to_let_go, self.quiet_since) = (None, false, None);
            self.solved(Task::LetGo);
        } else if dirty.any() || self.let_go_at.is_none() {
            let pause = self.let_go_again.map_or(Duration::ZERO, |again| again.pause);
            let quiet = self.settings.let_go_after.or(self.is_told_to_let_go.then_some(Duration::ZERO));
            let quiet = if self.must_go() || self.ends() { Some(Duration::ZERO) } else { quiet };
            let since = self.quiet_since.filter(|_| !dirty.wal && !dirty.database).unwrap_or(now);
            self.quiet_since = Some(since);
            let latest = |quiet: Duration| since.checked_add(quiet.saturating_mul(MOST_PUT_OFF));
            let at = |quiet| latest(quiet).map_or(now + quiet, |latest| latest.min(now + quiet));
            self.let_go_at = quiet.map(|quiet| at(quiet).max(now + pause));
        }
        self.sighting = Some(before.map_or(sighting, |before| before.followed_by(sighting)));
        self.note_alone();
    }

    /// After a look: what the file is once a checkpoint has ended, or the WAL was restarted, is what is compared with later.
    pub(super) fn plan_sighting(&mut self, now: Instant) {
        let (Some(sighting), Some(salt)) = (self.sighting, self.extent.salt) else { return };
        if sighting.backfilled != (salt, self.extent.backfilled) {
            self.look_around_at.get_or_insert(Recheck::now(now));
        }
    }

    /// Whether it is let go of as soon as nobody else has it open, whatever else is to be done with it.
    fn must_go(&self) -> bool {
        self.shuts_out() || self.is_unsummed() || self.is_written_over || self.is_wal_elsewhere
    }

    /// Whether the agent stops, and is to leave nothing beside a database that nobody else has open: it may be replaced then.
    fn ends(&self) -> bool {
        self.is_ending() && self.settings.let_go_after.is_some() && !self.is_needed
    }

    /// Whether the agent, which stops, is about to let go of it.
    pub fn is_let_go_at_the_end(&self) -> bool {
        let is_hindered = matches!(self.stay, Some(Stay::OpenIn(_) | Stay::Failed(_)));
        // All of a large file, for its page table.
        let is_read = matches!(&self.state, State::Attached(attached) if attached.descriptor.is_shared());
        let is_alone = self.sighting.is_some_and(|sighting| sighting.alone);
        self.ends() && is_alone && self.leaving.is_none() && !is_hindered && !is_read
    }

    /// Whether the file says something. While our own checkpoint writes, its times say nothing; and while what is
    /// committed is not copied, nothing can be said of its pages.
    fn may_look_around(&self) -> bool {
        !self.is_checkpointing() && self.is_certain()
    }

    /// When others and the file are looked at though nothing happens.
    pub(super) fn look_around_timeout(&self) -> Option<Instant> {
        self.look_around_at.filter(|_| self.may_look_around()).map(|look| look.at)
    }

    /// Lends everything to a worker that inspects the file, once nothing of it is lent.
    pub(super) fn inspect_job(&mut self) -> Option<LocalJob> {
        if self.awaits_table() {
            return None;
        }
        self.take_back_table();
        Some(LocalJob::Inspect(self.lend_interruptibly()?))
    }

    pub(super) fn on_inspected(&mut self, inspection: Inspection, now: Instant) {
        let name = self.settings.database.display();
        if let Inspection::Unknown(InspectionError::Table(TableError::Cancelled)) = inspection
            && self.loan.interruption.is_set()
        {
            return; // what was held is left, or inspected again
        }
        let Some(suspicion) = self.to_inspect.take() else { return };
        self.look_around_at = Some(Recheck::now(now));
        match (inspection, suspicion) {
            (Inspection::Whole, Suspicion::Written) => {
                info!("{name}: was written by a checkpoint that was not seen to begin; its WAL goes on")
            }
            (Inspection::Whole, Suspicion::Unseen | Suspicion::Beside) => {
                debug!("{name}: is what its page table and its WAL say")
            }
            (Inspection::Unsettled, _) => self.to_inspect = Some(suspicion),
            (Inspection::Broken(reason), _) => self.on_break(reason),
            (Inspection::Overwritten, Suspicion::Written) => {
                self.leaving = Some(Break::DatabaseOverwritten);
            }
            (Inspection::Overwritten, Suspicion::Unseen) => {
                // Perhaps an application has it open by now: what SQLite makes of both is what is copied.
                error!(
                    "{name}: something other than SQLite has written over it while the agent was not there, and SQLite \
                     reads it with the -wal of what was there before: check it with PRAGMA integrity_check"
                );
                self.on_written_over(Break::DatabaseOverwritten);
            }
            (Inspection::Overwritten, Suspicion::Beside) => {
                error!("{name}: {WRITTEN_OVER}");
                self.is_written_over = true;
                self.on_written_over(Break::DatabaseOverwritten);
            }
            // That it was written by others is nothing but possible.
            (Inspection::Unknown(error), Suspicion::Unseen) => {
                debug!("{name}: its pages cannot tell whether others have written it: {error}");
            }
            (Inspection::Unknown(error), Suspicion::Written | Suspicion::Beside) => {
                info!("{name}: was written, and its pages cannot tell by whom ({error})");
                // Its WAL may hold commits that are nowhere else, so it stays; whatever the file is, is copied anew.
                self.on_written_over(Break::DatabaseDoubtful);
            }
        }
    }

    /// After a checkpoint of ours beside nobody: `stamp` is the file then, and from now on nobody writes it. Without one
    /// nothing was written: then what was seen before tells whether the file is another's.
    pub(super) fn sight_after_checkpoint(&mut self, before: Option<Sighting>, stamp: Option<Stamp>) {
        if let Some(before) = before.filter(|before| before.alone) {
            self.sighting = Some(self.sighting_with(before, stamp));
            self.note_alone();
            self.dirty.closed = true;
        }
    }

    fn sighting_with(&self, before: Sighting, stamp: Option<Stamp>) -> Sighting {
        let State::Attached(attached) = &self.state else { return before };
        let (backfilled, is_backfilled) =
            attached.in_file().unwrap_or((before.backfilled, before.is_backfilled));
        stamp.map_or(before, |stamp| Sighting { stamp, backfilled, is_backfilled, ..before })
    }

    /// Lends everything to a worker that lets go, if it is time.
    pub(super) fn let_go_job(&mut self, now: Instant) -> Option<LocalJob> {
        if self.let_go_at.is_none_or(|at| now < at) {
            return None;
        }
        let (State::Attached(attached), Some(sighting)) = (&self.state, self.sighting) else {
            // Whoever looks around next plans it anew.
            self.let_go_at = None;
            return None;
        };
        let is_read = attached.descriptor.is_shared();
        let again = Recheck::after(self.let_go_again, AGAIN_PAUSE, LONGEST_AGAIN_PAUSE, now);
        self.let_go_again = Some(again);
        let is_needed = self.is_needed && !self.must_go();
        if is_needed || is_read || !self.is_certain() || !self.is_durable() {
            self.let_go_at = Some(again.at);
            return None;
        }
        // If it fails, it is put off anew.
        (self.let_go_at, self.quiet_since) = (None, None);
        Some(LocalJob::LetGo(LetGoRequest {
            attached: self.lend()?,
            database: self.settings.database.clone(),
            wal: self.wal.clone(),
            meta: self.settings.meta.clone(),
            disk: Arc::clone(&self.disk),
            seen: sighting,
        }))
    }

    pub(super) fn on_let_go(&mut self, outcome: LetGoOutcome, now: Instant) {
        let name = self.settings.database.display();
        match outcome {
            LetGoOutcome::Resting(resting) => {
                info!("{name}: nobody has it open: let go of, with everything in its file");
                self.state = State::Resting(resting);
                self.hold_nothing();
                (self.let_go_again, self.stay) = (None, None);
                // Whoever came in meanwhile was not looked for.
                self.dirty = Dirty::ALL;
            }
            LetGoOutcome::Kept(attached, stay, written) => {
                self.state = State::Attached(attached);
                self.sighting = self.sighting.map(|seen| self.sighting_with(seen, written));
                // Perhaps a file was just put in its place: that is seen by what we saw before.
                self.dirty.database = true;
                self.on_stay(stay, now);
            }
            LetGoOutcome::Overwritten(left) => {
                (self.state, self.left) = (State::Detached, left);
                self.hold_nothing();
                self.await_the_new(Break::DatabaseOverwritten, now);
            }
            LetGoOutcome::Lost(problem) => {
                warn!("{name}: {problem}; attaching again");
                self.state = State::Detached;
                self.hold_nothing();
                (self.dirty, self.retry) = (Dirty::ALL, None);
            }
        }
    }

    fn on_stay(&mut self, stay: Stay, now: Instant) {
        let name = self.settings.database.display();
        match &stay {
            Stay::Used => self.ask_apart(now),
            Stay::Later => {}
            Stay::Young(pause) => self.let_go_at = Some(now + *pause),
            Stay::OpenIn(process) if self.stay.as_ref() != Some(&stay) => {
                info!("{name}: stays attached: {process} has its WAL open, though without a lock");
            }
            Stay::OpenIn(_) => {}
            Stay::Broken(reason) => self.on_break(reason.clone()),
            Stay::Failed(problem) => self.failed(Task::LetGo, &format!("cannot let go of it: {problem}")),
        }
        self.stay = Some(stay);
    }

    /// Lets go as soon as nobody else is there; `None` if nothing is held, else what is in the way.
    pub fn detach_now(&mut self, now: Instant) -> Option<String> {
        match &self.state {
            State::Attached(_) => {}
            State::Absent | State::Resting(_) | State::Refused(_) if !self.is_busy() => return None,
            _ => return Some("the agent is busy with it".to_owned()),
        }
        let is_alone = self.sighting.is_some_and(|sighting| sighting.alone);
        if !is_alone {
            self.dirty.closed = true;
            return Some("another process has it open".to_owned());
        }
        (self.let_go_at, self.is_told_to_let_go) = (Some(now), true);
        Some(match &self.stay {
            Some(Stay::OpenIn(process)) => format!("{process} has its WAL open"),
            Some(Stay::Failed(problem)) => problem.clone(),
            _ if self.is_needed => "a replica gets its snapshot".to_owned(),
            _ => "the agent is letting go of it".to_owned(),
        })
    }

    /// Forgets what only matters while a database is held.
    pub(super) fn hold_nothing(&mut self) {
        (self.recheck, self.place_at, self.backfill_at) = (None, None, None);
        self.empty_nothing();
        (self.hot, self.pace) = (false, Pace::default());
        (self.urgent_next, self.needs_sync) = (false, false);
        (self.sighting, self.let_go_at, self.settle_at, self.settling) = (None, None, None, None);
        (self.quiet_since, self.is_told_to_let_go) = (None, false);
        (self.to_inspect, self.written_beside, self.compare_at) = (None, None, None);
        (self.is_written_over, self.is_wal_elsewhere) = (false, false);
        self.scrub.give_up_part();
        (self.look_around_at, self.apart, self.rights_at) = (None, None, None);
        self.checkpoint = CheckpointState::new();
        (self.extent, self.uncopied) = (WalExtent::default(), None);
        self.problems.remove(&Task::Look);
        self.problems.remove(&Task::Hold);
        self.problems.remove(&Task::Checkpoint);
        self.problems.remove(&Task::LetGo);
        self.problems.remove(&Task::Rights);
    }

    /// Whether a database that is not held has changed, and is only not opened yet.
    pub fn has_changed(&self) -> bool {
        self.settle_at.is_some()
    }

    /// When a database that is not held is looked at though nothing happens to it.
    pub(super) fn resting_timeout(&self, now: Instant) -> Option<Instant> {
        let is_due = self.is_needed || self.requested_break.is_some() || self.dirty.any();
        if is_due { Some(now) } else { self.settle_at }
    }

    /// Whether somebody seems to have it open.
    fn is_open(&self) -> bool {
        self.wal.exists() && self.wal_index.exists()
    }

    /// Lets a file that has come to where there was none settle, unless somebody has it open: it is root's, who may be about
    /// to give it to its application. Returns whether there is still none.
    pub(super) fn let_come(&mut self, now: Instant) -> bool {
        if !matches!(self.state, State::Absent) || !self.dirty.any() {
            return false;
        }
        let come = std::fs::metadata(&self.settings.database).ok().filter(|metadata| metadata.len() > 0);
        let Some(come) = come else { return true };
        if rights::maker() == 0 && come.uid() == 0 && !self.is_open() {
            self.state = State::Detached;
            self.let_settle(now);
        }
        false
    }

    /// Whether a database that is not held is to be attached to now: somebody has opened it, a replica needs it, or it
    /// has changed and come to rest.
    pub(super) fn is_wanted(&mut self, now: Instant) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        if self.is_open() || self.is_needed || self.requested_break.is_some() {
            return true;
        }
        if let State::Resting(resting) = &self.state {
            match proof::stamp_at(&self.settings.database) {
                None => return true, // attaching finds out whether it is gone
                Some(stamp) if stamp == resting.evidence.stamp && !self.wal.exists() => {
                    (self.settle_at, self.settling, self.up_to_date_at) = (None, None, Some(now));
                    return false;
                }
                Some(_) => {}
            }
        }
        if dirty.any() || dirty.rights || self.settle_at.is_none() {
            let header = DatabaseFile::beginning(&self.settings.database);
            let settling = self.settling.get_or_insert(Settling::new(now));
            self.settle_at = Some(settling.on_change(header.as_ref(), now));
        }
        self.settle_at.is_some_and(|at| now >= at)
    }
}
