//! What an administrator does with the files of the database, while the application is away.

use super::{Answer, Application, CONNECTIONS, Placing, Slot, TABLES};
use rand::RngExt;
use std::path::{Path, PathBuf};

impl Application {
    /// The database's file gets another name.
    pub fn move_away(&mut self) {
        self.is_between = true;
        let (here, aside) = (self.database.clone(), self.beside("-aside"));
        self.administer(&format!("move {} {}", here.display(), aside.display()));
        self.count("moved away and back");
    }

    /// Somebody works on the file under its other name; `false` if that changed nothing.
    pub fn work_aside(&mut self) -> bool {
        let aside = self.beside("-aside");
        let number = self.random.random_range(1..i32::MAX);
        let work = [
            "DELETE FROM t WHERE id % 2 = 0".to_owned(),
            "UPDATE t SET n = n + 1".to_owned(),
            "DELETE FROM t; VACUUM".to_owned(),
            format!("UPDATE c SET n = {number}"),
        ];
        let work = &work[self.random.random_range(0..work.len())];
        let before = self.state_aside();
        if before.is_none() {
            // Moved so soon, it lacks what the agent has not brought in yet: whoever finds it malformed writes nothing.
            self.count("incomplete elsewhere");
            return false;
        }
        let lines = [
            format!("open worker {}", aside.display()),
            format!("sql worker {work}"),
            "sql worker PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
        ];
        let is_done = lines.iter().all(|line| matches!(self.tell_onlooker(line), Answer::Ok(_)));
        let state = self.tell_onlooker("state worker");
        self.tell_onlooker("close worker");
        match state {
            Answer::Ok(values) if is_done => {
                self.release_promise();
                self.take_state(&values);
                self.release_promise();
                let is_changed = self.state_aside() != before;
                *self.injected.entry("worked on elsewhere".to_owned()).or_default() += u64::from(is_changed);
                is_changed
            }
            _ => false,
        }
    }

    /// The CRC of all pages of the file under its other name.
    pub fn state_aside(&mut self) -> Option<u64> {
        let open = format!("open worker {}", self.beside("-aside").display());
        let state = match self.tell_onlooker(&open) {
            Answer::Ok(_) => self.tell_onlooker("state worker"),
            _ => return None,
        };
        self.tell_onlooker("close worker");
        let Answer::Ok(values) = state else { return None };
        u64::from_str_radix(values.split(' ').next()?, 16).ok()
    }

    fn tell_onlooker(&mut self, line: &str) -> Answer {
        let answer = self.onlooker.tell(line);
        self.log.push(format!("  worker: {line} -> {answer:?}"));
        answer
    }

    /// The file gets its own name back.
    pub fn move_back(&mut self) {
        let (here, aside) = (self.database.clone(), self.beside("-aside"));
        self.administer(&format!("move {} {}", aside.display(), here.display()));
    }

    /// The file that it finds is whole. In most cases it is started at once.
    pub fn come_back(&mut self) {
        (self.is_away, self.is_between, self.is_certain) = (false, false, false);
        if self.random.random_bool(0.7) {
            self.ensure_open(0);
            self.remember();
        }
    }

    /// It finds nothing, and makes the database anew.
    pub fn begin_anew(&mut self) {
        (self.is_away, self.is_between, self.is_certain) = (false, false, true);
        self.create();
    }

    /// Keeps the present state as a backup; its file is moved or copied into place later.
    pub fn back_up(&mut self) {
        let file = self.beside(&format!("-backup-{}", self.backups.len()));
        self.write_image(&file);
        self.backups.extend(Some(file).filter(|file| file.exists()));
    }

    /// Puts a backup, if it may be one, or quite another database, in the database's place. Nobody may have it open but
    /// the agent.
    pub fn put_in_place(&mut self, placing: Placing, may_be_backup: bool) {
        self.is_between = true;
        self.release_promise();
        let kind = match !may_be_backup || self.backups.is_empty() || self.random.random_bool(0.5) {
            true => "another database",
            false => "a backup",
        };
        let from = match kind {
            "a backup" => self.backups[self.random.random_range(0..self.backups.len())].clone(),
            _ => self.another_database(),
        };
        let (from, to) = (from.display().to_string(), self.database.display().to_string());
        let put = match placing {
            Placing::Copied => vec![format!("copy {from} {to}")],
            // The backup itself stays.
            Placing::Moved => vec![format!("copy {from} {from}-moved"), format!("move {from}-moved {to}")],
        };
        put.iter().for_each(|line| self.administer(line));
        self.count(&format!("{kind} is {placing:?}"));
    }

    /// Removes files of the database by what follows its name.
    pub fn remove(&mut self, suffixes: &[&str]) {
        self.is_between = true;
        self.release_promise();
        for suffix in suffixes {
            let file = self.beside(suffix);
            self.administer(&format!("remove {}", file.display()));
        }
    }

    /// Removes its wal-index, which is nothing but memory where nobody has the database open.
    pub fn remove_wal_index(&mut self) {
        let file = self.beside("-shm");
        self.administer(&format!("remove {}", file.display()));
        self.count("wal-index removed");
    }

    /// One line for a process that has nothing open.
    fn administer(&mut self, line: &str) {
        let answer = self.onlooker.tell(line);
        self.log.push(format!("  administrator: {line} -> {answer:?}"));
        assert!(matches!(answer, Answer::Ok(_)), "{line}: {answer:?}");
        self.observe();
    }

    /// Makes a database that has the same tables and nothing else in common with the present one, not even its header:
    /// a tiny one whose pages are all in the WAL could not be told from it otherwise.
    fn another_database(&mut self) -> PathBuf {
        let file = self.beside("-another");
        let page_size = match self.random.random_bool(0.7) {
            true => self.habits.page_size,
            false => [512, 1024, 4096][self.random.random_range(0..3)],
        };
        let mode = ["wal", "delete"][self.random.random_range(0..2)];
        let (rows, version) = (self.random.random_range(0..60), self.random.random_range(1..i32::MAX));
        self.administer(&format!("remove {}", file.display()));
        self.administer(&format!("open another {}", file.display()));
        self.administer(&format!(
            "sql another PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA user_version={version}; {TABLES}"
        ));
        self.administer(&format!(
            "sql another INSERT INTO t (n, data) WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE \
             i <= {rows}) SELECT i, randomblob(700) FROM s"
        ));
        self.administer("close another");
        file
    }

    /// Writes the present state's pages to a file.
    pub fn write_image(&mut self, to: &Path) {
        if let Some(connection) = (0..CONNECTIONS).find(|c| self.slots[*c] == Slot::Idle) {
            self.tell(connection, &format!("image {connection} {}", to.display()));
        }
    }
}
