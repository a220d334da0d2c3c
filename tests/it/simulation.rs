//! Histories of an application, an agent and servers, each made up from a seed: whatever happens, in whatever order,
//! a restore gives a state that the application had, and never one before what was acknowledged.
//!
//! At the end of each history some of the commits that the replicas hold are restored, as if nothing had come after them:
//! each gives what the application had with that commit, in the order in which it had it.
//!
//! In some histories an administrator replaces the database's file (`mv`, `cp`, `rm`) while the application is closed, or
//! moves it away: it comes back, perhaps after others have worked on it, or another one takes its place, perhaps after a
//! restart of the agent. Or whoever starts it again removes its `-shm`. In others the file system keeps whole seconds, and
//! not when files were made.
//!
//! The application itself is asked, too: what it has committed stays, and it is told nothing that it would not be told
//! without an agent.
//!
//! What is left out, since nobody could tell there, or only a restore that refuses:
//! - a `cp` before the agent has seen that the application is gone, or within milliseconds of another write of the file,
//!   whose times are the same then;
//! - a `cp` over a file of which a snapshot is being read: it is mixed, and a restore of that generation refuses it;
//! - a `cp` of a backup over a file that the agent holds: if every page that differs is in the WAL, it is what a killed
//!   checkpoint leaves;
//! - the WAL of a file that was moved away as the agent was killed, where the file system does not tell when files were
//!   made: the one beside another file may be that file's own, with a number that was given again;
//! - an application that is killed in its checkpoint before the agent has seen that its file is back under its name: a
//!   half-checkpointed file cannot be told from one that others worked on, so its WAL is kept aside;
//! - a machine that is set back to an image of itself while its server's clock is set back, too: only that clock tells which
//!   of two generations a restore takes;
//! - a server that denies just that listing which would tell that its clock was set back: the hourly survey tells;
//! - an application that is started before the old WAL is gone: SQLite itself would read it as the new file's;
//! - the inode of a file that was removed given to the next one: the tests' file system does not do that.
//!
//! `SEEDS=100000 tests/run simulation` runs so many, `SEED=123 tests/run simulation` that one.

use crate::support::faulty::Fault;
use crate::support::file_clock::WholeSeconds;
use crate::support::oracle::{Application, Habits, Process};
use crate::support::sim_disk::DiskFault;
use crate::support::world::{Settings, World};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use wal_agent::config::{CheckpointSettings, Durability};
use wal_agent::remote::FailureKind;
use wal_agent::source::LocalJob;

/// So many histories without `SEEDS`.
const HISTORIES: u64 = 2000;
/// Histories at a time; each waits for its processes most of the time, and for seconds where a file is renamed in use.
const THREADS: usize = 4;
/// Of each replica's commits, so many are restored at the end of a history, beside the last one.
const EARLIER_COMMITS: usize = 3;

/// How the name of each kind of thing begins that happens in so many histories: what is not done any more, as by a shim that
/// SQLite does not call, would be silent.
const CERTAIN: [&str; 48] = [
    "PRAGMA wal_checkpoint(FULL)",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "PRAGMA wal_checkpoint(RESTART)",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "RELEASE s",
    "ROLLBACK TO s",
    "VACUUM",
    "a backup is Copied",
    "a backup is Moved",
    "a volatile shadow",
    "all connections closed",
    "another database is Copied",
    "another database is Moved",
    "another machine",
    "clock set",
    "disk Crash",
    "disk Failed",
    "disk TornCrash",
    "disk full",
    "dozed beside a writer",
    "earlier commits restored",
    "event lost",
    "files keep whole seconds",
    "gone on after letting go",
    "gone on after letting go, with whole seconds",
    "incremental_vacuum",
    "journal mode left",
    "moved away and back",
    "paused at db",
    "paused at lock",
    "paused at sync",
    "paused at wal",
    "power lost",
    "power lost with a volatile shadow",
    "server late",
    "server lost",
    "server refused",
    "server torn",
    "server unanswered",
    "server's clock set",
    "set back to an image",
    "spilled into the WAL",
    "wal-index removed",
    "worked on elsewhere",
    "writer dies at db",
    "writer dies at sync",
    "writer dies at wal",
    "writer's fsync fails",
];
const MANY: u64 = 1000;

/// Where files keep whole seconds, a history is not to wait for them.
const SECONDS_A_SECOND: u16 = 100;

/// What the local disk takes long for, until it is something else: an fsync, mostly.
const SLOW: [fn(&LocalJob) -> bool; 8] = [
    |_| false,
    |_| false,
    |job| matches!(job, LocalJob::Sync(_)),
    |job| matches!(job, LocalJob::Sync(_)),
    |job| matches!(job, LocalJob::Table(_)),
    |job| matches!(job, LocalJob::Durability(_)),
    |job| matches!(job, LocalJob::Checkpoint { .. } | LocalJob::Round { .. }),
    |job| matches!(job, LocalJob::Sync(_) | LocalJob::Table(_) | LocalJob::Checkpoint { .. }),
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_happens_a_restore_gives_what_was_acknowledged_or_newer() {
    let (first, count) = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => (seed, 1),
        (None, count) => (number("FIRST_SEED").unwrap_or(0), count.unwrap_or(HISTORIES)),
    };
    let (next, ran) = (AtomicU64::new(first), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let injected = Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut processes = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = || failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if seed - first >= count || failed().len() >= 5 {
                        return;
                    }
                    let taken = std::mem::take(&mut processes);
                    match catch_unwind(AssertUnwindSafe(|| history(seed, taken))) {
                        Ok((back, faults)) => {
                            processes = back;
                            let mut injected = injected.lock().unwrap_or_else(PoisonError::into_inner);
                            for (kind, count) in faults {
                                *injected.entry(kind).or_default() += count;
                            }
                        }
                        Err(_) => {
                            eprintln!("SEED={seed} tests/run simulation");
                            failed().push(seed);
                        }
                    }
                    let so_far = ran.fetch_add(1, Ordering::Relaxed) + 1;
                    if so_far % 1000 == 0 {
                        println!("{so_far} histories");
                    }
                }
            });
        }
    });
    let injected = injected.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ran = ran.into_inner();
    println!("{ran} histories from seed {first} on; faults: {injected:#?}");
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let commands = failed.iter().map(|seed| format!("SEED={seed} tests/run simulation"));
    assert!(failed.is_empty(), "replay with:\n{}", commands.collect::<Vec<_>>().join("\n"));
    let happened = |kind: &str| injected.iter().any(|(name, count)| name.starts_with(kind) && *count > 0);
    let missing: Vec<_> = CERTAIN.iter().filter(|kind| !happened(kind)).collect();
    assert!(ran < MANY || missing.is_empty(), "never in {ran} histories: {missing:?}");
}

/// One history.
fn history(seed: u64, processes: Vec<Process>) -> (Vec<Process>, BTreeMap<String, u64>) {
    let mut random = StdRng::seed_from_u64(seed);
    let habits = Habits {
        page_size: [512, 1024, 4096, 4096, 65536][random.random_range(0..5)],
        synchronous: ["FULL", "FULL", "NORMAL", "OFF"][random.random_range(0..4)],
        autocheckpoint: [0, 1, 10, 1000][random.random_range(0..4)],
        auto_vacuum: random.random_range(0..3),
        cache_pages: [10, 100][random.random_range(0..2)],
        is_overlooked: true,
    };
    let min_pages = [1, 5, 20, 1000][random.random_range(0..4)];
    let settings = Settings {
        replicas: random.random_range(1..3),
        checkpoint: CheckpointSettings {
            min_pages,
            max_pages: [0, min_pages, min_pages * 3][random.random_range(0..3)],
            interval: [None, Some(Duration::from_secs(1)), Some(Duration::from_secs(60))]
                [random.random_range(0..3)],
        },
        durability: [Durability::Fsync, Durability::Fsync, Durability::Write][random.random_range(0..3)],
        sync_interval: [None, None, Some(Duration::from_secs(1))][random.random_range(0..3)],
        // Letting go waits by the real clock, until the file's times can be trusted.
        let_go_after: Some(Duration::from_secs(1)).filter(|_| random.random_bool(0.3)),
    };
    // Before anything asks for the time.
    let seconds = random.random_bool(0.25).then(|| WholeSeconds::begin(SECONDS_A_SECOND));
    let application_seed = random.random();
    let mut world = World::new(settings, seed, |database| {
        Application::new(database, habits, processes, application_seed)
    });
    if random.random_bool(0.8) {
        world.application().create();
    }
    world.start_agent();
    let interrupts = random.random_bool(0.4).then(|| random.random::<u64>());
    if let Some(seed) = interrupts {
        interrupt(&world, seed);
    }
    let is_faulty = random.random_bool(0.8);
    // In some histories an administrator puts other files in the database's place.
    let replaces = random.random_bool(0.4);
    // In some the machine is set back to an image of itself.
    let images = random.random_bool(0.2);
    for _ in 0..random.random_range(5..60) {
        match random.random_range(0..if images { 20 } else { 19 }) {
            0..19 => event(&mut world, &mut random, settings, is_faulty, if replaces { 123 } else { 105 }),
            _ if random.random_bool(0.5) => world.keep_image(),
            _ if world.set_back() && random.random_bool(0.3) => world.check_what_it_is_set_back_to(),
            _ => {}
        }
    }
    world.heal();
    if world.application().states().is_empty() {
        world.application().create();
    }
    if !world.has_agent() {
        world.start_agent();
    }
    if random.random_bool(0.5) {
        // What is held open must not keep anything from being replicated.
        world.drive(200);
    }
    world.application().rest();
    world.settle();
    world.application().remember_certainly();
    world.settle();
    world.application().remember_certainly();
    world.check_all_is_replicated();
    let restored = (0..settings.replicas).map(|n| world.check_earlier_commits(n, EARLIER_COMMITS)).sum();
    let (processes, mut counted) = world.end();
    counted.insert("earlier commits restored".to_owned(), restored);
    counted.insert("files keep whole seconds".to_owned(), u64::from(seconds.is_some()));
    (processes, counted)
}

/// The application does something in the middle of what the agent does.
fn interrupt(world: &World, seed: u64) {
    let application = std::sync::Arc::downgrade(&world.application);
    let mut random = StdRng::seed_from_u64(seed);
    world.disk.interrupt(Some(Box::new(move |_| {
        if random.random_bool(0.05)
            && let Some(application) = application.upgrade()
            && let Ok(mut application) = application.try_lock()
            && !application.states().is_empty()
        {
            application.note("  in the middle of it:".to_owned());
            // The agent may have switched the database to WAL mode, and copied what it was then.
            application.remember();
            application.act();
        }
    })));
}

fn event(world: &mut World, random: &mut StdRng, settings: Settings, is_faulty: bool, kinds: u32) {
    let is_made = !world.application().states().is_empty();
    match random.random_range(0..kinds) {
        0..55 => match is_made {
            true => world.application().act(),
            false => world.application().create(),
        },
        55..85 => world.drive(random.random_range(1..40)),
        85..90 => {
            let replica = random.random_range(0..settings.replicas);
            let synced = settings.durability == Durability::Fsync && random.random_bool(0.5);
            world.application().remember();
            world.check_restore(replica, synced);
        }
        90..93 if is_faulty => {
            let replica = random.random_range(0..settings.replicas);
            for _ in 0..random.random_range(1..4) {
                let fault = match random.random_range(0..5) {
                    0 => Fault::Lost,
                    1 => Fault::Unanswered,
                    2 => Fault::Torn(random.random_range(0..3)),
                    3 => Fault::Late(random.random_range(1..40)),
                    // Whoever may not list the other generations cannot be later than they are.
                    _ if world.has_set_server_clock() => Fault::Refused(FailureKind::Other),
                    _ => Fault::Refused(
                        [FailureKind::Denied, FailureKind::Full, FailureKind::Other]
                            [random.random_range(0..3)],
                    ),
                };
                world.servers[replica].plan(random.random_range(0..30), fault);
            }
        }
        93..95 if is_faulty => {
            let fault = match random.random_range(0..4) {
                0 => DiskFault::Crash,
                1 => DiskFault::TornCrash,
                2 => DiskFault::Failed,
                _ => DiskFault::Full(random.random_range(1..20)),
            };
            world.disk.plan(random.random_range(0..30), fault);
        }
        95 if is_faulty && world.has_agent() => {
            world.kill_agent();
            world.may_become_another_machine();
        }
        96 if world.has_agent() => {
            world.stop_agent();
            world.may_become_another_machine();
        }
        97 if is_faulty => {
            // A server is out of order for a while.
            let replica = random.random_range(0..settings.replicas);
            world.servers[replica].refuse_all(random.random_bool(0.7));
        }
        98 if is_faulty => {
            world.lose_power();
            world.application().remember_certainly();
        }
        100..103 => world.held = SLOW[random.random_range(0..SLOW.len())],
        103..105 if is_made => {
            world.write_without_a_pause(random.random_range(1..700));
            if is_faulty && world.is_volatile() && random.random_bool(0.5) {
                world.lose_power();
                world.application().remember_certainly();
            }
        }
        105..111 => world.application().back_up(),
        111..116 if is_made => world.replace_database(),
        116 if is_made => world.remove_database(),
        117..121 if is_made => world.move_database(),
        121..123 if is_made => world.remove_wal_index(),
        99 if random.random_bool(0.3) => {
            world.jump(random.random_range(-100_000..100_000));
            let server = random.random_range(0..settings.replicas);
            world.jump_server(server, random.random_range(-1000..1000));
        }
        _ if !world.has_agent() => world.start_agent(),
        _ => {}
    }
}
