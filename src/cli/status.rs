//! `agent status`: asks the running agent.

use super::{Failure, NOT_RUNNING};
use crate::control::{self, Request};
use std::path::PathBuf;

/// Say how well replication works
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration, for the path of the control socket [default: /etc/wal-agent.yml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket; wins over the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the status; its health is the exit code.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let socket = super::socket(arguments.socket, arguments.config.as_deref())?;
    let request = if arguments.json { Request::StatusJson } else { Request::Status };
    let reply = control::ask(&socket, &request).map_err(|error| Failure::new(NOT_RUNNING, error))?;
    super::print(&reply.body)?;
    Ok(control::exit_code(reply.health))
}
