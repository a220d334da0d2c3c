//! The program `agent`.

use clap::Parser;
use log::{Level, LevelFilter};
use std::io::Write;
use std::process::ExitCode;
use wal_agent::cli::Cli;
use wal_agent::{memory, service};

fn main() -> ExitCode {
    memory::share_one_heap();
    start_log();
    match Cli::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Plain lines on stderr; in the journal, which has a clock of its own, with systemd's levels. Without `RUST_LOG`, the level can be changed later: the configuration may have one.
fn start_log() {
    let mut builder = env_logger::Builder::new();
    if service::is_journal() {
        builder.format(|out, record| {
            let level = priority(record.level());
            record.args().to_string().lines().try_for_each(|line| writeln!(out, "<{level}>{line}"))
        });
    } else {
        builder.format(|out, record| {
            writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
        });
    }
    if std::env::var_os("RUST_LOG").is_some() {
        builder.parse_default_env().init();
    } else {
        builder.filter_level(LevelFilter::Warn).filter_module("wal_agent", LevelFilter::Debug).init();
        log::set_max_level(LevelFilter::Info);
    }
}

/// The priority that syslog gives a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
