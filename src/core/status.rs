//! What the status says, as values, and how healthy that is.

use super::position::{Generation, Position};
use std::fmt;
use std::time::Duration;

/// A replica that has been behind for longer than this is lagging.
pub const LAG_TOLERANCE: Duration = Duration::from_secs(10);

/// How well replication works. Ordered: the worst of several counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Every commit is on its way or there.
    Healthy,
    /// Something is behind, and the agent is working on it.
    Lagging,
    /// Something does not work: somebody should look.
    Failing,
}

/// What the agent is, and every database it replicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// The version of the SQLite inside.
    pub sqlite_version: String,
    /// The agent's process.
    pub pid: u32,
    /// When the agent started.
    pub started: Moment,
    /// In the order of the configuration.
    pub databases: Vec<DatabaseStatus>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseStatus {
    /// The database file.
    pub path: String,
    /// Whether the agent holds it.
    pub state: SourceState,
    /// The present history; `None` until there is one.
    pub generation: Option<Generation>,
    /// The shadowed position: what has been copied, and what replicas are compared with.
    pub position: Option<Position>,
    /// In the order of the configuration.
    pub replicas: Vec<ReplicaStatus>,
    /// How often continuity was lost since the agent started.
    pub breaks: Breaks,
    /// Pages in the live WAL.
    pub wal_pages: u32,
    /// How long the agent held the write lock, each time.
    pub write_lock_holds: WriteLockHolds,
}

/// Whether the agent holds a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// There is no such file yet; it is waited for.
    Absent,
    /// Nobody uses it, and so the agent does not, either.
    Detached,
    /// Every commit is followed.
    Attached,
    /// It cannot be replicated; why, and what to do.
    Refused(String),
}

/// One replica of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The name from the configuration.
    pub name: String,
    /// Where it lives, without a password.
    pub location: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// The acked position; `None` until it is known.
    pub position: Option<Position>,
    /// Bytes of WAL that are shadowed and not acked.
    pub lag_bytes: u64,
    /// For how long `lag_bytes` has not been 0; 0 when it is.
    pub lag_time: Duration,
    /// When the server last acknowledged something.
    pub last_acked: Option<Moment>,
    /// Whether acked means that the server's disk has it (an fsync was answered), not only its memory.
    pub durable: bool,
    /// The last thing that went wrong, even if all is well now.
    pub last_error: Option<PastError>,
}

/// What a replica is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    /// Logging in, and looking what is there.
    Connecting,
    /// The snapshot is on its way.
    SendingSnapshot {
        /// Bytes of the database sent.
        done: u64,
        /// Bytes of the database.
        total: u64,
    },
    /// Every commit is sent as it comes.
    Streaming,
    /// It does not work; it is tried again.
    Failing {
        /// Why.
        error: String,
        /// How long until the next try.
        retry_in: Duration,
    },
}

/// A moment in the past, for machines and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since 1970, by the wall clock of that moment.
    pub unix_millis: u64,
    /// How long ago, by a clock that does not jump.
    pub age: Duration,
}

/// Something that went wrong once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastError {
    /// What.
    pub message: String,
    /// When.
    pub at: Moment,
}

/// How often continuity was lost and a new generation begun.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Breaks {
    /// Since the agent started, the first generation included.
    pub count: u64,
    /// Why, the last time.
    pub last_reason: Option<String>,
}

/// How long the agent held a database's write lock: how many times up to each bound, and the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteLockHolds {
    counts: [u64; WriteLockHolds::BOUNDS.len() + 1],
    max: Duration,
}

impl WriteLockHolds {
    /// The upper bounds of all buckets but the last, which has none. 20 ms is the default `max-write-block`.
    pub const BOUNDS: [Duration; 7] = [
        Duration::from_micros(100),
        Duration::from_micros(300),
        Duration::from_millis(1),
        Duration::from_millis(5),
        Duration::from_millis(20),
        Duration::from_millis(100),
        Duration::from_secs(1),
    ];

    /// Takes one hold in.
    pub fn record(&mut self, held: Duration) {
        let bucket = Self::BOUNDS.iter().position(|bound| held <= *bound).unwrap_or(Self::BOUNDS.len());
        self.counts[bucket] += 1;
        self.max = self.max.max(held);
    }

    /// How many holds.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest hold.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// How many holds fell into each bucket, with the bucket's upper bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = Self::BOUNDS.into_iter().map(Some).chain([None]);
        bounds.zip(self.counts)
    }
}
