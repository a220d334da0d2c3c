//! A program that writes to a SQLite database, for tests: it prints a commit's number once that commit has returned.
//!
//! Every row says how many rows its transaction has, so that a torn transaction shows.

use clap::{Parser, ValueEnum};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use std::io::{self, BufRead, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// The database; made if it is not there.
    database: PathBuf,
    /// How many commits; without it, until stdin closes.
    #[arg(long)]
    commits: Option<u32>,
    /// One commit for every line on stdin.
    #[arg(long)]
    step: bool,
    /// Rows of a transaction: "5", or "1-10".
    #[arg(long, default_value = "1", value_parser = range)]
    rows: RangeInclusive<usize>,
    /// Bytes of a row: "100", or "1-5000".
    #[arg(long, default_value = "100", value_parser = range)]
    size: RangeInclusive<usize>,
    /// Tells apart the commits of several writers.
    #[arg(long, default_value_t = 0)]
    writer: i64,
    /// Of the sizes and bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "FULL")]
    synchronous: String,
    /// Milliseconds.
    #[arg(long, default_value_t = 5000)]
    busy_timeout: u64,
    /// Milliseconds after each commit.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Pages.
    #[arg(long, default_value_t = 1000)]
    autocheckpoint: u32,
    /// Bytes, for a database that is not there yet.
    #[arg(long, default_value_t = 4096)]
    page_size: u32,
    #[arg(long, value_enum, default_value = "plain")]
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// One connection; rows are added.
    Plain,
    /// Rows are added, changed and removed.
    Churn,
    /// A connection for every commit.
    OneShot,
    /// Before every commit, a transaction that is larger than the cache and rolled back.
    Rollback,
    /// Between commits, checkpoints in every mode.
    Checkpoint,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut random = StdRng::seed_from_u64(arguments.seed ^ (arguments.writer as u64) << 32);
    let mut connection = open_patiently(&arguments)?;
    let sql = "SELECT coalesce(max(batch), 0) FROM rows WHERE writer = ?";
    let mut batch: i64 = connection.query_row(sql, [arguments.writer], |row| row.get(0))?;
    for _ in commits(&arguments) {
        batch += 1;
        if arguments.mode == Mode::OneShot {
            drop(connection);
            connection = open_patiently(&arguments)?;
        }
        while let Err(error) = commit(&mut connection, &arguments, &mut random, batch) {
            if !is_busy(&error) {
                return Err(error.into());
            }
            writeln!(io::stdout(), "busy {batch}")?;
        }
        writeln!(io::stdout(), "committed {batch}")?;
        if arguments.pause > 0 {
            thread::sleep(Duration::from_millis(arguments.pause));
        }
        if arguments.mode == Mode::Checkpoint && random.random_ratio(1, 30) {
            let mode = CHECKPOINTS[random.random_range(0..CHECKPOINTS.len())];
            connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
        }
    }
    Ok(())
}

/// One item for every commit to be made.
fn commits(arguments: &Arguments) -> Box<dyn Iterator<Item = ()>> {
    if arguments.step {
        return Box::new(io::stdin().lines().map_while(Result::ok).map(drop));
    }
    if let Some(count) = arguments.commits {
        return Box::new((0..count).map(drop));
    }
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    thread::spawn(move || {
        io::stdin().lock().lines().for_each(drop);
        closed.store(true, Ordering::Relaxed);
    });
    Box::new(std::iter::from_fn(move || (!seen.load(Ordering::Relaxed)).then_some(())))
}

const CHECKPOINTS: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Several writers that begin at once are in each other's way: SQLite does not wait when the journal mode changes.
fn open_patiently(arguments: &Arguments) -> rusqlite::Result<Connection> {
    let end = Instant::now() + Duration::from_millis(arguments.busy_timeout);
    loop {
        match open(arguments) {
            Err(error) if is_busy(&error) && Instant::now() < end => thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
}

const BUSY_PAUSE: Duration = Duration::from_millis(5);

fn open(arguments: &Arguments) -> rusqlite::Result<Connection> {
    let connection = Connection::open(&arguments.database)?;
    connection.busy_timeout(Duration::from_millis(arguments.busy_timeout))?;
    connection.pragma_update(None, "page_size", arguments.page_size)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", &arguments.synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", arguments.autocheckpoint)?;
    if arguments.mode == Mode::Rollback {
        connection.pragma_update(None, "cache_size", 10)?;
    }
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS rows
         (id INTEGER PRIMARY KEY, writer INTEGER, batch INTEGER, of INTEGER, data BLOB);
         CREATE INDEX IF NOT EXISTS rows_of ON rows (writer, batch)",
    )?;
    Ok(connection)
}

fn commit(
    connection: &mut Connection,
    arguments: &Arguments,
    random: &mut StdRng,
    batch: i64,
) -> rusqlite::Result<()> {
    if arguments.mode == Mode::Rollback {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        add_rows(&transaction, arguments, random, batch, 200)?;
        transaction.rollback()?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let count = random.random_range(arguments.rows.clone());
    add_rows(&transaction, arguments, random, batch, count)?;
    if arguments.mode == Mode::Churn {
        let old = random.random_range(0..batch);
        let data = bytes(arguments, random);
        let changed = params![data, arguments.writer, old];
        transaction.execute("UPDATE rows SET data = ? WHERE writer = ? AND batch = ?", changed)?;
        let removed = params![arguments.writer, random.random_range(0..batch)];
        transaction.execute("DELETE FROM rows WHERE writer = ? AND batch = ?", removed)?;
    }
    transaction.commit()
}

fn add_rows(
    transaction: &Transaction<'_>,
    arguments: &Arguments,
    random: &mut StdRng,
    batch: i64,
    count: usize,
) -> rusqlite::Result<()> {
    let mut insert =
        transaction.prepare_cached("INSERT INTO rows (writer, batch, of, data) VALUES (?, ?, ?, ?)")?;
    for _ in 0..count {
        insert.execute(params![arguments.writer, batch, count as i64, bytes(arguments, random)])?;
    }
    Ok(())
}

fn bytes(arguments: &Arguments, random: &mut StdRng) -> Vec<u8> {
    let mut data = vec![0; random.random_range(arguments.size.clone())];
    random.fill(data.as_mut_slice());
    data
}

fn range(text: &str) -> Result<RangeInclusive<usize>, std::num::ParseIntError> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Ok(low.parse()?..=high.parse()?)
}
