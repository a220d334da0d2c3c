//! The program `agent`.

use clap::Parser;
use log::LevelFilter;
use std::io::Write;
use std::process::ExitCode;
use wal_agent::cli::Cli;

fn main() -> ExitCode {
    start_log();
    match Cli::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("agent: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Plain lines on stderr. Without `RUST_LOG`, the level can be changed later: the configuration may have one.
fn start_log() {
    let mut builder = env_logger::Builder::new();
    builder.format(|out, record| {
        writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
    });
    if std::env::var_os("RUST_LOG").is_some() {
        builder.parse_default_env().init();
    } else {
        builder.filter_level(LevelFilter::Warn).filter_module("wal_agent", LevelFilter::Debug).init();
        log::set_max_level(LevelFilter::Info);
    }
}
