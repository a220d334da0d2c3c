//! The soak: for hours, everything that can happen to several databases, an agent and a server, in real processes. Again
//! and again the writers of a database pause, and what a restore gives is compared with the database, row by row. And
//! whatever is killed, what had returned to a writer must be in its database.
//!
//! `tests/soak 2h` runs it. Any difference and any error without an explanation ends it, and its folder is kept.

mod database;
mod host;
mod tally;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../support"]
mod support {
    pub mod agent;
    pub mod compare;
    pub mod process;
    pub mod sqlite;
    pub mod sshd;
    pub mod wait;

    use std::path::PathBuf;

    /// A folder that is kept: `tests/soak` removes everything if all went well.
    pub fn temporary_folder() -> tempfile::TempDir {
        let mut builder = tempfile::Builder::new();
        builder.prefix("soak-").disable_cleanup(true).tempdir().expect("a temporary folder can be made")
    }

    /// The folder that the agent is in, and in `examples` the programs of the tests.
    pub fn build_folder() -> PathBuf {
        let program = std::env::current_exe().expect("a process knows its program");
        program.ancestors().nth(2).expect("examples are in target/<profile>/examples").to_owned()
    }
}

use clap::Parser;
use database::{Database, PLANS};
use host::Host;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};
use tally::Tally;

#[derive(Parser)]
struct Arguments {
    /// For how long: 300s, 90m, 2h.
    #[arg(value_parser = duration)]
    length: Duration,
    /// Of everything that is chosen; printed, and made up if it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

/// What the threads share.
struct Soak {
    end: Instant,
    /// Whether something was found, and all are to end.
    is_over: AtomicBool,
    /// Databases at work.
    databases: AtomicUsize,
    /// Whether an agent answers.
    is_agent_up: AtomicBool,
    /// Held for writing while the server is disturbed, and in the moments in which the agent comes or goes; for reading
    /// by whoever needs them as they are.
    calm: RwLock<()>,
    tally: Mutex<Tally>,
}

impl Soak {
    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !self.is_over()
    }

    fn is_agent_up(&self) -> bool {
        self.is_agent_up.load(Ordering::Relaxed)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &str) {
        self.tally().count(what, 1);
    }

    /// Whether a database is still at work, and needs the agent.
    fn has_databases(&self) -> bool {
        self.databases.load(Ordering::Relaxed) > 0
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Lets time pass: the pace is the soak's own, there is nothing to wait for. Ends early if something was found.
    fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_over() {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }
}

/// Ends all threads when one of them panics.
struct Alarm<'a>(&'a Soak);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_over.store(true, Ordering::Relaxed);
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let begun = Instant::now();
    let folder = support::temporary_folder();
    println!("seed {seed}, folder {}", folder.path().display());
    let soak = Soak {
        end: begun + arguments.length,
        is_over: AtomicBool::new(false),
        databases: AtomicUsize::new(PLANS.len()),
        is_agent_up: AtomicBool::new(false),
        calm: RwLock::new(()),
        tally: Mutex::default(),
    };
    let host = Host::new(folder.path(), StdRng::seed_from_u64(seed));
    let configuration = host.configuration();
    let all_went_well = thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| {
            let _alarm = Alarm(&soak);
            host.live(&soak);
        })];
        for (plan, number) in PLANS.iter().zip(1..) {
            let (soak, configuration) = (&soak, configuration.clone());
            let random = StdRng::seed_from_u64(seed + number * 1_000_000);
            threads.push(scope.spawn(move || {
                let _alarm = Alarm(soak);
                Database::new(plan, configuration, random).live(soak);
                soak.databases.fetch_sub(1, Ordering::Relaxed);
            }));
        }
        let ended: Vec<bool> = threads.into_iter().map(|thread| thread.join().is_ok()).collect();
        ended.into_iter().all(|is_well| is_well)
    });
    println!("seed {seed}, {} s\n{}", begun.elapsed().as_secs(), soak.tally());
    if !all_went_well {
        println!("something is wrong, see above; everything is kept in {}", folder.path().display());
        return ExitCode::FAILURE;
    }
    println!("no difference");
    ExitCode::SUCCESS
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("a number with s, m or h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    Ok(Duration::from_secs(number * seconds))
}
