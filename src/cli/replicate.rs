//! `agent replicate`: the agent itself, in the foreground.

use super::{FAILED, Failure, OK};
use crate::config::Config;
use crate::event_loop::{self, CheckConfig, Ended};
use crate::service;
use anyhow::anyhow;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Replicate databases until SIGINT or SIGTERM; SIGHUP takes on a changed configuration
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration [default: /etc/wal-agent.yml]
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    config: Option<PathBuf>,
    /// The control socket; wins over the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Replicate this one database, without any configuration file
    #[arg(value_name = "DB", requires = "urls")]
    database: Option<PathBuf>,
    /// Where to: sftp://user@host/path, file:///path; other users of this machine can see passwords in arguments
    #[arg(value_name = "REPLICA_URL")]
    urls: Vec<String>,
}

/// Runs until it is told to stop; exit code 1 if something was not acknowledged by then.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let mut config = match &arguments.database {
        Some(database) => Config::from_arguments(database, &arguments.urls)?,
        None => super::load(arguments.config.as_deref())?,
    };
    config.socket = arguments.socket.unwrap_or(config.socket);
    if let Some(level) = config.log_level.filter(|_| super::variable("RUST_LOG").is_none()) {
        log::set_max_level(level);
    }
    let check = || match super::load(arguments.config.as_deref()) {
        Ok(_) => Ok(()),
        Err(errors) => Err(errors.to_string()),
    };
    // Without a configuration, a terminal that is closed ends the agent, as it would any program.
    let check: Option<CheckConfig<'_>> = if arguments.database.is_none() { Some(&check) } else { None };
    service::open_as_many_files_as_allowed();
    match event_loop::run(&config, check)? {
        Ended::Stopped { all_acknowledged } => Ok(if all_acknowledged { OK } else { FAILED }),
        Ended::Reload => Err(begin_anew()),
    }
}

/// Begins anew in this very process, as after any restart: with no thread, lock or login of before. Returns only if
/// that fails.
fn begin_anew() -> Failure {
    // Nobody catches them between here and there.
    service::keep_signals();
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_else(|| "agent".into());
    let error = Command::new(&program).args(words).exec();
    Failure::new(FAILED, anyhow!("cannot start {} anew: {error}", program.display()))
}
