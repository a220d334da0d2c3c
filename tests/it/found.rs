//! What the simulation has found, each in its shortest form.

use crate::support::oracle::{Application, Habits};
use crate::support::world::{Settings, World};
use std::time::Duration;
use wal_agent::config::{CheckpointSettings, Durability};

const HABITS: Habits =
    Habits { page_size: 4096, synchronous: "FULL", autocheckpoint: 0, auto_vacuum: 0, cache_pages: 100, is_overlooked: false };

const SETTINGS: Settings = Settings {
    replicas: 1,
    checkpoint: CheckpointSettings { min_pages: 1000, max_pages: 0, interval: None },
    durability: Durability::Fsync,
    sync_interval: None,
};

/// A database with a first commit, replicated.
fn world(settings: Settings) -> World {
    let mut world = World::new(settings, 1, |database| Application::new(database, HABITS, Vec::new(), 1));
    world.application().create();
    world.start_agent();
    world.settle();
    world
}

#[test]
fn a_checkpoint_that_waits_for_somebody_elses_reader_does_not_keep_us_awake() {
    let mut world = world(SETTINGS);
    world.application().run(0, "BEGIN; SELECT count(*) FROM t");
    world.application().run(1, "INSERT INTO t (n) VALUES (1)");
    world.application().wait_in_checkpoint(3, "FULL");
    let turns = world.rest_for(Duration::from_secs(60));
    assert!(turns < 3000, "{turns} turns in a minute");
    world.end();
}
