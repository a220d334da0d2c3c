//! Support: the agent's whole machine in the test's process, with a clock, a disk and servers that do as they are told,
//! beside a real application. What must always hold is checked after every turn.

use super::earlier::Earlier;
use super::faulty::FaultyServer;
use super::history::scratch;
use super::oracle::{Application, Placing, State};
use super::power;
use super::sim_disk::SimDisk;
use super::wait::wait_until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use wal_agent::agent::{Agent, Now};
use wal_agent::carry::{Order, carry};
use wal_agent::config::{CheckpointSettings, Config, DatabaseConfig, Durability, ReplicaConfig};
use wal_agent::core::checksum::Crc64;
use wal_agent::core::names;
use wal_agent::core::position::{Generation, Index, Offset, Position};
use wal_agent::core::replica::Outcome;
use wal_agent::core::restore::{Check, RestoreGap};
use wal_agent::core::status::{DatabaseStatus, ReplicaState, ReplicaStatus, SourceState};
use wal_agent::database_file::FileIdentity;
use wal_agent::remote::{Location, Remote};
use wal_agent::restore::{RestoreError, RestoreOptions, restore};
use wal_agent::source::LocalJob;
use wal_agent::worker::{Completed, Workers, do_local};

/// Turns that a machine may take without coming to rest.
const MOST_TURNS: usize = 50_000;
/// Everything is looked at this often without an event; and pauses after failures are shorter.
const REST: Duration = Duration::from_secs(400);

/// SQLite's busy handler asks so often.
const BUSY_SLEEP: Duration = Duration::from_millis(100);

/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// After so long, by the real clock, another write gives a file another time.
const FILE_CLOCK: Duration = Duration::from_millis(25);

/// So long a wait is for a try that failed.
const LONG: Duration = Duration::from_millis(100);

/// By then the agent, which does not listen all the time, has seen that the last connection was closed.
const NOTICED: Duration = Duration::from_millis(20);

/// How often it is looked whether the WAL is held.
const HELD_CHECKS: f64 = 0.1;

/// A job that was handed out.
enum Handed {
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
struct Jobs {
    handed: Arc<Mutex<Vec<Handed>>>,
    ended: Arc<Mutex<VecDeque<Completed>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

/// How an agent is configured.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub replicas: usize,
    pub checkpoint: CheckpointSettings,
    pub durability: Durability,
    pub sync_interval: Option<Duration>,
    pub let_go_after: Option<Duration>,
}

impl Settings {
    /// One replica, and everything at once.
    pub const PLAIN: Settings = Settings {
        replicas: 1,
        checkpoint: CheckpointSettings { min_pages: 1000, max_pages: 0, interval: None },
        durability: Durability::Fsync,
        sync_interval: None,
        let_go_after: None,
    };
}

/// Everything of one history.
pub struct World {
    /// The seed, for people.
    name: u64,
    folder: TempDir,
    config: Config,
    pub disk: SimDisk,
    pub servers: Vec<FaultyServer>,
    pub application: Arc<Mutex<Application>>,
    connections: HashMap<(usize, bool), Box<dyn Remote>>,
    jobs: Jobs,
    agent: Option<Agent>,
    began: (Instant, SystemTime),
    elapsed: Duration,
    jumped: i64,
    random: StdRng,
    /// The state that each replica is known to hold.
    acked: Vec<Option<usize>>,
    headers: BTreeMap<(String, String), String>,
    restores: u32,
    /// The last index before which the shadow was seen to be durable.
    checked: Option<Index>,
    was_attached: bool,
    retry_at: Duration,
    kill_behind: Option<usize>,
    /// Local jobs that take for ever.
    pub held: fn(&LocalJob) -> bool,
    /// Generations of which the machine may have lost something: a WAL may go on otherwise under the same header.
    lost: BTreeSet<String>,
}

impl World {
    /// A world in which nothing has happened; `application` gets the path of the database.
    pub fn new(
        settings: Settings,
        seed: u64,
        application: impl FnOnce(&std::path::Path) -> Application,
    ) -> World {
        let folder = scratch();
        power::record(folder.path());
        let database = folder.path().join("app.db");
        let replica = |number: usize| ReplicaConfig {
            name: number.to_string(),
            location: Location::Folder(PathBuf::from(root(number))),
            sync_interval: settings.sync_interval,
            durability: settings.durability,
        };
        let mut of_database =
            DatabaseConfig::new(database.clone(), (0..settings.replicas).map(replica).collect());
        of_database.checkpoint = settings.checkpoint;
        of_database.let_go_after = settings.let_go_after;
        // Rounds are timed by the real clock; here they end when they are done.
        of_database.max_write_block = Duration::from_secs(60);
        let disk = SimDisk::new(&of_database.meta_path);
        let config = Config {
            socket: folder.path().join("socket"),
            log_level: None,
            include: None,
            databases: vec![of_database],
            notices: Vec::new(),
        };
        World {
            name: seed,
            config,
            disk,
            servers: (0..settings.replicas).map(|_| FaultyServer::reliable()).collect(),
            application: Arc::new(Mutex::new(application(&database))),
            connections: HashMap::new(),
            jobs: Jobs::default(),
            agent: None,
            began: (Instant::now(), SystemTime::now()),
            elapsed: Duration::ZERO,
            jumped: 0,
            random: StdRng::seed_from_u64(seed ^ 0x5EED),
            acked: vec![None; settings.replicas],
            headers: BTreeMap::new(),
            restores: 0,
            checked: None,
            was_attached: false,
            retry_at: Duration::ZERO,
            kill_behind: None,
            held: |_| false,
            lost: BTreeSet::new(),
            folder,
        }
    }

    pub fn application(&self) -> MutexGuard<'_, Application> {
        lock(&self.application)
    }

    fn note(&self, line: &str) {
        if let Ok(mut application) = self.application.try_lock() {
            application.note(format!("{:?} {line}", self.elapsed));
        }
    }

    fn now(&self) -> Now {
        let wall = self.began.1 + self.elapsed;
        let jump = Duration::from_secs(self.jumped.unsigned_abs());
        let wall = if self.jumped < 0 { wall - jump } else { wall + jump };
        Now { mono: self.began.0 + self.elapsed, wall }
    }

    /// The wall clock is set.
    pub fn jump(&mut self, seconds: i64) {
        self.jumped += seconds;
    }

    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    pub fn start_agent(&mut self) {
        self.note("the agent starts");
        // An index of which nothing was committed is begun anew, perhaps with another WAL.
        let known = std::mem::take(&mut self.headers);
        let is_last = |(generation, index): &(String, String)| {
            !known.keys().any(|(other, later)| other == generation && later > index)
        };
        self.headers = known
            .iter()
            .filter(|(key, _)| !is_last(key))
            .map(|(key, header)| (key.clone(), header.clone()))
            .collect();
        let disk = Arc::new(self.disk.clone());
        let (workers, seed) = (Box::new(self.jobs.clone()), self.random.random());
        self.agent = Some(Agent::new(&self.config, workers, disk, seed, self.now()));
    }

    /// The agent ends without warning.
    pub fn kill_agent(&mut self) {
        self.note("the agent is killed");
        self.agent = None;
        self.was_attached = false;
        let handed = std::mem::take(&mut *lock(&self.jobs.handed));
        drop(handed);
        lock(&self.jobs.ended).clear();
        self.connections.clear();
        self.disk.restart();
        // It may have switched the database to WAL mode, and copied what it was then.
        if let Ok(mut application) = self.application.try_lock() {
            application.remember();
        }
        // A process that another history starts just now holds a copy of each of our descriptors for a moment.
        if let Ok(lock) = std::fs::File::open(self.config.databases[0].meta_path.join("lock")) {
            wait_until("the lock is free", Duration::from_secs(60), || lock.try_lock().is_ok());
        }
    }

    /// An administrator puts another file in the database's place, while the application is closed. Where the agent
    /// holds the WAL of the old one, the application is started when that is gone; else the administrator removes it,
    /// as one must without any agent.
    pub fn replace_database(&mut self) {
        self.note("the database is to be replaced");
        self.application().leave();
        let turns = [0, 5, 200][self.random.random_range(0..3)];
        self.drive(turns);
        let mut placing = [Placing::Moved, Placing::Copied][self.random.random_range(0..2)];
        if placing == Placing::Copied && self.has_agent() && !self.come_to_know() {
            placing = Placing::Moved;
        }
        // What is written into a file right behind another write of it need not show in its times.
        std::thread::sleep(FILE_CLOCK);
        let is_held = self.is_held();
        let is_waited_for = is_held && (placing == Placing::Copied || self.random.random_bool(0.5));
        if !is_waited_for {
            self.application().remove(&BESIDE);
        }
        // A backup of which every page that differs is in the WAL cannot be told from what a killed checkpoint leaves.
        let may_be_backup = !is_held || placing == Placing::Moved;
        self.application().put_in_place(placing, may_be_backup);
        if is_waited_for {
            self.await_removal_of_wal();
        }
        self.application().come_back();
    }

    /// An administrator copies another file over the database that the agent holds alone, and no event tells.
    pub fn copy_over_unnoticed(&mut self) {
        self.application().leave();
        assert!(self.come_to_know() && self.is_attached(), "the agent holds it");
        std::thread::sleep(FILE_CLOCK);
        self.application().put_in_place(Placing::Copied, false);
        self.application().take_dirty();
        self.await_removal_of_wal();
        self.application().come_back();
    }

    /// An administrator removes the database, and the application makes it anew.
    pub fn remove_database(&mut self) {
        self.note("the database is to be removed");
        self.application().leave();
        let turns = [0, 5, 200][self.random.random_range(0..3)];
        self.drive(turns);
        self.application().remove(&[""]);
        self.application().remove(&BESIDE);
        let turns = [0, 5, 200][self.random.random_range(0..3)];
        self.drive(turns);
        self.application().begin_anew();
    }

    /// An administrator moves the database's file away, and leaves its WAL where it is, while the application is closed,
    /// was killed, or has it open and does nothing. Then it comes back, perhaps after others have worked on it; or another
    /// one takes its place, perhaps after a restart of the agent.
    pub fn move_database(&mut self) {
        self.note("the database is to be moved away");
        if self.random.random_bool(0.3) {
            self.application().pause();
            return self.move_away_and_back();
        }
        self.application().leave();
        match self.random.random_range(0..4) {
            0 => self.move_away_and_back(),
            1 | 2 => self.move_away_and_work(),
            _ => self.move_away_for_another(),
        }
    }

    fn move_away_and_back(&mut self) {
        for moves in [Application::move_away, Application::move_back] {
            let turns = [0, 5, 200][self.random.random_range(0..3)];
            self.drive(turns);
            moves(&mut self.application());
        }
        self.application().come_back();
    }

    /// What was made of the file is the database, whenever the agent has seen that it was away.
    fn move_away_and_work(&mut self) {
        if !self.has_agent() || !self.come_to_know() || !self.is_held() {
            return self.move_away_and_back();
        }
        let latest = self.state_while_held();
        std::thread::sleep(FILE_CLOCK);
        self.application().move_away();
        let is_unseen = self.random.random_bool(0.5);
        let mut is_worked_on = is_unseen && self.application().work_aside();
        self.application().show_all();
        self.drive(200);
        if self.has_agent() && self.status().state == SourceState::Absent && !is_unseen {
            self.check_is_whole(latest);
            is_worked_on = self.application().work_aside();
        }
        let has_seen = self.has_agent() && self.status().state == SourceState::Absent;
        if !has_seen {
            // Whatever SQLite makes of the old WAL then: the administrator removes it, as one must without any agent.
            self.application().remove(&BESIDE);
        }
        self.application().move_back();
        self.application().show_all();
        self.drive(200);
        let worked_on = self.application().states().last().map(|state| state.crc);
        self.application().come_back();
        self.application().remember_certainly();
        let now = self.application().states().last().map(|state| state.crc);
        assert!(!is_worked_on || now == worked_on, "what was made of the file is not there{}", self.story());
    }

    /// Another file comes, perhaps while no agent runs.
    fn move_away_for_another(&mut self) {
        if !self.has_agent() || !self.come_to_know() || !self.is_held() {
            return self.move_away_and_back();
        }
        let latest = self.state_while_held();
        self.application().move_away();
        let is_seen = self.random.random_bool(0.7);
        if is_seen {
            self.application().show_all();
            self.drive(200);
            if self.has_agent() && self.status().state == SourceState::Absent {
                self.check_is_whole(latest);
            }
        }
        if self.has_agent() {
            match self.random.random_range(0..3) {
                0 => self.kill_agent(),
                1 => self.stop_agent(),
                _ => {}
            }
        }
        if !self.is_remembered() {
            // Its disk has failed: the administrator removes the WAL, as one must without any agent.
            self.application().remove(&BESIDE);
        }
        self.application().put_in_place(Placing::Moved, true);
        let wal = self.folder.path().join("app.db-wal");
        // An empty one that no agent has open any more harms nobody.
        let is_harmless = !self.has_agent() && wal.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if !self.has_agent() {
            self.start_agent();
        }
        if !is_harmless {
            self.await_removal_of_wal();
        }
        self.application().come_back();
    }

    fn state_while_held(&mut self) -> Option<u64> {
        let mut application = self.application();
        application.look_on();
        application.is_certain().then(|| application.states().last().map(|state| state.crc)).flatten()
    }

    /// Everything that was committed is in the file that was moved away, if its WAL was emptied.
    fn check_is_whole(&mut self, latest: Option<u64>) {
        let wal = self.folder.path().join("app.db-wal");
        if latest.is_none() || wal.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            return;
        }
        let aside = self.application().state_aside();
        assert!(aside == latest, "{aside:x?} is in the renamed file, not {latest:x?}{}", self.story());
    }

    /// Whether the agent has kept whose the WAL at the path is, or that is empty.
    fn is_remembered(&self) -> bool {
        let Ok(wal) = self.folder.path().join("app.db-wal").metadata() else { return true };
        let held =
            std::fs::read_to_string(self.config.databases[0].meta_path.join("held")).unwrap_or_default();
        wal.len() == 0 || held.split(' ').nth(2) == Some(wal.ino().to_string().as_str())
    }

    fn is_attached(&self) -> bool {
        self.has_agent() && self.status().state == SourceState::Attached
    }

    /// Whether the agent is attached to the file that is at the path now, and not still to one before it.
    fn is_held(&self) -> bool {
        let present = FileIdentity::of_path(&self.config.databases[0].path);
        let mut ours = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let is_open = ours.any(|file| FileIdentity::of_path(&file.path()) == present);
        self.is_attached() && present.is_some() && is_open
    }

    /// The agent has seen that nobody else is there, nothing of its own writes into the file, and no snapshot of it is
    /// on its way: whoever copies over a file that is being read gets a mixed snapshot, which a restore refuses. `false`
    /// if it has too much to do for that.
    fn come_to_know(&mut self) -> bool {
        let (mut quiet, until) = (0, self.elapsed + NOTICED);
        for _ in 0..500 {
            self.application().show_all();
            self.turn(false);
            let is_local = |handed: &Handed| matches!(handed, Handed::Local(..));
            let is_busy = lock(&self.jobs.handed).iter().any(is_local) || !self.has_all_snapshots();
            quiet = if is_busy { 0 } else { quiet + 1 };
            if (quiet >= 3 && self.elapsed > until) || self.agent.is_none() {
                return true;
            }
        }
        false
    }

    fn has_all_snapshots(&self) -> bool {
        let Some(agent) = &self.agent else { return true };
        let status = agent.status(self.now());
        status.databases[0].replicas.iter().all(|replica| replica.state == ReplicaState::Streaming)
    }

    /// Waits until the agent has moved away the WAL of a file that was replaced.
    fn await_removal_of_wal(&mut self) {
        self.held = |_| false;
        let (wal, until) = (self.folder.path().join("app.db-wal"), self.elapsed + REST);
        let old = FileIdentity::of_path(&wal);
        while old.is_some() && FileIdentity::of_path(&wal) == old {
            if self.agent.is_none() {
                return self.application().remove(&BESIDE);
            }
            assert!(self.elapsed < until, "the old WAL is still there{}", self.story());
            self.turn(true);
        }
    }

    /// The agent is asked to stop, and does.
    pub fn stop_agent(&mut self) {
        self.note("the agent is stopped");
        self.held = |_| false;
        let latest = {
            let mut application = self.application();
            application.remember();
            application.states().len().saturating_sub(1)
        };
        // What the agent saw at this very instant may be older than what is asked for.
        self.elapsed += Duration::from_micros(1);
        let now = self.now();
        let Some(agent) = &mut self.agent else { return };
        agent.begin_stop(now, now.mono + Duration::from_secs(10));
        for _ in 0..MOST_TURNS {
            self.turn(true);
            let now = self.now();
            let Some(agent) = &mut self.agent else { return };
            if let Some(all) = agent.stopped(now) {
                let is_attached = agent.status(now).databases[0].state == SourceState::Attached;
                self.note(&format!("stopped: {all}"));
                if all && is_attached {
                    (0..self.servers.len()).for_each(|replica| self.check_restores_from(replica, latest));
                }
                return self.kill_agent();
            }
        }
        panic!("the agent does not stop{}", self.story());
    }

    /// Lets the agent take so many turns, or until it has nothing to do for a while.
    pub fn drive(&mut self, turns: usize) {
        for _ in 0..turns {
            if self.agent.is_none() || !self.turn(false) {
                return;
            }
        }
    }

    /// Lets everything come to rest.
    pub fn settle(&mut self) {
        self.rest_for(REST);
    }

    /// Lets so much time pass; how many turns the agent took.
    pub fn rest_for(&mut self, time: Duration) -> usize {
        let until = self.elapsed + time;
        for turn in 0..MOST_TURNS {
            self.turn(true);
            if self.agent.is_none() || self.elapsed >= until {
                return turn;
            }
        }
        panic!("the agent does not come to rest{}", self.story());
    }

    /// One turn, and one job. `false` if nothing is due for a while.
    fn turn(&mut self, far: bool) -> bool {
        let now = self.now();
        if self.elapsed >= self.retry_at {
            self.retry_at = self.elapsed + BUSY_SLEEP;
            self.application().retry();
        }
        let Some(agent) = &mut self.agent else { return false };
        let application = Arc::clone(&self.application);
        let next = agent.step(now, &mut |_| lock(&application).take_dirty());
        if self.disk.has_crashed() {
            self.kill_agent();
            return false;
        }
        self.observe();
        let due = self.due_jobs();
        let handed = due.len();
        if handed > 0 && self.random.random_bool(0.9) {
            let at = due[self.random.random_range(0..handed)];
            let job = self.next_job(at);
            let completed = self.carry_out(job);
            let ends_here = self.kill_behind.is_some_and(|at| self.servers[0].operations() > at);
            if self.disk.has_crashed() || ends_here {
                self.kill_behind = self.kill_behind.filter(|_| !ends_here);
                drop(completed);
                self.kill_agent();
                return false;
            }
            lock(&self.jobs.ended).push_back(completed);
            return true;
        }
        let next = next.unwrap_or(now.mono + REST);
        let wait = next.saturating_duration_since(now.mono);
        if handed == 0 && !far && wait > Duration::from_secs(2) {
            return false;
        }
        if wait >= LONG && self.is_locked_out() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let wait = if handed > 0 { wait.min(Duration::from_millis(1)) } else { wait };
        self.elapsed += wait.max(Duration::from_micros(20));
        true
    }

    /// A process that another history starts just now holds a copy of the last agent's lock: that takes real time.
    fn is_locked_out(&self) -> bool {
        let is_lock =
            |state| matches!(state, SourceState::Refused(reason) if reason.contains("another agent"));
        self.has_agent() && is_lock(self.status().state)
    }

    /// Which of the jobs that were handed out may be done.
    fn due_jobs(&self) -> Vec<usize> {
        let is_held = |job: &Handed| matches!(job, Handed::Local(_, job) if (self.held)(job));
        let handed = lock(&self.jobs.handed);
        (0..handed.len()).filter(|at| !is_held(&handed[*at])).collect()
    }

    /// Any of the jobs that were handed out, but the first one of its line: each line is a thread.
    fn next_job(&mut self, at: usize) -> Handed {
        let mut handed = lock(&self.jobs.handed);
        let first = match handed[at].line() {
            Some(line) => handed.iter().position(|job| job.line() == Some(line)).unwrap_or(at),
            None => at,
        };
        handed.remove(first)
    }

    fn carry_out(&mut self, job: Handed) -> Completed {
        match job {
            Handed::Local(database, job) => Completed::Local { database, outcome: do_local(job) },
            Handed::Remote(database, replica, order) => {
                let generation = order.generation;
                self.note(&format!("replica {replica}: {:?}", order.job));
                let line = (replica, order.job.is_of_snapshots());
                let server = &self.servers[replica];
                let remote = self.connections.entry(line).or_insert_with(|| server.connect());
                let outcome = carry(&mut **remote, &order).unwrap_or_else(|error| {
                    if error.is_disconnected() {
                        self.connections.remove(&line);
                    }
                    Outcome::Failed(error.into_failure())
                });
                self.note(&format!("replica {replica}: {outcome:?}"));
                Completed::Remote { database, replica, generation, outcome }
            }
        }
    }

    /// The database's path.
    pub fn database(&self) -> &Path {
        &self.config.databases[0].path
    }

    /// What the agent says of its database.
    pub fn status(&self) -> DatabaseStatus {
        let agent = self.agent.as_ref().expect("there is an agent");
        agent.status(self.now()).databases.remove(0)
    }

    /// What it says of its first replica.
    pub fn replica(&self) -> ReplicaStatus {
        self.status().replicas.remove(0)
    }

    /// Takes in what is acknowledged, and checks that what is shadowed ends with a commit.
    fn observe(&mut self) {
        let Some(agent) = &self.agent else { return };
        let status = agent.status(self.now());
        let status = &status.databases[0];
        let is_attached = status.state == SourceState::Attached;
        if is_attached && (!self.was_attached || !self.application().is_certain()) {
            // It may have set the journal mode, which is a state that only it made.
            self.application().look_on();
        }
        self.was_attached = is_attached;
        if is_attached && self.random.random_bool(HELD_CHECKS) {
            self.check_is_held();
        }
        if let Some(shadowed) = status.position {
            self.check_is_commit(shadowed);
            self.check_is_durable(shadowed);
        }
        for (replica, of_replica) in status.replicas.iter().enumerate() {
            let (Some(acked), ReplicaState::Streaming) = (of_replica.position, &of_replica.state) else {
                continue;
            };
            assert!(
                status
                    .position
                    .is_none_or(|shadowed| acked.generation != shadowed.generation || acked <= shadowed),
                "acked {acked} is beyond the shadow{}",
                self.story()
            );
            if let Some(state) = self.state_of(acked) {
                self.acked[replica] = self.acked[replica].max(Some(state));
            }
        }
    }

    /// While the agent is attached, a lock of an open file, and not of a process, is on one of the readers' bytes of the
    /// wal-index: 123 is read lock 0, the slots follow.
    fn check_is_held(&self) {
        let Ok(index) = names::beside(self.database(), "-shm").metadata() else { return };
        if !self.is_held() {
            return;
        }
        // `1: OFDLCK ADVISORY  READ -1 00:1a:4711 124 124`
        let locks = std::fs::read_to_string("/proc/locks").expect("every Linux has it");
        let is_ours = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "OFDLCK", _, "READ", _, file, first, _] = words[..] else { return false };
            file.rsplit(':').next() == Some(&index.ino().to_string())
                && first.parse().is_ok_and(|first: u32| (123..128).contains(&first))
        };
        assert!(locks.lines().any(is_ours), "nothing keeps the WAL from being restarted{}", self.story());
    }

    /// The WAL of the index before exists nowhere else any more: its shadow must survive a power cut.
    fn check_is_durable(&mut self, position: Position) {
        let Some(before) = position.index.previous().filter(|_| self.checked != Some(position.index)) else {
            return;
        };
        self.checked = Some(position.index);
        let folder = self.config.databases[0].meta_path.join(names::wal_folder(position.generation));
        let file = folder.join(names::shadow_file(before));
        let is_safe = !file.exists() || self.disk.is_durable(&file);
        assert!(is_safe, "{} would not survive a power cut{}", file.display(), self.story());
    }

    fn check_is_commit(&mut self, position: Position) {
        let Some(header) = self.header(position.generation, position.index) else { return };
        let application = lock(&self.application);
        if !application.is_certain() {
            return;
        }
        let of_wal = |state: &&State| state.header.as_ref() == Some(&header);
        if !application.states().iter().any(|state| of_wal(&state)) {
            // An index that the agent made of changed pages, after it was down: only a restore can tell.
            return;
        }
        let is_known = application.states().iter().filter(of_wal).any(|s| s.end() == position.offset.get());
        drop(application);
        let is_begun = position.offset.get() == 0;
        assert!(is_known || is_begun, "{position} is shadowed, and no commit ends there{}", self.story());
    }

    /// The last state that everything before a position makes up.
    fn state_of(&mut self, position: Position) -> Option<usize> {
        let (mut index, mut end) = (position.index, position.offset.get());
        if end == 0 {
            // The whole of the index before, which need not be the whole WAL: what came after it while nobody held
            // the database is in an index of our own making.
            index = index.previous()?;
            let folder = self.config.databases[0].meta_path.join(names::wal_folder(position.generation));
            end = std::fs::metadata(folder.join(names::shadow_file(index))).ok()?.len();
        }
        let header = self.header(position.generation, index)?;
        let application = lock(&self.application);
        application.states().iter().rposition(|s| s.header.as_ref() == Some(&header) && s.end() <= end)
    }

    /// The header of an index's WAL, from the shadow.
    fn header(&mut self, generation: Generation, index: Index) -> Option<String> {
        let key = (generation.to_string(), index.to_string());
        if self.lost.contains(&key.0) {
            return None;
        }
        if let Some(header) = self.headers.get(&key) {
            return Some(header.clone());
        }
        let folder = self.config.databases[0].meta_path.join(names::wal_folder(generation));
        let bytes = std::fs::read(folder.join(names::shadow_file(index))).ok()?;
        let header = bytes.get(..32)?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.headers.insert(key, header.clone());
        Some(header)
    }

    /// Restores a replica as it is now, or, if `synced`, as it would be if its server lost power now. It must hold
    /// a state that the application had, not before what was acknowledged.
    pub fn check_restore(&mut self, replica: usize, synced: bool) {
        let state = match self.restored(replica, synced) {
            Ok(state) => state,
            Err(RestoreError::Gap(RestoreGap::Empty | RestoreGap::NoSnapshot { .. }))
                if self.acked[replica].is_none() =>
            {
                return;
            }
            Err(error) => panic!("replica {replica} cannot be restored: {error}{}", self.story()),
        };
        assert!(
            Some(state) >= self.acked[replica],
            "replica {replica} gives state {state}, and {:?} was acknowledged{}",
            self.acked[replica],
            self.story()
        );
    }

    /// A restore gives one of the states from `from` on, or what is the same.
    fn check_restores_from(&mut self, replica: usize, from: usize) {
        let state = self.restored(replica, false);
        let application = self.application();
        let states = application.states();
        let is_there =
            matches!(&state, Ok(state) if *state >= from || states[*state].crc == states[from].crc);
        drop(application);
        assert!(is_there, "replica {replica} gives {state:?}, and {from} was acknowledged{}", self.story());
    }

    /// Restores every replica: it must hold what the application has now.
    pub fn check_all_is_replicated(&mut self) {
        for replica in 0..self.servers.len() {
            let synced = self.config.databases[0].replicas[replica].durability == Durability::Fsync;
            let state = self.restored(replica, synced);
            let application = self.application();
            let last = application.states().last().map(|state| state.crc);
            let is_last = matches!(&state, Ok(state) if Some(application.states()[*state].crc) == last);
            drop(application);
            let held = self.has_agent().then(|| self.status().state.to_string());
            let story = self.story();
            assert!(
                is_last,
                "replica {replica} gives {state:?}, not the newest state; it is {held:?}{story}"
            );
        }
    }

    /// Restores a replica to some of the commits that it holds: each is the state that the application had with that
    /// commit, and an earlier commit gives no later state. Returns how many were restored.
    pub fn check_earlier_commits(&mut self, replica: usize, most: usize) -> u64 {
        let server = self.servers[replica].copy(false);
        let earlier = Earlier::of(&mut *server.connect(), &root(replica), server.objects());
        let commits = earlier.commits();
        let mut chosen: Vec<usize> = (0..most.min(commits.len()))
            .map(|_| self.random.random_range(0..commits.len()))
            .chain(commits.len().checked_sub(1))
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        let (mut from, mut restored) = (0, 0);
        for commit in chosen.into_iter().map(|number| &commits[number]) {
            let view = FaultyServer::holding(earlier.as_of(commit));
            let crc = match self.restored_crc(replica, &view) {
                Ok((crc, _)) => crc,
                // At that time the snapshot had not got its name.
                Err(RestoreError::SnapshotTooNew { valid_from, .. })
                    if valid_from > (commit.index, Offset::new(commit.end)) =>
                {
                    continue;
                }
                Err(error) => panic!("{commit:?} of replica {replica}: {error}{}", self.story()),
            };
            restored += 1;
            let is_lost = self.lost.contains(&commit.generation.to_string());
            let application = self.application();
            let states = application.states();
            let with_it = |state: &&State| state.header == commit.header && state.end() == commit.end;
            let mut with_it = states.iter().filter(with_it).filter(|state| state.header.is_some()).peekable();
            let is_known = with_it.peek().is_some() && !is_lost;
            let is_right = !is_known || with_it.any(|state| state.crc == crc);
            let found = (from..states.len()).find(|number| states[*number].crc == crc);
            drop(application);
            assert!(is_right, "{commit:?} of replica {replica} gives another state{}", self.story());
            let Some(found) = found else {
                panic!("{commit:?} of replica {replica} gives no state from {from} on{}", self.story())
            };
            from = found;
        }
        restored
    }

    fn restored(&mut self, replica: usize, synced: bool) -> Result<usize, RestoreError> {
        let server = self.servers[replica].copy(synced);
        let (crc, position) = self.restored_crc(replica, &server)?;
        let mut application = self.application();
        let is_state = |state: &State| state.crc == crc;
        if !application.states().iter().any(is_state) && !application.is_certain() {
            application.look_on();
        }
        let (known, is_certain) = (application.states().len(), application.is_certain());
        let state = application.states().iter().rposition(is_state);
        drop(application);
        // Where somebody stands still in the middle of something, nobody may be able to ask for what was committed last.
        match state.or((!is_certain).then_some(known - 1)) {
            Some(state) => Ok(state),
            None => panic!(
                "replica {replica} gives a state that the application never had, at {position}{}",
                self.story()
            ),
        }
    }

    /// Restores what a server holds of a replica: the CRC of all pages, and where that is.
    fn restored_crc(
        &mut self,
        replica: usize,
        server: &FaultyServer,
    ) -> Result<(u64, Position), RestoreError> {
        self.restores += 1;
        let output = self.folder.path().join(format!("restored-{}", self.restores));
        let report = restore(RestoreOptions {
            remotes: &|| Ok(server.connect()),
            root: &root(replica),
            output: output.clone(),
            check: Check::Quick,
            progress: &mut |_| {},
        })?;
        let crc = Crc64::of(&std::fs::read(&output).expect("it was just restored"));
        std::fs::remove_file(output).expect("it is ours");
        Ok((crc, report.position))
    }

    /// Files of the shadow, of all generations.
    pub fn shadow_files(&self) -> usize {
        let meta = self.config.databases[0].meta_path.join(names::GENERATIONS);
        let files = super::scene::files(&meta);
        files.len()
    }

    /// Removes a file of the present generation's shadow.
    pub fn remove_shadow(&self, index: u32) {
        std::fs::remove_file(self.shadow_file(index)).expect("it is kept for the replica");
    }

    /// Takes the end of a file of the present generation's shadow away, as a power cut may.
    pub fn cut_shadow(&self, index: u32, length: u64) {
        let file = std::fs::File::options().write(true).open(self.shadow_file(index));
        file.and_then(|file| file.set_len(length)).expect("it is there");
    }

    fn shadow_file(&self, index: u32) -> PathBuf {
        let meta = &self.config.databases[0].meta_path;
        let generation = std::fs::read_to_string(meta.join("generation")).expect("there is a generation");
        let generation =
            generation.split(' ').next().and_then(|text| text.parse().ok()).expect("it has a name");
        let index = Index::new(index).expect("a small number");
        meta.join(names::wal_folder(generation)).join(names::shadow_file(index))
    }

    /// The agent ends with the job that does this operation of the first server.
    pub fn kill_behind(&mut self, operation: usize) {
        self.kill_behind = Some(operation);
    }

    /// Either everything is replicated all the same, or the status names the trouble.
    pub fn check_trouble_is_named(&mut self, name: &str) {
        let Some(agent) = &self.agent else { return };
        let status = agent.status(self.now());
        let status = &status.databases[0];
        let in_source = matches!(&status.state, SourceState::Refused(why) if why.contains(name));
        let is_named = |replica: &ReplicaStatus| matches!(&replica.state, ReplicaState::Failing { error, .. } if error.contains(name));
        if !in_source && !status.replicas.iter().any(is_named) {
            let newest = self.application().states().len() - 1;
            (0..self.servers.len()).for_each(|replica| self.check_restores_from(replica, newest));
        }
    }

    /// Everything that happened, for people.
    pub fn story(&self) -> String {
        let Some(folder) = std::env::var_os("WAL_AGENT_STORY").map(PathBuf::from) else {
            return String::new();
        };
        let application = self.application.try_lock().map(|application| application.log());
        let servers = self.servers.iter().map(FaultyServer::log).collect::<Vec<_>>().join("\n-- \n");
        let story = format!(
            "{}\n-- disk\n{}\n-- servers\n{servers}",
            application.unwrap_or_default(),
            self.disk.log()
        );
        let file = folder.join(self.name.to_string());
        std::fs::write(&file, story).expect("WAL_AGENT_STORY names a folder");
        format!("; the story is in {}", file.display())
    }

    /// The machine loses power: nobody survives, and what was not synced to the disk may be lost.
    pub fn lose_power(&mut self) {
        self.note("power is lost");
        self.kill_agent();
        self.application().kill_all();
        let meta = &self.config.databases[0].meta_path;
        let generation = std::fs::read_to_string(meta.join("generation")).unwrap_or_default();
        self.lost.extend(generation.split(' ').next().map(str::to_owned));
        self.disk.lose_power(self.random.random());
        let _ = std::fs::remove_file(self.folder.path().join("app.db-shm"));
        // Without syncs, SQLite itself promises nothing then.
        if self.application().habits().synchronous != "OFF" {
            for name in ["app.db", "app.db-wal", "app.db-journal"] {
                power::cut(&self.folder.path().join(name), self.random.random());
            }
        }
    }

    /// The processes of the application go back, and all faults by kind.
    pub fn end(mut self) -> (Vec<super::oracle::Process>, BTreeMap<String, u64>) {
        self.story();
        self.agent = None;
        lock(&self.jobs.handed).clear();
        lock(&self.jobs.ended).clear();
        self.disk.interrupt(None);
        let mut injected = self.disk.injected();
        let server_faults = self.servers.iter().flat_map(FaultyServer::injected);
        let application = Arc::into_inner(self.application).expect("BUG: nobody interrupts any more");
        let application = application.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (kind, count) in server_faults.chain(application.injected()) {
            *injected.entry(kind).or_default() += count;
        }
        (application.end(), injected)
    }
}

fn root(replica: usize) -> String {
    format!("/replica-{replica}")
}
