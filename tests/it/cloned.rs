//! A machine and its clone: what the clone sends takes the place of nothing that its origin has acknowledged.

use crate::support::oracle::{Application, Habits};
use crate::support::world::{Settings, World};
use wal_agent::core::position::Generation;

/// A database that is replicated.
fn world() -> World {
    let mut world =
        World::new(Settings::PLAIN, 1, |database| Application::new(database, Habits::PLAIN, Vec::new(), 1));
    world.application().create();
    world.start_agent();
    world.settle();
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.settle();
    world
}

fn generation(world: &World) -> Generation {
    world.status().generation.expect("one has begun")
}

#[test]
fn a_clone_begins_a_generation_of_its_own_whatever_it_comes_to() {
    for (is_killed, leaves) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut world = world();
        if leaves {
            world.application().leave();
            world.settle();
        }
        let origin = generation(&world);
        if is_killed {
            world.kill_agent()
        } else {
            world.stop_agent()
        }
        let of_origin = |world: &World| {
            let mut objects = world.servers[0].objects();
            objects.retain(|path, _| path.contains(&origin.to_string()));
            objects
        };
        let before = of_origin(&world);
        world.disk.become_another_machine();
        world.start_agent();
        world.settle();
        if leaves {
            world.application().come_back();
        }
        world.application().run(0, "UPDATE c SET n = n + 1");
        world.settle();
        assert_ne!(generation(&world), origin, "killed {is_killed}, left {leaves}");
        let reason = world.status().breaks.last_reason.unwrap_or_default();
        assert!(reason.contains("another machine"), "{reason}");
        assert!(of_origin(&world) == before, "nothing of the origin's has changed");
        world.check_all_is_replicated();
        // From now on it is at home here.
        let clone = generation(&world);
        world.kill_agent();
        world.start_agent();
        world.settle();
        assert_eq!(generation(&world), clone);
        world.end();
    }
}
