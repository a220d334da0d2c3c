//! `agent config check`: whether a configuration is valid, and what follows from it.

use super::{Failure, OK};
use crate::config::{Config, DatabaseConfig, Durability, ReplicaConfig};
use crate::core::status::Span;
use crate::remote::Location;
use std::fmt::{self, Display, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Look at the configuration
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check the configuration and print what is in effect, defaults included; touches nothing
    Check {
        /// The configuration [default: /etc/wal-agent.yml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Prints the effective configuration.
pub fn run(command: Command) -> Result<u8, Failure> {
    let Command::Check { config } = command;
    let config = super::load(config.as_deref())?;
    let mut text = String::new();
    effective(&mut text, &config).expect("BUG: a String takes everything");
    super::print(&text)?;
    Ok(OK)
}

fn effective(out: &mut String, config: &Config) -> fmt::Result {
    writeln!(out, "socket                       {}", config.socket.display())?;
    if let Some(folder) = &config.include {
        writeln!(out, "include                      {}", folder.display())?;
    }
    if let Some(level) = config.log_level {
        writeln!(out, "log level                    {level}")?;
    }
    config.databases.iter().try_for_each(|each| database(out, each))?;
    config.notices.iter().try_for_each(|notice| writeln!(out, "\nnote: {notice}"))
}

fn database(out: &mut String, database: &DatabaseConfig) -> fmt::Result {
    let DatabaseConfig { path, meta_path, checkpoint, max_write_block, let_go_after, space, replicas } =
        database;
    writeln!(out, "\ndatabase                     {}", path.display())?;
    writeln!(out, "  meta-path                  {}", meta_path.display())?;
    writeln!(out, "  min-checkpoint-page-count  {}", checkpoint.min_pages)?;
    writeln!(out, "  max-checkpoint-page-count  {}", or("0: never force", positive(checkpoint.max_pages)))?;
    writeln!(out, "  checkpoint-interval        {}", or("0: never", checkpoint.interval.map(Span)))?;
    writeln!(out, "  max-write-block            {}", Span(*max_write_block))?;
    writeln!(out, "  let-go-after               {}", or("never", let_go_after.map(Span)))?;
    writeln!(out, "  max-local-bytes            {}", or("any number", space.max_local))?;
    writeln!(
        out,
        "  min-free-bytes             {}",
        or("268435456, or a twentieth of the disk", space.min_free)
    )?;
    replicas.iter().try_for_each(|each| replica(out, each))
}

fn replica(out: &mut String, replica: &ReplicaConfig) -> fmt::Result {
    let ReplicaConfig { name, location, sync_interval, durability } = replica;
    writeln!(out, "  replica {name:18} {location}")?;
    let interval = sync_interval.map(|interval: Duration| Span(interval));
    writeln!(out, "    sync-interval            {}", or("at once", interval))?;
    let durability = match durability {
        Durability::Fsync => "fsync",
        Durability::Write => "write",
    };
    writeln!(out, "    durability               {durability}")?;
    let Location::Sftp(sftp) = location else { return Ok(()) };
    let password = if sftp.password.is_some() { "given" } else { "none" };
    writeln!(out, "    password                 {password}")?;
    writeln!(
        out,
        "    key-path                 {}",
        or("none", sftp.key_path.as_ref().map(|path| path.display()))
    )?;
    if sftp.host_keys.is_empty() {
        writeln!(out, "    host-key                 from known_hosts")?;
    }
    sftp.host_keys.iter().try_for_each(|key| writeln!(out, "    host-key                 {key}"))
}

fn positive(count: u32) -> Option<u32> {
    (count > 0).then_some(count)
}

fn or(none: &str, value: Option<impl Display>) -> String {
    value.map_or_else(|| none.to_owned(), |value| value.to_string())
}
