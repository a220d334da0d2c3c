//! What has hurt the users of this class of software, and why it cannot hurt here: each entry of the list we keep that
//! concerns capture, checkpoints, generations or local state, with the test that shows it, or the reason.
//!
//! Locks and descriptors
//! - POSIX locks dropped by closing a descriptor of the database or of `-shm`:
//!   `guard::the_last_close_of_a_short_connection_leaves_the_wal_whatever_the_agent_does` counts descriptors in /proc
//!   through snapshots, checkpoints and status, and
//!   `guard::while_it_is_attached_the_agent_opens_neither_the_database_nor_its_wal_index_again` asks the kernel.
//! - Two agents on one database: `attachment::a_second_agent_on_a_database_says_so_and_replicates_nothing`. It is refused
//!   by name and goes on trying, so that it takes over when the first one ends; nothing exits.
//! - Two agents on one place of a server, as a machine and its clone: `cloned`. Both go on, each in a generation of its own,
//!   and say so within an hour or two.
//!
//! What looks like nothing, or like something else
//! - Size is no sign of change, and a WAL is written again at its old length:
//!   `a_wal_that_never_changes_its_length_is_followed_through_every_restart`.
//! - Connections that come and go delete and recreate the WAL:
//!   `capture::connections_that_come_and_go_for_every_write_are_followed`, and `resting`.
//! - Torn tails, stale frames behind valid ones, frames of other salts: `scan` in `segment` and `restore_damage`; both byte
//!   orders: `byte_order`; ghost commits: `ghost`; all of them but a foreign byte order together: `simulation`.
//! - Events are lost: `a_flood_of_events_that_overflows_the_queue_hides_no_commit`; the watch itself:
//!   `a_folder_that_is_removed_and_made_again_is_watched_again` and
//!   `a_file_system_that_is_unmounted_and_mounted_again_is_followed`; no watch is left:
//!   `where_the_kernel_has_no_watch_left_the_folder_is_looked_at_each_second`; and at random: `simulation`.
//! - Our own looks as events: the watch takes no notice of what is opened and read, and what we write is in a folder that is
//!   not watched.
//! - The `-shm` is removed or replaced under us: `outsider::a_removed_wal_index_costs_nothing_when_the_agent_lets_go`,
//!   `outsider::no_checkpoint_of_ours_is_by_a_wal_index_that_was_removed`, and `simulation`.
//! - WAL mode on a network file system: SQLite rules it out, and so do we: we go by the locks of this machine's kernel.
//!
//! The chain of a generation
//! - A checkpoint, a VACUUM or another journal mode while the agent is down:
//!   `whatever_happens_while_the_agent_is_down_the_next_one_restores_exactly`, every one with every way of going down.
//! - Commits in the gap of a checkpoint: there is no gap, the next lock is taken before the last one is given back;
//!   `wal_index`, `guard` and `simulation`.
//! - Page size changed by VACUUM: `a_page_size_changed_by_vacuum_begins_a_generation_of_that_size`.
//! - Growth and shrinking, auto_vacuum, 512 bytes to 64 KiB: `capture` and `simulation`. We replay frames, and make up no
//!   page; the page of the lock byte at 1 GB is never in a WAL, and in a snapshot it is what the file has.
//! - The WAL-reset bug of SQLite before 3.51.3: the bundled one is newer, and no checkpoint of ours resets a WAL.
//! - A base that is not the file's own pages, as of VACUUM INTO: a snapshot is the database file, read through the one
//!   descriptor, and frames are replayed over it: `snapshot`, `restore_proof`.
//! - An older program and newer local state: the page table and what is on a replica have a version; all other files of ours
//!   are a line that is read whole or counts for nothing (unit tests of `evidence` and `held`).
//! - A restored database is not replicated: `restart::a_database_that_was_restored_to_its_own_place_is_replicated_as_it_goes_on`.
//! - More than one generation from one loss: `generations_that_break_again_come_ever_more_rarely`, at most every 300 s.
//!
//! Files that people move
//! - Replaced by rename: `attachment::a_database_replaced_by_rename_is_replicated_anew_without_frames_of_the_old_one`.
//!   Restored over in place: `a_database_restored_over_in_place_is_replicated_anew`. Deleted and made again:
//!   `a_database_deleted_and_made_again_is_replicated_anew`. On another file system:
//!   `a_database_moved_to_another_file_system_with_its_state_is_followed_there`.
//!
//! What it costs
//! - A WAL that grows because of our lock: `guard::a_wal_that_only_we_checkpoint_does_not_get_twice_as_long_as_it_may`. Where
//!   a writer never pauses, that is measured, not asserted: `tests/bench`.
//! - An idle agent that uses a processor: it waits for events; measured, not asserted.
//! - A server that is away fills the disk: `room`.
//! - An idle database sends files: `an_idle_database_sends_nothing_for_a_day`.
//! - Local files pile up: `local_state_stays_small_for_a_week`.
//! - A full disk: `crash::the_disk_may_be_full_for_a_while_from_any_operation_on`. Nothing the size of the database is
//!   staged locally.

use crate::support::agent::Agent;
use crate::support::compare::assert_same;
use crate::support::mounted::Mounted;
use crate::support::oracle::{Application, Habits};
use crate::support::place::{Place, first, is_resting, is_streaming, objects};
use crate::support::process::{output, signal};
use crate::support::scene::of_databases;
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use crate::support::world::{Settings, World};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use wal_agent::config::CheckpointSettings;
use wal_agent::core::names;

const INSERT: &str = "INSERT INTO t (data) VALUES (randomblob(3000))";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, data BLOB)";
const HOUR: Duration = Duration::from_secs(3600);

fn application(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run(&format!("PRAGMA journal_mode=wal; {TABLE}; {INSERT}"));
    application
}

fn world(min_pages: u32) -> World {
    let habits = Habits { page_size: 1024, cache_pages: 20, ..Habits::PLAIN };
    let settings = Settings {
        checkpoint: CheckpointSettings { min_pages, max_pages: 0, interval: Some(Duration::from_secs(60)) },
        ..Settings::PLAIN
    };
    let mut world = World::new(settings, 1, |database| Application::new(database, habits, Vec::new(), 1));
    world.application().create();
    world.start_agent();
    world.settle();
    world
}

#[test]
fn a_wal_that_never_changes_its_length_is_followed_through_every_restart() {
    let mut world = world(1);
    let wal = names::beside(world.database(), "-wal");
    let mut seen = Vec::new();
    for n in 0..500 {
        world.application().run(0, &format!("UPDATE c SET n = {n}"));
        world.drive(20);
        let bytes = fs::read(&wal).expect("the WAL is there");
        seen.push((bytes.len(), bytes[..32].to_vec()));
    }
    let (lengths, headers): (BTreeSet<usize>, BTreeSet<Vec<u8>>) = seen.into_iter().unzip();
    assert_eq!(lengths.len(), 1, "the WAL has grown: {lengths:?}");
    assert_eq!(headers.len(), 500, "it was restarted with every commit");
    world.settle();
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn whatever_happens_while_the_agent_is_down_the_next_one_restores_exactly() {
    let modes = ["", "PASSIVE", "FULL", "RESTART", "TRUNCATE"];
    let changes =
        ["", "UPDATE c SET n = n + 1", "VACUUM", "PRAGMA journal_mode=delete; PRAGMA journal_mode=wal"];
    for stops in [true, false] {
        let mut world = world(1000);
        for mode in modes {
            for before in changes {
                for after in changes {
                    let down = if stops { World::stop_agent } else { World::kill_agent };
                    down(&mut world);
                    world.application().run(0, &format!("SELECT 1; {before}"));
                    if !mode.is_empty() {
                        world.application().run(0, &format!("PRAGMA wal_checkpoint({mode})"));
                    }
                    world.application().run(0, &format!("SELECT 1; {after}"));
                    world.start_agent();
                    world.drive(40);
                    world.application().run(0, "UPDATE c SET n = n + 1");
                    world.rest_for(Duration::from_secs(70));
                    world.check_all_is_replicated();
                }
            }
        }
        world.end();
    }
}

/// Whoever takes the agent's files away as soon as they are made lets it begin no index: each generation would be the next
/// one's reason.
#[test]
fn generations_that_break_again_come_ever_more_rarely() {
    let mut world = world(1000);
    world.kill_agent();
    let generations = world.meta().join(names::GENERATIONS);
    // It may not be there.
    world.disk.interrupt(Some(Box::new(move |_| drop(fs::remove_dir_all(&generations)))));
    world.start_agent();
    world.application().run(0, "UPDATE c SET n = n + 1");
    let end = world.now().mono + HOUR;
    let mut times = Vec::new();
    while world.now().mono < end {
        let (now, before) = (world.now().mono, world.status().breaks.count);
        // What is due now, and then nothing until something else is.
        world.rest_for(Duration::from_millis(1));
        if world.status().breaks.count > before {
            times.push(now);
        }
    }
    let pauses: Vec<u64> =
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64().round() as u64).collect();
    let (growing, longest) = pauses.split_at(9);
    assert_eq!(growing, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
    assert_eq!(longest, [300; 10]);
    world.disk.interrupt(None);
    world.rest_for(Duration::from_secs(301));
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn an_idle_database_sends_nothing_for_a_day() {
    let mut world = world(1000);
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.rest_for(HOUR);
    let before = world.servers[0].operations();
    world.rest_for(24 * HOUR);
    // What is there is looked at now and then, and nothing else.
    let log = world.servers[0].log();
    let looks = |line: &&str| line.contains(": list ") || line.contains(": read ");
    let (looks, others): (Vec<_>, Vec<_>) = log.lines().skip(before).partition(looks);
    assert!(others.is_empty(), "{others:?}");
    assert!(!looks.is_empty() && looks.len() < 24 * 2 * 5, "{looks:?}");
    world.end();
}

#[test]
fn what_somebody_removes_from_a_replica_is_sent_again_within_an_hour() {
    let mut world = world(1000);
    world.application().run(0, "UPDATE c SET n = n + 1");
    world.rest_for(HOUR);
    world.servers[0].lose_all();
    world.rest_for(HOUR);
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn local_state_stays_small_for_a_week() {
    let mut world = world(10);
    for hour in 0..7 * 24 {
        world
            .application()
            .run(0, &format!("UPDATE c SET n = {hour}; INSERT INTO t (data) VALUES (zeroblob(9000))"));
        world.rest_for(HOUR);
        let files = world.shadow_files();
        assert!(files <= 4, "{files} shadow files after {hour} hours");
    }
    world.check_all_is_replicated();
    world.end();
}

#[test]
fn a_database_restored_over_in_place_is_replicated_anew() {
    let place = Place::new();
    let backup = place.path("backup.db");
    let mut other = application(&backup);
    other.run("UPDATE t SET data = 'backup'");
    other.close();
    let mut old = application(&place.database());
    let agent = place.streaming_agent(&[]);
    old.run(INSERT);
    old.close();
    agent.wait_for_status("lets go", is_resting);
    fs::copy(&backup, place.database()).expect("the folder is ours");
    let mut again = Shell::open(&place.database());
    assert_eq!(again.value("SELECT data FROM t WHERE id = 1"), "backup");
    again.run(INSERT);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_deleted_and_made_again_is_replicated_anew() {
    let place = Place::new();
    let mut old = application(&place.database());
    let agent = place.streaming_agent(&["let-go-after: 100ms"]);
    for _ in 0..5 {
        old.run(INSERT);
        old.close();
        agent.wait_for_status("lets go", is_resting);
        fs::remove_file(place.database()).expect("it is there");
        old = application(&place.database());
        place.wait_until_replicated(&agent);
    }
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_page_size_changed_by_vacuum_begins_a_generation_of_that_size() {
    let place = Place::new();
    let mut old = application(&place.database());
    let agent = place.streaming_agent(&[]);
    old.run(INSERT);
    old.close();
    agent.wait_for_status("lets go", is_resting);
    let mut again = Shell::open(&place.database());
    let change = "PRAGMA journal_mode=delete; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=wal";
    // While we are attached, its mode cannot be changed; a moment later we have let go again.
    wait_until("the page size is changed", BEFORE_THE_SLOW_LOOK, || {
        let _ = again.try_run(change); // tried again if we are there
        let is_changed = again.value("PRAGMA page_size") == "8192";
        if !is_changed {
            again.run(".open :memory:");
            agent.wait_for_status("lets go", |status| first(status)["state"] == "detached");
            again.run(&format!(".open {}", place.database().display()));
        }
        is_changed
    });
    again.run(INSERT);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_moved_to_another_file_system_with_its_state_is_followed_there() {
    let place = Place::new();
    let mut old = application(&place.database());
    let agent = place.streaming_agent(&[]);
    old.run(INSERT);
    place.stop(agent);
    old.close();
    let memory = tempfile::tempdir_in("/dev/shm").expect("Linux has it");
    output(Command::new("cp").arg("-a").arg(format!("{}/.", place.path("").display())).arg(memory.path()));
    let database = memory.path().join("app.db");
    let configuration = format!(
        "dbs:\n  - path: {}\n    replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        place.replica().display()
    );
    let mut new = Shell::open(&database);
    new.run(INSERT);
    let agent = Agent::start(memory.path(), &configuration);
    agent.wait_for_status("streams", is_streaming);
    new.run(INSERT);
    wait_until("the moved database is replicated", BEFORE_THE_SLOW_LOOK, || {
        agent.wait_for_status("streams", is_streaming);
        let restored = memory.path().join("restored.db");
        let _ = fs::remove_file(&restored);
        crate::support::place::restore(&place.replica(), &restored);
        crate::support::compare::difference(&database, &restored).is_none()
    });
    assert!(agent.stop().success());
}

/// How many events inotify keeps for whoever does not read them.
fn inotify_queue() -> usize {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("every Linux has it");
    limit.trim().parse().expect("a number")
}

#[test]
fn a_flood_of_events_that_overflows_the_queue_hides_no_commit() {
    let place = Place::new();
    let mut application = application(&place.database());
    let agent = place.streaming_agent(&[]);
    place.wait_until_replicated(&agent);
    signal(agent.pid(), Signal::STOP);
    // Each file that comes and goes is more than one event.
    for n in 0..inotify_queue() {
        let file = place.path(&format!("flood-{n}"));
        fs::write(&file, "").and_then(|()| fs::remove_file(&file)).expect("the folder is ours");
    }
    // The queue is full: nobody hears of this one.
    application.run(INSERT);
    let count = application.value("SELECT count(*) FROM t");
    signal(agent.pid(), Signal::CONT);
    wait_until("the commit is replicated", BEFORE_THE_SLOW_LOOK, || {
        let restored = place.restore();
        Shell::open(&restored).value("SELECT count(*) FROM t") == count
    });
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn where_the_kernel_has_no_watch_left_the_folder_is_looked_at_each_second() {
    let place = Place::new();
    let (database, replica) = (place.database(), place.replica());
    let configuration = format!(
        "dbs:\n  - path: {}\n    let-go-after: 100ms\n    replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        replica.display()
    );
    let agent = Agent::start_without_watches(&place.path(""), &configuration);
    agent.wait_for_log("it is looked at each second instead");
    let mut application = application(&database);
    // First a database that was not there, then commits.
    for count in 2..=4 {
        application.run(INSERT);
        wait_until("the commit is replicated", BEFORE_THE_SLOW_LOOK, || {
            agent.status().is_some_and(|status| is_streaming(&status)) && {
                let restored = place.restore();
                Shell::open(&restored).value("SELECT count(*) FROM t") == count.to_string()
            }
        });
    }
    application.close();
    agent.wait_for_status("lets go", is_resting);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_folder_that_is_removed_and_made_again_is_watched_again() {
    let place = Place::new();
    let folder = place.path("folder");
    let database = folder.join("app.db");
    fs::create_dir(&folder).expect("the folder is ours");
    let mut old = application(&database);
    let configuration = format!(
        "dbs:\n  - path: {}\n    let-go-after: 100ms\n    replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        place.replica().display()
    );
    let agent = Agent::start(&place.path(""), &configuration);
    agent.wait_for_status("streams", is_streaming);
    for round in 0..3 {
        old.close();
        agent.wait_for_status("lets go", is_resting);
        fs::remove_dir_all(&folder).and_then(|()| fs::create_dir(&folder)).expect("the folder is ours");
        old = application(&database);
        follows(&place, &database, &format!("round {round}"));
    }
    agent.stop();
}

/// Several databases, each with its replica.
fn configuration(files: &[(PathBuf, PathBuf)]) -> String {
    let folder = |replica: &Path| format!("{{type: file, path: '{}'}}", replica.display());
    of_databases(files.iter().map(|(database, replica)| (database.as_path(), vec![folder(replica)])))
}

#[test]
fn both_databases_of_a_folder_that_appears_are_noticed() {
    let place = Place::new();
    let names = ["a", "b"];
    let files =
        names.map(|name| (place.path(&format!("folder/{name}.db")), place.path(&format!("replica-{name}"))));
    let agent = Agent::start(&place.path(""), &configuration(&files));
    agent.wait_for_status("looks", |status| first(status)["state"] == "absent");
    let made = place.path("made");
    fs::create_dir(&made).expect("the folder is ours");
    for name in names {
        application(&made.join(format!("{name}.db"))).close();
    }
    fs::rename(made, place.path("folder")).expect("the folder is ours");
    for (database, replica) in files {
        let name = database.display().to_string();
        wait_until(&name, BEFORE_THE_SLOW_LOOK, || !objects(&replica, "snapshots").is_empty());
    }
    agent.stop();
}

/// The watch's thread is never done with the events of such a writer, and nobody waits for it.
#[test]
fn a_folder_that_appears_beside_a_writer_that_never_pauses_is_watched() {
    let place = Place::new();
    let busy = place.path("busy");
    fs::create_dir(&busy).expect("the folder is ours");
    let tireless = ["--size", "1-100", "--synchronous", "OFF", "--autocheckpoint", "10"];
    let mut writer = Writer::start(&busy.join("busy.db"), &tireless);
    writer.wait_for(1);
    let folder = place.path("folder");
    let database = folder.join("app.db");
    let files = [(busy.join("busy.db"), place.path("busy-replica")), (database.clone(), place.replica())];
    let agent = Agent::start(&place.path(""), &configuration(&files));
    agent.wait_for_status("sends", |status| first(status)["replicas"][0]["state"] == "streaming");
    writer.wait_for(20_000);
    fs::create_dir(&folder).expect("the folder is ours");
    let application = application(&database);
    let has_backup = || !place.objects("snapshots").is_empty();
    wait_until("the new folder is watched", BEFORE_THE_SLOW_LOOK, has_backup);
    follows(&place, &database, "the new folder is followed");
    application.close();
    drop(writer.finish());
    agent.stop();
}

/// A restore holds what the database holds, before everything is looked at in any case.
fn follows(place: &Place, database: &Path, what: &str) {
    wait_until(what, BEFORE_THE_SLOW_LOOK, || {
        let restored = place.restore();
        crate::support::compare::difference(database, &restored).is_none()
    });
}

#[test]
fn a_file_system_that_is_unmounted_and_mounted_again_is_followed() {
    let place = Place::new();
    let folder = place.path("mounted");
    let database = folder.join("app.db");
    fs::create_dir(&folder).expect("the folder is ours");
    let mut mounted = Mounted::new(&folder, 64 << 20);
    let mut old = application(&database);
    let configuration = format!(
        "dbs:\n  - path: {}\n    meta-path: {}\n    let-go-after: 100ms\n    replicas: [{{type: file, path: '{}'}}]\n",
        database.display(),
        place.path("meta").display(),
        place.replica().display()
    );
    let agent = Agent::start(&place.path(""), &configuration);
    agent.wait_for_status("streams", is_streaming);
    for round in 0..3 {
        old.close();
        agent.wait_for_status("lets go", is_resting);
        // It can be unmounted: nothing of ours is open there.
        drop(mounted);
        mounted = Mounted::new(&folder, 64 << 20);
        old = application(&database);
        follows(&place, &database, &format!("round {round}"));
    }
    // Both before the agent can look: the new one has the numbers of the old one, device and inode.
    old.close();
    agent.wait_for_status("lets go", is_resting);
    signal(agent.pid(), Signal::STOP);
    drop(mounted);
    let _mounted = Mounted::new(&folder, 64 << 20);
    old = application(&database);
    signal(agent.pid(), Signal::CONT);
    follows(&place, &database, "both at once");
    agent.stop();
    old.close();
    assert_same(&database, &place.restore());
}
