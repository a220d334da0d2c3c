//! Support: a life of a database, and what goes wrong in it.

use super::faulty::Fault;
use super::oracle::{Application, Habits, Process};
use super::sim_disk::DiskFault;
use super::world::{Settings, World};
use std::collections::BTreeSet;
use std::time::Duration;
use wal_agent::config::CheckpointSettings;
use wal_agent::core::position::Generation;
use wal_agent::core::status::SourceState;

/// The life must have at least so many operations of each kind, or it is not the one that is described above.
const LEAST_OPERATIONS: usize = 80;
/// Turns between two things that the application does.
const TURNS: usize = 60;

/// Steps of the life from a sync that fails to the power cut: by then its file may have been synced again.
const STEPS_TO_POWER_CUT: usize = 3;

/// Then the page table is kept up, or the database let go of.
const A_WHILE: Duration = Duration::from_secs(20);

/// Longer than the agent waits between two generations, of which the first came to nothing.
const PAUSE: Duration = Duration::from_secs(10);

/// What is to go wrong, at which operation.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
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

impl Trouble {
    /// What happens at which operation of the local disk.
    fn on_disk(self) -> Option<(usize, DiskFault)> {
        match self {
            Trouble::Disk(at, fault) => Some((at, fault)),
            Trouble::PowerLoss(at) | Trouble::PowerLossBehind(at) => Some((at, DiskFault::Crash)),
            Trouble::FailedSync(at) | Trouble::FailedSyncBehind(at) => Some((at, DiskFault::Failed)),
            Trouble::Full(at) => Some((at, DiskFault::Full(usize::MAX))),
            Trouble::None | Trouble::Server(..) | Trouble::ServerAndEnd(..) => None,
        }
    }
}

/// On a busy machine a life may have so many operations less: a step or two that wait by the real clock find nothing to do.
const FEW: usize = 3;

/// What happens in a life.
#[derive(Clone, Copy)]
pub struct Course {
    live: fn(&mut Life),
    let_go_after: Option<Duration>,
    /// Checks that a life without trouble was what it is meant to be.
    pub check: fn(&Life),
}

/// From the first snapshot over new indexes, checkpoints and restarts of the agent to a new generation.
pub const TO_A_NEW_GENERATION: Course =
    Course { live: Life::live_to_a_new_generation, let_go_after: None, check: Life::check_generations };

/// The agent lets go of the database while nobody has it open, and compares it after it has changed.
pub const LET_GO: Course = Course {
    live: Life::live_on_and_off,
    let_go_after: Some(Duration::from_secs(1)),
    check: Life::check_let_go,
};

/// The file is moved away and back.
pub const MOVED: Course = Course { live: Life::live_moved, let_go_after: None, check: Life::check_moved };

pub struct Life {
    pub world: World,
    trouble: Trouble,
    course: Course,
    /// The first operation that belongs to no other course.
    pub first: usize,
    /// Where the database stood after each step, and in which generation.
    past: Vec<(SourceState, Option<Generation>)>,
    /// Power is lost, or space is there again, after the trouble has come.
    is_over: bool,
    /// Steps since a sync failed.
    steps: usize,
    /// Why generations began since then.
    pub reasons: Vec<String>,
    /// The agent was told to stop before it came to that sync, so that no generation began.
    pub was_stopping: bool,
}

impl Life {
    pub fn new(course: Course, trouble: Trouble, processes: Vec<Process>) -> Life {
        Life::with(course, trouble, 20, 7, processes)
    }

    pub fn with(
        course: Course,
        trouble: Trouble,
        min_pages: u32,
        seed: u64,
        processes: Vec<Process>,
    ) -> Life {
        let habits = Habits { page_size: 1024, cache_pages: 20, ..Habits::PLAIN };
        let settings = Settings {
            checkpoint: CheckpointSettings { min_pages, max_pages: min_pages * 2, interval: None },
            let_go_after: course.let_go_after,
            ..Settings::PLAIN
        };
        let application = |database: &std::path::Path| Application::new(database, habits, processes, seed);
        let mut world = World::new(settings, seed, application);
        match trouble {
            Trouble::Server(at, fault) => world.servers[0].plan(at, fault),
            Trouble::ServerAndEnd(at, fault) => {
                world.servers[0].plan(at, fault);
                world.kill_behind(at);
            }
            _ => {}
        }
        Life {
            world,
            trouble,
            course,
            first: 0,
            past: Vec::new(),
            is_over: false,
            steps: 0,
            reasons: Vec::new(),
            was_stopping: false,
        }
    }

    /// Lets the agent work; if it has ended, the next one begins.
    pub fn go_on(&mut self) {
        self.world.drive(TURNS);
        self.after_step();
    }

    /// The same for a while: the page table is kept up, or the database let go of.
    fn go_on_for(&mut self, time: Duration) {
        self.world.rest_for(time);
        self.after_step();
    }

    fn after_step(&mut self) {
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
            self.start_agent();
            self.world.drive(TURNS);
        }
        if self.world.has_agent() {
            let status = self.world.status();
            self.past.push((status.state, status.generation));
        }
    }

    /// The next agent begins. Where the last one was ended, what it left restores; or power is lost before.
    fn start_agent(&mut self) {
        if self.has_lost_power() && !self.is_over {
            self.world.lose_power();
            self.is_over = true;
        }
        self.world.check_restore(0, true);
        self.world.start_agent();
        // The end of an agent takes with it what was planned.
        if let Some((at, fault)) = self.trouble.on_disk()
            && let Some(later) = at.checked_sub(self.world.disk.operations())
        {
            self.world.disk.plan(later, fault);
        }
    }

    /// Whether the operation has come at which power is lost.
    fn has_lost_power(&self) -> bool {
        let (Trouble::PowerLoss(at) | Trouble::PowerLossBehind(at)) = self.trouble else { return false };
        self.world.disk.operations() > at
    }

    /// Whether a sync has failed, and power is not lost yet.
    pub fn awaits_power_cut(&self) -> bool {
        let (Trouble::FailedSync(at) | Trouble::FailedSyncBehind(at)) = self.trouble else { return false };
        !self.is_over && self.world.disk.operations() > at
    }

    pub fn has_failed_sync_of_shadow(&self) -> bool {
        let log = self.world.disk.log();
        log.lines().any(|line| line.contains(": sync ") && line.ends_with(".wal Failed"))
    }

    /// A sync failed at the end of the life: there may be a pause before a generation begins.
    pub fn lose_power_at_last(&mut self) {
        self.world.rest_for(PAUSE);
        self.reasons.extend(self.world.status().breaks.last_reason);
        self.world.lose_power();
        self.is_over = true;
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

    pub fn write(&mut self, connection: usize) {
        self.world.application().run(connection, "UPDATE c SET n = n + 1");
    }

    pub fn live(&mut self) {
        (self.course.live)(self);
    }

    fn live_to_a_new_generation(&mut self) {
        self.world.application().create();
        self.start_agent();
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
        self.start_agent();
        self.go_on();
        self.write(1);
        self.go_on();
        // What happens to the WAL while no agent is there ends the generation.
        self.world.kill_agent();
        self.world.application().run(0, "PRAGMA wal_checkpoint(TRUNCATE)");
        self.write(0);
        self.start_agent();
        self.go_on();
        self.write(0);
        self.go_on();
    }

    fn check_generations(&self) {
        let operations = (self.world.disk.operations(), self.world.servers[0].operations());
        assert!(operations.0 > LEAST_OPERATIONS && operations.1 > LEAST_OPERATIONS, "{operations:?}");
        let log = self.world.disk.log();
        let count = |what: &str, end: &str| {
            log.lines().filter(|line| line.contains(what) && line.trim_end().ends_with(end)).count()
        };
        let lived =
            [count(": create ", ".wal"), count(": remove ", ".wal"), count(": replace ", "generation")];
        assert!(
            lived[0] >= 5 && lived[1] >= 1 && lived[2] >= 1,
            "shadow files, removed, generations: {lived:?}"
        );
    }

    /// The application goes, and comes again; once more while no agent is there.
    fn live_on_and_off(&mut self) {
        self.world.application().create();
        self.start_agent();
        self.fill();
        self.go_on_for(A_WHILE);
        self.first = self.world.disk.operations();
        self.close_all();
        self.go_on_for(A_WHILE);
        self.write(0);
        self.go_on_for(A_WHILE);
        if self.world.has_agent() {
            self.world.kill_agent();
        }
        self.write(1);
        self.world.application().run(0, "PRAGMA wal_checkpoint(TRUNCATE)");
        self.close_all();
        self.start_agent();
        self.go_on_for(A_WHILE);
        self.write(0);
        self.go_on();
    }

    fn check_let_go(&self) {
        let let_go = self.past.iter().filter(|(state, _)| *state == SourceState::Detached).count();
        assert!(let_go >= 2, "{:?}", self.past);
        // The WAL that would continue the shadow is gone: only the page table can have told what has changed.
        let generations: BTreeSet<_> =
            self.past.iter().map(|(_, generation)| generation.map(|g| g.to_string())).collect();
        assert_eq!(generations.len(), 1, "{:?}", self.past);
    }

    /// Away and back beside the agent, and over a restart of it.
    fn live_moved(&mut self) {
        self.world.application().create();
        self.start_agent();
        self.fill();
        self.go_on_for(A_WHILE);
        self.first = self.world.disk.operations();
        for restarts in [false, true] {
            self.write(0);
            self.go_on();
            self.close_all();
            self.world.application().pause();
            self.move_away();
            if restarts {
                self.world.kill_agent();
                self.start_agent();
                self.go_on();
            }
            self.move_back();
        }
    }

    fn check_moved(&self) {
        let absent = self.past.iter().filter(|(state, _)| *state == SourceState::Absent).count();
        assert!(absent >= 3, "{:?}", self.past);
        assert!(self.world.disk.log().contains(": replace held"), "whose the WAL is, was kept nowhere");
    }

    /// So much that what is changed later is a small part.
    fn fill(&mut self) {
        let rows = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 100)";
        let fill = format!("INSERT INTO t (n, data) {rows} SELECT i, zeroblob(700) FROM s");
        self.world.application().run(0, &fill);
    }

    fn close_all(&mut self) {
        self.world.application().remember_certainly();
        self.world.application().close_all();
    }

    fn move_away(&mut self) {
        self.world.application().move_away();
        self.world.application().show_all();
        self.go_on();
    }

    fn move_back(&mut self) {
        self.world.application().move_back();
        self.world.application().show_all();
        self.go_on();
        self.world.application().come_back();
        self.world.application().remember_certainly();
        self.go_on();
        self.write(0);
        self.go_on();
    }

    /// Lives, comes to rest, and is checked; the processes go back.
    pub fn end(mut self) -> Vec<Process> {
        self.live();
        // Letting go, and leaving, wait by the real clock: then there are not always as many operations.
        if let Some((at, _)) = self.trouble.on_disk().filter(|_| self.first == 0) {
            let operations = self.world.disk.operations();
            let was_too_late = (operations..operations + FEW).contains(&at);
            let has_come = was_too_late || !self.world.disk.injected().is_empty();
            assert!(has_come, "the trouble never came in {operations} operations{}", self.world.story());
        }
        self.rest()
    }

    /// Comes to rest, and is checked.
    pub fn rest(mut self) -> Vec<Process> {
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
