//! Keeping the page table: its jobs go beside the others, because reading a whole database takes long.

use super::job::LocalJob;
use super::{Source, State};
use crate::core::sync::Break;
use crate::page_table::{TableError, TableJob, TableOutcome};
use log::{info, warn};
use std::time::Instant;

/// What a source knows of the work on its page table.
#[derive(Default)]
pub struct TableWork {
    /// A worker has a job.
    in_flight: bool,
    /// It makes nothing durable.
    is_volatile: bool,
    /// How a job ended while the database was lent.
    held_back: Option<TableOutcome>,
    /// [`Source::looks`] when the database had been read: whoever looks next copies all that a checkpoint may have
    /// written into it meanwhile, and only then it is known where the table stands.
    read_after: Option<u32>,
    /// Said when the table was lost, until there is one again.
    problem: Option<String>,
}

impl TableWork {
    /// Whether a worker has a job, and with it perhaps a file of the present generation.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Whether what a worker is writing will not be durable.
    pub fn is_volatile(&self) -> bool {
        self.in_flight && self.is_volatile
    }
}

impl Source {
    /// When [`Source::table_job`] is due though nothing happens.
    pub fn table_timeout(&self, now: Instant) -> Option<Instant> {
        let State::Attached(attached) = &self.state else { return None };
        let capture = &attached.capture;
        let may_begin = self.is_certain() && self.leaving.is_none();
        if self.table.held_back.is_some() {
            return Some(now);
        }
        if self.table.in_flight || !may_begin || self.table.read_after == Some(self.looks) {
            return None;
        }
        let table = capture.table.next_timeout(capture.shadow.extent(), self.may_build(), now);
        table.into_iter().chain(self.scrub_timeout(now)).min()
    }

    /// Not in the middle of a transaction, and not where room is scarce.
    fn may_build(&self) -> bool {
        let is_whole = matches!(&self.state, State::Attached(attached) if attached.capture.shadow.is_whole());
        is_whole && self.scarcity().is_none()
    }

    /// The job for the page table that is due, if any. The agent has so many `databases`.
    pub fn table_job(&mut self, databases: u32, now: Instant) -> Option<LocalJob> {
        if matches!(self.state, State::Attached(_)) {
            self.take_back_table();
        }
        if self.table_timeout(now).is_none_or(|due| due > now) {
            return None;
        }
        let may_build = self.may_build();
        let State::Attached(attached) = &mut self.state else { return None };
        let capture = &mut attached.capture;
        let problem = capture.table.take_problem(now);
        let job = capture.table.next_job(&capture.shadow, may_build, &attached.descriptor, now);
        capture.keep_state();
        self.table.read_after = None;
        self.table.is_volatile = matches!(&job, Some(TableJob::Write(write)) if write.is_volatile());
        problem.into_iter().for_each(|problem| self.on_lost_table(&problem));
        let job = job.or_else(|| self.scrub_job(databases, now));
        self.table.in_flight = job.is_some();
        job.map(LocalJob::Table)
    }

    /// Takes in how a job ended while the database was lent.
    pub(super) fn take_back_table(&mut self) {
        if let Some(outcome) = self.table.held_back.take() {
            self.on_table(outcome);
        }
    }

    pub(super) fn on_table(&mut self, outcome: TableOutcome) {
        self.table.in_flight = false;
        let outcome = match outcome {
            TableOutcome::Read(read) => return self.on_part_read(read),
            other => other,
        };
        match &mut self.state {
            State::Attached(attached) => {
                if matches!(outcome, TableOutcome::Built(_)) {
                    self.table.read_after = Some(self.looks);
                    self.dirty.wal = true;
                }
                attached.capture.table.on_job(outcome);
                attached.capture.keep_state();
                if attached.capture.table.state().is_some() && self.table.problem.take().is_some() {
                    info!("{}: there is a page table again", self.settings.database.display());
                }
            }
            State::Lent => self.table.held_back = Some(outcome),
            State::Absent | State::Detached | State::Resting(_) | State::Refused(_) => {}
        }
    }

    fn on_lost_table(&mut self, problem: &TableError) {
        let (name, text) = (self.settings.database.display(), problem.to_string());
        if self.table.problem.as_ref() != Some(&text) {
            warn!(
                "{name}: has no page table: {text}; replication goes on, and until it is built anew a restore is not \
                 proven equal to the source"
            );
            self.table.problem = Some(text);
        }
        if let TableError::ShadowSync(_) = problem {
            self.request_generation(Break::ShadowSyncFailed);
        }
    }
}
