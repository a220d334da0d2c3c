//! What the simulation has found, each in its shortest form.

use crate::support::oracle::{Application, Habits, Placing};
use crate::support::process::process_with;
use crate::support::sqlite::{Shell, readers_in_all_slots};
use crate::support::world::{Settings, World};
use std::fs::File;
use std::time::Duration;
use wal_agent::config::CheckpointSettings;
use wal_agent::core::names;
use wal_agent::core::status::SourceState;
use wal_agent::page_table::TableJob;
use wal_agent::source::LocalJob;

/// Each commit is an index.
const EAGER: Settings = Settings {
    checkpoint: CheckpointSettings { min_pages: 1, max_pages: 0, interval: None },
    ..Settings::PLAIN
};

/// No checkpoint of ours.
const NEVER: CheckpointSettings = CheckpointSettings { min_pages: 1_000_000, max_pages: 0, interval: None };

/// A database with a first commit.
fn without_agent(settings: Settings) -> World {
    let world = World::new(settings, 1, |database| Application::new(database, Habits::PLAIN, Vec::new(), 1));
    world.application().create();
    world
}

/// The same, replicated.
fn world(settings: Settings) -> World {
    let mut world = without_agent(settings);
    world.start_agent();
    world.settle();
    world
}

#[test]
fn a_checkpoint_that_waits_for_somebody_elses_reader_does_not_keep_us_awake() {
    let mut world = world(Settings::PLAIN);
    world.application().run(0, "BEGIN; SELECT count(*) FROM t");
    world.application().run(1, "INSERT INTO t (n) VALUES (1)");
    world.application().wait_in_checkpoint(3, "FULL");
    let turns = world.rest_for(Duration::from_secs(60));
    assert!(turns < 3000, "{turns} turns in a minute");
    world.end();
}

#[test]
fn a_replica_that_waits_for_a_database_that_is_gone_does_not_keep_us_awake() {
    let mut world = world(Settings::PLAIN);
    world.servers[0].refuse_all(true);
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.rest_for(Duration::from_secs(1));
    world.application().leave();
    world.application().remove(&["", "-wal", "-shm"]);
    world.servers[0].lose_all();
    world.servers[0].refuse_all(false);
    let turns = world.rest_for(Duration::from_secs(60));
    assert!(turns < 3000, "{turns} turns in a minute");
    world.application().begin_anew();
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_replica_that_needs_a_shadow_file_which_is_missing_begins_a_new_generation() {
    let mut world = world(EAGER);
    world.servers[0].refuse_all(true);
    for _ in 0..3 {
        world.application().run(0, "INSERT INTO t (n) VALUES (1)");
        world.rest_for(Duration::from_secs(1));
    }
    world.kill_agent();
    world.remove_shadow(1);
    world.servers[0].refuse_all(false);
    world.start_agent();
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn an_agent_that_has_nothing_to_send_stops_at_once() {
    let mut world = world(Settings::PLAIN);
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.drive(60);
    assert_eq!(world.replica().position, world.status().position);
    let asked = world.now();
    world.stop_agent();
    let took = world.now().mono - asked.mono;
    // The world asks whether it has stopped when something is due, as the next report of what is waited for, after a second.
    assert!(took < Duration::from_millis(1500), "it only seals a segment, and that took {took:?}");
    world.start_agent();
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn an_agent_that_is_stopped_beside_a_round_sends_what_was_copied_just_before() {
    let habits = Habits { autocheckpoint: 1, ..Habits::PLAIN };
    for commits in 60..90 {
        let application = |database: &std::path::Path| Application::new(database, habits, Vec::new(), 1);
        let mut world = World::new(EAGER, commits, application);
        world.application().create();
        world.start_agent();
        world.settle();
        world.write_without_a_pause(commits as usize);
        (0..2).for_each(|_| world.application().commit_once_more());
        world.stop_agent_beside(|job| matches!(job, LocalJob::Round { .. }));
        world.end();
    }
}

/// What the shadow lost is in the database file, and only there: it comes to the replica later.
#[test]
fn a_replica_that_holds_more_than_a_power_cut_left_of_the_shadow_never_goes_back() {
    let mut world = without_agent(Settings::PLAIN);
    world.application().run(0, "INSERT INTO t (n, data) VALUES (1, randomblob(300000))");
    world.start_agent();
    world.drive(200);
    let first = world.application().states().last().expect("there is one").end();
    world.held = |job| matches!(job, LocalJob::Table(_));
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.drive(1);
    while world.replica().lag_bytes > 0 {
        world.drive(1);
    }
    world.kill_agent();
    world.cut_shadow(0, first);
    world.application().run(0, "PRAGMA wal_checkpoint(TRUNCATE)");
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.held = |_| false;
    world.start_agent();
    for _ in 0..100 {
        world.drive(1);
        world.check_restore(0, true);
    }
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_wal_that_was_backfilled_before_we_came_is_durable_here_before_the_next_index_begins() {
    let mut world = without_agent(Settings::PLAIN);
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.start_agent();
    world.drive(30);
    // The reader is where it lets this writer restart the WAL; each turn looks whether the copy is durable then.
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

fn is_sync(job: &LocalJob) -> bool {
    matches!(job, LocalJob::Sync(_))
}

/// The application checkpoints a WAL that is not copied, because the copy of the last one is not durable: its fsync is
/// held.
fn checkpoint_before_it_is_copied(world: &mut World) {
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.rest_for(Duration::from_secs(1));
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.rest_for(Duration::from_secs(1));
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.drive(3);
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
}

/// The application's checkpoint brings what is not copied into the file, and then the file is read.
#[test]
fn a_page_table_that_knows_what_is_not_copied_does_not_stand_where_the_copy_ends() {
    let mut world = without_agent(Settings::PLAIN);
    world.held = |job| is_sync(job) || matches!(job, LocalJob::Table(TableJob::Build(_)));
    world.start_agent();
    world.rest_for(Duration::from_secs(1));
    checkpoint_before_it_is_copied(&mut world);
    world.held = is_sync;
    world.drive(30);
    assert!(!world.status().is_provable, "nobody knows what the database is where the copy ends");
    world.held = |_| false;
    world.settle();
    assert!(world.status().is_provable);
    world.check_all_is_replicated();
    world.end();
}

/// The WAL is checkpointed before it is copied, and then its file is renamed.
#[test]
fn the_wal_of_a_renamed_file_is_emptied_though_it_was_checkpointed_before_it_was_copied() {
    let mut world = world(Settings::PLAIN);
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.rest_for(Duration::from_secs(1));
    world.held = is_sync;
    checkpoint_before_it_is_copied(&mut world);
    world.drive(3);
    world.application().leave();
    world.application().move_away();
    world.held = |_| false;
    world.rest_for(Duration::from_secs(10));
    let wal = names::beside(world.database(), "-wal");
    let length = std::fs::metadata(wal).map_or(0, |metadata| metadata.len());
    assert_eq!(length, 0, "whoever puts another file there meets the old WAL");
}

/// The CRC of the newest state's pages.
fn newest(world: &World) -> u64 {
    world.application().states().last().expect("there is one").crc
}

/// The file gets its own name back: it is a database, and in this state.
#[track_caller]
fn comes_back(mut world: World, state: u64) {
    world.application().move_back();
    world.application().show_all();
    world.drive(200);
    world.application().come_back();
    world.application().remember_certainly();
    assert!(world.application().is_certain(), "it is a database");
    assert_eq!(newest(&world), state);
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

/// The file may be no database without its WAL then. That a checkpoint was cut off, the wal-index says; that nobody else
/// has written the file, its pages.
#[test]
fn a_file_that_is_renamed_as_its_application_is_killed_in_a_checkpoint_gets_what_is_in_its_wal() {
    let (mut world, before) = world_with_a_wal();
    world.application().die_in_checkpoint(2);
    world.application().move_away();
    world.drive(200);
    comes_back(world, before);
}

/// A database of which the WAL has what the file has not, and its state.
fn world_with_a_wal() -> (World, u64) {
    let mut world = world(Settings::PLAIN);
    world.application().run(0, "INSERT INTO t (n, data) VALUES (1, zeroblob(50000))");
    world.drive(30);
    let state = newest(&world);
    (world, state)
}

/// Another file is put in place, and nobody opens it before the worker is done that has the old one.
fn a_new_file_waits(mut world: World) {
    world.application().put_in_place(Placing::Moved, false);
    world.application().show_all();
    world.drive(3);
    let mut another = Shell::open(world.database());
    another.run(".timeout 0");
    let refused = another.try_run("SELECT count(*) FROM c").expect_err("it would be mixed with the old WAL");
    assert!(refused.contains("locked"), "{refused}");
    world.held = |_| false;
    world.rest_for(Duration::from_secs(10));
    another.run("SELECT count(*) FROM c");
    another.close();
    world.application().come_back();
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

/// A worker lets go of the old one, and its fsync takes long.
#[test]
fn nobody_opens_a_file_that_was_put_in_place_with_the_wal_of_the_one_that_is_being_let_go_of() {
    let mut world =
        world(Settings { let_go_after: Some(Duration::from_secs(1)), checkpoint: NEVER, ..Settings::PLAIN });
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.drive(30);
    world.held = |job| matches!(job, LocalJob::LetGo(_));
    world.application().pause();
    world.application().close_all();
    world.rest_for(Duration::from_secs(5));
    // Only events tell from here on.
    world.drive(30);
    assert!(names::beside(world.database(), "-wal").exists(), "it is not let go of yet");
    a_new_file_waits(world);
}

/// A worker leaves the old one, which may take as long as its fsyncs do.
#[test]
fn nobody_opens_a_file_that_was_put_in_place_with_the_wal_of_the_one_that_is_being_left() {
    let (mut world, _) = world_with_a_wal();
    world.held = |job| matches!(job, LocalJob::Leave(_));
    world.application().pause();
    world.application().close_all();
    world.application().move_away();
    world.application().show_all();
    world.drive(3);
    a_new_file_waits(world);
}

/// As a process that was forked by its application has it. Everything is in the file, and in the WAL, too.
#[test]
fn what_others_make_of_a_renamed_file_stays_though_a_process_without_a_lock_has_its_wal_open() {
    let mut world = world(EAGER);
    world.application().run(0, "UPDATE c SET n = n + 1; INSERT INTO t (n, data) VALUES (1, zeroblob(5000))");
    world.drive(30);
    world.application().pause();
    world.application().close_all();
    world.drive(30);
    let wal = File::open(names::beside(world.database(), "-wal")).expect("it is there");
    let process = process_with(wal);
    world.application().move_away();
    assert!(world.application().work_aside(), "nobody is in the way");
    world.application().show_all();
    world.drive(200);
    drop(process);
    let made = newest(&world);
    comes_back(world, made);
}

/// The agent has seen the checkpoint, before it was cut off.
#[test]
fn a_file_that_is_renamed_behind_a_checkpoint_that_was_seen_and_then_killed_gets_what_is_in_its_wal() {
    let (mut world, before) = world_with_a_wal();
    world.application().stand_still_in_checkpoint(2);
    world.application().show_all();
    world.drive(2);
    world.application().kill_all();
    world.application().move_away();
    world.drive(200);
    comes_back(world, before);
}

/// Whoever leaves the old file asks its pages, though their comparison was ended by what came to its path.
#[test]
fn a_file_whose_inspection_ends_with_another_one_in_its_place_gets_what_is_in_its_wal() {
    let (mut world, before) = world_with_a_wal();
    world.held = |job| matches!(job, LocalJob::Inspect(_));
    world.application().pause();
    world.application().die_in_checkpoint(2);
    world.application().show_all();
    world.drive(30);
    assert_eq!(world.status().state, SourceState::Attaching, "it is being inspected");
    world.application().move_away();
    world.application().put_in_place(Placing::Moved, false);
    world.application().show_all();
    world.drive(3);
    world.held = |_| false;
    world.drive(200);
    assert_eq!(world.application().state_aside(), Some(before));
}

/// Where the frames only change pages in place, a file that is checkpointed in part is a database that others can work on.
#[test]
fn what_others_made_of_a_file_that_was_checkpointed_in_part_is_not_overwritten_by_its_wal() {
    let mut world = world(Settings::PLAIN);
    world.application().run(0, "INSERT INTO t (n, data) VALUES (1, zeroblob(50000)), (2, NULL)");
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.drive(30);
    world.application().run(2, "UPDATE t SET data = randomblob(50000) WHERE n = 1");
    world.drive(30);
    world.application().pause();
    world.application().move_away();
    world.drive(200);
    assert!(world.application().state_aside().is_some(), "a visitor reads it");
    world.application().die_in_checkpoint(2);
    assert!(world.application().work_aside(), "others can work on it");
    let worked_on = newest(&world);
    world.application().show_all();
    world.drive(200);
    comes_back(world, worked_on);
}

/// Its frames and those of the last one are as many: only the header tells them apart.
#[test]
fn a_wal_that_is_as_long_as_the_last_one_is_not_taken_for_copied() {
    let mut world = world(Settings::PLAIN);
    let commit = |world: &World| world.application().run(0, "UPDATE c SET n = n + 1");
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.drive(30);
    (0..4).for_each(|_| commit(&world));
    world.drive(30);
    world.held = is_sync;
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.rest_for(Duration::from_secs(1));
    // We share one of their slots, and try to get one for us.
    let mut readers = readers_in_all_slots(world.database(), || commit(&world));
    world.drive(3);
    readers.iter_mut().for_each(|reader| drop(reader.run("COMMIT")));
    world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
    world.rest_for(Duration::from_secs(1));
    // Not the page that would be lost.
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.held = |_| false;
    world.settle();
    world.check_all_is_replicated();
    world.check_earlier_commits(0, 10);
    assert_eq!(world.status().breaks.count, 0);
    world.end();
}

#[test]
fn a_large_transaction_is_behind_from_its_commit_on_until_it_is_acknowledged() {
    let mut world = world(Settings::PLAIN);
    let (before, committed) = (world.replica().position, 40_000_000);
    let rows = "WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 40) \
                INSERT INTO t (n, data) SELECT n, randomblob(1000000) FROM i";
    world.application().run(0, rows);
    world.drive(1);
    let first = world.replica();
    assert!(first.lag_bytes > committed, "{} bytes are behind after the first look", first.lag_bytes);
    while world.replica().position == before {
        assert!(world.replica().lag_bytes > committed, "not all of the transaction is behind any more");
        world.drive(1);
    }
    world.settle();
    assert_eq!((world.replica().lag_bytes, world.replica().lag_time), (0, Duration::ZERO));
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn the_write_lock_is_not_taken_while_somebody_elses_reader_makes_it_useless() {
    let urgent = CheckpointSettings { min_pages: 1, max_pages: 5, interval: None };
    let mut world = world(Settings { checkpoint: urgent, ..Settings::PLAIN });
    world.application().run(0, "BEGIN; SELECT count(*) FROM t");
    let before = world.status().write_lock_holds.count();
    for _ in 0..10 {
        world.application().run(1, "INSERT INTO t (n, data) VALUES (1, zeroblob(20000))");
        world.rest_for(Duration::from_secs(10));
    }
    assert_eq!(world.status().write_lock_holds.count(), before);
    world.application().run(0, "COMMIT");
    world.application().run(1, "INSERT INTO t (n) VALUES (1)");
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_checkpoint_that_finds_another_content_in_the_file_does_not_take_it_for_its_own() {
    let checkpoint =
        CheckpointSettings { interval: Some(Duration::from_secs(1)), ..Settings::PLAIN.checkpoint };
    let mut world = world(Settings { checkpoint, ..Settings::PLAIN });
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.copy_over_unnoticed();
    world.settle();
    world.application().remember_certainly();
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_machine_that_is_set_back_to_an_earlier_generation_is_what_a_restore_gives() {
    let mut world = without_agent(Settings::PLAIN);
    // Its replica has a snapshot and no segment.
    world.application().run(0, "PRAGMA wal_checkpoint(TRUNCATE)");
    world.start_agent();
    world.settle();
    let earlier = world.status().generation;
    world.keep_image();
    world.kill_agent();
    std::fs::remove_file(world.meta().join("generation")).unwrap();
    world.start_agent();
    world.application().run(0, "INSERT INTO t (n) VALUES (1)");
    world.settle();
    assert_ne!(world.status().generation, earlier);
    assert!(world.set_back());
    world.start_agent();
    world.settle();
    // Nothing was written that would tell the two histories apart.
    world.check_all_is_replicated();
    assert_eq!(world.status().generation, earlier);
    world.end();
}

#[test]
fn a_restore_takes_the_present_generation_though_the_servers_clock_was_ahead_once() {
    let mut world = without_agent(Settings::PLAIN);
    world.servers[0].set_clock(100_000);
    world.start_agent();
    world.settle();
    world.servers[0].set_clock(-100_000);
    for _ in 0..2 {
        world.replace_database();
        world.settle();
        world.check_all_is_replicated();
    }
    world.end();
}
