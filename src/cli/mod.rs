//! The command line: one command a file, and what every exit code means.

mod config;
mod demo;
mod detach;
mod replicate;
mod restore;
mod status;

use crate::config::{self as configuration, Config, ConfigErrors};
use clap::{Parser, Subcommand};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// All went well; the agent of `status` is healthy.
pub const OK: u8 = 0;
/// The command failed.
pub const FAILED: u8 = 1;
/// The arguments or the configuration are wrong. (The command line's parser uses it, too.)
pub const WRONG: u8 = 2;
/// `status`, `detach`: no agent is running, or it does not answer.
pub const NOT_RUNNING: u8 = 3;
/// `restore`: the replica was read, and there is nothing on it.
pub const NOTHING_TO_RESTORE: u8 = 4;
/// `restore`: the server's host key is not known, or not the known one.
pub const HOST_KEY: u8 = 5;

const EXIT_CODES: &str = "\
Exit codes:
  0  all went well; `status`: healthy
  1  the command failed; `status`: lagging
  2  the arguments or the configuration are wrong; `status`: failing
  3  `status`, `detach`: no agent is running, or it does not answer
  4  `restore`: there is nothing to restore
  5  `restore`: the server's host key is not known, or not the known one

RUST_LOG sets the level of the log: error, warn, info (the default), debug or trace.";

/// Keeps SQLite databases safe on another machine: every commit reaches an SFTP server, and comes back.
#[derive(Debug, Parser)]
#[command(name = "agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replicate(replicate::Arguments),
    Restore(restore::Arguments),
    Status(status::Arguments),
    Detach(detach::Arguments),
    Demo(demo::Arguments),
    #[command(subcommand)]
    Config(config::Command),
}

/// Why a command failed, and the exit code of that.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Cli {
    /// Carries the command out; returns the exit code.
    ///
    /// # Errors
    /// What to say, and the exit code.
    pub fn run(self) -> Result<u8, Failure> {
        match self.command {
            Command::Replicate(arguments) => replicate::run(arguments),
            Command::Restore(arguments) => restore::run(arguments),
            Command::Status(arguments) => status::run(arguments),
            Command::Detach(arguments) => detach::run(arguments),
            Command::Demo(arguments) => demo::run(arguments),
            Command::Config(command) => config::run(command),
        }
    }
}

impl Failure {
    fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Failure { code, error: error.into() }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(errors) = self.error.downcast_ref::<ConfigErrors>() {
            // As compilers print them, so that editors understand the places.
            return errors.fmt(f);
        }
        let mut text = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            // Many errors repeat their cause.
            if !text.contains(&cause) {
                let separator = if text.is_empty() { "" } else { ": " };
                text = text + separator + &cause;
            }
        }
        write!(f, "agent: {text}")
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Failure::new(WRONG, errors)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::new(FAILED, error)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn load(file: Option<&Path>) -> Result<Config, ConfigErrors> {
    configuration::load(file.unwrap_or(Path::new(configuration::DEFAULT_FILE)), &variable)
}

/// Prints to stdout. A reader that went away has read enough.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(FAILED, anyhow::anyhow!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The control socket: as given, else that of the configuration file, else the default.
fn socket(given: Option<PathBuf>, file: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(socket) = given {
        return Ok(socket);
    }
    let path = file.unwrap_or(Path::new(configuration::DEFAULT_FILE));
    match configuration::socket(path, &variable) {
        Ok(socket) => Ok(socket),
        Err(_) if file.is_none() => Ok(configuration::DEFAULT_SOCKET.into()),
        Err(error) => Err(Failure::new(WRONG, anyhow::anyhow!("cannot read {}: {error}", path.display()))),
    }
}
