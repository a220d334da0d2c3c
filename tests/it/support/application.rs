//! A program for tests that is an application: it does what each line on stdin says with SQLite, and answers each with
//! a line. It can be told to die, or to fail an fsync, in the middle of whatever SQLite is doing.
//!
//! ```text
//! open C PATH          opens connection C                       ok | error MESSAGE
//! sql C TEXT           runs statements                          ok VALUES | error MESSAGE
//! close C              closes it                                ok
//! state C              the committed state           state CRC PAGES PAGE-SIZE HEADER FRAMES BACKFILLED COUNTER
//! image C FILE         writes the committed state to a file     ok
//! patience C on|off    whether to ask, instead of answering "locked": says "waiting", and reads "again" or "enough"
//! seed N               of SQLite's randomness                   ok
//! move FROM TO         as `mv -f`, and syncs TO                 ok | error MESSAGE
//! copy FROM TO         as `cp`, which keeps TO's inode          ok | error MESSAGE
//! remove PATH          as `rm -f`                               ok | error MESSAGE
//! die wal|db|sync N    dies at the N-th such call from now on   ok
//! fail sync N          the N-th such call from now on fails     ok
//! pause wal|db|sync|lock N
//!                      before the N-th such call from now on, says "waiting", and reads a line    ok
//! ```
//! An N of 0 takes it back.

#[allow(dead_code, reason = "the test's process uses the rest")]
mod power;

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB, ffi};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use wal_agent::core::checksum::Crc64;

/// Where a fault can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    WalWrite,
    DatabaseWrite,
    Sync,
    Lock,
}

impl Call {
    fn of(word: &str) -> anyhow::Result<Call> {
        Ok(match word {
            "wal" => Call::WalWrite,
            "db" => Call::DatabaseWrite,
            "sync" => Call::Sync,
            "lock" => Call::Lock,
            _ => anyhow::bail!("not a call: {word}"),
        })
    }

    /// What is written.
    fn of_write(descriptor: c_int) -> Option<Call> {
        let name = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap_or_default();
        let name = name.as_os_str().as_encoded_bytes();
        let is_wal = name.ends_with(b"-wal").then_some(Call::WalWrite);
        let is_database = name.ends_with(b".db") || name.ends_with(b".db-aside");
        is_wal.or(is_database.then_some(Call::DatabaseWrite))
    }
}

/// Calls of each kind until the fault; 0 for never.
type Countdowns = [AtomicI64; 4];

static PAUSE: Countdowns = [const { AtomicI64::new(0) }; 4];
static FAIL: Countdowns = [const { AtomicI64::new(0) }; 4];
static DIE: Countdowns = [const { AtomicI64::new(0) }; 4];

fn is_armed(countdown: &AtomicI64) -> bool {
    countdown.load(Ordering::Relaxed) > 0
}

/// Whether this call is the one.
fn is_due(countdowns: &Countdowns, call: Call) -> bool {
    let countdown = &countdowns[call as usize];
    is_armed(countdown) && countdown.fetch_sub(1, Ordering::Relaxed) == 1
}

/// Stands still in the middle of what it does, until it is told to go on.
fn before(call: Call) {
    if is_due(&PAUSE, call) {
        ask(0);
    }
}

fn after(call: Call) {
    if is_due(&DIE, call) {
        die();
    }
}

fn die() -> ! {
    // SAFETY: kill has no preconditions; SIGKILL to ourselves does not return.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}

/// The C library's own, but for the faults: SQLite writes by it.
#[unsafe(no_mangle)]
extern "C" fn pwrite64(descriptor: c_int, bytes: *const c_void, count: usize, at: libc::off_t) -> isize {
    let is_any_armed = PAUSE.iter().chain(&DIE).any(is_armed);
    let call = if is_any_armed { Call::of_write(descriptor) } else { None };
    call.into_iter().for_each(before);
    // SAFETY: the caller's promises are handed on as they are.
    let written = unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, bytes, count, at) } as isize;
    call.into_iter().for_each(after);
    written
}

/// The C library's own, but for the pauses: SQLite locks by it. All its commands take one argument or none.
#[unsafe(no_mangle)]
extern "C" fn fcntl64(descriptor: c_int, command: c_int, argument: usize) -> c_int {
    if command == libc::F_SETLK {
        before(Call::Lock);
    }
    // SAFETY: the caller's promises are handed on as they are.
    unsafe { libc::syscall(libc::SYS_fcntl, descriptor, command, argument) as c_int }
}

/// Under its older name.
#[unsafe(no_mangle)]
extern "C" fn fcntl(descriptor: c_int, command: c_int, argument: usize) -> c_int {
    fcntl64(descriptor, command, argument)
}

/// SQLite sleeps here, for ten seconds in all, while somebody who stands still has locks that nobody has for long.
#[unsafe(no_mangle)]
extern "C" fn nanosleep(_time: *const libc::timespec, _left: *mut libc::timespec) -> c_int {
    0
}

/// Whether this sync is to fail; or the process ends.
fn sync_fails() -> bool {
    before(Call::Sync);
    after(Call::Sync);
    is_due(&FAIL, Call::Sync)
}

fn main() {
    power::FAULT.get_or_init(|| sync_fails);
    let mut connections = HashMap::new();
    while let Some(line) = read_line() {
        let answer = match obey(&mut connections, &line) {
            Ok(answer) => answer,
            Err(error) => format!("error {}", error.to_string().replace('\n', " ")),
        };
        say(&answer);
    }
}

fn read_line() -> Option<String> {
    let mut line = String::new();
    let length = io::stdin().lock().read_line(&mut line).expect("stdin is text");
    (length > 0).then(|| line.trim_end().to_owned())
}

fn say(answer: &str) {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).expect("somebody listens");
}

fn obey(connections: &mut HashMap<String, (PathBuf, Connection)>, line: &str) -> anyhow::Result<String> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (first, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "open" => {
            let connection = Connection::open(rest)?;
            connection.busy_timeout(std::time::Duration::ZERO)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
            connections.insert(first.to_owned(), (rest.into(), connection));
            return Ok("ok".to_owned());
        }
        "close" => {
            connections.remove(first);
            return Ok("ok".to_owned());
        }
        "seed" => {
            let seed: c_int = first.parse()?;
            // SAFETY: this control takes an int and a connection, which may be null.
            unsafe {
                ffi::sqlite3_test_control(
                    ffi::SQLITE_TESTCTRL_PRNG_SEED,
                    seed,
                    std::ptr::null_mut::<ffi::sqlite3>(),
                )
            };
            return Ok("ok".to_owned());
        }
        "move" | "copy" | "remove" => {
            change_file(verb, first, rest)?;
            return Ok("ok".to_owned());
        }
        "die" | "fail" | "pause" => {
            let countdowns = match verb {
                "die" => &DIE,
                "fail" => &FAIL,
                _ => &PAUSE,
            };
            let countdown = &countdowns[Call::of(first)? as usize];
            countdown.store(rest.parse()?, Ordering::Relaxed);
            return Ok("ok".to_owned());
        }
        _ => {}
    }
    let Some((path, connection)) = connections.get_mut(first) else { anyhow::bail!("not open: {line}") };
    match verb {
        "sql" => run(connection, rest),
        "state" => state(path, connection),
        "image" => {
            std::fs::write(rest, &*connection.serialize(MAIN_DB)?)?;
            Ok("ok".to_owned())
        }
        "patience" => {
            match rest {
                "on" => connection.busy_handler(Some(ask))?,
                _ => connection.busy_handler(None::<fn(i32) -> bool>)?,
            }
            Ok("ok".to_owned())
        }
        _ => anyhow::bail!("not a command: {line}"),
    }
}

/// What an administrator does with a file that nobody in this process has open.
fn change_file(verb: &str, from: &str, to: &str) -> io::Result<()> {
    match verb {
        "move" => std::fs::rename(from, to)?,
        "copy" => drop(std::fs::copy(from, to)?),
        _ => {
            return match std::fs::remove_file(from) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            };
        }
    }
    std::fs::File::open(to)?.sync_all()
}

/// SQLite's busy handler: what becomes of the wait is decided on stdin. Whoever waits here stands still nowhere else.
fn ask(_tries: i32) -> bool {
    PAUSE.iter().for_each(|countdown| countdown.store(0, Ordering::Relaxed));
    say("waiting");
    read_line().is_some_and(|line| line == "again")
}

/// Runs statements; the values of the last row.
fn run(connection: &Connection, sql: &str) -> anyhow::Result<String> {
    let mut answer = "ok".to_owned();
    let mut batch = rusqlite::Batch::new(connection, sql);
    while let Some(mut statement) = batch.next()? {
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            "ok".clone_into(&mut answer);
            for column in 0..columns {
                let value: rusqlite::types::Value = row.get(column)?;
                answer.push_str(&match value {
                    rusqlite::types::Value::Integer(number) => format!(" {number}"),
                    rusqlite::types::Value::Text(text) => format!(" {text}"),
                    other => format!(" {other:?}"),
                });
            }
        }
    }
    Ok(answer)
}

/// What each commit raises by one; 0 before the first one.
fn counter(connection: &Connection) -> rusqlite::Result<i64> {
    match connection.table_exists(Some("main"), "c")? {
        true => connection.query_row("SELECT n FROM c", [], |row| row.get(0)),
        false => Ok(0),
    }
}

fn state(path: &Path, connection: &mut Connection) -> anyhow::Result<String> {
    let page_size: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let image = connection.serialize(MAIN_DB)?;
    let (crc, pages) = (Crc64::of(&image), image.len() as u64 / u64::from(page_size));
    drop(image);
    let (frames, backfilled) = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
    let mut wal = path.to_owned().into_os_string();
    wal.push("-wal");
    let mut header = [0; 32];
    // Only `-wal` may be opened beside SQLite: it carries no locks.
    let has_header = std::fs::File::open(wal).and_then(|file| file.read_exact_at(&mut header, 0)).is_ok();
    let header = if has_header { header.map(|byte| format!("{byte:02x}")).concat() } else { "-".to_owned() };
    let counter = counter(connection)?;
    Ok(format!("state {crc:016x} {pages} {page_size} {header} {frames} {backfilled} {counter}"))
}
