//! One replica of one database: its course, and what is said of it.

use super::{Now, moment};
use crate::carry::{Order, Progress};
use crate::config::{Durability, ReplicaConfig};
use crate::core::lag::Lag;
use crate::core::position::{Generation, Position};
use crate::core::replica::{Activity, Failure, Job, Replica, SUPERSEDED, Surveyed};
use crate::core::shadow::ShadowExtent;
use crate::core::status::{PastError, ReplicaState, ReplicaStatus};
use crate::core::survey::Survey;
use crate::database_file::DatabaseFile;
use crate::disk::Disk;
use crate::remote::Location;
use log::{info, warn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What status says where somebody else writes generations at the same place.
const SHARED: &str = "another agent, or Litestream, replicates to this place, and a restore takes what was written last: give \
                      each database of each machine a place of its own, or stop that one";

/// In so many generations, what was left unfinished is removed by each look: a server may be away while they change.
const MOST_LEFT: usize = 4;

/// One replica and what status says of it.
pub struct ReplicaRoom {
    pub(super) config: ReplicaConfig,
    pub(super) course: Option<Replica>,
    pub(super) survey: Survey,
    pub(super) progress: Arc<Progress>,
    pub(super) lag: Lag,
    pub(super) last_acked: Option<Now>,
    pub(super) last_error: Option<(String, Now)>,
    pub(super) is_failing: bool,
    pub(super) was_streaming: bool,
    /// The source's gaps when the last snapshot began to be read.
    pub(super) snapshot_read_after: u32,
    /// While stopping: the position before which everything was acknowledged.
    held: Option<Position>,
    /// The generations before the present one that this run has followed last.
    left: Vec<Generation>,
}

impl ReplicaRoom {
    /// A room in which nothing has happened.
    pub fn new(config: &ReplicaConfig) -> Self {
        ReplicaRoom {
            config: config.clone(),
            course: None,
            survey: Survey::default(),
            progress: Arc::default(),
            lag: Lag::default(),
            last_acked: None,
            last_error: None,
            is_failing: false,
            was_streaming: false,
            snapshot_read_after: 0,
            held: None,
            left: Vec::new(),
        }
    }

    /// Turns to a generation; what is still being sent of another one is given up.
    pub fn turn_to(&mut self, generation: Generation, now: Instant) {
        match &mut self.course {
            Some(course) if course.generation() == generation => {}
            Some(course) => {
                self.left.insert(0, course.generation());
                self.left.truncate(MOST_LEFT);
                self.survey.begin_generation(course.is_in_doubt(), now);
                course.begin_generation(generation);
                // What is still being sent of the last one is of no use any more.
                self.progress.cancelled.store(true, Ordering::Relaxed);
                (self.progress, self.was_streaming) = (Arc::default(), false);
            }
            None => {
                let interval = self.config.sync_interval.unwrap_or_default();
                self.course = Some(Replica::new(generation, interval));
            }
        }
    }

    /// As [`Replica::stand_beside_tireless`].
    pub fn stand_beside_tireless(&mut self, is_tireless: bool) {
        if let Some(course) = &mut self.course {
            course.stand_beside_tireless(is_tireless);
        }
    }

    /// An order that is due, if any; there may be another one. `database` gives the descriptor for a snapshot, and the
    /// source's gaps.
    pub fn next_order(
        &mut self,
        extent: &ShadowExtent,
        shadow: &std::path::Path,
        disk: &Arc<dyn Disk>,
        database: impl FnOnce() -> Option<(DatabaseFile, u32)>,
        attempt: u64,
        now: Now,
    ) -> Option<Order> {
        self.observe_lag(extent, now);
        let (job, descriptor) = match self.begins_survey(now.mono) {
            true => (Job::Survey, None),
            false => self.next_job(extent, database, now.mono)?,
        };
        let root = match &self.config.location {
            Location::Folder(folder) => folder.display().to_string(),
            Location::Sftp(server) => server.path.clone(),
        };
        Some(Order {
            job,
            attempt,
            generation: extent.generation,
            root,
            shadow: shadow.to_owned(),
            shadow_end: (extent.index, extent.end),
            disk: Arc::clone(disk),
            database: descriptor,
            fsync: self.config.durability == Durability::Fsync,
            left: self.left.clone(),
            has_written: self.course.as_ref().is_some_and(|course| course.last_segment().is_some()),
            progress: Arc::clone(&self.progress),
        })
    }

    /// Whether it is time to survey what is there.
    fn begins_survey(&mut self, now: Instant) -> bool {
        let course = self.course.as_ref().filter(|course| course.may_renew());
        course.is_some_and(|course| self.survey.begin(course.last_segment(), course.lengths(), now))
    }

    fn next_job(
        &mut self,
        extent: &ShadowExtent,
        database: impl FnOnce() -> Option<(DatabaseFile, u32)>,
        now: Instant,
    ) -> Option<(Job, Option<DatabaseFile>)> {
        let course = self.course.as_mut()?;
        let descriptor = match course.wants_database() {
            // The database is lent just now; a turn later it is back.
            true => Some(database()?),
            false => None,
        };
        let job = course.next_job(extent, now)?;
        let descriptor = descriptor.map(|(descriptor, gaps)| {
            self.snapshot_read_after = gaps;
            descriptor
        });
        Some((job, descriptor))
    }

    /// When an order is due though nothing happens. Whoever waits for the database is due when that `is_readable` again.
    pub fn next_timeout(&self, extent: &ShadowExtent, is_readable: bool) -> Option<Instant> {
        let course = self.course.as_ref().filter(|course| is_readable || !course.wants_database())?;
        let survey = self.survey.next_timeout().filter(|_| course.may_renew());
        [course.next_timeout(extent), survey].into_iter().flatten().min()
    }

    /// Takes in what a survey of a generation has found, or that it has not.
    pub fn on_survey(
        &mut self,
        database: &str,
        generation: Generation,
        found: Result<&Surveyed, &Failure>,
        now: Now,
        chance: f64,
    ) {
        let Some(course) = self.course.as_mut().filter(|course| course.generation() == generation) else {
            return;
        };
        let (was_shared, was_failing) = (self.survey.is_shared(), self.survey.is_failing());
        if self.survey.end(found.ok()) {
            course.look_again();
        }
        if let Some(index) = found.ok().and_then(Surveyed::superseded) {
            course.renew(index, now.mono);
        }
        self.survey.plan(now.mono, chance);
        let name = &self.config.name;
        match found {
            Err(Failure { message, .. }) if !was_failing => warn!(
                "{database}: replica {name}: what is there could not be listed, so that nobody would notice if a part of it \
                 were gone: {message}; it is tried again by itself"
            ),
            Ok(_) if was_failing => info!("{database}: replica {name}: what is there can be listed again"),
            _ => {}
        }
        match (was_shared, self.survey.is_shared()) {
            (false, true) => warn!("{database}: replica {name}: {SHARED}"),
            (true, false) => {
                info!("{database}: replica {name}: nobody else replicates to its place any more")
            }
            _ => {}
        }
    }

    /// Says what changed, once.
    pub fn after_outcome(&mut self, database: &str, extent: &ShadowExtent, now: Now) {
        let Some(course) = &self.course else { return };
        let name = &self.config.name;
        match (course.activity(), course.last_error()) {
            (Activity::Failing { .. }, Some(error)) => {
                if self.last_error.as_ref().is_none_or(|(last, _)| last != error) || !self.is_failing {
                    warn!("{database}: replica {name}: {error}; it is tried again by itself");
                }
                self.last_error = Some((error.to_owned(), now));
                self.is_failing = true;
                return;
            }
            (Activity::Streaming | Activity::Superseded { .. }, _) => {
                if !self.was_streaming || self.is_failing {
                    let generation = course.generation();
                    info!("{database}: replica {name} follows generation {generation}");
                }
                self.was_streaming = true;
            }
            _ => {}
        }
        self.is_failing &= matches!(course.activity(), Activity::Failing { .. });
        self.last_acked = Some(now);
        self.observe_lag(extent, now);
    }

    /// Whether the disk fills with what it lacks, as long as the application goes on writing: it fails, or does not follow.
    pub fn lets_fill(&self, extent: Option<&ShadowExtent>, now: Instant) -> bool {
        self.is_failing || extent.is_some_and(|extent| self.lag.is_outrun(extent.position(), now))
    }

    fn observe_lag(&mut self, extent: &ShadowExtent, now: Now) {
        let acked = self.course.as_ref().and_then(Replica::acked);
        self.lag.observe(self.lag(extent), extent.position(), acked, now.mono);
    }

    /// Bytes of WAL that are shadowed and not acked.
    pub fn lag(&self, extent: &ShadowExtent) -> u64 {
        let acked = self.course.as_ref().and_then(Replica::acked);
        let lag = acked.and_then(|acked| extent.bytes_since(acked.index, acked.offset));
        lag.unwrap_or_else(|| extent.bytes_kept())
    }

    /// Whether the present generation can be restored from it.
    pub fn is_restorable(&self) -> bool {
        self.course.as_ref().is_some_and(Replica::is_restorable)
    }

    /// Sends nothing behind `position` any more; whether everything before it is there, and sealed. A seal that failed
    /// is not waited for: the next run writes that segment anew.
    pub fn finish(&mut self, position: Position) -> bool {
        let Some(course) = &mut self.course else { return false };
        course.finish_at(position);
        if course.holds(position) {
            self.held = Some(position);
            return course.is_finished(position);
        }
        // A server that came back with less has taken its acknowledgement back.
        self.held == Some(position) && course.acked().is_some_and(|acked| acked >= position)
    }

    /// What status says of it; `uncopied` is what every replica lacks, and since when.
    pub fn status(
        &self,
        extent: Option<&ShadowExtent>,
        uncopied: Option<(u64, Instant)>,
        now: Now,
    ) -> ReplicaStatus {
        let state = match self.course.as_ref().map(Replica::activity) {
            None | Some(Activity::Connecting) => match &self.last_error {
                Some((error, _)) if self.is_failing => {
                    ReplicaState::Failing { error: error.clone(), retry_in: Duration::ZERO }
                }
                _ => ReplicaState::Connecting,
            },
            Some(Activity::SendingSnapshot) => ReplicaState::SendingSnapshot {
                done: self.progress.done.load(Ordering::Relaxed),
                total: self.progress.total.load(Ordering::Relaxed),
            },
            Some(Activity::Streaming | Activity::Superseded { .. }) if extent.is_none() => {
                ReplicaState::Waiting
            }
            Some(Activity::Streaming | Activity::Superseded { .. }) if self.survey.is_shared() => {
                let next = self.survey.next_timeout().unwrap_or(now.mono);
                ReplicaState::Failing {
                    error: SHARED.to_owned(),
                    retry_in: next.saturating_duration_since(now.mono),
                }
            }
            Some(Activity::Streaming) => ReplicaState::Streaming,
            Some(Activity::Superseded { retry_at }) => ReplicaState::Failing {
                error: SUPERSEDED.to_owned(),
                retry_in: retry_at.saturating_duration_since(now.mono),
            },
            Some(Activity::Failing { retry_at }) => ReplicaState::Failing {
                error: self.last_error.as_ref().map(|(error, _)| error.clone()).unwrap_or_default(),
                retry_in: retry_at.saturating_duration_since(now.mono),
            },
        };
        let lag_bytes = extent.map_or(0, |extent| self.lag(extent)) + uncopied.map_or(0, |(bytes, _)| bytes);
        let behind_since = self.lag.since().into_iter().chain(uncopied.map(|(_, since)| since)).min();
        let behind = |since: Instant| now.mono.saturating_duration_since(since);
        ReplicaStatus {
            name: self.config.name.clone(),
            location: self.config.location.to_string(),
            state,
            position: self.course.as_ref().and_then(Replica::acked),
            lag_bytes,
            lag_time: behind_since.filter(|_| lag_bytes > 0).map(behind).unwrap_or_default(),
            // Beside a writer that never pauses, a lag is known to within an interval.
            allowed_lag: self.config.sync_interval.unwrap_or_default() * 2,
            last_acked: self.last_acked.map(|at| moment(at, now)),
            durable: self.config.durability == Durability::Fsync
                && !self.progress.not_durable.load(Ordering::Relaxed),
            last_error: self
                .last_error
                .as_ref()
                .map(|(message, at)| PastError { message: message.clone(), at: moment(*at, now) }),
        }
    }
}
