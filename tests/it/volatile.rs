//! Beside writers that never pause, the shadow is not made durable while the replicas have it: what that may cost, and what
//! it must not.

use crate::support::oracle::{Application, Habits};
use crate::support::sim_disk::DiskFault;
use crate::support::world::{Settings, World};
use std::time::Duration;
use wal_agent::page_table::TableJob;
use wal_agent::source::LocalJob;

/// Machines that lose power, each leaving other things behind.
const POWER_CUTS: u64 = 30;
/// Commits in a row, of which each tenth checkpoints.
const COMMITS: usize = 40;
const HABITS: Habits = Habits { autocheckpoint: 10, ..Habits::PLAIN };

/// A replicated database.
fn replicated(seed: u64) -> World {
    replicated_beside(seed, |_| false)
}

/// The same, while jobs are held back.
fn replicated_beside(seed: u64, held: fn(&LocalJob) -> bool) -> World {
    let application = |database: &std::path::Path| Application::new(database, HABITS, Vec::new(), seed);
    let mut world = World::new(Settings::PLAIN, seed, application);
    world.application().create();
    world.held = held;
    world.start_agent();
    world.settle();
    world
}

/// Writes without a pause until nothing is made durable any more, or the agent ends. `false` if that never comes.
fn may_become_volatile(world: &mut World) -> bool {
    (0..50).any(|_| {
        world.write_without_a_pause(COMMITS);
        world.is_volatile() || !world.has_agent()
    })
}

fn write_until_volatile(world: &mut World) {
    assert!(may_become_volatile(world), "the shadow is made durable all the while{}", world.story());
}

/// Comes to rest, and is checked; why a generation began last.
fn rest(mut world: World) -> Option<String> {
    world.disk.heal();
    if !world.has_agent() {
        world.start_agent();
    }
    world.settle();
    world.application().remember_certainly();
    world.check_restore(0, true);
    world.check_all_is_replicated();
    assert!(!world.is_volatile(), "nobody writes, and yet{}", world.story());
    let reason = world.status().breaks.last_reason;
    world.end();
    reason
}

/// The numbers of the disk's operations that touch the mark, and of those that make something durable from then on; of the
/// many shadow files, some.
fn operations_of_the_mark(world: &World) -> Vec<usize> {
    let log = world.disk.log();
    let since = log.lines().skip_while(|line| !line.contains("create volatile"));
    let (shadows, others): (Vec<_>, Vec<_>) = since
        .filter(|line| line.contains(": sync") || line.contains("volatile"))
        .partition(|line| line.trim_end().ends_with(".wal"));
    let lines = shadows.into_iter().step_by(10).chain(others);
    lines.map(|line| line.split(':').next().and_then(|n| n.parse().ok()).expect("a number")).collect()
}

#[test]
fn nothing_is_made_durable_beside_writers_that_never_pause_and_everything_once_they_do() {
    let mut world = replicated(1);
    let generation = world.status().generation;
    write_until_volatile(&mut world);
    let begin = world.disk.operations();
    for _ in 0..10 {
        world.write_without_a_pause(COMMITS);
    }
    let log = world.disk.log();
    let since = log.lines().skip(begin);
    let (synced, begun): (Vec<_>, Vec<_>) = since.partition(|line| line.contains(": sync"));
    assert!(synced.is_empty(), "{synced:?}");
    assert!(begun.iter().filter(|line| line.contains(": create ")).count() > 1, "no index was begun");
    world.settle();
    assert!(!world.is_volatile());
    world.check_shadow_is_durable();
    // The table, too, before the mark goes.
    let log = world.disk.log();
    let marked = log.lines().skip_while(|line| !line.contains("create volatile"));
    let mut marked = marked.take_while(|line| !line.contains("remove volatile"));
    assert!(marked.any(|line| line.contains(": sync") && line.trim_end().ends_with("page-table")), "{log}");
    assert_eq!(world.status().generation, generation);
    rest(world);
}

#[test]
fn a_power_cut_costs_the_generation_and_nothing_else() {
    let mut reasons = Vec::new();
    for seed in 0..POWER_CUTS {
        println!("seed {seed}");
        let mut world = replicated(seed);
        write_until_volatile(&mut world);
        world.write_without_a_pause(COMMITS * (seed as usize % 4));
        world.lose_power();
        world.application().remember_certainly();
        reasons.extend(rest(world));
    }
    assert_eq!(reasons.len(), POWER_CUTS as usize);
    // Where the name of the generation was lost, too, nobody knows that it was that.
    let is_named = |reason: &String| reason.contains("while the shadow WAL was not durable");
    assert!(reasons.iter().any(is_named), "{reasons:?}");
}

#[test]
fn the_end_of_the_agent_costs_nothing() {
    let mut world = replicated(1);
    let generation = world.status().generation;
    write_until_volatile(&mut world);
    world.write_without_a_pause(COMMITS);
    world.kill_agent();
    world.start_agent();
    world.settle();
    assert_eq!(world.status().generation, generation);
    rest(world);
}

#[test]
fn an_agent_that_is_stopped_leaves_a_durable_shadow() {
    let mut world = replicated(1);
    write_until_volatile(&mut world);
    world.stop_agent();
    assert!(!world.is_volatile());
    world.check_shadow_is_durable();
    world.lose_power();
    world.application().remember_certainly();
    let reason = rest(world);
    assert!(reason.is_none_or(|reason| !reason.contains("not durable")), "it was");
}

fn is_change(job: &LocalJob) -> bool {
    matches!(job, LocalJob::Durability(_))
}

fn is_table_write(job: &LocalJob) -> bool {
    matches!(job, LocalJob::Table(TableJob::Write(write)) if write.is_volatile())
}

/// Writes without a pause until such a job is under way, which is held back.
fn write_until_under_way(world: &mut World, is_it: fn(&LocalJob) -> bool) {
    world.held = is_it;
    for _ in 0..500 {
        world.write_without_a_pause(COMMITS);
        if world.is_under_way(is_it) {
            return;
        }
    }
    panic!("there is no such job{}", world.story());
}

#[test]
fn an_agent_that_is_stopped_waits_for_a_shadow_that_is_just_becoming_volatile_or_durable() {
    let mut world = replicated(1);
    write_until_under_way(&mut world, is_change);
    world.stop_agent_beside(is_change);
    assert!(!world.is_volatile());
    world.start_agent();
    world.settle();
    write_until_volatile(&mut world);
    world.stop_agent_beside(is_change);
    assert!(!world.is_volatile());
    world.check_shadow_is_durable();
    rest(world);
}

#[test]
fn a_page_table_that_is_being_written_without_a_sync_is_waited_for_and_no_longer() {
    for stops in [false, true] {
        let mut world = replicated_beside(1, |job| matches!(job, LocalJob::Table(_)));
        write_until_volatile(&mut world);
        write_until_under_way(&mut world, is_table_write);
        assert!(world.is_volatile());
        world.rest_for(Duration::from_secs(100));
        assert!(world.is_volatile(), "the table is not written yet");
        match stops {
            true => world.stop_agent_beside(is_table_write),
            false => {
                world.held = |_| false;
                world.drive(100);
            }
        }
        assert!(!world.is_volatile(), "stopped: {stops}");
        world.check_shadow_is_durable();
        rest(world);
    }
}

#[test]
fn where_the_kernel_does_not_tell_the_boot_the_shadow_is_durable() {
    let mut world = replicated(1);
    world.disk.hide_boot();
    world.write_without_a_pause(COMMITS * 50);
    assert!(!world.is_volatile());
    rest(world);
}

#[test]
fn a_mark_that_was_not_finished_or_is_of_another_generation_costs_nothing() {
    let mut world = replicated(1);
    let generation = world.status().generation;
    for mark in ["", "0123456789ab", "0123456789abcdef some-boot", "0123456789abcdef some-boot\n"] {
        world.kill_agent();
        std::fs::write(world.meta().join("volatile"), mark).expect("the folder is ours");
        world.start_agent();
        world.settle();
        assert_eq!(world.status().generation, generation, "{mark:?}");
    }
    rest(world);
}

#[test]
fn the_shadow_is_durable_while_a_replica_lacks_it() {
    let mut world = replicated(1);
    world.servers[0].refuse_all(true);
    world.write_without_a_pause(COMMITS);
    // Only what it does not know yet lets the agent rely on the server.
    world.write_without_a_pause(COMMITS * 20);
    assert!(world.replica().position < world.status().position && !world.is_volatile());
    world.servers[0].refuse_all(false);
    rest(world);
}

#[test]
fn any_operation_that_makes_the_shadow_volatile_or_durable_may_fail_or_be_the_last() {
    let live = |world: &mut World| {
        // Where the mark cannot be written, it is tried again later than this lasts.
        let is_volatile = may_become_volatile(world);
        world.write_without_a_pause(COMMITS);
        world.settle();
        is_volatile
    };
    let mut world = replicated(1);
    let before = world.disk.operations();
    assert!(live(&mut world));
    let operations = operations_of_the_mark(&world);
    rest(world);
    assert!(operations.len() > 10, "{operations:?}");
    let ends = [(DiskFault::Crash, false), (DiskFault::Crash, true), (DiskFault::Failed, false)];
    for (at, (fault, loses_power)) in operations.iter().flat_map(|at| ends.map(|end| (*at, end))) {
        println!("operation {at}: {fault:?}, power is lost: {loses_power}");
        let mut world = replicated(1);
        world.disk.plan(at - before, fault);
        live(&mut world);
        assert!(world.disk.operations() > at, "the fault was met");
        if loses_power {
            world.lose_power();
            world.application().remember_certainly();
        }
        rest(world);
    }
}
