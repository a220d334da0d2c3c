//! Support: the agent's whole machine in the test's process, with a clock, a disk and servers that do as they are told,
//! beside a real application. What must always hold is checked after every turn.

mod administrator;
mod checks;
mod files;
mod image;
mod jobs;
mod power_cut;

use super::faulty::FaultyServer;
use super::history::scratch;
use super::oracle::Application;
use super::power;
use super::process::wait_for_locks;
use super::sim_disk::SimDisk;
use image::Image;
use jobs::{Handed, Jobs, lock};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use wal_agent::agent::{Agent, Now};
use wal_agent::carry::Carrier;
use wal_agent::config::{CheckpointSettings, Config, DatabaseConfig, Durability, ReplicaConfig};
use wal_agent::core::names;
use wal_agent::core::position::{Generation, Index, Position};
use wal_agent::core::status::{DatabaseStatus, ReplicaStatus, SourceState};
use wal_agent::locks;
use wal_agent::remote::{Location, Remote};
use wal_agent::source::LocalJob;

/// Turns that a machine may take without coming to rest.
const MOST_TURNS: usize = 50_000;
/// Everything is looked at this often without an event; and pauses after failures are shorter.
const REST: Duration = Duration::from_secs(400);

/// While the agent stops, jobs may be slow for so many turns.
const SLOW_TURNS: usize = 5;

/// SQLite's busy handler asks so often.
const BUSY_SLEEP: Duration = Duration::from_millis(100);

/// So long a wait is for a try that failed.
const LONG: Duration = Duration::from_millis(100);

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
    /// As threads, of which a destination has two, whatever replicates there.
    carriers: HashMap<bool, Carrier>,
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
    /// The generation in which the agent let go of the database, and has not come back yet.
    let_go_in: Option<Generation>,
    has_set_server_clock: bool,
    retry_at: Duration,
    /// The watch hears only of the database's file.
    dozes: bool,
    kill_behind: Option<usize>,
    /// Local jobs that take for ever.
    pub held: fn(&LocalJob) -> bool,
    /// How far each generation has come.
    furthest: HashMap<Generation, Index>,
    /// Of generations of which the machine may have lost something, the last such index: a WAL may go on otherwise under
    /// the same header.
    lost: HashMap<Generation, Index>,
    /// Where the shadow ended when this agent was last asked.
    position: Option<Position>,
    /// What the machine may be set back to.
    images: Vec<Image>,
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
            carriers: HashMap::new(),
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
            let_go_in: None,
            has_set_server_clock: false,
            retry_at: Duration::ZERO,
            dozes: false,
            kill_behind: None,
            held: |_| false,
            furthest: HashMap::new(),
            lost: HashMap::new(),
            position: None,
            images: Vec::new(),
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

    pub fn now(&self) -> Now {
        let wall = self.began.1 + self.elapsed;
        let jump = Duration::from_secs(self.jumped.unsigned_abs());
        let wall = if self.jumped < 0 { wall - jump } else { wall + jump };
        Now { mono: self.began.0 + self.elapsed, wall }
    }

    /// The wall clock is set.
    pub fn jump(&mut self, seconds: i64) {
        self.application().count("clock set");
        self.jumped += seconds;
    }

    /// The clock of a server is set. Where the machine may be set back, nothing else tells which generation is newer; and what
    /// it may still deny must come before.
    pub fn jump_server(&mut self, replica: usize, seconds: i64) {
        if self.images.is_empty() && !self.servers.iter().any(FaultyServer::has_faults) {
            self.has_set_server_clock = true;
            self.application().count("server's clock set");
            self.servers[replica].set_clock(seconds);
        }
    }

    /// Whether the clock of a server was set.
    pub fn has_set_server_clock(&self) -> bool {
        self.has_set_server_clock
    }

    /// From now on nothing is slow, nothing interrupts, and no fault is left.
    pub fn heal(&mut self) {
        self.held = |_| false;
        self.disk.interrupt(None);
        self.disk.heal();
        for server in &self.servers {
            server.heal();
            server.refuse_all(false);
        }
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
        self.position = None;
        self.was_attached = false;
        self.let_go_in = None;
        let handed = std::mem::take(&mut *lock(&self.jobs.handed));
        drop(handed);
        lock(&self.jobs.ended).clear();
        self.connections.clear();
        self.carriers.clear();
        self.disk.restart();
        // It may have switched the database to WAL mode, and copied what it was then.
        if let Ok(mut application) = self.application.try_lock() {
            application.remember();
        }
        wait_for_locks(&self.meta().join("lock"), &names::beside(self.database(), "-shm"));
    }

    /// Everything goes on in another machine, as in a clone of this one.
    pub fn may_become_another_machine(&mut self) {
        if self.random.random_bool(0.3) {
            self.disk.become_another_machine();
            self.application().count("another machine");
        }
    }

    fn is_attached(&self) -> bool {
        self.has_agent() && self.status().state == SourceState::Attached
    }

    /// Whether the agent is attached to the file that is at the path now, and not still to one before it: then it may have
    /// that open, too, to keep others out.
    fn is_held(&self) -> bool {
        let path = &self.config.databases[0].path;
        self.is_attached() && locks::is_open_here(path) && locks::is_open_here(&names::beside(path, "-shm"))
    }

    /// Whether such a job was handed out, and is not done yet.
    pub fn is_under_way(&self, is_it: fn(&LocalJob) -> bool) -> bool {
        lock(&self.jobs.handed).iter().any(|job| matches!(job, Handed::Local(_, job) if is_it(job)))
    }

    /// The agent is asked to stop, and does.
    pub fn stop_agent(&mut self) {
        self.stop_agent_beside(|_| false);
    }

    /// The same while jobs are slow.
    pub fn stop_agent_beside(&mut self, slow: fn(&LocalJob) -> bool) {
        self.note("the agent is stopped");
        self.held = slow;
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
        for turn in 0..MOST_TURNS {
            if turn == SLOW_TURNS {
                self.held = |_| false;
            }
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

    /// The application commits again and again, and the agent looks each time.
    pub fn write_without_a_pause(&mut self, commits: usize) {
        for _ in 0..commits {
            self.application().commit_once_more();
            if !self.turn(false) {
                break;
            }
        }
        if self.dozes {
            self.application().count("dozed beside a writer");
        }
        if self.is_volatile() {
            self.application().count("a volatile shadow");
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
        // As the watch does: nothing is watched then, and everything counts as seen afterwards.
        let dozes = agent.needs_no_events(0, now);
        if std::mem::replace(&mut self.dozes, dozes) && !dozes {
            lock(&application).show_all();
        }
        let next = agent.step(now, &mut |_| lock(&application).take_dirty(dozes));
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

    /// The agent ends with the job that does this operation of the first server.
    pub fn kill_behind(&mut self, operation: usize) {
        self.kill_behind = Some(operation);
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
