//! An object on the replica that became shorter though nothing was in doubt: a survey finds it.

use crate::support::oracle::{Application, Habits};
use crate::support::world::{Settings, World};
use wal_agent::config::CheckpointSettings;
use wal_agent::core::survey::SURVEY_PAUSE;

/// Each commit is an index.
const EAGER: Settings = Settings {
    checkpoint: CheckpointSettings { min_pages: 1, max_pages: 0, interval: None },
    ..Settings::PLAIN
};

/// A replica with some segments, of which something is cut short before the agent, or a later one, surveys it.
fn cut_short(part: &str, restarts: bool) {
    let mut world = World::new(EAGER, 1, |database| Application::new(database, Habits::PLAIN, Vec::new(), 1));
    world.application().create();
    world.start_agent();
    for _ in 0..4 {
        world.application().run(0, "INSERT INTO t (n, data) VALUES (1, randomblob(3000))");
        world.settle();
    }
    if restarts {
        world.stop_agent();
        world.start_agent();
        world.settle();
    }
    let breaks = world.status().breaks.count;
    world.servers[0].cut_short(part);
    world.rest_for(SURVEY_PAUSE * 2);
    assert_eq!(world.status().breaks.count, breaks + 1, "{part}{}", world.story());
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_snapshot_that_was_cut_short_is_noticed() {
    for restarts in [false, true] {
        cut_short(".snapshot.lz4", restarts);
    }
}

#[test]
fn a_segment_that_was_cut_short_is_noticed() {
    for restarts in [false, true] {
        cut_short("/00000001_", restarts);
    }
}
