//! A machine and its clone: what the clone sends takes the place of nothing that its origin has acknowledged.

use crate::support::oracle::{Application, Habits};
use crate::support::world::{Settings, World};
use std::time::Duration;
use wal_agent::core::names::Object;
use wal_agent::core::position::{Generation, Index};
use wal_agent::core::status::{Health, ReplicaState};

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

#[test]
fn an_agent_beside_which_another_one_replicates_to_its_place_says_so_as_long_as_that_lasts() {
    let mut world = world();
    let within = |hours: u32, world: &mut World, is_wanted: fn(&ReplicaState) -> bool| {
        for _ in 0..60 * hours {
            world.rest_for(Duration::from_secs(60));
            if is_wanted(&world.replica().state) {
                return;
            }
        }
        panic!("{:?}", world.replica().state);
    };
    let object = Object::Snapshot { generation: Generation::from_random(0xaa), index: Index::ZERO };
    // What that one sends is no snapshot: a restore that took it would fail.
    let send = |world: &World, length: usize| {
        let (path, name) = (format!("/replica-0/{}", object.path()), format!("{length}.tmp"));
        let mut clone = world.servers[0].connect();
        clone.remove(&path).expect("no fault is planned");
        clone.create(&name).expect("no fault is planned");
        clone.write_at(&name, 0, &vec![1; length]).expect("no fault is planned");
        clone.rename(&name, &path).expect("no fault is planned");
    };
    send(&world, 100);
    within(
        1,
        &mut world,
        |state| matches!(state, ReplicaState::Failing { error, .. } if error.contains("another agent")),
    );
    assert_eq!(world.status().health(), Health::Failing);
    world.check_all_is_replicated();
    send(&world, 200);
    world.rest_for(Duration::from_secs(3600));
    world.check_all_is_replicated();
    within(2, &mut world, |state| *state == ReplicaState::Streaming);
    world.end();
}
