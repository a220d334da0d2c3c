//! A life of a database, from its first snapshot over new indexes, checkpoints and restarts of the agent to a new
//! generation; or one in which the agent lets go of it, or its file is moved away and back. And the same life again with the
//! agent's end, or a fault, at each of its operations on the local disk and on the server. Whenever it is, and in whatever
//! state things are left, the next agent goes on, and a restore gives what was acknowledged.

use crate::support::faulty::Fault;
use crate::support::life::{Course, LET_GO, Life, MOVED, TO_A_NEW_GENERATION, Trouble};
use crate::support::sim_disk::DiskFault;

/// So many syncs of shadow files come in a life, at the least.
const LEAST_SYNCS: usize = 5;

/// Why a generation begins after a sync of the shadow has failed; or, where that was on the way to the generation that begins
/// at the end of the life anyhow, why that does.
const SYNC_FAILED: &str = "the shadow WAL could not be written durably";
const RESTARTED: &str = "the WAL was restarted while the agent did not hold it";

/// Lives whose end is a power cut, each leaving other things behind.
const POWER_CUTS: u64 = 40;

/// Operations of the life without trouble, on the disk and on the server.
fn operations(course: Course) -> (usize, usize) {
    let mut life = Life::new(course, Trouble::None, Vec::new());
    life.live();
    let operations = (life.world.disk.operations(), life.world.servers[0].operations());
    (course.check)(&life);
    life.rest();
    operations
}

/// Lives at the same time: they wait for the clock now and then.
const WORKERS: usize = 4;

/// The life with each trouble.
fn all(course: Course, troubles: impl Iterator<Item = Trouble>) {
    let troubles: Vec<Trouble> = troubles.collect();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let troubles = troubles.iter().skip(worker).step_by(WORKERS);
            scope.spawn(move || {
                let mut processes = Vec::new();
                for trouble in troubles {
                    let _named = Named(*trouble);
                    processes = Life::new(course, *trouble, processes).end();
                }
            });
        }
    });
}

/// Says what was on when a life fails.
struct Named(Trouble);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}", self.0);
        }
    }
}

/// The agent ends at each operation of the disk that no other course has, in the middle of each write, and with the machine.
fn end_anywhere(course: Course) {
    operations(course);
    all(course, at_each(course, |_| true, |at| Trouble::Disk(at, DiskFault::Crash)));
    all(course, at_each(course, is_write, |at| Trouble::Disk(at, DiskFault::TornCrash)));
    all(course, at_each(course, |_| true, Trouble::PowerLoss));
}

/// A trouble at each operation of a kind that comes in a life with such a trouble, and in no other course.
fn at_each(
    course: Course,
    kind: fn(&str) -> bool,
    trouble: fn(usize) -> Trouble,
) -> impl Iterator<Item = Trouble> {
    let mut life = Life::new(course, trouble(usize::MAX), Vec::new());
    life.live();
    let (log, first) = (life.world.disk.log(), life.first);
    life.rest();
    let numbers: Vec<usize> = log.lines().skip(first).filter(|line| kind(line)).map(number).collect();
    numbers.into_iter().map(trouble)
}

/// The number of an operation, from its line in the disk's log.
fn number(line: &str) -> usize {
    let number = line.split(':').next().and_then(|number| number.parse().ok());
    number.expect("each line begins with its number")
}

fn is_sync(line: &str) -> bool {
    line.contains(": sync ") && !line.contains(": sync folder ")
}

fn is_write(line: &str) -> bool {
    ["create", "replace", "write", "copy"].iter().any(|write| line.contains(&format!(": {write} ")))
}

#[test]
fn the_agent_may_end_at_any_operation_of_the_disk() {
    operations(TO_A_NEW_GENERATION);
    all(
        TO_A_NEW_GENERATION,
        at_each(TO_A_NEW_GENERATION, |_| true, |at| Trouble::Disk(at, DiskFault::Crash)),
    );
}

#[test]
fn the_agent_may_end_in_the_middle_of_any_write_to_the_disk() {
    all(
        TO_A_NEW_GENERATION,
        at_each(TO_A_NEW_GENERATION, is_write, |at| Trouble::Disk(at, DiskFault::TornCrash)),
    );
}

#[test]
fn the_agent_may_end_at_any_operation_of_a_life_in_which_it_lets_go() {
    end_anywhere(LET_GO);
}

#[test]
fn the_agent_may_end_at_any_operation_of_a_life_in_which_the_file_is_moved_away_and_back() {
    end_anywhere(MOVED);
}

#[test]
fn the_machine_may_lose_power_at_any_operation_of_the_disk() {
    all(TO_A_NEW_GENERATION, at_each(TO_A_NEW_GENERATION, |_| true, Trouble::PowerLoss));
    all(TO_A_NEW_GENERATION, at_each(TO_A_NEW_GENERATION, |_| true, Trouble::PowerLossBehind));
}

#[test]
fn what_a_server_still_needs_survives_a_power_cut_though_the_application_restarted_the_wal() {
    let mut processes = Vec::new();
    for seed in 0..POWER_CUTS {
        println!("seed {seed}");
        let mut life = Life::with(TO_A_NEW_GENERATION, Trouble::None, 100_000, seed, processes);
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

#[test]
fn what_a_failed_sync_should_have_made_durable_is_never_relied_on() {
    let mut processes = Vec::new();
    for trouble in [Trouble::FailedSync, Trouble::FailedSyncBehind] {
        let mut shadows = 0;
        for trouble in at_each(TO_A_NEW_GENERATION, is_sync, trouble) {
            let _named = Named(trouble);
            let mut life = Life::new(TO_A_NEW_GENERATION, trouble, processes);
            life.live();
            if life.awaits_power_cut() {
                life.lose_power_at_last();
            }
            if life.has_failed_sync_of_shadow() && !life.was_stopping {
                let has = |reason: &str| life.reasons.iter().any(|had| had == reason);
                let story = life.world.story();
                assert!(has(SYNC_FAILED) || has(RESTARTED), "{:?}{story}", life.reasons);
                shadows += usize::from(has(SYNC_FAILED));
            }
            processes = life.rest();
        }
        assert!(shadows >= LEAST_SYNCS, "{shadows} syncs of shadow files failed");
    }
}

#[test]
fn any_operation_of_the_disk_may_fail() {
    operations(TO_A_NEW_GENERATION);
    all(
        TO_A_NEW_GENERATION,
        at_each(TO_A_NEW_GENERATION, |_| true, |at| Trouble::Disk(at, DiskFault::Failed)),
    );
}

#[test]
fn the_disk_may_be_full_for_a_while_from_any_operation_on() {
    all(TO_A_NEW_GENERATION, at_each(TO_A_NEW_GENERATION, |_| true, Trouble::Full));
}

#[test]
fn any_operation_of_the_server_may_fail_or_be_carried_out_unheard() {
    let (_, server) = operations(TO_A_NEW_GENERATION);
    for fault in [Fault::Lost, Fault::Unanswered, Fault::Torn(1), Fault::Late(5)] {
        all(TO_A_NEW_GENERATION, (0..server).map(|at| Trouble::Server(at, fault)));
    }
}

#[test]
fn the_agent_may_end_at_any_operation_of_the_server() {
    let (_, server) = operations(TO_A_NEW_GENERATION);
    for fault in [Fault::Unanswered, Fault::Late(5)] {
        all(TO_A_NEW_GENERATION, (0..server).map(|at| Trouble::ServerAndEnd(at, fault)));
    }
}
