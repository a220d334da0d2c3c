//! One database of the soak: its writers, readers and administrators, and the comparisons.

use crate::Soak;
use crate::host::{Configuration, PATIENCE, move_into_place};
use crate::support::compare::{assert_whole, difference};
use crate::support::sqlite::Writer;
use crate::support::wait::wait_until;
use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::{Connection, ErrorCode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a database and its application are like.
pub struct Plan {
    pub name: &'static str,
    /// Keys of the configuration.
    pub settings: &'static [&'static str],
    /// Whether it has a second replica.
    pub has_folder: bool,
    page_size: u32,
    /// The mode of each writer.
    writers: &'static [&'static str],
    autocheckpoint: u32,
    synchronous: &'static str,
    /// The most commits that a writer is asked for at once.
    most_without_a_pause: usize,
    /// Whether the file is replaced from time to time.
    is_replaced: bool,
}

/// All databases.
pub const PLANS: [Plan; 6] = [
    Plan {
        name: "tiny-pages",
        settings: &["let-go-after: 100ms", "min-checkpoint-page-count: 20"],
        has_folder: false,
        page_size: 512,
        writers: &["plain", "churn"],
        autocheckpoint: 100,
        synchronous: "NORMAL",
        most_without_a_pause: 20_000,
        is_replaced: true,
    },
    Plan {
        name: "usual",
        settings: &["let-go-after: 1s"],
        has_folder: true,
        page_size: 4096,
        writers: &["plain", "churn", "one-shot"],
        autocheckpoint: 1000,
        synchronous: "FULL",
        most_without_a_pause: 1_000,
        is_replaced: true,
    },
    Plan {
        name: "checkpoints",
        settings: &["let-go-after: 200ms", "checkpoint-interval: 5s"],
        has_folder: false,
        page_size: 4096,
        writers: &["checkpoint", "checkpoint", "rollback"],
        autocheckpoint: 50,
        synchronous: "FULL",
        most_without_a_pause: 0,
        is_replaced: true,
    },
    Plan {
        name: "never-let-go",
        settings: &[
            "let-go-after: never",
            "min-checkpoint-page-count: 100",
            "max-checkpoint-page-count: 500",
        ],
        has_folder: true,
        page_size: 1024,
        writers: &["plain", "rollback"],
        autocheckpoint: 0,
        synchronous: "NORMAL",
        most_without_a_pause: 0,
        is_replaced: false,
    },
    Plan {
        name: "tireless",
        settings: &["let-go-after: 1s"],
        has_folder: false,
        page_size: 4096,
        writers: &["plain", "churn"],
        autocheckpoint: 1000,
        synchronous: "NORMAL",
        most_without_a_pause: 20_000,
        is_replaced: true,
    },
    Plan {
        name: "large-pages",
        settings: &["let-go-after: 100ms", "max-checkpoint-page-count: 0"],
        has_folder: false,
        page_size: 65536,
        writers: &["one-shot", "churn"],
        autocheckpoint: 10,
        synchronous: "OFF",
        most_without_a_pause: 0,
        is_replaced: true,
    },
];

/// Between two comparisons of a database.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);
/// Bytes; a larger database loses its oldest rows.
const LARGE: u64 = 16 << 20;
const BULK: &str = "BEGIN IMMEDIATE; \
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
    INSERT INTO rows (writer, batch, of, data) SELECT 99, i, 1, randomblob(500) FROM n; COMMIT";
/// How long another connection may hold what we want.
const BUSY: Duration = Duration::from_secs(20);

/// A writer at work.
struct Worker {
    number: usize,
    writer: Writer,
    asked: usize,
}

/// A database with its application.
pub struct Database {
    plan: &'static Plan,
    configuration: Configuration,
    random: StdRng,
    path: PathBuf,
    workers: Vec<Worker>,
    reader: Option<(Connection, Instant)>,
    /// The last commit of each writer that has returned, in this file.
    committed: BTreeMap<usize, i64>,
}

impl Database {
    /// Nobody has it open, and it is not there.
    pub fn new(plan: &'static Plan, configuration: Configuration, random: StdRng) -> Database {
        let folder = configuration.folder().join(plan.name);
        fs::create_dir_all(&folder).expect("the folder is ours");
        let path = folder.join("app.db");
        Database {
            plan,
            configuration,
            random,
            path,
            workers: Vec::new(),
            reader: None,
            committed: BTreeMap::new(),
        }
    }

    /// Writes, and does everything that people do, until the soak is over.
    pub fn live(mut self, soak: &Soak) {
        self.open();
        let mut next_event = self.soon();
        let first = Duration::from_millis(self.random.random_range(0..COMPARE_EVERY.as_millis() as u64));
        let mut next_comparison = Instant::now() + first;
        while soak.goes_on() {
            soak.pass(TICK);
            self.write();
            self.reader.take_if(|(_, until)| Instant::now() > *until);
            if Instant::now() > next_event {
                self.event(soak);
                next_event = self.soon();
            }
            if Instant::now() > next_comparison {
                self.compare(soak);
                next_comparison = Instant::now() + COMPARE_EVERY;
            }
        }
        self.compare(soak);
        self.close(soak);
    }

    fn soon(&mut self) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(500..8_000))
    }

    fn open(&mut self) {
        (0..self.plan.writers.len()).for_each(|number| self.start_writer(number));
    }

    fn start_writer(&mut self, number: usize) {
        let Plan { writers, page_size, autocheckpoint, synchronous, .. } = self.plan;
        let numbers =
            [*page_size, *autocheckpoint, number as u32, self.random.random()].map(|n| n.to_string());
        let [page_size, autocheckpoint, writer, seed] = numbers.each_ref().map(String::as_str);
        let options = ["--step", "--mode", writers[number], "--page-size", page_size, "--writer", writer];
        let more = ["--autocheckpoint", autocheckpoint, "--synchronous", synchronous, "--seed", seed];
        let sizes = ["--rows", "1-4", "--size", "1-1500", "--busy-timeout", "20000"];
        let writer = Writer::start(&self.path, &[&options[..], &more, &sizes].concat());
        self.workers.push(Worker { number, writer, asked: 0 });
    }

    /// Some writers are asked for a few commits; seldom, for many at once.
    fn write(&mut self) {
        for worker in &mut self.workers {
            if worker.asked - worker.writer.committed().len() > 20 || !self.random.random_bool(0.15) {
                continue;
            }
            let is_burst = self.random.random_bool(0.01);
            let commits = if is_burst { 100 } else { self.random.random_range(1..4) };
            worker.writer.ask_for(commits);
            worker.asked += commits;
        }
    }

    /// A writer is asked for so much that the agent sees no pause for seconds, and its shadow becomes volatile.
    fn write_without_a_pause(&mut self, soak: &Soak) {
        let index = self.random.random_range(0..self.workers.len());
        let most = self.plan.most_without_a_pause;
        let commits = self.random.random_range(most / 4..most);
        let Worker { writer, asked, .. } = &mut self.workers[index];
        writer.ask_for(commits);
        *asked += commits;
        soak.count("writers: thousands of commits without a pause");
    }

    /// Waits until all writers have done what they were asked for.
    fn pause(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.writer.wait_for(worker.asked));
    }

    fn event(&mut self, soak: &Soak) {
        match self.random.random_range(0..100) {
            0..10 => self.replace_writer(soak),
            10..22 if self.plan.most_without_a_pause > 0 => self.write_without_a_pause(soak),
            22..26 => self.crash(soak),
            26..46 => self.come_back(soak),
            46..54 => self.run_briefly(soak),
            54..60 if self.plan.is_replaced => self.replace(soak),
            60..66 => self.administer(soak, "VACUUM"),
            66..78 => self.administer(soak, "PRAGMA wal_checkpoint(TRUNCATE)"),
            78..84 => self.administer(soak, BULK),
            84..94 => self.read_long(soak),
            _ => self.restore_under_load(soak),
        }
    }

    /// A writer ends, in one way or another, and comes back.
    fn replace_writer(&mut self, soak: &Soak) {
        let index = self.random.random_range(0..self.workers.len());
        let Worker { number, writer, .. } = self.workers.swap_remove(index);
        if self.random.random_bool(0.7) {
            self.take_commits(number, &writer.kill(), soak);
            soak.count("writers: kill -9");
        } else {
            self.take_commits(number, &writer.finish(), soak);
            soak.count("writers: ended");
        }
        soak.pass(Duration::from_millis(self.random.random_range(0..500)));
        self.start_writer(number);
    }

    fn take_commits(&mut self, writer: usize, commits: &[i64], soak: &Soak) {
        soak.tally().count("commits", commits.len() as u64);
        self.committed.extend(commits.last().map(|last| (writer, *last)));
    }

    /// What has returned to a writer is there, whatever was killed since: rows of a writer's last commit never go.
    fn assert_all_commits_are_there(&mut self, soak: &Soak) {
        for Worker { number, writer, .. } in &mut self.workers {
            self.committed.extend(writer.committed().last().map(|last| (*number, *last)));
        }
        let connection = self.connection();
        for (writer, last) in &self.committed {
            let sql = "SELECT coalesce(max(batch), 0) FROM rows WHERE writer = ?";
            let newest: i64 = connection
                .query_row(sql, [*writer as i64], |row| row.get(0))
                .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
            let name = self.path.display();
            assert!(
                newest >= *last,
                "{name}: the application has lost writer {writer}'s commits {newest} to {last}"
            );
        }
        soak.count("applications: all commits are there");
    }

    /// All writers are killed.
    fn crash(&mut self, soak: &Soak) {
        self.reader = None;
        for Worker { number, writer, .. } in std::mem::take(&mut self.workers) {
            self.take_commits(number, &writer.kill(), soak);
        }
        soak.count("applications: kill -9 of all writers");
        soak.pass(Duration::from_millis(self.random.random_range(0..3_000)));
        self.open();
        self.assert_all_commits_are_there(soak);
    }

    /// The application ends, and everybody closes.
    fn close(&mut self, soak: &Soak) {
        self.reader = None;
        for Worker { number, writer, .. } in std::mem::take(&mut self.workers) {
            self.take_commits(number, &writer.finish(), soak);
        }
    }

    /// The application ends and begins again; sometimes the agent is asked to let go in between.
    fn come_back(&mut self, soak: &Soak) {
        self.close(soak);
        soak.count("applications: closed and opened again");
        if self.random.random_bool(0.3) {
            let _calm = soak.calm.read();
            if soak.is_agent_up() {
                self.detach(soak);
            }
        }
        soak.pass(Duration::from_millis(self.random.random_range(0..3_000)));
        self.open();
    }

    fn detach(&self, soak: &Soak) {
        let answer = self.configuration.run("detach", &[text(&self.path)]);
        let said = String::from_utf8_lossy(&answer.stderr);
        soak.count(&format!(
            "agent detach: exit code {:?} {}",
            answer.status.code().unwrap_or(-1),
            said.trim().replace(text(&self.path), "DB")
        ));
        if answer.status.success() {
            assert!(!self.wal().exists(), "{} is there after a detach", self.wal().display());
        }
    }

    /// Programs that commit a few times and are gone, as `sqlite3` is from a script.
    fn run_briefly(&mut self, soak: &Soak) {
        self.close(soak);
        for _ in 0..self.random.random_range(1..6) {
            let page_size = self.plan.page_size.to_string();
            let options = ["--commits", "2", "--writer", "50", "--page-size", &page_size];
            let commits = Writer::start(&self.path, &options).finish();
            soak.tally().count("commits", commits.len() as u64);
            soak.count("applications: short programs");
            soak.pass(Duration::from_millis(self.random.random_range(0..1_500)));
        }
        self.open();
    }

    /// The application is stopped, an earlier state of the database is put in its place, and the application starts.
    fn replace(&mut self, soak: &Soak) {
        let backup = self.path.with_file_name("backup.db");
        let made = self.connection().execute("VACUUM INTO ?", [text(&backup)]);
        made.unwrap_or_else(|error| panic!("{}: {error}", backup.display()));
        Connection::open(&backup)
            .and_then(|backup| backup.execute_batch("UPDATE rows SET data = 'backup' WHERE id % 7 = 0"))
            .expect("the backup is ours");
        soak.pass(Duration::from_secs(1));
        self.close(soak);
        {
            let _calm = soak.calm.read();
            // What was killed may have left a WAL: recovered and closed by somebody who is no application.
            self.connection().execute_batch("SELECT count(*) FROM sqlite_schema").expect("a database");
            if soak.is_agent_up() && self.random.random_bool(0.5) {
                soak.pass(Duration::from_millis(self.random.random_range(0..2_000)));
            } else {
                // An agent lets go; the connection above was the last where there is none.
                wait_until("nobody holds it", PATIENCE, || !self.wal().exists());
            }
            move_into_place(&backup, &self.path);
            wait_until("nothing is left of the old one", PATIENCE, || !self.wal().exists());
        }
        soak.count("databases: replaced by mv");
        self.committed.clear();
        self.open();
    }

    /// Something is done by another connection; that it is busy is fine.
    fn administer(&self, soak: &Soak, sql: &str) {
        let done = self.connection().execute_batch(sql);
        let what = sql.split(['(', ';']).next().unwrap_or(sql);
        match done {
            Ok(()) => soak.count(&format!("statements: {what}")),
            Err(error) if is_busy(&error) => soak.count(&format!("statements: {what}: {error}")),
            Err(error) => panic!("{}: {sql}: {error}", self.path.display()),
        }
    }

    /// A read transaction that lasts.
    fn read_long(&mut self, soak: &Soak) {
        let connection = self.connection();
        let mode = connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        if mode.is_ok_and(|mode| mode != "wal") {
            // A file that was just put in place: a reader would keep the writers from setting the mode, for longer than
            // they wait.
            return;
        }
        let begun = connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema");
        begun.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        let until = Instant::now() + Duration::from_millis(self.random.random_range(1_000..30_000));
        self.reader = Some((connection, until));
        soak.count("readers: 1 to 30 s");
    }

    fn connection(&self) -> Connection {
        let connection = Connection::open(&self.path);
        let connection = connection.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        connection.busy_timeout(BUSY).expect("any timeout will do");
        connection
    }

    fn wal(&self) -> PathBuf {
        self.path.with_file_name("app.db-wal")
    }

    /// The writers pause; once everything is acknowledged, a restore must give what the database holds.
    fn compare(&mut self, soak: &Soak) {
        self.trim();
        self.pause();
        self.assert_all_commits_are_there(soak);
        let restored = self.path.with_file_name("restored.db");
        let end = Instant::now() + PATIENCE;
        let mut last = "not everything was acknowledged".to_owned();
        loop {
            let late = format!("{}: {last}; {:?}", self.path.display(), self.status());
            assert!(Instant::now() < end, "{late}");
            wait_until(&late, PATIENCE, || self.is_acknowledged() || soak.is_over());
            if soak.is_over() {
                return; // another thread has found something
            }
            let _calm = soak.calm.read();
            match self.restore(&restored).map(|()| difference(&self.path, &restored)) {
                Ok(None) => break,
                // That the agent has not looked at the last commit yet is no fault; it is, if it lasts.
                Ok(Some(different)) => last = different,
                Err(error) => last = error,
            }
            soak.count("restores: compared again a moment later");
        }
        soak.count("restores: compared, and equal");
        fs::remove_file(&restored).expect("the folder is ours");
    }

    /// A restore in the middle of everything is a whole database, with whole transactions.
    fn restore_under_load(&mut self, soak: &Soak) {
        let restored = self.path.with_file_name("under-load.db");
        let answer = {
            let _calm = soak.calm.read();
            self.restore(&restored)
        };
        match answer {
            Ok(()) => {
                let connection = Connection::open(&restored).expect("it was restored");
                assert_whole(&connection);
                let plain = self.plan.writers.iter().enumerate().filter(|(_, mode)| **mode != "churn");
                for (number, _) in plain {
                    let sql = "SELECT count(*) FROM (SELECT 1 FROM rows WHERE writer = ? GROUP BY batch HAVING count(*) <> max(of))";
                    let torn: i64 = connection
                        .query_row(sql, [number as i64], |row| row.get(0))
                        .expect("the writers' table is there");
                    assert_eq!(torn, 0, "torn commits in {}", restored.display());
                }
                drop(connection);
                fs::remove_file(&restored).expect("the folder is ours");
                soak.count("restores: under load, whole");
            }
            Err(error) => soak.count(&format!("restores: under load, refused: {error}")),
        }
    }

    /// Restores one of the replicas; what the restore said, if it failed.
    fn restore(&mut self, to: &Path) -> Result<(), String> {
        let _ = fs::remove_file(to);
        let replica = if self.plan.has_folder && self.random.random_bool(0.5) { "folder" } else { "server" };
        let options = ["-o", text(to), "--replica", replica, text(&self.path)];
        let answer = self.configuration.run("restore", &options);
        let said = String::from_utf8_lossy(&answer.stderr);
        let last = said.lines().last().unwrap_or_default();
        if answer.status.success() { Ok(()) } else { Err(format!("{}: {last}", answer.status)) }
    }

    /// The oldest rows go, whole transactions of them, where there are too many.
    fn trim(&self) {
        if fs::metadata(&self.path).map_or(0, |file| file.len()) < LARGE {
            return;
        }
        let connection = self.connection();
        let sql = "DELETE FROM rows WHERE batch < (SELECT max(batch) FROM rows AS r WHERE r.writer = rows.writer) * 0.95 \
                   OR writer = 99; VACUUM";
        match connection.execute_batch(sql) {
            Err(error) if !is_busy(&error) => panic!("{}: {sql}: {error}", self.path.display()),
            _ => {}
        }
    }

    /// What the agent says of this database.
    fn status(&self) -> Option<Value> {
        let status = self.configuration.status()?;
        status["databases"].as_array()?.iter().find(|database| database["path"] == text(&self.path)).cloned()
    }

    fn is_acknowledged(&self) -> bool {
        let Some(status) = self.status() else { return false };
        let is_there =
            |replica: &Value| replica["position"] == status["position"] && replica["state"] == "streaming";
        let is_followed = status["state"] == "attached" || status["state"] == "detached";
        let replicas = status["replicas"].as_array().expect("a database has replicas");
        is_followed && status["position"].is_string() && replicas.iter().all(is_there)
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}
