//! What an application on the same machine feels: writers alone, beside the agent, and beside Litestream, in turns.
//!
//! `cargo bench --bench writer -- [--rounds N] [--seconds S] [--only WORKLOAD] [--synchronous full] [--to folder]`.
//! Everything replicates to a real sshd on loopback, which shares the writers' cores as no user's server does, or to a
//! folder in memory, which costs next to nothing. One line for each run; compare lines of one round, never figures of
//! two machines.

#[allow(dead_code)] // tests need more of the outside world
#[path = "../it/support/mod.rs"]
mod support;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use rusqlite::{Connection, ErrorCode};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};
use support::agent::Agent;
use support::process::Killed;
use support::scene::{of_database, on_server};
use support::sshd::Sshd;
use support::{litestream, temporary_folder};
use wal_agent::remote::location::SftpLocation;

#[derive(Parser)]
struct Arguments {
    /// What cargo gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// How often each workload meets each companion.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each run lasts.
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// This workload alone.
    #[arg(long, value_enum)]
    only: Option<Workload>,
    /// How the writers sync: NORMAL, or FULL as SQLite does by default.
    #[arg(long, default_value = "normal")]
    synchronous: String,
    /// Where everything is replicated to.
    #[arg(long, value_enum, default_value_t = Destination::Sshd)]
    to: Destination,
    /// Plays a writer on this database; for the benchmark itself.
    #[arg(long, hide = true)]
    play: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
enum Workload {
    /// One writer of small transactions that never pauses.
    FlatOut,
    /// One writer of transactions of a megabyte.
    Bulk,
    /// Three writers that also checkpoint, in every mode.
    Checkpoints,
    /// A thousand transactions a second, without a busy timeout.
    Impatient,
    /// A thousand transactions a second beside a reader that has begun before them and goes on reading.
    LongReader,
}

impl Workload {
    fn is_paced(self) -> bool {
        matches!(self, Workload::Impatient | Workload::LongReader)
    }

    fn writers(self) -> usize {
        if self == Workload::Checkpoints { 3 } else { 1 }
    }
}

#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
enum Destination {
    /// A real sshd on the same cores.
    Sshd,
    /// A folder in memory.
    Folder,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Companion {
    Nobody,
    Agent,
    Litestream,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let length = Duration::from_secs_f64(arguments.seconds);
    if let (Some(database), Some(workload)) = (&arguments.play, arguments.only) {
        return play(database, workload, &arguments.synchronous, length);
    }
    println!(
        "{:<12} {:<10} {:>9} {:>8} {:>8} {:>9} {:>9} {:>6} {:>7}",
        "workload", "beside", "a second", "p50 ms", "p99 ms", "max ms", "stall ms", "busy", "WAL MB"
    );
    let workloads =
        Workload::value_variants().iter().filter(|&&w| arguments.only.is_none_or(|only| only == w));
    for &workload in workloads {
        for _ in 0..arguments.rounds {
            for companion in [Companion::Nobody, Companion::Agent, Companion::Litestream] {
                measure(workload, companion, &arguments, length)?;
            }
        }
    }
    Ok(())
}

/// One run, and its line.
fn measure(
    workload: Workload,
    companion: Companion,
    arguments: &Arguments,
    length: Duration,
) -> anyhow::Result<()> {
    let (folder, server) = (temporary_folder(), Sshd::start());
    let database = folder.path().join("app.db");
    prepare(&database)?;
    // Another machine's disk is not the application's.
    let far = tempfile::tempdir_in("/dev/shm")?;
    let location = SftpLocation { path: far.path().display().to_string(), ..server.location() };
    let mut agent = None;
    let mut litestream = None;
    match companion {
        Companion::Nobody => {}
        Companion::Agent => {
            let replica = match arguments.to {
                Destination::Sshd => on_server(&location, "replica"),
                Destination::Folder => format!("{{type: file, path: '{}'}}", far.path().display()),
            };
            let text = of_database(&database, &[&replica]);
            let started = Agent::start(folder.path(), &text);
            started.wait_for_status("the snapshot is there", |status| status["health"] == "healthy");
            agent = Some(started);
        }
        Companion::Litestream => {
            let replica = match arguments.to {
                Destination::Sshd => litestream::on_server(&location),
                Destination::Folder => litestream::in_folder(far.path()),
            };
            let path = litestream::configuration(folder.path(), &database, &replica);
            litestream = Some(litestream::replicate(&path));
            thread::sleep(Duration::from_secs(2)); // it says nowhere that it is ready
        }
    }
    let reader = (workload == Workload::LongReader).then(|| begin_to_read(&database)).transpose()?;
    let cpu_before = agent.as_ref().map(|agent| cpu_time(agent.pid())).transpose()?;
    let writers: Vec<Child> = (0..workload.writers())
        .map(|_| start(&database, workload, &arguments.synchronous, length))
        .collect::<Result<_, _>>()?;
    let largest = largest_wal(&database.with_extension("db-wal"), length);
    let mut answers = Answers::default();
    for writer in writers {
        answers.take(&String::from_utf8(writer.wait_with_output()?.stdout)?)?;
    }
    drop(reader);
    let stall = answers.longest_stall();
    answers.waits.sort_unstable();
    let at = |part: f64| answers.waits[((answers.waits.len() - 1) as f64 * part) as usize] as f64 / 1e6;
    println!(
        "{:<12} {:<10} {:>9.0} {:>8.3} {:>8.3} {:>9.1} {:>9.1} {:>6} {:>7.1}",
        format!("{workload:?}"),
        format!("{companion:?}"),
        answers.waits.len() as f64 / length.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        stall.as_secs_f64() * 1e3,
        answers.busy,
        largest as f64 / 1e6,
    );
    if let Some(agent) = agent {
        let status = agent.status().unwrap_or_default();
        let holds = &status["databases"][0]["write_lock_holds"];
        let cpu = cpu_time(agent.pid())? - cpu_before.unwrap_or_default();
        println!(
            "{:>23} write lock held {} times, at most {} us; CPU {:.1} %",
            "",
            holds["count"],
            holds["max_micros"],
            100.0 * cpu.as_secs_f64() / length.as_secs_f64()
        );
        agent.kill();
    }
    drop::<Option<Killed>>(litestream);
    Ok(())
}

fn begin_to_read(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(database)?;
    connection.execute_batch("BEGIN; SELECT count(*) FROM rows")?;
    Ok(connection)
}

/// What a process has used so far, of all cores (proc_pid_stat(5): utime and stime, in hundredths of a second).
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(10 * ticks.sum::<Result<u64, _>>()?))
}

fn prepare(database: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open(database)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB)")
}

fn start(database: &Path, workload: Workload, synchronous: &str, length: Duration) -> anyhow::Result<Child> {
    let name = workload.to_possible_value().expect("no workload is skipped");
    Ok(Command::new(std::env::current_exe()?)
        .args(["--only", name.get_name(), "--seconds", &length.as_secs_f64().to_string()])
        .args(["--synchronous", synchronous, "--play"])
        .arg(database)
        .stdout(Stdio::piped())
        .spawn()?)
}

/// Looks at the WAL now and then, as long as the writers write.
fn largest_wal(wal: &Path, length: Duration) -> u64 {
    let end = Instant::now() + length;
    let mut largest = 0;
    while Instant::now() < end {
        largest = largest.max(fs::metadata(wal).map_or(0, |file| file.len()));
        thread::sleep(Duration::from_millis(5));
    }
    largest
}

/// How long every operation took and when it ended, in nanoseconds, and how many were turned away.
#[derive(Default)]
struct Answers {
    waits: Vec<u64>,
    /// Since the epoch: the one clock that processes share without asking.
    ends: Vec<u64>,
    busy: u64,
}

impl Answers {
    fn take(&mut self, said: &str) -> anyhow::Result<()> {
        for line in said.lines() {
            match line.strip_prefix("busy ") {
                Some(count) => self.busy += count.parse::<u64>()?,
                None => {
                    let (end, wait) = line.split_once(' ').context("an end and a wait")?;
                    self.ends.push(end.parse()?);
                    self.waits.push(wait.parse()?);
                }
            }
        }
        Ok(())
    }

    /// The longest time in which no writer came to an end of anything. One operation may wait longer while the others go
    /// on: SQLite's busy handler sleeps, and whoever sleeps is not served in turn.
    fn longest_stall(&self) -> Duration {
        let mut ends = self.ends.clone();
        ends.sort_unstable();
        let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_nanos(gaps.max().unwrap_or_default())
    }
}

/// Writes until the time is over; then says how long each operation took.
fn play(database: &Path, workload: Workload, synchronous: &str, length: Duration) -> anyhow::Result<()> {
    let connection = Connection::open(database)?;
    let patience = if workload == Workload::Impatient { 0 } else { 20_000 };
    connection.busy_timeout(Duration::from_millis(patience))?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    let (rows, size) = if workload == Workload::Bulk { (256, 3900) } else { (1, 100) };
    let mut answers = Answers::default();
    let begin = Instant::now();
    for turn in 0_u32.. {
        if workload.is_paced() {
            thread::sleep(
                (begin + turn * Duration::from_millis(1)).saturating_duration_since(Instant::now()),
            );
        }
        let before = Instant::now();
        if before.duration_since(begin) >= length {
            break;
        }
        let result = match workload {
            Workload::Checkpoints if turn % 50 == 49 => {
                let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][turn as usize / 50 % 4];
                connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
            }
            _ => commit(&connection, rows, size),
        };
        match result {
            Ok(()) => {
                answers.waits.push(u64::try_from(before.elapsed().as_nanos())?);
                answers.ends.push(u64::try_from(UNIX_EPOCH.elapsed()?.as_nanos())?);
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                answers.busy += 1;
                if !connection.is_autocommit() {
                    connection.execute_batch("ROLLBACK")?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut output = std::io::stdout().lock();
    writeln!(output, "busy {}", answers.busy)?;
    for (end, wait) in answers.ends.iter().zip(&answers.waits) {
        writeln!(output, "{end} {wait}")?;
    }
    Ok(())
}

fn commit(connection: &Connection, rows: u32, size: u32) -> rusqlite::Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO rows (data) VALUES (CAST(randomblob(?1 / 2) || zeroblob(?1 / 2) AS BLOB))",
    )?;
    for _ in 0..rows {
        insert.execute([size])?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}
