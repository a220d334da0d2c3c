//! `agent detach`: asks the running agent to let go of a database.

use super::{FAILED, Failure, NOT_RUNNING, OK, WRONG};
use crate::control::{self, Request};
use crate::core::status::Health;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the agent may take: a checkpoint of what is in the WAL, or a snapshot that is being read.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Let go of a database that its application has closed, now: its file alone is the database then
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The database
    #[arg(value_name = "DB")]
    database: PathBuf,
    /// The configuration, for the path of the control socket [default: /etc/wal-agent.yml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket; wins over the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Returns when the agent has let go; fails, saying why, if it cannot.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let socket = super::socket(arguments.socket, arguments.config.as_deref())?;
    let path = std::path::absolute(&arguments.database).map_err(|error| Failure::new(WRONG, error))?;
    let request = Request::Detach(path.canonicalize().unwrap_or(path));
    let end = Instant::now() + PATIENCE;
    loop {
        let reply = control::ask(&socket, &request).map_err(|error| Failure::new(NOT_RUNNING, error))?;
        match reply.health {
            Health::Healthy => return Ok(OK),
            Health::Lagging if Instant::now() < end => std::thread::sleep(PAUSE),
            Health::Lagging => {
                return Err(Failure::new(FAILED, anyhow::anyhow!("{}", reply.body.trim_end())));
            }
            Health::Failing => return Err(Failure::new(WRONG, anyhow::anyhow!("{}", reply.body.trim_end()))),
        }
    }
}
