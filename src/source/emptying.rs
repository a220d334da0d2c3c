//! A WAL in which SQLite has left out checksums is emptied as soon as everything is in the database file, and let go of as
//! soon as nobody else has it open. Its application may be the last to close the database, and then loses nothing; while
//! we hold it, too, it is not. Whoever recovers that WAL loses commits; and where some of them are in the file already,
//! mixes it with older pages.

use super::job::LocalJob;
use super::recheck::Recheck;
use super::round::RoundPlan;
use super::{Source, State};
use log::warn;
use std::time::{Duration, Instant};

/// The pauses after a round in which others were in the way.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// From one to the next, for whoever writes such WALs all the time waits for us each time. Should the application close
/// meanwhile, it is let go of; and should the machine end, it is as without us.
const REST: Duration = Duration::from_secs(1);

/// When such a WAL is to be emptied.
#[derive(Debug, Default)]
pub(super) struct Emptying {
    at: Option<Recheck>,
    tried_at: Option<Instant>,
    /// It was said that there are such WALs.
    is_said: bool,
}

impl Source {
    /// After a look, or a round, has found whether checksums are missing.
    pub(super) fn plan_emptying(&mut self, now: Instant) {
        if !self.is_unsummed() {
            self.emptying.at = None;
            return;
        }
        if !std::mem::replace(&mut self.emptying.is_said, true) {
            warn!(
                "{}: its SQLite leaves out checksums in the -wal (an old version does, 3.40.1 for one, after a ROLLBACK TO \
                 in a large transaction): after a crash it would not find what it has committed from there on; that is \
                 replicated all the same, and brought into the database file at once; a newer SQLite does not do that",
                self.settings.database.display()
            );
        }
        if self.emptying.at.is_none() {
            let rested_at = self.emptying.tried_at.map_or(now, |tried_at| now.max(tried_at + REST));
            self.emptying.at = Some(Recheck::at(rested_at));
            // Whoever wrote it may have gone, before anybody knew that it matters.
            self.let_go_at = self.let_go_at.map(|at| at.min(now));
            self.look_around_at = Some(Recheck::now(now));
        }
    }

    /// Whether what is held is such a WAL.
    pub(super) fn is_unsummed(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.capture.is_unsummed)
    }

    /// When it is tried to empty it though nothing happens.
    pub(super) fn emptying_timeout(&self) -> Option<Instant> {
        self.emptying.at.map(|again| again.at)
    }

    /// Lends everything to a worker that empties it, if it is time.
    pub(super) fn emptying_job(&mut self, now: Instant) -> Option<LocalJob> {
        let at = self.emptying.at.filter(|again| now >= again.at)?;
        (self.emptying.at, self.emptying.tried_at) =
            (Some(Recheck::after(Some(at), PAUSE, LONGEST_PAUSE, now)), Some(now));
        self.round_job(RoundPlan::Emptying)
    }

    /// Whether the agent must not stop yet: nobody else has it open, and it is about to be let go of.
    pub fn must_let_go(&self) -> bool {
        self.is_unsummed() && self.sighting.is_some_and(|sighting| sighting.alone)
    }

    /// Whether a worker has it, perhaps to empty it or to let go of it.
    pub fn is_being_emptied(&self) -> bool {
        self.emptying.at.is_some() && matches!(self.state, State::Lent)
    }

    /// The agent stops: if nobody else has it open after all, leaves as SQLite's last close would.
    pub fn end(&mut self) {
        let seen = self.sighting;
        if self.is_unsummed()
            && !self.is_busy()
            && let Some(attached) = self.take_held()
        {
            attached.let_go_of_damaged_wal(&self.settings.database, seen.as_ref());
        }
    }

    /// What is not held is not ours to empty.
    pub(super) fn empty_nothing(&mut self) {
        self.emptying.at = None;
    }
}
