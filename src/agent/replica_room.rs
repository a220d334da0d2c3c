//! One replica of one database: its course, and what is said of it.

use super::{Now, moment};
use crate::carry::{Order, Progress};
use crate::config::{Durability, ReplicaConfig};
use crate::core::lag::Lag;
use crate::core::owner::{Party, Standing};
use crate::core::ownership::{Obstacle, Ownership, PATIENCE};
use crate::core::position::{Generation, Position};
use crate::core::replica::{Activity, Failure, Job, Replica, SUPERSEDED};
use crate::core::shadow::ShadowExtent;
use crate::core::status::{PastError, ReplicaState, ReplicaStatus};
use crate::database_file::DatabaseFile;
use crate::disk::Disk;
use crate::remote::Location;
use log::{info, warn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is to be done where two agents want one place.
const ONE_PLACE: &str = "give each database of each machine a place of its own";

/// One replica and what status says of it.
pub struct ReplicaRoom {
    pub(super) config: ReplicaConfig,
    /// Who we are to other agents that replicate to the same place.
    me: Party,
    ownership: Ownership,
    /// Who wanted the place while it was ours.
    asked_by: Option<String>,
    pub(super) course: Option<Replica>,
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
}

impl ReplicaRoom {
    /// A room in which nothing has happened.
    pub fn new(config: &ReplicaConfig, me: Party) -> Self {
        ReplicaRoom {
            config: config.clone(),
            me,
            ownership: Ownership::new(),
            asked_by: None,
            course: None,
            progress: Arc::default(),
            lag: Lag::default(),
            last_acked: None,
            last_error: None,
            is_failing: false,
            was_streaming: false,
            snapshot_read_after: 0,
            held: None,
        }
    }

    /// Turns to a generation; what is still being sent of another one is given up.
    pub fn turn_to(&mut self, generation: Generation) {
        match &mut self.course {
            Some(course) if course.generation() == generation => {}
            Some(course) => {
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
        let (job, descriptor) = match self.next_claim(now.mono) {
            Some(job) => (job, None),
            None => self.next_job(extent, database, now.mono)?,
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
            progress: Arc::clone(&self.progress),
        })
    }

    /// What is to be asked about whose the place is.
    fn next_claim(&mut self, now: Instant) -> Option<Job> {
        let course = self.course.as_ref()?;
        if course.retry_at().is_some_and(|at| now < at) {
            return None;
        }
        let claim = self.ownership.next_claim(now)?;
        let is_beside_wal = course.in_flight().is_some_and(|job| !job.is_of_snapshots());
        Some(Job::Own { me: self.me.clone(), had: self.ownership.had(), claim, is_beside_wal })
    }

    fn next_job(
        &mut self,
        extent: &ShadowExtent,
        database: impl FnOnce() -> Option<(DatabaseFile, u32)>,
        now: Instant,
    ) -> Option<(Job, Option<DatabaseFile>)> {
        let course = self.course.as_mut().filter(|_| self.ownership.is_ours(now))?;
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
    pub fn next_timeout(&self, extent: &ShadowExtent, is_readable: bool, now: Instant) -> Option<Instant> {
        let course = self.course.as_ref()?;
        let retry_at = course.retry_at();
        let claim = self.ownership.next_timeout().max(retry_at);
        if !self.ownership.is_ours(now) {
            return claim;
        }
        let job = (is_readable || !course.wants_database()).then(|| course.next_timeout(extent)).flatten();
        claim.into_iter().chain(job).min()
    }

    /// Takes in whose the place is, and says what changed, once.
    pub fn on_owner(&mut self, database: &str, found: Result<Standing, Failure>, now: Now, chance: f64) {
        let Some(course) = &mut self.course else { return };
        let name = &self.config.name;
        match found {
            Err(failure) => {
                self.ownership.on_failure(now.mono);
                // What is under way goes on; where it fails, too, it says so itself.
                if course.in_flight().is_none() && !self.ownership.is_leaving() {
                    course.on_owner_unknown(failure, now.mono, chance);
                }
            }
            Ok(standing) => {
                course.on_owner();
                let asked_by = match &standing {
                    Standing::Ours { asked_by } => asked_by.clone(),
                    Standing::Asked(_) | Standing::Theirs(_) => None,
                };
                if asked_by.is_some() && asked_by != self.asked_by {
                    let who = asked_by.as_deref().unwrap_or_default();
                    warn!(
                        "{database}: replica {name}: the agent of {who} is kept from replicating to the same place: {ONE_PLACE}"
                    );
                    self.asked_by = asked_by;
                }
                if self.ownership.on_standing(standing, now.mono, chance) {
                    course.doubt();
                }
            }
        }
        self.after_obstacle(database, now);
    }

    /// Says who keeps us from the place, once.
    fn after_obstacle(&mut self, database: &str, now: Now) {
        let Some(obstacle) = self.ownership.obstacle() else { return };
        let (name, message) = (&self.config.name, words(obstacle));
        self.was_streaming = false;
        if obstacle.is_over_soon() {
            info!("{database}: replica {name}: {message}");
            return;
        }
        if self.last_error.as_ref().is_none_or(|(last, _)| *last != message) || !self.is_failing {
            warn!("{database}: replica {name}: {message}");
        }
        self.last_error = Some((message, now));
        self.is_failing = true;
    }

    /// Says what changed, once.
    pub fn after_outcome(&mut self, database: &str, extent: &ShadowExtent, now: Now) {
        let Some(course) = self.course.as_ref().filter(|_| self.ownership.obstacle().is_none()) else {
            return;
        };
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
            if course.is_finished(position) {
                self.ownership.leave();
            }
            return course.is_finished(position) && self.ownership.has_left();
        }
        // A server that came back with less has taken its acknowledgement back.
        self.held == Some(position) && course.acked().is_some_and(|acked| acked >= position)
    }

    /// What it is doing, where the place is ours.
    fn state(&self, now: Now) -> ReplicaState {
        match self.course.as_ref().map(Replica::activity) {
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
            Some(Activity::Streaming) => ReplicaState::Streaming,
            Some(Activity::Superseded { retry_at }) => ReplicaState::Failing {
                error: SUPERSEDED.to_owned(),
                retry_in: retry_at.saturating_duration_since(now.mono),
            },
            Some(Activity::Failing { retry_at }) => ReplicaState::Failing {
                error: self.last_error.as_ref().map(|(error, _)| error.clone()).unwrap_or_default(),
                retry_in: retry_at.saturating_duration_since(now.mono),
            },
        }
    }

    /// What status says of it; `uncopied` is what every replica lacks, and since when.
    pub fn status(
        &self,
        extent: Option<&ShadowExtent>,
        uncopied: Option<(u64, Instant)>,
        now: Now,
    ) -> ReplicaStatus {
        let state = self.ownership.obstacle().map(|obstacle| kept_off(obstacle, now));
        let lag_bytes = extent.map_or(0, |extent| self.lag(extent)) + uncopied.map_or(0, |(bytes, _)| bytes);
        let behind_since = self.lag.since().into_iter().chain(uncopied.map(|(_, since)| since)).min();
        let behind = |since: Instant| now.mono.saturating_duration_since(since);
        ReplicaStatus {
            name: self.config.name.clone(),
            location: self.config.location.to_string(),
            state: state.unwrap_or_else(|| self.state(now)),
            position: self.course.as_ref().and_then(Replica::acked),
            lag_bytes,
            lag_time: behind_since.filter(|_| lag_bytes > 0).map(behind).unwrap_or_default(),
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

/// What status says of a replica whose place is another one's.
fn kept_off(obstacle: Obstacle<'_>, now: Now) -> ReplicaState {
    if obstacle.is_over_soon() {
        return ReplicaState::Connecting;
    }
    let retry_in = obstacle.retry_at.saturating_duration_since(now.mono);
    ReplicaState::Failing { error: words(obstacle), retry_in }
}

fn words(obstacle: Obstacle<'_>) -> String {
    let other = match obstacle.other.who.as_str() {
        "" => "an agent that nobody can name".to_owned(),
        who => format!("the agent of {who}"),
    };
    match (obstacle.has_answered, obstacle.other.is_stopped) {
        (true, _) => format!("{other} replicates to this place: {ONE_PLACE}, or stop that agent"),
        (false, true) => {
            format!("{other} has replicated to this place, and has stopped: this one goes on there")
        }
        (false, false) => format!(
            "{other} replicates to this place, and is asked whether it still runs: without an answer, this one \
             goes on there after {} s",
            PATIENCE.as_secs()
        ),
    }
}
