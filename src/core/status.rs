//! What the status says, as values, and how healthy that is.

use super::position::{Generation, Position};
use super::space::Scarcity;
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
    /// Whether the page table knows what the database is there, so that a restore can be proven equal.
    pub is_provable: bool,
    /// In the order of the configuration.
    pub replicas: Vec<ReplicaStatus>,
    /// How often continuity was lost since the agent started.
    pub breaks: Breaks,
    /// Pages in the live WAL.
    pub wal_pages: u32,
    /// How room for the shadow WAL gets scarce, if it does.
    pub scarcity: Option<Scarcity>,
    /// That a program goes on writing into a file that was at the path before, if one does.
    pub elsewhere: Option<&'static str>,
    /// That the database may be mixed with the one that was there before, and what to do.
    pub mixed: Option<&'static str>,
    /// How long the agent held the write lock, each time.
    pub write_lock_holds: WriteLockHolds,
}

/// Whether the agent holds a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// There is no such file yet; it is waited for.
    Absent,
    /// It has changed, or was not looked at yet; the agent attaches in a moment.
    Attaching,
    /// Nobody has it open, not even the agent, and its file is what was copied.
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
    /// Bytes of WAL that are known to be committed and not acked.
    pub lag_bytes: u64,
    /// For how long `lag_bytes` has not been 0; 0 when it is.
    pub lag_time: Duration,
    /// For how long that may be, because the replica is to wait for more.
    pub allowed_lag: Duration,
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
    /// The shadow was given up: nothing is sent until the next generation begins, and what it lacks nobody knows.
    Waiting,
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
    /// Since the agent started. The first generation of a database is none, though its reason is the last one.
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

impl AgentStatus {
    /// That of the worst database; healthy if there is none.
    pub fn health(&self) -> Health {
        self.databases.iter().map(DatabaseStatus::health).max().unwrap_or(Health::Healthy)
    }

    /// One line: `healthy, 3 databases`, or `failing: /var/lib/app/app.db, 1 of 3 databases`.
    pub fn summary(&self) -> String {
        let (health, all) = (self.health(), self.databases.len());
        let plural = if all == 1 { "" } else { "s" };
        let troubled: Vec<_> = self.databases.iter().filter(|database| database.health() == health).collect();
        match troubled[..] {
            [first, ..] if health > Health::Healthy => {
                format!("{health}: {}, {} of {all} database{plural}", first.path, troubled.len())
            }
            _ => format!("{health}, {all} database{plural}"),
        }
    }
}

impl DatabaseStatus {
    /// The rules, the first that fits:
    ///
    /// 1. *failing* if the database is refused, a program writes into a file that was at its path before, or has mixed
    ///    the two, or any replica is failing, or would restore another generation;
    /// 2. *healthy* if the database is absent: there is nothing to send yet;
    /// 3. *lagging* if the agent is about to attach, or any replica is connecting or gets its snapshot, or has been behind
    ///    for [`LAG_TOLERANCE`] longer than it may be;
    /// 4. *healthy* otherwise.
    pub fn health(&self) -> Health {
        let any = |is: fn(&ReplicaStatus) -> bool| self.replicas.iter().any(is);
        let is_refused = matches!(self.state, SourceState::Refused(_));
        if is_refused || self.elsewhere.is_some() || self.mixed.is_some() || any(ReplicaStatus::is_failing) {
            Health::Failing
        } else if self.state == SourceState::Attaching
            || (self.state != SourceState::Absent && any(ReplicaStatus::is_lagging))
        {
            Health::Lagging
        } else {
            Health::Healthy
        }
    }
}

impl ReplicaStatus {
    fn is_failing(&self) -> bool {
        matches!(self.state, ReplicaState::Failing { .. })
    }

    fn is_lagging(&self) -> bool {
        let is_behind = self.lag_bytes > 0 && self.lag_time > LAG_TOLERANCE + self.allowed_lag;
        self.state != ReplicaState::Streaming || is_behind
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Healthy => "healthy",
            Health::Lagging => "lagging",
            Health::Failing => "failing",
        })
    }
}

impl fmt::Display for AgentStatus {
    /// For people: a line for the agent, then a block for each database, with aligned columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AgentStatus { version, sqlite_version, pid, started, databases } = self;
        let health = self.health();
        let up = Span(started.age);
        writeln!(f, "{health}; agent {version}, SQLite {sqlite_version}, process {pid}, up for {up}")?;
        databases.iter().try_for_each(|database| write!(f, "\n{database}"))
    }
}

impl fmt::Display for DatabaseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path)?;
        writeln!(f, "  state      {}", self.state)?;
        if let Some(position) = self.position {
            writeln!(f, "  position   {position}")?;
        }
        if self.state == SourceState::Attached {
            writeln!(f, "  WAL        {} pages", self.wal_pages)?;
        }
        if let Some(elsewhere) = self.elsewhere {
            writeln!(f, "  elsewhere  {elsewhere}")?;
        }
        if let Some(mixed) = self.mixed {
            writeln!(f, "  mixed      {mixed}")?;
        }
        if let Some(scarcity) = self.scarcity {
            writeln!(f, "  room       {scarcity}")?;
        }
        if self.breaks.count > 0 {
            writeln!(f, "  breaks     {}", self.breaks)?;
        }
        if self.write_lock_holds.count() > 0 {
            writeln!(f, "  write lock {}", self.write_lock_holds)?;
        }
        let width = self.replicas.iter().map(|replica| replica.name.chars().count()).max().unwrap_or(0);
        for replica in &self.replicas {
            writeln!(f, "  replica    {:width$}  {replica}", replica.name)?;
            if let Some(PastError { message, at }) = &replica.last_error
                && !replica.is_failing()
            {
                writeln!(f, "             last error {} ago: {message}", Span(at.age))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for SourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceState::Absent => f.write_str("absent: waiting for the file"),
            SourceState::Attaching => f.write_str("attaching"),
            SourceState::Detached => {
                f.write_str("detached: nobody else has it open; the agent comes back with whoever opens it")
            }
            SourceState::Attached => f.write_str("attached"),
            SourceState::Refused(reason) => write!(f, "refused: {reason}"),
        }
    }
}

impl fmt::Display for ReplicaStatus {
    /// Without the name: state, lag, last acknowledgement, location.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        if self.lag_bytes > 0 {
            write!(f, "; {} behind for {}", Bytes(self.lag_bytes), Span(self.lag_time))?;
        } else if self.state == ReplicaState::Streaming {
            f.write_str("; nothing behind")?;
        }
        if let Some(acked) = self.last_acked {
            let durable = if self.durable { "on disk" } else { "not known to be on disk" };
            write!(f, "; last acknowledged {} ago ({durable})", Span(acked.age))?;
        }
        write!(f, "; {}", self.location)
    }
}

impl fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplicaState::Connecting => f.write_str("connecting"),
            ReplicaState::SendingSnapshot { done, total } => {
                write!(f, "sending the snapshot, {} of {}", Bytes(*done), Bytes(*total))
            }
            ReplicaState::Streaming => f.write_str("streaming"),
            ReplicaState::Waiting => f.write_str("waiting for the next generation"),
            ReplicaState::Failing { error, retry_in } => {
                write!(f, "failing: {error}; next try in {}", Span(*retry_in))
            }
        }
    }
}

impl fmt::Display for Breaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count.fmt(f)?;
        self.last_reason.iter().try_for_each(|reason| write!(f, ", the last: {reason}"))
    }
}

impl fmt::Display for WriteLockHolds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held {} times, at most {} (", self.count(), Span(self.max))?;
        let mut separator = "";
        for (bound, count) in self.buckets().filter(|(_, count)| *count > 0) {
            match bound {
                Some(bound) => write!(f, "{separator}{count} up to {}", Span(bound))?,
                None => write!(f, "{separator}{count} longer")?,
            }
            separator = ", ";
        }
        f.write_str(")")
    }
}

/// A duration in the unit that suits it: `120 us`, `3.4 ms`, `12.0 s`, `5 min`, `3 h`, `2 d`.
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        let seconds = self.0.as_secs();
        match (micros, seconds) {
            (0..1_000, _) => write!(f, "{micros} us"),
            (1_000..1_000_000, _) => write!(f, "{:.1} ms", micros as f64 / 1e3),
            (_, 0..120) => write!(f, "{:.1} s", self.0.as_secs_f64()),
            (_, 120..7_200) => write!(f, "{} min", seconds / 60),
            (_, 7_200..172_800) => write!(f, "{} h", seconds / 3_600),
            _ => write!(f, "{} d", seconds / 86_400),
        }
    }
}

/// A count of bytes in the unit that suits it: `512 B`, `3.4 KiB`, `1.2 GiB`.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0 as f64;
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        for unit in ["KiB", "MiB", "GiB"] {
            amount /= 1024.0;
            if amount < 1023.95 {
                return write!(f, "{amount:.1} {unit}");
            }
        }
        write!(f, "{:.1} TiB", amount / 1024.0)
    }
}
