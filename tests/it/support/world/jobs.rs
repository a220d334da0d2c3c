//! The agent's workers: its jobs are done when the world says so.

use super::World;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wal_agent::carry::Order;
use wal_agent::core::replica::Outcome;
use wal_agent::remote::Location;
use wal_agent::source::LocalJob;
use wal_agent::worker::{Completed, Workers, do_local};

/// A job that was handed out.
pub(super) enum Handed {
    Local(usize, LocalJob),
    Remote(usize, usize, Order),
}

impl Handed {
    /// The replica, and which of its two threads; `None` for local jobs.
    fn line(&self) -> Option<(usize, bool)> {
        let Handed::Remote(_, replica, order) = self else { return None };
        Some((*replica, order.job.is_of_snapshots()))
    }
}

/// The jobs in flight. They are done when the world says so.
#[derive(Clone, Default)]
pub(super) struct Jobs {
    pub(super) handed: Arc<Mutex<Vec<Handed>>>,
    pub(super) ended: Arc<Mutex<VecDeque<Completed>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers for Jobs {
    fn send_local(&mut self, database: usize, job: LocalJob) {
        lock(&self.handed).push(Handed::Local(database, job));
    }
    fn send_remote(&mut self, database: usize, replica: usize, _location: &Location, order: Order) {
        lock(&self.handed).push(Handed::Remote(database, replica, order));
    }
    fn completed(&mut self) -> Option<Completed> {
        lock(&self.ended).pop_front()
    }
}

impl World {
    /// Which of the jobs that were handed out may be done.
    pub(super) fn due_jobs(&self) -> Vec<usize> {
        let is_held = |job: &Handed| matches!(job, Handed::Local(_, job) if (self.held)(job));
        let handed = lock(&self.jobs.handed);
        (0..handed.len()).filter(|at| !is_held(&handed[*at])).collect()
    }

    /// Any of the jobs that were handed out, but the first one of its line: each line is a thread.
    pub(super) fn next_job(&mut self, at: usize) -> Handed {
        let mut handed = lock(&self.jobs.handed);
        let first = match handed[at].line() {
            Some(line) => handed.iter().position(|job| job.line() == Some(line)).unwrap_or(at),
            None => at,
        };
        handed.remove(first)
    }

    pub(super) fn carry_out(&mut self, job: Handed) -> Completed {
        match job {
            Handed::Local(database, job) => Completed::Local { database, outcome: do_local(job) },
            Handed::Remote(database, replica, order) => {
                let generation = order.generation;
                self.note(&format!("replica {replica}: {:?}", order.job));
                let line = (replica, order.job.is_of_snapshots());
                let server = &self.servers[replica];
                let remote = self.connections.entry(line).or_insert_with(|| server.connect());
                let carrier = self.carriers.entry(line.1).or_default();
                let outcome = carrier.carry(&mut **remote, &order).unwrap_or_else(|error| {
                    if error.is_disconnected() {
                        self.connections.remove(&line);
                    }
                    Outcome::failed(&order.job, error.into_failure())
                });
                self.note(&format!("replica {replica}: {outcome:?}"));
                Completed::Remote { database, replica, generation, outcome }
            }
        }
    }
}
