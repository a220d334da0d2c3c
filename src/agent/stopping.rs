//! Stopping: what is committed by then is sent, and no WAL is left that nobody could recover.

use super::{Agent, Database, Now};
use crate::core::position::Position;
use crate::core::replica::Replica;
use crate::core::sync::Dirty;
use crate::source::State;
use log::{info, warn};
use std::time::{Duration, Instant};

/// While stopping, how often it is said what is still waited for.
const STOP_REPORT: Duration = Duration::from_secs(1);

/// What a database must have sent before the agent may stop.
pub(super) struct Stop {
    /// Everything that was committed before this.
    since: Instant,
    /// The end of it, once it is known.
    at: Option<Position>,
}

/// How far stopping has come.
pub(super) struct Stopping {
    until: Instant,
    next_report: Instant,
}

impl Stopping {
    /// When it is said again what is waited for, or not waited any longer.
    pub(super) fn next_timeout(&self) -> Instant {
        self.next_report.min(self.until)
    }
}

impl Agent {
    /// Begins to stop: looks at everything once more, and pushes what is pending until `until`.
    pub fn begin_stop(&mut self, now: Now, until: Instant) {
        info!("stopping: sending what is pending");
        self.stopping = Some(Stopping { until, next_report: now.mono + STOP_REPORT });
        for database in &mut self.databases {
            database.source.mark(Dirty::ALL);
            database.source.prepare_to_end();
            database.stop = Some(Stop { since: now.mono, at: None });
            database.replicas.iter_mut().filter_map(|r| r.course.as_mut()).for_each(Replica::hurry);
        }
    }

    /// Whether the agent is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// While stopping: whether it is time to go, and whether everything was acknowledged.
    pub fn stopped(&mut self, now: Now) -> Option<bool> {
        let pending = self.databases.iter_mut().filter_map(|d| d.pending(now.mono)).collect::<Vec<_>>();
        let stopping = self.stopping.as_mut()?;
        if pending.is_empty() {
            info!("everything is acknowledged");
            return Some(true);
        }
        if now.mono >= stopping.until {
            pending.iter().for_each(|what| warn!("not acknowledged: {what}"));
            return Some(false);
        }
        if now.mono >= stopping.next_report {
            stopping.next_report = now.mono + STOP_REPORT;
            pending.iter().for_each(|what| info!("waiting for {what}"));
        }
        None
    }

    /// The agent ends now: no WAL is to be left that only those can read who have it open. `false` as long as a worker is
    /// just emptying one.
    pub fn end(&mut self, now: Now) -> bool {
        self.take_completed(now);
        self.databases.iter_mut().for_each(|database| database.source.end());
        !self.databases.iter().any(|database| database.source.is_being_emptied())
    }
}

impl Database {
    /// What keeps this database from being stopped, for people; `None` if nothing does. What is committed after the
    /// signal is not waited for: a writer that never pauses would make it endless.
    fn pending(&mut self, now: Instant) -> Option<String> {
        let name = self.source.database().display().to_string();
        match self.source.state() {
            State::Absent => None,
            State::Refused(refusal) => Some(format!("{name}: {refusal}")),
            State::Detached | State::Lent => Some(format!("{name}: the agent is busy with it")),
            State::Attached(_) if self.source.must_let_go() => {
                Some(format!("{name}: what only its WAL holds is being brought into it"))
            }
            State::Attached(_) if self.source.is_let_go_at_the_end() => {
                Some(format!("{name}: nobody else has it open, and it is being let go of"))
            }
            State::Attached(_) if !self.source.is_durable() => {
                Some(format!("{name}: its shadow WAL is being made durable"))
            }
            State::Attached(_) | State::Resting(_) => {
                let Some(end) = self.stop_position(now) else {
                    let why = self.source.problem().unwrap_or("its WAL is being copied");
                    return Some(format!("{name}: {why}"));
                };
                let (extent, _) = self.shadow.as_ref()?;
                // Each is told, not only the first that has not finished.
                let unfinished = self.replicas.iter_mut().map(|room| (room.finish(end), room));
                let (_, room) = unfinished.filter(|(is_finished, _)| !is_finished).last()?;
                Some(format!("{name}: replica {} ({} bytes behind)", room.config.name, room.lag(extent)))
            }
        }
    }

    /// While stopping: tells the replicas where they end, once that is known.
    pub(super) fn finish(&mut self, now: Instant) {
        if let Some(end) = self.stop_position(now) {
            self.replicas.iter_mut().for_each(|room| {
                room.finish(end);
            });
        }
    }

    /// Up to where everything must be acknowledged before stopping; `None` while that is not known.
    fn stop_position(&mut self, now: Instant) -> Option<Position> {
        // Not what is remembered: while the database is lent, more may have been copied.
        let position = self.source.shadow_extent()?.position();
        let stop = self.stop.as_mut()?;
        if stop.at.is_some_and(|at| at.generation != position.generation) {
            *stop = Stop { since: now, at: None };
            self.source.mark(Dirty::ALL);
        }
        if stop.at.is_none() && self.source.holds_all_before(stop.since) {
            stop.at = Some(position);
        }
        stop.at
    }
}
