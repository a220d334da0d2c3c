//! A life of a database, from its first snapshot over new indexes, checkpoints and restarts of the agent to a new
//! generation; and the same life again with the agent's end, or a fault, at each of its operations on the local disk
//! and on the server. Whenever it is, and in whatever state things are left, the next agent goes on, and a restore
//! gives what was acknowledged.

use crate::support::faulty::Fault;
use crate::support::oracle::{Application, Habits, Process};
use crate::support::sim_disk::DiskFault;
use crate::support::world::{Settings, World};
use std::time::Duration;
use wal_agent::config::CheckpointSettings;

/// The life must have at least so many operations of each kind, or it is not the one that is described above.
const LEAST_OPERATIONS: usize = 80;
/// Of these, so many syncs of shadow files, at the least.
const LEAST_SYNCS: usize = 5;
/// Turns between two things that the application does.
const TURNS: usize = 60;

/// Steps of the life from a sync that fails to the power cut: by then its file may have been synced again.
const STEPS_TO_POWER_CUT: usize = 3;

/// Lives whose end is a power cut, each leaving other things behind.
const POWER_CUTS: u64 = 40;

/// What is to go wrong, at which operation.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    None,
    /// On the local disk.
    Disk(usize, DiskFault),
    /// The agent ends at an operation of the disk, and the machine loses power then.
    PowerLoss(usize),
    /// The same, and since its first snapshot the server was out of order: all indexes are needed from the disk.
    PowerLossBehind(usize),
    /// A sync of the disk fails, and the machine loses power some steps later.
    FailedSync(usize),
    /// The same, and since its first snapshot the server was out of order.
    FailedSyncBehind(usize),
    /// The disk is full from an operation on, until the application has done something more.
    Full(usize),
    /// On the server.
    Server(usize, Fault),
    /// On the server, and the agent ends then.
    ServerAndEnd(usize, Fault),
}

struct Life {
    world: World,
    trouble: Trouble,
    /// Power is lost, or space is there again, after the trouble has come.
    is_over: bool,
    /// Steps since a sync failed.
    steps: usize,
    /// Why generations began since then.
    reasons: Vec<String>,
    /// The agent was told to stop before it came to that sync, so that no generation began.
    was_stopping: bool,
}

impl Life {
    fn new(trouble: Trouble, processes: Vec<Process>) -> Life {
        Life::with(trouble, 20, 7, processes)
    }

    fn with(trouble: Trouble, min_pages: u32, seed: u64, processes: Vec<Process>) -> Life {
        let habits = Habits { page_size: 1024, cache_pages: 20, ..Habits::PLAIN };
        let settings = Settings {
            checkpoint: CheckpointSettings { min_pages, max_pages: min_pages * 2, interval: None },
            ..Settings::PLAIN
        };
        let application = |database: &std::path::Path| Application::new(database, habits, processes, seed);
        let mut world = World::new(settings, seed, application);
        match trouble {
            Trouble::None => {}
            Trouble::Disk(at, fault) => world.disk.plan(at, fault),
            Trouble::PowerLoss(at) | Trouble::PowerLossBehind(at) => world.disk.plan(at, DiskFault::Crash),
            Trouble::FailedSync(at) | Trouble::FailedSyncBehind(at) => world.disk.plan(at, DiskFault::Failed),
            Trouble::Full(at) => world.disk.plan(at, DiskFault::Full(usize::MAX)),
            Trouble::Server(at, fault) => world.servers[0].plan(at, fault),
            Trouble::ServerAndEnd(at, fault) => {
                world.servers[0].plan(at, fault);
                world.kill_behind(at);
            }
        }
        Life { world, trouble, is_over: false, steps: 0, reasons: Vec::new(), was_stopping: false }
    }

    /// Lets the agent work; if it has ended, the next one begins.
    fn go_on(&mut self) {
        self.world.drive(TURNS);
        let disk = &self.world.disk;
        let is_full = matches!(self.trouble, Trouble::Full(at) if !self.is_over && disk.operations() > at);
        if is_full {
            // The application does something more, and then there is space again.
            self.write(0);
            self.world.drive(TURNS);
            self.world.check_trouble_is_named("No space left");
            self.world.disk.heal();
            self.is_over = true;
        }
        if self.awaits_power_cut() {
            self.after_failed_sync();
        }
        if !self.world.has_agent() {
            if let Trouble::PowerLoss(_) | Trouble::PowerLossBehind(_) = self.trouble
                && !self.is_over
            {
                self.world.lose_power();
                self.is_over = true;
            }
            self.world.check_restore(0, true);
            self.world.start_agent();
            self.world.drive(TURNS);
        }
    }

    /// Whether a sync has failed, and power is not lost yet.
    fn awaits_power_cut(&self) -> bool {
        let (Trouble::FailedSync(at) | Trouble::FailedSyncBehind(at)) = self.trouble else { return false };
        !self.is_over && self.world.disk.operations() > at
    }

    fn has_failed_sync_of_shadow(&self) -> bool {
        let log = self.world.disk.log();
        log.lines().any(|line| line.contains(": sync ") && line.ends_with(".wal Failed"))
    }

    /// Remembers what the agent makes of it. When some more has happened, power is lost.
    fn after_failed_sync(&mut self) {
        if self.world.has_agent() {
            self.reasons.extend(self.world.status().breaks.last_reason);
        }
        self.steps += 1;
        if self.steps == STEPS_TO_POWER_CUT {
            self.world.lose_power();
            self.is_over = true;
        }
    }

    fn write(&mut self, connection: usize) {
        self.world.application().run(connection, "UPDATE c SET n = n + 1");
    }

    /// The whole life.
    fn live(&mut self) {
        self.world.application().create();
        self.world.start_agent();
        self.go_on();
        if let Trouble::PowerLossBehind(_) | Trouble::FailedSyncBehind(_) = self.trouble {
            self.world.servers[0].refuse_all(true);
        }
        for _ in 0..2 {
            self.write(0);
            self.go_on();
        }
        // The application restarts the WAL, and then we do.
        for checkpoint in ["PRAGMA wal_checkpoint(TRUNCATE)", "SELECT 1", "SELECT 1"] {
            self.world.application().run(0, checkpoint);
            self.go_on();
            for _ in 0..2 {
                let large = "INSERT INTO t (n, data) VALUES (1, zeroblob(6000)); UPDATE c SET n = n + 1";
                self.world.application().run(1, &format!("BEGIN; {large}; COMMIT"));
                self.go_on();
            }
        }
        if self.world.has_agent() {
            let had_failed = self.awaits_power_cut();
            self.world.stop_agent();
            self.was_stopping = self.awaits_power_cut() && !had_failed;
        }
        self.world.start_agent();
        self.go_on();
        self.write(1);
        self.go_on();
        // What happens to the WAL while no agent is there ends the generation.
        self.world.kill_agent();
        self.world.application().run(0, "PRAGMA wal_checkpoint(TRUNCATE)");
        self.write(0);
        self.world.start_agent();
        self.go_on();
        self.write(0);
        self.go_on();
    }

    /// Lives, comes to rest, and is checked; the processes go back.
    fn end(mut self) -> Vec<Process> {
        self.live();
        self.rest()
    }

    /// Comes to rest, and is checked.
    fn rest(mut self) -> Vec<Process> {
        self.world.disk.heal();
        self.world.servers[0].heal();
        self.world.servers[0].refuse_all(false);
        if !self.world.has_agent() {
            self.world.start_agent();
        }
        self.world.rest_for(Duration::from_secs(130));
        self.world.application().remember_certainly();
        self.world.check_restore(0, true);
        self.world.check_all_is_replicated();
        self.world.end().0
    }
}

/// Operations of the life without trouble, on the disk and on the server.
fn operations() -> (usize, usize) {
    let mut life = Life::new(Trouble::None, Vec::new());
    life.live();
    let operations = (life.world.disk.operations(), life.world.servers[0].operations());
    let log = life.world.disk.log();
    life.end();
    assert!(operations.0 > LEAST_OPERATIONS && operations.1 > LEAST_OPERATIONS, "{operations:?}");
    let count = |what: &str, end: &str| {
        log.lines().filter(|line| line.contains(what) && line.trim_end().ends_with(end)).count()
    };
    let lived = [count(": create ", ".wal"), count(": remove ", ".wal"), count(": replace ", "generation")];
    assert!(lived[0] >= 5 && lived[1] >= 1 && lived[2] >= 1, "shadow files, removed, generations: {lived:?}");
    operations
}

/// The life with each trouble. What the program prints before it fails names the trouble.
fn all(troubles: impl Iterator<Item = Trouble>) {
    let mut processes = Vec::new();
    for trouble in troubles {
        println!("{trouble:?}");
        processes = Life::new(trouble, processes).end();
    }
}

#[test]
fn the_agent_may_end_at_any_operation_of_the_disk() {
    let (disk, _) = operations();
    all((0..disk).map(|at| Trouble::Disk(at, DiskFault::Crash)));
}

#[test]
fn the_agent_may_end_in_the_middle_of_any_write_to_the_disk() {
    let writes = ["create", "replace", "write", "copy"];
    let mut life = Life::new(Trouble::None, Vec::new());
    life.live();
    let log = life.world.disk.log();
    life.end();
    let is_write = |line: &&str| writes.iter().any(|write| line.contains(&format!(": {write} ")));
    all(log.lines().filter(is_write).map(|line| Trouble::Disk(number(line), DiskFault::TornCrash)));
}

#[test]
fn the_machine_may_lose_power_at_any_operation_of_the_disk() {
    let (disk, _) = operations();
    all((0..disk).map(Trouble::PowerLoss));
    all((0..disk).map(Trouble::PowerLossBehind));
}

#[test]
fn what_a_server_still_needs_survives_a_power_cut_though_the_application_restarted_the_wal() {
    let mut processes = Vec::new();
    for seed in 0..POWER_CUTS {
        println!("seed {seed}");
        let mut life = Life::with(Trouble::None, 100_000, seed, processes);
        life.world.application().create();
        life.world.start_agent();
        life.go_on();
        life.world.servers[0].refuse_all(true);
        for _ in 0..3 {
            for _ in 0..3 {
                life.write(0);
                life.go_on();
            }
            life.world.application().run(0, "PRAGMA wal_checkpoint(PASSIVE)");
            life.go_on();
        }
        life.write(0);
        life.go_on();
        life.world.lose_power();
        life.world.application().remember_certainly();
        processes = life.rest();
    }
}

/// The numbers of the syncs of files in a life with such a trouble that never comes.
fn syncs(trouble: fn(usize) -> Trouble) -> Vec<usize> {
    let mut life = Life::new(trouble(usize::MAX), Vec::new());
    life.live();
    let log = life.world.disk.log();
    life.rest();
    let syncs = log.lines().filter(|line| line.contains(": sync ") && !line.contains(": sync folder "));
    syncs.map(number).collect()
}

/// The number of an operation, from its line in the disk's log.
fn number(line: &str) -> usize {
    let number = line.split(':').next().and_then(|number| number.parse().ok());
    number.expect("each line begins with its number")
}

#[test]
fn what_a_failed_sync_should_have_made_durable_is_never_relied_on() {
    let mut processes = Vec::new();
    for trouble in [Trouble::FailedSync, Trouble::FailedSyncBehind] {
        let mut shadows = 0;
        for at in syncs(trouble) {
            println!("{:?}", trouble(at));
            let mut life = Life::new(trouble(at), processes);
            life.live();
            if life.has_failed_sync_of_shadow() && !life.was_stopping {
                let is_named = |reason: &String| reason == "the shadow WAL could not be written durably";
                let story = life.world.story();
                assert!(life.reasons.iter().any(is_named), "{at}: {:?}{story}", life.reasons);
                shadows += 1;
            }
            if life.awaits_power_cut() {
                life.world.lose_power();
            }
            processes = life.rest();
        }
        assert!(shadows >= LEAST_SYNCS, "{shadows} syncs of shadow files failed");
    }
}

#[test]
fn any_operation_of_the_disk_may_fail() {
    let (disk, _) = operations();
    all((0..disk).map(|at| Trouble::Disk(at, DiskFault::Failed)));
}

#[test]
fn the_disk_may_be_full_for_a_while_from_any_operation_on() {
    let (disk, _) = operations();
    all((0..disk).map(Trouble::Full));
}

#[test]
fn any_operation_of_the_server_may_fail_or_be_carried_out_unheard() {
    let (_, server) = operations();
    for fault in [Fault::Lost, Fault::Unanswered, Fault::Torn(1), Fault::Late(5)] {
        all((0..server).map(|at| Trouble::Server(at, fault)));
    }
}

#[test]
fn the_agent_may_end_at_any_operation_of_the_server() {
    let (_, server) = operations();
    for fault in [Fault::Unanswered, Fault::Late(5)] {
        all((0..server).map(|at| Trouble::ServerAndEnd(at, fault)));
    }
}
