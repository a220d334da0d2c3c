//! What an administrator does with the files of the database.

use super::super::history::last_commit;
use super::super::oracle::{Application, Placing};
use super::jobs::{Handed, lock};
use super::{REST, World};
use rand::RngExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use wal_agent::core::status::{ReplicaState, SourceState};
use wal_agent::database_file::FileIdentity;

/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// After so long, by the real clock, another write gives a file another time.
const FILE_CLOCK: Duration = Duration::from_millis(25);

/// By then the agent, which does not listen all the time, has seen that the last connection was closed.
const NOTICED: Duration = Duration::from_millis(20);

impl World {
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
        self.application().take_dirty(false);
        self.await_removal_of_wal();
        self.application().come_back();
    }

    /// The application ends or is killed, and whoever starts it again removes its `-shm` first: that is only memory, and
    /// its removal harms nobody where no agent is.
    pub fn remove_wal_index(&mut self) {
        self.note("the -shm is to be removed");
        self.application().leave();
        let turns = [0, 5, 200][self.random.random_range(0..3)];
        self.drive(turns);
        self.application().remove_wal_index();
        self.application().come_back();
        for _ in 0..self.random.random_range(0..4) {
            self.application().act();
        }
        self.application().show_all();
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
        // Whoever is killed in a checkpoint before the agent knows that the file is back has its WAL moved aside.
        self.held = |_| false;
        self.application().show_all();
        self.drive(200);
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
        // Without a commit in it, one that no agent has open any more harms nobody.
        let is_harmless =
            !self.has_agent() && std::fs::read(wal).is_ok_and(|wal| last_commit(&wal).is_none());
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

    /// Whether the agent has kept whose the WAL at the path is, or that is empty. Where nothing tells when a file was made,
    /// its number may have been given again, and only a second name counts.
    fn is_remembered(&self) -> bool {
        let Ok(wal) = self.folder.path().join("app.db-wal").metadata() else { return true };
        let held = std::fs::read_to_string(self.meta().join("held")).unwrap_or_default();
        let is_kept = held.split(' ').nth(2) == Some(wal.ino().to_string().as_str());
        wal.len() == 0 || is_kept && (wal.created().is_ok() || wal.nlink() > 1)
    }

    /// The agent has seen that nobody else is there, nothing of its own writes into the file, and no snapshot of it is
    /// on its way: whoever copies over a file that is being read gets a mixed snapshot, which a restore refuses. `false`
    /// if it has too much to do for that.
    fn come_to_know(&mut self) -> bool {
        let (mut quiet, mut until) = (0, self.elapsed + NOTICED);
        for _ in 0..500 {
            self.application().show_all();
            self.turn(false);
            if self.dozes {
                // It has followed a writer that never paused, and looks around when that is over.
                until = self.elapsed + NOTICED;
            }
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
}
