//! All databases and their replicas, one turn at a time. There are no queues: each turn compares positions and hands
//! out the jobs that follow.

mod replica_room;
mod stopping;

use crate::config::{Config, DatabaseConfig};
use crate::control::Reply;
use crate::core::checkpoint::CheckpointPolicy;
use crate::core::position::Generation;
use crate::core::replica::{Failure, FailureCause, Finding, Outcome, Replica, SUPERSEDED};
use crate::core::shadow::ShadowExtent;
use crate::core::status::{AgentStatus, Breaks, DatabaseStatus, Health, Moment, SourceState};
use crate::core::sync::{Break, Dirty};
use crate::disk::Disk;
use crate::source::{Source, SourceSettings, State};
use crate::sqlite;
use crate::worker::{Completed, Destination, Workers};
use log::warn;
use rand::{RngExt, SeedableRng};
use replica_room::ReplicaRoom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stopping::{Stop, Stopping};

/// Events are hints: this often everything is looked at without one.
const SAFETY_LOOK: Duration = Duration::from_secs(60);

/// The time of a turn, read once by the event loop.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For pauses and ages.
    pub mono: Instant,
    /// For people.
    pub wall: SystemTime,
}

/// One database and its replicas.
struct Database {
    source: Source,
    replicas: Vec<ReplicaRoom>,
    /// What the shadow held at the last turn; the source may have lent it since.
    shadow: Option<(ShadowExtent, PathBuf)>,
    /// Snapshots that were sent: how new they are is not known before the source has looked once more, and holds the
    /// database for certain.
    held_back: Vec<HeldBack>,
    stop: Option<Stop>,
}

/// A snapshot that was sent.
struct HeldBack {
    replica: usize,
    generation: Generation,
    outcome: Outcome,
    /// [`Source::looks`] when it was sent.
    looks: u32,
}

/// A seed from the operating system.
pub fn random_seed() -> u64 {
    rand::random()
}

/// The whole agent, without its event loop.
pub struct Agent {
    databases: Vec<Database>,
    workers: Box<dyn Workers>,
    disk: Arc<dyn Disk>,
    random: rand::rngs::StdRng,
    started: Now,
    next_safety_look: Instant,
    stopping: Option<Stopping>,
}

impl Agent {
    /// An agent that has not looked yet. `seed` is that of generations and of pauses.
    pub fn new(config: &Config, workers: Box<dyn Workers>, disk: Arc<dyn Disk>, seed: u64, now: Now) -> Self {
        let databases = config.databases.iter().map(|d| Database::new(d, &disk)).collect();
        let next_safety_look = now.mono + SAFETY_LOOK;
        let random = rand::rngs::StdRng::seed_from_u64(seed);
        Agent { databases, workers, disk, random, started: now, next_safety_look, stopping: None }
    }

    /// Takes one turn: what has happened is taken in, and every job that is due is handed out. Returns when the next
    /// turn is due though nothing happens.
    pub fn step(&mut self, now: Now, seen: &mut dyn FnMut(usize) -> Dirty) -> Option<Instant> {
        self.take_completed(now);
        let safety_look = now.mono >= self.next_safety_look;
        if safety_look {
            self.next_safety_look = now.mono + SAFETY_LOOK;
        }
        let mut next = self.next_safety_look;
        for at in 0..self.databases.len() {
            // What was seen is always taken before everything is looked at: only then does the next event wake us.
            let listens = safety_look || self.databases[at].source.is_listening(now.mono);
            let dirty = if listens { seen(at) } else { Dirty::default() };
            let dirty = if safety_look { Dirty::ALL } else { dirty };
            if let Some(due) = self.turn(at, dirty, now) {
                next = next.min(due);
            }
        }
        let wanted: Vec<_> = self.databases.iter().filter_map(|d| d.source.wanted_file()).collect();
        if !wanted.is_empty() {
            self.databases.iter_mut().for_each(|database| database.source.leave_to_others(&wanted));
        }
        if let Some(stopping) = &self.stopping {
            next = next.min(stopping.next_timeout());
        }
        Some(next)
    }

    /// Whether events of a database would only cost its writers something now.
    pub fn needs_no_events(&self, database: usize, now: Now) -> bool {
        self.databases[database].source.needs_no_events(now.mono)
    }

    /// One database's turn; returns when its next one is due.
    fn turn(&mut self, at: usize, dirty: Dirty, now: Now) -> Option<Instant> {
        let databases = u32::try_from(self.databases.len()).unwrap_or(u32::MAX);
        let database = &mut self.databases[at];
        database.source.mark(dirty);
        let needs = |room: &ReplicaRoom| room.course.as_ref().is_some_and(Replica::wants_database);
        let extent = database.shadow.as_ref().map(|(extent, _)| extent);
        let behind = extent.and_then(|extent| database.replicas.iter().map(|room| room.lag(extent)).max());
        let is_filled = database.replicas.iter().any(|room| room.lets_fill(extent, now.mono));
        database.source.need(database.replicas.iter().any(needs), behind.unwrap_or_default(), is_filled);
        let are_whole = database.replicas.iter().all(ReplicaRoom::is_restorable);
        database.source.rely_on_replicas(are_whole && !database.replicas.is_empty());
        if database.source.next_timeout(now.mono).is_some_and(|due| due <= now.mono) {
            let generation = Generation::from_random(self.random.random());
            if let Some(job) = database.source.turn(now.mono, generation) {
                self.workers.send_local(at, job);
            }
            database.remember_shadow(now.mono);
        }
        if let Some(job) = database.source.table_job(databases, now.mono) {
            self.workers.send_local(at, job);
        }
        for held_back in std::mem::take(&mut database.held_back) {
            database.on_snapshot_sent(held_back, now, 0.0);
        }
        // What a replica is to end with decides what is sent to it now.
        database.finish(now.mono);
        let next = [database.source.next_timeout(now.mono), database.source.table_timeout(now.mono)];
        let mut next = next.into_iter().flatten().min();
        if let Some((extent, folder)) = &database.shadow {
            let is_tireless = database.source.needs_no_events(now.mono);
            for (number, room) in database.replicas.iter_mut().enumerate() {
                room.stand_beside_tireless(is_tireless);
                let descriptor = || Some((database.source.descriptor()?, database.source.gaps()));
                let random = &mut self.random;
                while let Some(order) =
                    room.next_order(extent, folder, &self.disk, descriptor, random.random(), now)
                {
                    self.workers.send_remote(at, number, &room.config.location, order);
                }
                let due = room.next_timeout(extent, database.source.descriptor().is_some());
                next = [next, due].into_iter().flatten().min();
            }
        }
        next
    }

    fn take_completed(&mut self, now: Now) {
        while let Some(completed) = self.workers.completed() {
            self.on_completed(completed, now);
        }
    }

    fn on_completed(&mut self, completed: Completed, now: Now) {
        match completed {
            Completed::Local { database, outcome } => {
                let database = &mut self.databases[database];
                database.source.on_outcome(outcome, now.mono);
                database.remember_shadow(now.mono);
            }
            Completed::Remote { database, replica, generation, outcome } => {
                if matches!(outcome, Outcome::Found(_)) {
                    self.on_server_answers(database, replica);
                }
                let chance = self.random.random();
                self.databases[database].on_carried(replica, generation, outcome, now, chance);
            }
        }
    }

    /// Whoever waits for the server that has just answered this replica waits no longer.
    fn on_server_answers(&mut self, database: usize, replica: usize) {
        let destination = Destination::of(&self.databases[database].replicas[replica].config.location);
        let rooms = self.databases.iter_mut().flat_map(|database| &mut database.replicas);
        for ReplicaRoom { config, course, .. } in rooms {
            if let Some(course) = course.as_mut().filter(|course| course.is_unreached())
                && Destination::of(&config.location) == destination
            {
                course.on_server_answers();
            }
        }
    }

    /// Lets go of a database as soon as it can; says whether it has, or what it still waits for.
    pub fn detach(&mut self, path: &Path, now: Now) -> Reply {
        let Some(database) = self.databases.iter_mut().find(|d| d.source.database() == path) else {
            let body = format!("this agent does not replicate {}\n", path.display());
            return Reply { health: Health::Failing, body };
        };
        match database.source.detach_now(now.mono) {
            None => Reply { health: Health::Healthy, body: String::new() },
            Some(why) => Reply { health: Health::Lagging, body: format!("{}: {why}\n", path.display()) },
        }
    }

    /// What `agent status` says.
    pub fn status(&self, now: Now) -> AgentStatus {
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sqlite_version: sqlite::version().to_owned(),
            pid: std::process::id(),
            started: moment(self.started, now),
            databases: self.databases.iter().map(|database| database.status(now)).collect(),
        }
    }
}

fn moment(at: Now, now: Now) -> Moment {
    let since_epoch = at.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment {
        unix_millis: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        age: now.mono.saturating_duration_since(at.mono),
    }
}

impl Database {
    fn new(config: &DatabaseConfig, disk: &Arc<dyn Disk>) -> Self {
        let settings = SourceSettings {
            database: config.path.clone(),
            meta: config.meta_path.clone(),
            checkpoint: CheckpointPolicy {
                min_pages: config.checkpoint.min_pages,
                max_pages: Some(config.checkpoint.max_pages).filter(|max| *max > 0),
                interval: config.checkpoint.interval,
            },
            max_write_block: config.max_write_block,
            let_go_after: config.let_go_after,
            space: config.space,
        };
        Database {
            source: Source::new(settings, Arc::clone(disk)),
            replicas: config.replicas.iter().map(ReplicaRoom::new).collect(),
            shadow: None,
            held_back: Vec::new(),
            stop: None,
        }
    }

    /// Keeps the shadow's extent, and turns the replicas to a new generation.
    fn remember_shadow(&mut self, now: Instant) {
        // What the shadow held when it was lent, or let go, is still on the disk, and is still sent.
        let Some(shadow) = self.source.shadow() else {
            if self.source.has_given_up() {
                self.shadow = None;
            }
            return;
        };
        match &mut self.shadow {
            Some((extent, _)) if extent == shadow.extent() => return,
            Some((extent, _)) if extent.generation == shadow.extent().generation => {
                extent.clone_from(shadow.extent());
            }
            _ => self.shadow = Some((shadow.extent().clone(), shadow.folder().to_owned())),
        }
        let generation = shadow.extent().generation;
        for room in &mut self.replicas {
            room.turn_to(generation, now);
        }
    }

    /// Takes in what was done on a replica.
    fn on_carried(
        &mut self,
        replica: usize,
        generation: Generation,
        outcome: Outcome,
        now: Now,
        chance: f64,
    ) {
        match outcome {
            Outcome::SnapshotSent(_) => {}
            Outcome::Surveyed(found) => {
                let name = self.source.database().display().to_string();
                if let Some(room) = self.replicas.get_mut(replica) {
                    room.on_survey(&name, generation, found.as_ref(), now, chance);
                }
                return;
            }
            outcome => return self.on_replica(replica, generation, outcome, now, chance),
        }
        // Whoever looks next copies all that a checkpoint may have written into the file while it was read.
        self.source.mark(Dirty { wal: true, ..Dirty::default() });
        let looks = self.source.looks();
        self.on_snapshot_sent(HeldBack { replica, generation, outcome, looks }, now, chance);
    }

    /// Whether a snapshot that was sent is what it should be, only the source can say, and perhaps only in a moment.
    fn on_snapshot_sent(&mut self, sent: HeldBack, now: Now, chance: f64) {
        let read_after = self.replicas.get(sent.replica).map(|room| room.snapshot_read_after);
        let doubt = match self.source.state() {
            _ if read_after != Some(self.source.gaps()) => {
                Some("the WAL was restarted unseen while a snapshot was sent")
            }
            State::Absent | State::Detached | State::Refused(_) => {
                Some("the database was let go of while a snapshot was sent")
            }
            State::Resting(_) => None,
            _ if !self.source.is_certain() || self.source.looks() == sent.looks => {
                return self.held_back.push(sent);
            }
            _ => None,
        };
        let failed = |message: &str| {
            Outcome::Failed(Failure { message: message.to_owned(), cause: FailureCause::Other })
        };
        let outcome = doubt.map_or(sent.outcome, failed);
        self.on_replica(sent.replica, sent.generation, outcome, now, chance);
    }

    fn on_replica(&mut self, number: usize, generation: Generation, outcome: Outcome, now: Now, chance: f64) {
        let name = self.source.database().display().to_string();
        let Some((extent, _)) = &self.shadow else { return };
        let Some(room) = self.replicas.get_mut(number) else { return };
        let Some(course) = room.course.as_mut().filter(|course| course.generation() == generation) else {
            return;
        };
        let finding = course.on_outcome(outcome, extent, now.mono, chance);
        room.survey.plan(now.mono, chance);
        room.after_outcome(&name, extent, now);
        match finding {
            Finding::Nothing => {}
            // What it lacks may still be in the WAL.
            Finding::Ahead if !self.source.is_certain() => {}
            Finding::Ahead | Finding::Diverged => self.source.request_generation(Break::ReplicaDiverged),
            Finding::Incomplete => self.source.request_generation(Break::ReplicaIncomplete),
            Finding::Superseded => warn!("{name}: replica {}: {SUPERSEDED}", room.config.name),
            Finding::Rewound { from, to } => warn!(
                "{name}: replica {} holds less than it had acknowledged ({from}); it is sent again from {to}",
                room.config.name
            ),
            Finding::ShadowDamaged => self.source.request_generation(Break::ShadowDamaged),
        }
        self.forget_old_shadows(now.mono);
    }

    /// Keeps the shadow of the last index that every replica has, unless room is scarce, and of everything behind it.
    fn forget_old_shadows(&mut self, now: Instant) {
        if self.shadow.as_ref().is_none_or(|(extent, _)| extent.complete.len() < 2) {
            return;
        }
        let needed = self.replicas.iter().map(|room| room.course.as_ref()?.needs_from());
        let lowest = needed.reduce(|a, b| Some(a?.min(b?))).flatten();
        let is_scarce = self.source.scarcity().is_some();
        if let Some(index) = lowest.and_then(|index| if is_scarce { Some(index) } else { index.previous() }) {
            self.source.forget_before(index);
            self.remember_shadow(now);
        }
    }

    fn status(&self, now: Now) -> DatabaseStatus {
        let extent = self.shadow.as_ref().map(|(extent, _)| extent);
        let state = match (self.source.state(), self.source.problem()) {
            (State::Absent, _) => SourceState::Absent,
            (State::Refused(refusal), _) => SourceState::Refused(refusal.to_string()),
            (_, Some(problem)) => SourceState::Refused(problem.to_owned()),
            (State::Resting(_), _) if !self.source.has_changed() => SourceState::Detached,
            (State::Detached | State::Resting(_), _) => SourceState::Attaching,
            (State::Attached(_) | State::Lent, _) if self.source.is_comparing() => SourceState::Attaching,
            (State::Attached(_) | State::Lent, _) => SourceState::Attached,
        };
        let (count, last) = self.source.breaks();
        let uncopied = self.source.uncopied();
        DatabaseStatus {
            path: self.source.database().display().to_string(),
            state,
            generation: extent.map(|extent| extent.generation),
            position: extent.map(ShadowExtent::position),
            is_provable: extent.is_some_and(|extent| extent.state_at(extent.index, extent.end).is_some()),
            replicas: self.replicas.iter().map(|room| room.status(extent, uncopied, now)).collect(),
            breaks: Breaks { count: u64::from(count), last_reason: last.map(ToString::to_string) },
            wal_pages: self.source.wal_extent().frames,
            scarcity: self.source.scarcity(),
            elsewhere: self.source.used_elsewhere(),
            mixed: self.source.mixed().or(self.source.in_the_way()),
            write_lock_holds: self.source.lock_holds(),
        }
    }
}
