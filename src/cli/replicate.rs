//! `agent replicate`: the agent itself, in the foreground.

use super::{FAILED, Failure, OK};
use crate::config::Config;
use crate::event_loop;
use std::path::PathBuf;

/// Replicate databases until SIGINT or SIGTERM
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
    let is_all_acknowledged = event_loop::run(&config)?;
    Ok(if is_all_acknowledged { OK } else { FAILED })
}
