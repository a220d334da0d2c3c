//! The configuration: YAML in, a [`Config`] out, in which only valid values exist; else all errors at once.
//!
//! Keys and their meaning are Litestream 0.3's, and ours: `socket`, `max-write-block`, `durability`, `host-key`.

use crate::remote::Location;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is, unless said otherwise.
pub const DEFAULT_FILE: &str = "/etc/wal-agent.yml";
/// Where the control socket is, unless said otherwise.
pub const DEFAULT_SOCKET: &str = "/run/wal-agent/agent.sock";
/// How long an urgent checkpoint round may keep writers waiting, unless said otherwise.
pub const DEFAULT_MAX_WRITE_BLOCK: Duration = Duration::from_millis(20);

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The control socket.
    pub socket: PathBuf,
    /// The level of the log, where the configuration gives one; `RUST_LOG` wins over it.
    pub log_level: Option<log::LevelFilter>,
    /// What is replicated; no path twice.
    pub databases: Vec<DatabaseConfig>,
    /// Things to be said once at the start: keys that are accepted and have no effect.
    pub notices: Vec<String>,
}

/// One database and its replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// The database file, absolute.
    pub path: PathBuf,
    /// The folder of the local state, absolute. No two databases share one.
    pub meta_path: PathBuf,
    /// When the WAL is checkpointed.
    pub checkpoint: CheckpointSettings,
    /// How long an urgent checkpoint round may keep writers waiting; more than 0.
    pub max_write_block: Duration,
    /// At least one; no two at one place, no two of one name.
    pub replicas: Vec<ReplicaConfig>,
}

/// When the WAL is checkpointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSettings {
    /// A WAL of so many pages is worth a checkpoint that disturbs nobody; at least 1.
    pub min_pages: u32,
    /// A WAL of so many pages is checkpointed even if writers must wait; 0 for never, else at least `min_pages`.
    pub max_pages: u32,
    /// A checkpoint that disturbs nobody is tried at least so often while there is something to do; `None` for never.
    pub interval: Option<Duration>,
}

/// One replica of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// Its name in logs and in the status: as given, else its type, numbered if there are several.
    pub name: String,
    /// Where it lives.
    pub location: Location,
    /// The least time between two pushes; `None` pushes at once.
    pub sync_interval: Option<Duration>,
    /// What counts as acknowledged.
    pub durability: Durability,
}

/// What counts as acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The server answered an fsync, where it offers it.
    #[default]
    Fsync,
    /// The server answered the write.
    Write,
}

impl Default for CheckpointSettings {
    /// Litestream's: 1000 pages, 10000 pages, one minute.
    fn default() -> Self {
        CheckpointSettings { min_pages: 1000, max_pages: 10_000, interval: Some(Duration::from_secs(60)) }
    }
}
