//! Threads that carry: they do what an order says, answer, and decide nothing.
//!
//! Local jobs share a small pool. Each destination (a server and account, or a folder of this machine in which replicas are)
//! has two threads and so at most two logins, however many databases replicate there: one for the WAL, one for snapshots.
//! One that hangs keeps no other one waiting.

use crate::carry::{Carrier, CarryError, Order};
use crate::core::evidence::Stamp;
use crate::core::position::Generation;
use crate::core::replica::{Failure, FailureCause, Outcome};
use crate::core::wal_index::Checkpointed;
use crate::page_table::TableJob;
use crate::precedence::{Deference, Precedence};
use crate::remote::{self, Location, Remote, RemoteError};
use crate::source::{
    CheckpointFailure, Checkpointer, HeldFiles, LocalJob, LocalOutcome, attach, compare, inspect, leave,
    let_go, round, stamp_at,
};
use crate::sqlite::SqliteError;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Threads for attaching, fsyncs and checkpoints: a slow disk under one database must not stop all others.
const LOCAL_THREADS: usize = 4;
/// After a failed login, jobs for that destination fail at once for so long: a thousand databases must not each wait
/// for the same dead server. Doubled after each further failure.
const LOGIN_PAUSE: Duration = Duration::from_millis(200);
/// The longest of these pauses: a thousand databases try often enough together to meet a server soon after its return,
/// and must not hammer it before. Shorter than any pause of one database by then, which so never misses its turn.
const LONGEST_LOGIN_PAUSE: Duration = Duration::from_secs(2);

/// Who carries: threads; in simulations, whoever decides when each job is done.
pub trait Workers {
    /// Hands out a local job.
    fn send_local(&mut self, database: usize, job: LocalJob);
    /// Hands out an order for the destination of `location`.
    fn send_remote(&mut self, database: usize, replica: usize, location: &Location, order: Order);
    /// The next job that has ended, if any.
    fn completed(&mut self) -> Option<Completed>;
}

/// A job that has ended.
pub enum Completed {
    /// A local one.
    Local {
        /// Which database.
        database: usize,
        /// How it ended.
        outcome: LocalOutcome,
    },
    /// One on a replica.
    Remote {
        /// Which database.
        database: usize,
        /// Which of its replicas.
        replica: usize,
        /// The generation that the order was for.
        generation: Generation,
        /// How it ended.
        outcome: Outcome,
    },
}

/// Where a worker logs in: replicas with the same one share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The folder of this machine that the replica's is in: what is beside it is most often on the same disk.
    Folder(PathBuf),
    /// A server and account.
    #[expect(missing_docs, reason = "as in the configuration")]
    Server { host: String, port: u16, user: String, key: Option<PathBuf>, host_keys: Vec<String> },
}

impl Destination {
    /// That of a replica.
    pub fn of(location: &Location) -> Self {
        match location {
            Location::Folder(path) => Destination::Folder(path.parent().unwrap_or(path).to_owned()),
            Location::Sftp(server) => Destination::Server {
                host: server.host.clone(),
                port: server.port,
                user: server.user.clone(),
                key: server.key_path.clone(),
                host_keys: server.host_keys.clone(),
            },
        }
    }
}

type LocalOrder = (usize, LocalJob);
type RemoteOrder = (usize, usize, Order);

/// So many folders have threads of their own, and more share those: threads are few on a small machine.
const MOST_FOLDERS: usize = 16;

/// The two threads of a destination.
#[derive(Clone)]
struct Lines {
    wal: Sender<RemoteOrder>,
    snapshots: Sender<RemoteOrder>,
}

/// All threads. The channels hold at most two orders for each database and replica, since each has at most one job
/// in flight, and one survey.
pub struct Threads {
    local: Sender<LocalOrder>,
    /// For work that reads a whole database: one at a time, so that it keeps nothing else waiting.
    long: Sender<LocalOrder>,
    /// The same, while nothing is copied of the database: it must not wait for a page table of another one.
    doubts: Sender<LocalOrder>,
    lines: HashMap<Destination, Lines>,
    /// Those that were begun for folders.
    folders: Vec<Lines>,
    completed: (Sender<Completed>, Receiver<Completed>),
    /// Rounds that wait for a moment go first, and sending waits.
    precedence: Precedence,
    wake: Arc<dyn Fn() + Send + Sync>,
    home: Option<PathBuf>,
}

impl Threads {
    /// Starts the local threads. `wake` is called after each job; `home` is where `.ssh/known_hosts` is looked for.
    pub fn start(wake: Arc<dyn Fn() + Send + Sync>, home: Option<PathBuf>) -> Self {
        let (local, orders) = unbounded::<LocalOrder>();
        let (long, long_orders) = unbounded::<LocalOrder>();
        let (doubts, doubtful_orders) = unbounded::<LocalOrder>();
        let completed = unbounded();
        let precedence = Precedence::default();
        let threads = (0..LOCAL_THREADS).map(|_| orders.clone()).chain([long_orders, doubtful_orders]);
        for orders in threads {
            let (done, wake) = (completed.0.clone(), Arc::clone(&wake));
            let precedence = precedence.clone();
            thread::spawn(move || {
                for (database, job) in orders {
                    let going = job.awaits_a_moment().then(|| precedence.take());
                    let outcome = do_local(job);
                    drop(going);
                    if done.send(Completed::Local { database, outcome }).is_err() {
                        return;
                    }
                    wake();
                }
            });
        }
        let (lines, folders) = (HashMap::new(), Vec::new());
        Threads { local, long, doubts, lines, folders, completed, precedence, wake, home }
    }

    /// Those of a destination that has none yet.
    fn begin_lines(&mut self, location: &Location) -> Lines {
        let is_folder = matches!(location, Location::Folder(_));
        if is_folder && self.folders.len() >= MOST_FOLDERS {
            return self.folders[self.lines.len() % MOST_FOLDERS].clone();
        }
        let lines = Lines { wal: self.start_line(location), snapshots: self.start_line(location) };
        if is_folder {
            self.folders.push(lines.clone());
        }
        lines
    }

    fn start_line(&self, location: &Location) -> Sender<RemoteOrder> {
        let (sender, orders) = unbounded::<RemoteOrder>();
        let (done, wake) = (self.completed.0.clone(), Arc::clone(&self.wake));
        let carrier = Carrier::new(Deference::to(&self.precedence));
        let (location, home) = (location.clone(), self.home.clone());
        let mut login = Login { location, home, state: LoginState::None, carrier };
        thread::spawn(move || {
            for (database, replica, order) in orders {
                let outcome = login.carry(&order);
                let generation = order.generation;
                // The order holds the database's descriptor: it goes before anybody hears that the job is done.
                drop(order);
                if done.send(Completed::Remote { database, replica, generation, outcome }).is_err() {
                    return;
                }
                wake();
            }
        });
        sender
    }
}

impl Workers for Threads {
    fn send_local(&mut self, database: usize, job: LocalJob) {
        let threads = match &job {
            LocalJob::Table(TableJob::Build(_)) => &self.long,
            LocalJob::Compare { .. } | LocalJob::Inspect(_) => &self.doubts,
            _ => &self.local,
        };
        threads.send((database, job)).expect("BUG: the local threads live as long as this");
    }

    fn send_remote(&mut self, database: usize, replica: usize, location: &Location, order: Order) {
        let destination = Destination::of(location);
        let lines = match self.lines.get(&destination) {
            Some(lines) => lines.clone(),
            None => {
                let lines = self.begin_lines(location);
                self.lines.insert(destination, lines.clone());
                lines
            }
        };
        let line = if order.job.is_of_snapshots() { lines.snapshots } else { lines.wal };
        line.send((database, replica, order)).expect("BUG: a destination's threads live as long as this");
    }

    fn completed(&mut self) -> Option<Completed> {
        self.completed.1.try_recv().ok()
    }
}

enum LoginState {
    None,
    Up(Box<dyn Remote>),
    Failed {
        at: Instant,
        /// Since the last login.
        failures: u32,
        error: RemoteError,
    },
}

/// A thread's login to its destination, made when it is needed and dropped after any doubt.
struct Login {
    location: Location,
    home: Option<PathBuf>,
    state: LoginState,
    carrier: Carrier,
}

impl Login {
    fn carry(&mut self, order: &Order) -> Outcome {
        if let LoginState::Failed { at, failures, error } = &self.state
            && at.elapsed() < login_pause(*failures)
        {
            let failure = CarryError::from(error.clone()).into_failure();
            let cause = match failure.cause {
                FailureCause::Disconnected => FailureCause::NotTried,
                cause => cause,
            };
            return Outcome::failed(&order.job, Failure { cause, ..failure });
        }
        let result = self.try_carry(order);
        result.unwrap_or_else(|error| {
            if error.is_disconnected() && matches!(self.state, LoginState::Up(_)) {
                self.state = LoginState::None;
            }
            Outcome::failed(&order.job, error.into_failure())
        })
    }

    fn try_carry(&mut self, order: &Order) -> Result<Outcome, CarryError> {
        self.log_in();
        match &mut self.state {
            LoginState::Up(remote) => self.carrier.carry(&mut **remote, order),
            LoginState::Failed { error, .. } => Err(error.clone().into()),
            LoginState::None => unreachable!("BUG: a login was just tried"),
        }
    }

    fn log_in(&mut self) {
        let again = match &mut self.state {
            LoginState::None | LoginState::Failed { .. } => true,
            LoginState::Up(remote) => !remote.is_alive(),
        };
        if again {
            let failures = match self.state {
                LoginState::Failed { failures, .. } => failures.saturating_add(1),
                LoginState::None | LoginState::Up(_) => 1,
            };
            self.state = match remote::connect(&self.location, self.home.as_deref()) {
                Ok(remote) => LoginState::Up(remote),
                Err(error) => LoginState::Failed { at: Instant::now(), failures, error },
            };
        }
    }
}

/// How long no login is tried after so many failures in a row.
pub fn login_pause(failures: u32) -> Duration {
    LOGIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_LOGIN_PAUSE)
}

/// Does a local job.
pub fn do_local(job: LocalJob) -> LocalOutcome {
    match job {
        LocalJob::Attach(request) => LocalOutcome::Attach(attach(request)),
        LocalJob::LetGo(request) => LocalOutcome::LetGo(let_go(request)),
        LocalJob::Leave(request) => LocalOutcome::Left(leave(request)),
        LocalJob::Sync(sync) => {
            let result = sync.file.sync();
            LocalOutcome::Synced(sync, result)
        }
        LocalJob::Durability(change) => {
            let result = change.run();
            LocalOutcome::Durability(change, result)
        }
        LocalJob::Checkpoint { checkpointer, sync, files, stamp, patience } => {
            let synced = sync.map(|sync| {
                let result = sync.file.sync();
                (sync, result)
            });
            let is_durable = synced.as_ref().is_none_or(|(_, result)| result.is_ok());
            let result = is_durable.then(|| checkpoint(&checkpointer, &files, stamp, patience));
            let stamp = may_have_written(result.as_ref()).then(|| stamp_at(files.database())).flatten();
            LocalOutcome::Checkpointed { checkpointer, synced, result, stamp }
        }
        LocalJob::Round { mut attached, database, plan } => {
            let report = round(&mut attached, &database, plan);
            LocalOutcome::Round(attached, report)
        }
        LocalJob::Compare { mut attached, database, wal, next_generation } => {
            let result = compare(&mut attached, &database, &wal, next_generation);
            LocalOutcome::Compared(attached, result)
        }
        LocalJob::Inspect(mut attached) => {
            let inspection = inspect(&mut attached);
            LocalOutcome::Inspected(attached, inspection)
        }
        LocalJob::Table(job) => LocalOutcome::Table(job.run()),
        LocalJob::Remove { paths, disk } => {
            LocalOutcome::Removed(paths.iter().try_for_each(|path| disk.remove(path)))
        }
    }
}

/// Whether a checkpoint of ours may have written the file. One that fails in the middle has; one that is busy has not
/// begun.
fn may_have_written(result: Option<&Result<Checkpointed, CheckpointFailure>>) -> bool {
    match result {
        Some(Err(CheckpointFailure::Sqlite(error))) => *error != SqliteError::Busy,
        None | Some(Err(_)) => false,
        Some(Ok(_)) => true,
    }
}

/// The order is what makes it safe: our copy is durable, then the checkpoint is limited, then the paths are compared, then
/// SQLite writes.
fn checkpoint(
    checkpointer: &Checkpointer,
    files: &HeldFiles,
    stamp: Option<Stamp>,
    patience: Duration,
) -> Result<Checkpointed, CheckpointFailure> {
    let is_overwritten = || stamp.is_some() && stamp_at(files.database()) != stamp;
    // To limit it, page 1 is read; of another content that fails.
    if is_overwritten() {
        return Err(CheckpointFailure::Overwritten);
    }
    let limited = checkpointer.begin().map_err(CheckpointFailure::NotBegun)?;
    if let Some(reason) = files.replaced() {
        return Err(CheckpointFailure::Replaced(reason));
    }
    if is_overwritten() {
        return Err(CheckpointFailure::Overwritten);
    }
    limited.checkpoint(patience, None).map_err(CheckpointFailure::Sqlite)
}
