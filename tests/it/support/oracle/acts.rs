//! What an application does with its database, whatever comes.

use super::{Application, CONNECTIONS, PROCESSES, Slot};
use rand::RngExt;

/// As many readers as have a mark of their own in SQLite, and one that shares another's.
const CROWD: usize = 5;

impl Application {
    /// Does one thing, whatever comes.
    pub fn act(&mut self) {
        if self.is_away {
            return;
        }
        let connection = self.random.random_range(0..CONNECTIONS);
        if self.slots[connection].waits() {
            let word = if self.random.random_bool(0.7) { "again" } else { "enough" };
            self.go_on(connection, word);
            return self.remember();
        }
        match self.random.random_range(0..100) {
            0..20 if !self.is_blocked(connection) => self.pause_in(connection),
            20..24 => self.gather(connection),
            24..28 => self.disperse(),
            _ => self.act_on(connection),
        }
        self.remember();
    }

    fn act_on(&mut self, connection: usize) {
        self.ensure_open(connection);
        match self.slots[connection] {
            Slot::Closed | Slot::Waiting | Slot::Closing => {}
            Slot::Reading => match self.random.random_range(0..3) {
                0 => self.sql(connection, "SELECT count(*) FROM t"),
                _ => self.end_transaction(connection, "COMMIT"),
            },
            Slot::Writing => match self.random.random_range(0..6) {
                0 | 1 => self.change(connection),
                2 => self.savepoint(connection),
                3 => self.end_transaction(connection, "ROLLBACK"),
                _ => self.end_transaction(connection, "COMMIT"),
            },
            Slot::Idle => self.begin_something(connection),
        }
    }

    /// Does something, and stands still in the middle of it.
    fn pause_in(&mut self, connection: usize) {
        self.ensure_open(connection);
        let (what, most) =
            [("wal", 5), ("db", 4), ("sync", 3), ("lock", 12), ("lock", 25)][self.random.random_range(0..5)];
        let count = self.random.random_range(1..=most);
        self.tell(connection, &format!("pause {what} {count}"));
        match (self.slots[connection], what) {
            (Slot::Idle, "db") => self.checkpoint(connection),
            (Slot::Idle, "wal") => self.commit(connection),
            _ => self.act_on(connection),
        }
        let is_paused = self.is_blocked(connection);
        // One that was not come to yet would come in the middle of what this process is asked for next.
        if !is_paused {
            self.tell(connection, &format!("pause {what} 0"));
        }
        *self.injected.entry(format!("paused at {what}")).or_default() += u64::from(is_paused);
    }

    /// Readers come, each from another commit on.
    fn gather(&mut self, connection: usize) {
        for number in 0..self.random.random_range(1..=CROWD) {
            self.ensure_open(connection);
            if self.slots[connection] == Slot::Idle {
                self.sql(connection, "UPDATE c SET n = n + 1");
                self.remember();
            }
            if !self.is_certain {
                return;
            }
            let database = self.database.display();
            let lines =
                [format!("open {number} {database}"), format!("sql {number} BEGIN; SELECT count(*) FROM t")];
            let answers = lines.map(|line| self.crowd.tell(&line));
            self.log.push(format!("  reader {number}: {answers:?}"));
            self.crowd_size = self.crowd_size.max(number + 1);
            self.observe();
        }
    }

    /// Readers go, all or the first ones.
    fn disperse(&mut self) {
        let staying = if self.random.random_bool(0.5) { 0 } else { self.random.random_range(0..CROWD) };
        self.disperse_to(staying);
    }

    pub(super) fn disperse_to(&mut self, staying: usize) {
        for number in (staying..self.crowd_size).rev() {
            self.crowd.tell(&format!("close {number}"));
            self.log.push(format!("  reader {number} goes"));
            (self.crowd_size, self.has_closed) = (number, true);
        }
        self.observe();
    }

    /// Commits on a connection that has nothing else to do.
    pub fn commit_once_more(&mut self) {
        let idle = (0..CONNECTIONS).find(|connection| self.slots[*connection] == Slot::Idle);
        if let Some(connection) = idle.filter(|_| !self.is_away) {
            self.sql(connection, "UPDATE c SET n = n + 1");
            self.remember();
        }
    }

    /// Begins a checkpoint that waits for readers.
    ///
    /// # Panics
    /// If it need not wait.
    pub fn wait_in_checkpoint(&mut self, connection: usize, mode: &str) {
        self.ensure_open(connection);
        self.tell(connection, &format!("patience {connection} on"));
        self.sql(connection, &format!("PRAGMA wal_checkpoint({mode})"));
        assert_eq!(self.slots[connection], Slot::Waiting);
    }

    /// Its processes die in the middle of a checkpoint, behind the second page that it writes.
    pub fn die_in_checkpoint(&mut self, connection: usize) {
        self.ensure_open(connection);
        self.tell(connection, "die db 2");
        self.sql(connection, "PRAGMA wal_checkpoint(PASSIVE)");
        assert_eq!(self.slots[connection], Slot::Closed, "it died");
        self.kill_all();
    }

    /// Stands still in the middle of a checkpoint, behind the second page that it writes.
    pub fn stand_still_in_checkpoint(&mut self, connection: usize) {
        self.ensure_open(connection);
        self.tell(connection, "pause db 2");
        self.sql(connection, "PRAGMA wal_checkpoint(PASSIVE)");
        assert_eq!(self.slots[connection], Slot::Waiting, "it stands still");
    }

    fn begin_something(&mut self, connection: usize) {
        match self.random.random_range(0..100) {
            0..38 => self.commit(connection),
            38..46 => self.sql(connection, "BEGIN IMMEDIATE"),
            46..50 => self.sql(connection, "BEGIN; SELECT count(*) FROM t"),
            50..66 => self.checkpoint(connection),
            66..70 => {
                // One that waits for readers.
                self.tell(connection, &format!("patience {connection} on"));
                let mode = ["FULL", "RESTART", "TRUNCATE"][self.random.random_range(0..3)];
                self.sql(connection, &format!("PRAGMA wal_checkpoint({mode})"));
                if self.slots[connection] != Slot::Waiting {
                    self.tell(connection, &format!("patience {connection} off"));
                }
            }
            70..78 => self.close(connection),
            78..81 => self.vacuum_incrementally(connection),
            81..83 => self.sql(connection, "VACUUM"),
            83..86 => self.sql(connection, "DELETE FROM t WHERE n % 3 = 0"),
            86..88 => self.flip_journal_mode(connection),
            88..91 => self.large(connection),
            91..97 => self.die(connection),
            _ => self.fail_sync(connection),
        }
    }

    fn vacuum_incrementally(&mut self, connection: usize) {
        self.sql(connection, "DELETE FROM t WHERE n % 2 = 0");
        self.remember();
        let before = self.pages;
        self.sql(connection, "PRAGMA incremental_vacuum(3)");
        self.remember();
        if self.pages < before {
            self.count("incremental_vacuum");
        }
    }

    fn checkpoint(&mut self, connection: usize) {
        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][self.random.random_range(0..4)];
        self.sql(connection, &format!("PRAGMA wal_checkpoint({mode})"));
    }

    /// A whole transaction.
    fn commit(&mut self, connection: usize) {
        self.sql(connection, "BEGIN IMMEDIATE");
        if self.slots[connection] == Slot::Writing {
            for _ in 0..self.random.random_range(1..4) {
                self.change(connection);
            }
            let end = if self.random.random_bool(0.9) { "COMMIT" } else { "ROLLBACK" };
            self.end_transaction(connection, end);
        }
    }

    /// A transaction that is larger than the cache, so that its frames are written before it ends.
    fn large(&mut self, connection: usize) {
        self.sql(connection, "BEGIN IMMEDIATE");
        if self.slots[connection] == Slot::Writing {
            let pages = self.random.random_range(self.habits.cache_pages..self.habits.cache_pages * 3);
            let size = self.habits.page_size.min(4096);
            let length = |of: &Self| of.beside("-wal").metadata().map_or(0, |wal| wal.len());
            let before = length(self);
            self.sql(
                connection,
                &format!(
                    "UPDATE c SET n = n + 1; INSERT INTO t (n, data) WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL \
                     SELECT i + 1 FROM s WHERE i < {pages}) SELECT i, randomblob({size}) FROM s"
                ),
            );
            if length(self) > before {
                self.count("spilled into the WAL");
            }
            match self.random.random_range(0..3) {
                0 => self.end_transaction(connection, "ROLLBACK"),
                1 => self.end_transaction(connection, "COMMIT"),
                _ => {}
            }
        }
    }

    fn change(&mut self, connection: usize) {
        if self.slots[connection] != Slot::Writing {
            return;
        }
        let (n, size) = (self.random.random_range(0..50), self.random.random_range(1..3000));
        let sql = match self.random.random_range(0..5) {
            0 => format!("UPDATE t SET data = randomblob({size}) WHERE n = {n}"),
            1 => format!("DELETE FROM t WHERE n = {n}"),
            _ => format!("INSERT INTO t (n, data) VALUES ({n}, randomblob({size}))"),
        };
        // Each commit has a state of its own.
        self.sql(connection, &format!("UPDATE c SET n = n + 1; {sql}"));
    }

    fn savepoint(&mut self, connection: usize) {
        self.sql(connection, "SAVEPOINT s");
        self.change(connection);
        if self.slots[connection] != Slot::Writing {
            return; // it failed, and took the transaction with it
        }
        let end = if self.random.random_bool(0.5) { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" };
        self.sql(connection, end);
    }

    fn flip_journal_mode(&mut self, connection: usize) {
        self.sql(connection, "PRAGMA journal_mode=delete");
        if self.random.random_bool(0.5) {
            self.commit(connection);
            self.remember();
        }
        if self.random.random_bool(0.3) {
            let size = [512, 1024, 4096][self.random.random_range(0..3)];
            self.sql(connection, &format!("PRAGMA page_size={size}; VACUUM"));
        }
        if self.random.random_bool(0.8) {
            self.sql(connection, "PRAGMA journal_mode=wal");
        }
    }

    /// Dies in the middle of something.
    fn die(&mut self, connection: usize) {
        let (what, most) = [("wal", 14), ("sync", 3), ("db", 4)][self.random.random_range(0..3)];
        let count = self.random.random_range(1..=most);
        self.tell(connection, &format!("die {what} {count}"));
        match what {
            "db" => self.sql(connection, "PRAGMA wal_checkpoint(PASSIVE)"),
            _ => self.commit(connection),
        }
        let has_died = self.slots[connection] == Slot::Closed;
        *self.injected.entry(format!("writer dies at {what}")).or_default() += u64::from(has_died);
        if !has_died {
            self.remember();
            self.bury(connection % PROCESSES);
        }
    }

    fn fail_sync(&mut self, connection: usize) {
        let count = self.random.random_range(1..3);
        self.tell(connection, &format!("fail sync {count}"));
        self.fails_a_sync = true;
        self.count("writer's fsync fails");
        match self.random.random_bool(0.7) {
            true => self.commit(connection),
            false => self.sql(connection, "PRAGMA wal_checkpoint(PASSIVE)"),
        }
        let process = connection % PROCESSES;
        if !self.is_blocked(connection) {
            self.tell(connection, "fail sync 0");
        } else {
            self.bury(process);
        }
        self.fails_a_sync = false;
    }

    pub(super) fn end_transaction(&mut self, connection: usize, end: &str) {
        self.sql(connection, end);
        if self.slots[connection] == Slot::Writing && end == "COMMIT" {
            // It failed; an application gives up then.
            self.sql(connection, "ROLLBACK");
        }
    }
}
