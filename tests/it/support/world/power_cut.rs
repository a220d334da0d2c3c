//! A machine that loses power.

use super::World;
use crate::support::power;
use rand::RngExt;
use wal_agent::core::position::Index;

impl World {
    /// The machine loses power: nobody survives, and what was not synced to the disk may be lost.
    pub fn lose_power(&mut self) {
        self.note("power is lost");
        self.application().count("power lost");
        if self.is_volatile() {
            self.application().count("power lost with a volatile shadow");
        }
        self.kill_agent();
        self.application().kill_all();
        self.lose_present();
        self.disk.lose_power(self.random.random());
        let _ = std::fs::remove_file(self.folder.path().join("app.db-shm"));
        self.application().promise_only_what_is_durable();
        // Without syncs, SQLite itself promises nothing then.
        if self.application().habits().synchronous != "OFF" {
            for name in ["app.db", "app.db-wal", "app.db-journal"] {
                power::cut(&self.folder.path().join(name), self.random.random());
            }
        }
    }

    /// What the present generation has may be another WAL's from now on.
    pub(super) fn lose_present(&mut self) {
        let Some(generation) = self.generation_in("generation").and_then(|name| name.parse().ok()) else {
            return;
        };
        let told = self.furthest.get(&generation).copied().unwrap_or(Index::ZERO);
        // One that was begun and not yet told of follows.
        self.lost.insert(generation, told.next().unwrap_or(told));
    }
}
