//! Times that cannot tell: a file system that keeps whole seconds, and not when files were made.

use crate::support::file_clock::WholeSeconds;
use crate::support::oracle::{Application, Habits};
use crate::support::wait::wait_until;
use crate::support::world::{Settings, World};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wal_agent::core::status::SourceState;

/// Longer than the agent waits before it lets go, by its own clock.
const A_WHILE: Duration = Duration::from_secs(5);
/// What the application does twice is done in one second if it begins that early in it.
const EARLY: Duration = Duration::from_millis(100);

fn world() -> World {
    let settings = Settings { let_go_after: Some(Duration::from_secs(1)), ..Settings::PLAIN };
    let mut world =
        World::new(settings, 1, |database| Application::new(database, Habits::PLAIN, Vec::new(), 1));
    world.application().create();
    world.start_agent();
    world.settle();
    world
}

/// The application opens its database, commits and closes it; the second in which the file was written.
fn visit(world: &World) -> i64 {
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.application().close_all();
    world.database().metadata().expect("it is there").mtime()
}

#[test]
fn a_write_in_the_second_of_the_last_one_is_not_taken_for_none() {
    let _seconds = WholeSeconds::begin(1);
    let mut world = world();
    loop {
        wait_until("a second begins", Duration::from_secs(10), || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
            now.subsec_nanos() < EARLY.subsec_nanos()
        });
        visit(&world);
        world.rest_for(A_WHILE);
        let seen = world.database().metadata().expect("it is there").mtime();
        world.kill_agent();
        let is_same_second = visit(&world) == seen;
        world.start_agent();
        world.settle();
        world.check_all_is_replicated();
        if is_same_second {
            break;
        }
    }
    // It lets go all the same, once a later write would show.
    world.application().close_all();
    wait_until("it lets go", Duration::from_secs(60), || {
        world.rest_for(A_WHILE);
        world.status().state == SourceState::Detached
    });
    world.end();
}
