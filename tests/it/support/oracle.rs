//! Support: an application in processes of its own (`application`), and every committed state it ever had.
//!
//! Processes do one thing at a time, when they are told to, so that a history is the same each time it is run. What
//! SQLite itself reads through a connection is the truth; the test's own process never opens the database file.

mod acts;
mod administrator;
mod process;
mod promise;
mod states;

pub use process::{Answer, Process};
pub use states::State;

use super::file_clock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use wal_agent::core::sync::Dirty;

/// Connections of the application; the n-th lives in process n modulo [`PROCESSES`].
pub const CONNECTIONS: usize = 4;
const PROCESSES: usize = 2;

/// The first commit of every database.
const TABLES: &str = "BEGIN; CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data BLOB); \
    CREATE INDEX t_n ON t (n); CREATE TABLE c (n INTEGER); INSERT INTO c VALUES (0); COMMIT";

/// What a connection is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Closed,
    Idle,
    Reading,
    Writing,
    /// In the middle of something: it waits for readers, or its process stands still there.
    Waiting,
    /// The same, while it is being closed.
    Closing,
}

impl Slot {
    fn waits(self) -> bool {
        matches!(self, Slot::Waiting | Slot::Closing)
    }
}

/// Files of the database, as a watch would see them change.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Seen {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Seen {
    fn of(path: &Path) -> Option<Seen> {
        let metadata = file_clock::exactly(|| path.metadata()).ok()?;
        let (inode, length) = (metadata.ino(), metadata.len());
        Some(Seen { inode, length, modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

/// How an application treats its database.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub page_size: u32,
    pub synchronous: &'static str,
    pub autocheckpoint: u32,
    pub auto_vacuum: u32,
    pub cache_pages: u32,
    /// Whether the watch misses what it does now and then.
    pub is_overlooked: bool,
}

impl Habits {
    /// Nothing out of the ordinary; checkpoints are left to the agent.
    pub const PLAIN: Habits = Habits {
        page_size: 4096,
        synchronous: "FULL",
        autocheckpoint: 0,
        auto_vacuum: 0,
        cache_pages: 100,
        is_overlooked: false,
    };
}

/// The application.
pub struct Application {
    database: PathBuf,
    habits: Habits,
    processes: Vec<Process>,
    slots: [Slot; CONNECTIONS],
    random: StdRng,
    states: Vec<State>,
    /// Whether the last of `states` is the present one.
    is_certain: bool,
    /// Whether there was a moment in which not even an onlooker could be told the present state: it may be missing.
    has_missed: bool,
    /// Asks for the state while the agent holds the database, so that its own comings and goings mean nothing.
    onlooker: Process,
    /// Has nothing but readers, each from another commit on.
    crowd: Process,
    crowd_size: usize,
    dirty: Dirty,
    /// Since the watch last looked, somebody has closed the database.
    has_closed: bool,
    seen: [Option<Seen>; 4],
    log: Vec<String>,
    injected: BTreeMap<String, u64>,
    /// Does nothing: its administrator is at work.
    is_away: bool,
    /// Nobody may open the database: what is at its path is not whole.
    is_between: bool,
    /// Files that an administrator made of earlier states.
    backups: Vec<PathBuf>,
    /// Of the last state.
    pages: u64,
    /// How many commits there are at least.
    promised: i64,
    /// The same, also behind a power cut.
    durably_promised: i64,
    /// The last commit that was tried was acknowledged, so it and everything before it was synced.
    has_acknowledged: bool,
    /// An fsync of one of its processes is made to fail.
    fails_a_sync: bool,
}

/// How another file comes into the database's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    /// Another inode.
    Moved,
    /// The same inode.
    Copied,
}

impl Application {
    /// An application whose database is not there yet. `processes` have no connection open.
    pub fn new(database: &Path, habits: Habits, mut processes: Vec<Process>, seed: u64) -> Self {
        processes.resize_with(PROCESSES + 2, Process::start);
        // Each its own: two that draw the same salts begin WALs that nobody can tell from each other.
        for (process, seed) in processes.iter_mut().zip(seed & 0xFFFF..) {
            process.tell(&format!("seed {seed}"));
        }
        let onlooker = processes.pop().expect("there are two more than the application has");
        let crowd = processes.pop().expect("there are two more than the application has");
        let (slots, random) = ([Slot::Closed; CONNECTIONS], StdRng::seed_from_u64(seed));
        let (states, log, injected) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (dirty, seen) = (Dirty::default(), [None; 4]);
        let database = database.to_owned();
        Application {
            database,
            habits,
            processes,
            slots,
            random,
            states,
            is_certain: true,
            has_missed: false,
            onlooker,
            crowd,
            crowd_size: 0,
            dirty,
            has_closed: false,
            seen,
            log,
            injected,
            is_away: false,
            is_between: false,
            backups: Vec::new(),
            pages: 0,
            promised: 0,
            durably_promised: 0,
            has_acknowledged: false,
            fails_a_sync: false,
        }
    }

    /// The states so far; the last one is the present.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// How it treats its database.
    pub fn habits(&self) -> Habits {
        self.habits
    }

    /// What was done, for people.
    pub fn log(&self) -> String {
        self.log.join("\n")
    }

    pub fn note(&mut self, line: String) {
        self.log.push(line);
    }

    /// Faults by kind.
    pub fn injected(&self) -> BTreeMap<String, u64> {
        self.injected.clone()
    }

    /// Counts something that has happened.
    pub fn count(&mut self, what: &str) {
        *self.injected.entry(what.to_owned()).or_default() += 1;
    }

    /// What a watch has seen since this was last asked; nothing if it `dozes`.
    pub fn take_dirty(&mut self, dozes: bool) -> Dirty {
        let dirty = std::mem::take(&mut self.dirty);
        if dozes { Dirty::default() } else { dirty }
    }

    /// All connections are closed; the processes go back.
    pub fn end(mut self) -> Vec<Process> {
        self.close_all();
        self.processes.extend([self.crowd, self.onlooker]);
        self.processes
    }

    /// All processes die.
    pub fn kill_all(&mut self) {
        for process in 0..PROCESSES {
            self.bury(process);
        }
        (self.crowd, self.crowd_size) = (Process::start(), 0);
        self.observe();
    }

    /// Makes the database, with a first commit.
    pub fn create(&mut self) {
        let Habits { page_size, auto_vacuum, .. } = self.habits;
        self.ensure_open(0);
        self.sql(
            0,
            &format!(
                "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode=wal"
            ),
        );
        self.sql(0, TABLES);
        self.remember();
    }

    /// Runs statements on a connection, which is opened for it.
    pub fn run(&mut self, connection: usize, sql: &str) {
        self.ensure_open(connection);
        self.sql(connection, sql);
        self.remember();
    }

    /// Ends what is open, and closes everything or nothing.
    pub fn rest(&mut self) {
        self.disperse_to(0);
        // One that waits keeps the others of its process from ending what they have begun.
        (0..CONNECTIONS).for_each(|connection| self.finish(connection));
        for connection in 0..CONNECTIONS {
            if let Slot::Reading | Slot::Writing = self.slots[connection] {
                self.end_transaction(connection, "COMMIT");
            }
            self.remember();
        }
        if self.random.random_bool(0.3) {
            self.close_all();
        }
    }

    /// All connections are closed, as an application's that ends.
    pub fn close_all(&mut self) {
        self.count("all connections closed");
        self.disperse_to(0);
        for connection in 0..CONNECTIONS {
            self.close(connection);
        }
        self.observe();
    }

    fn close(&mut self, connection: usize) {
        // Another connection of its process may be what waits, and then this one would stay open.
        for other in (connection % PROCESSES..CONNECTIONS).step_by(PROCESSES) {
            self.finish(other);
        }
        if self.slots[connection] != Slot::Closed {
            self.tell(connection, &format!("close {connection}"));
            if self.slots[connection] != Slot::Closing {
                self.slots[connection] = Slot::Closed;
            }
        }
    }

    fn ensure_open(&mut self, connection: usize) {
        if self.slots[connection] != Slot::Closed || self.is_blocked(connection) {
            return;
        }
        let line = format!("open {connection} {}", self.database.display());
        if !matches!(self.tell(connection, &line), Answer::Ok(_)) {
            return;
        }
        self.slots[connection] = Slot::Idle;
        if !self.is_certain && !self.states.is_empty() {
            self.remember();
        }
        let Habits { synchronous, autocheckpoint, cache_pages, .. } = self.habits;
        self.sql(
            connection,
            &format!(
                "PRAGMA synchronous={synchronous}; PRAGMA cache_size={cache_pages}; \
                 PRAGMA wal_autocheckpoint={autocheckpoint}"
            ),
        );
    }

    /// A process whose connection waits does nothing else.
    fn is_blocked(&self, connection: usize) -> bool {
        (0..CONNECTIONS).any(|c| c % PROCESSES == connection % PROCESSES && self.slots[c].waits())
    }

    fn sql(&mut self, connection: usize, sql: &str) {
        if self.is_blocked(connection) {
            return;
        }
        let answer = self.tell(connection, &format!("sql {connection} {sql}"));
        let is_ok = matches!(answer, Answer::Ok(_));
        self.count_statement(sql, &answer);
        self.note_commit(connection, sql, is_ok);
        let slot = &mut self.slots[connection];
        match (answer, sql) {
            (Answer::Died | Answer::Waiting, _) => {}
            (_, sql) if sql.starts_with("BEGIN IMMEDIATE") && is_ok => *slot = Slot::Writing,
            (_, sql) if sql.starts_with("BEGIN; SELECT") => {
                if is_ok {
                    *slot = Slot::Reading;
                } else {
                    let _ = self.tell(connection, &format!("sql {connection} ROLLBACK"));
                }
            }
            (_, "COMMIT") if is_ok => *slot = Slot::Idle,
            (Answer::Error(message), "COMMIT") if message.contains("no transaction") => *slot = Slot::Idle,
            (_, "ROLLBACK") => *slot = Slot::Idle,
            (Answer::Error(_), sql) if *slot == Slot::Writing && sql != "COMMIT" => {
                // SQLite has rolled some errors back by itself; each further statement would be a commit of its own.
                *slot = Slot::Idle;
                self.tell(connection, &format!("sql {connection} ROLLBACK"));
            }
            _ => {}
        }
    }

    /// Counts what SQLite did, and did not refuse.
    fn count_statement(&mut self, sql: &str, answer: &Answer) {
        let Answer::Ok(values) = answer else { return };
        match sql {
            "VACUUM" | "RELEASE s" | "ROLLBACK TO s; RELEASE s" => self.count(sql),
            "PRAGMA journal_mode=delete" if values == "delete" => self.count("journal mode left"),
            _ if sql.starts_with("PRAGMA wal_checkpoint") && values.starts_with('0') => self.count(sql),
            _ => {}
        }
    }

    fn go_on(&mut self, connection: usize, word: &str) {
        // Another one may have committed, and stand still since: what this one does hides that.
        self.remember();
        if !self.is_certain && !self.states.is_empty() {
            self.look_on();
        }
        if self.tell(connection, word) == Answer::Waiting {
            return;
        }
        match self.slots[connection] {
            Slot::Closing => self.slots[connection] = Slot::Closed,
            Slot::Waiting => {
                self.slots[connection] = Slot::Writing;
                self.tell(connection, &format!("patience {connection} off"));
                let end = if self.random.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
                self.end_transaction(connection, end);
            }
            _ => {}
        }
    }

    /// It waits for nothing any more.
    fn finish(&mut self, connection: usize) {
        while self.slots[connection].waits() {
            self.go_on(connection, "enough");
        }
    }

    fn tell(&mut self, connection: usize, line: &str) -> Answer {
        let process = connection % PROCESSES;
        let word = line.split(' ').next().unwrap_or_default();
        if self.is_blocked(connection) && word != "again" && word != "enough" {
            return Answer::Error("its process waits".to_owned());
        }
        let answer = self.processes[process].tell(line);
        self.has_closed |= word == "close" || answer == Answer::Died;
        self.log.push(format!("  {line} -> {answer:?}"));
        match answer {
            Answer::Died => self.bury(process),
            Answer::Error(ref message) => self.check_is_expected(line, message),
            Answer::Waiting if word == "close" => self.slots[connection] = Slot::Closing,
            Answer::Waiting if self.slots[connection] != Slot::Closing => {
                self.slots[connection] = Slot::Waiting;
            }
            _ => {}
        }
        self.observe();
        answer
    }

    /// A process is dead, or dies now; the next one takes its place.
    fn bury(&mut self, process: usize) {
        self.processes[process] = Process::start();
        self.has_closed = true;
        let seed = self.random.random_range(0..65536);
        self.processes[process].tell(&format!("seed {seed}"));
        for connection in (process..CONNECTIONS).step_by(PROCESSES) {
            self.slots[connection] = Slot::Closed;
        }
    }

    /// Checkpoints that wait ask for what they wait for once more.
    pub fn retry(&mut self) {
        for connection in 0..CONNECTIONS {
            if self.slots[connection].waits() {
                let word = if self.random.random_bool(0.9) { "again" } else { "enough" };
                self.go_on(connection, word);
                self.remember();
            }
        }
    }

    /// All connections are closed, or their processes killed, and it does nothing until [`Application::come_back`].
    pub fn leave(&mut self) {
        self.remember();
        for connection in 0..CONNECTIONS {
            self.finish(connection);
        }
        self.remember();
        match self.random.random_bool(0.8) {
            true => self.close_all(),
            false => self.kill_all(),
        }
        // It may have left what nobody has asked for.
        (self.is_certain, self.is_away) = (false, true);
    }

    /// It does nothing until [`Application::come_back`], with everything open that is open.
    pub fn pause(&mut self) {
        self.remember();
        self.is_away = true;
    }

    /// The watch misses nothing of what has happened so far.
    pub fn show_all(&mut self) {
        self.dirty = Dirty::ALL;
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.database.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// What a watch would see; some of it is lost, some comes for nothing.
    fn observe(&mut self) {
        let files = ["", "-wal", "-journal", "-shm"].map(|suffix| self.beside(suffix));
        let now = files.map(|path| Seen::of(&path));
        let moved = |n: usize| now[n].map(|s| s.inode) != self.seen[n].map(|s| s.inode);
        let exact = Dirty {
            database: now[0] != self.seen[0],
            wal: now[1] != self.seen[1],
            folder: (0..now.len()).any(moved),
            closed: self.has_closed,
            rights: false,
        };
        self.has_closed = false;
        let seen = match self.random.random_range(0..20) {
            0 if self.habits.is_overlooked && exact.any() => {
                self.count("event lost");
                Dirty::default()
            }
            1 => Dirty::ALL,
            _ => exact,
        };
        self.dirty.database |= seen.database;
        self.dirty.wal |= seen.wal;
        self.dirty.folder |= seen.folder;
        self.dirty.closed |= seen.closed;
        self.seen = now;
    }
}
