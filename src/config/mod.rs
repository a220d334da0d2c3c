//! The configuration: YAML in, a [`Config`] out, in which only valid values exist; else all errors at once.
//!
//! Keys and their meaning are Litestream 0.3's, and ours: `socket`, `include`, `max-write-block`, `let-go-after`,
//! `max-local-bytes`, `min-free-bytes`, `durability`, `host-key`.

mod duration;
mod expand;
mod read;
mod replica;
mod section;
mod tree;

use crate::core::space::SpaceLimits;
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
/// How long nobody else must have had a database open before the agent lets go of it, unless said otherwise. The rest of
/// a second is for letting go.
pub const DEFAULT_LET_GO_AFTER: Duration = Duration::from_millis(800);
/// Letting go locks the database for a moment: not in each pause between an application's connections.
const LEAST_LET_GO_AFTER: Duration = Duration::from_millis(100);

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The control socket.
    pub socket: PathBuf,
    /// The level of the log, where the configuration gives one; `RUST_LOG` wins over it.
    pub log_level: Option<log::LevelFilter>,
    /// The folder whose files add databases, where there is one.
    pub include: Option<PathBuf>,
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
    /// How long nobody else must have had it open before the agent lets go of it; `None` for never.
    pub let_go_after: Option<Duration>,
    /// How much of the local disk the shadow WAL may take.
    pub space: SpaceLimits,
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

/// Everything that is wrong with a configuration, at least one thing, in the order of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong. Never shows a password or the value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if it is one.
    pub file: Option<PathBuf>,
    /// Where, if it is somewhere.
    pub at: Option<Place>,
    /// What, and where it helps, what to write instead.
    pub message: String,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

/// Reads the configuration file, and those of the folder that it includes. `environment` is asked for variables, and
/// for `HOME`.
///
/// # Errors
/// All errors of all files at once, a file that cannot be read among them.
pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let mut seen = read::Seen::default();
    let (config, mut errors) = load_file(path, read::Part::Main, &mut seen, environment);
    let mut config = config.ok_or_else(|| ConfigErrors(errors.clone()))?;
    if let Some(folder) = &config.include {
        for file in files_of(folder).unwrap_or_else(|error| {
            errors.push(unreadable(path, &format!("include: {}: {error}", folder.display())));
            Vec::new()
        }) {
            let (part, wrong) = load_file(&file, read::Part::Included, &mut seen, environment);
            errors.extend(wrong);
            if let Some(part) = part {
                config.databases.extend(part.databases);
                config.notices.extend(part.notices);
            }
        }
        if errors.is_empty() && config.databases.is_empty() {
            let message =
                format!("there is no database to replicate, neither here nor in {}", folder.display());
            errors.push(ConfigError { file: Some(path.to_owned()), at: None, message });
        }
    }
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// What a file says, as far as it can be read, and all that is wrong with it.
fn load_file(
    path: &Path,
    part: read::Part,
    seen: &mut read::Seen,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Option<Config>, Vec<ConfigError>) {
    let (text, folder) = match (std::fs::read_to_string(path), std::env::current_dir()) {
        (Ok(text), Ok(folder)) => (text, folder),
        (Err(error), _) | (_, Err(error)) => return (None, vec![unreadable(path, &error.to_string())]),
    };
    seen.file = Some(path.to_owned());
    let (config, mut errors) = parse_part(&text, part, &folder, seen, environment);
    errors.iter_mut().for_each(|error| error.file = Some(path.to_owned()));
    (config, errors)
}

fn unreadable(path: &Path, error: &str) -> ConfigError {
    let message = format!("cannot read the configuration: {error}");
    ConfigError { file: Some(path.to_owned()), at: None, message }
}

/// All `*.yml` of a folder, by name; what a package manager or an editor leaves beside them is not configuration.
fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = paths.collect::<std::io::Result<Vec<_>>>()?;
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yml") && !is_hidden(path));
    files.sort();
    Ok(files)
}

/// The control socket that a configuration file names, or the default, whatever else is wrong with the file: to ask
/// a running agent, no password has to be set, and no replica has to be right.
///
/// # Errors
/// If the file cannot be read.
pub fn socket(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> std::io::Result<PathBuf> {
    let text = std::fs::read_to_string(path)?;
    let current = std::env::current_dir()?;
    let folders = read::Folders { home: environment("HOME").map(PathBuf::from), current: &current };
    let (expanded, _) = expand::expand(&text, environment);
    let root = tree::read(&expanded).ok();
    Ok(root.and_then(|root| read::socket(&root, &folders)).unwrap_or_else(|| DEFAULT_SOCKET.into()))
}

/// Reads a configuration of one text. Relative paths are below `folder`; `environment` is asked for variables, and for
/// `HOME`.
///
/// # Errors
/// All errors at once.
pub fn parse(
    text: &str,
    folder: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<ConfigError>> {
    match parse_part(text, read::Part::Main, folder, &mut read::Seen::default(), environment) {
        (Some(config), errors) if errors.is_empty() => Ok(config),
        (_, errors) => Err(errors),
    }
}

/// What a text says, as far as it can be read, and all that is wrong with it.
fn parse_part(
    text: &str,
    part: read::Part,
    folder: &Path,
    seen: &mut read::Seen,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Option<Config>, Vec<ConfigError>) {
    let (expanded, unset) = expand::expand(text, environment);
    let mut findings = section::Findings::default();
    let folders = read::Folders { home: environment("HOME").map(PathBuf::from), current: folder };
    let config = match tree::read(&expanded) {
        Ok(root) => read::config(&root, part, &folders, seen, &mut findings),
        Err(error) => {
            findings.errors.push(error);
            None
        }
    };
    // A variable that is not set explains whatever else is wrong in its line.
    let line = |error: &ConfigError| error.at.map(|at| at.line);
    findings.errors.retain(|error| unset.iter().all(|unset| line(unset) != line(error)));
    findings.errors.extend(unset);
    findings.errors.sort_by_key(|error| error.at);
    (config, findings.errors)
}

impl Config {
    /// The configuration of `agent replicate DATABASE URL...`: all else is as if nothing were configured.
    ///
    /// # Errors
    /// All URLs that are none, or name the same place.
    pub fn from_arguments(database: &Path, urls: &[String]) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut wrong = |message: String| errors.push(ConfigError { file: None, at: None, message });
        let path = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
        if path.file_name().is_none() {
            wrong(format!("{} is no database file", database.display()));
        }
        let mut replicas: Vec<ReplicaConfig> = Vec::new();
        for (number, url) in (1..).zip(urls) {
            match Location::parse_url(url) {
                Err(error) => wrong(format!("replica {number}: {error}")),
                Ok(location) => {
                    let spot = replica::Spot::of(&location);
                    if replicas.iter().any(|other| replica::Spot::of(&other.location) == spot) {
                        wrong(format!("{location} is given twice"));
                    }
                    replicas.push(ReplicaConfig::new(location));
                }
            }
        }
        if urls.is_empty() {
            wrong("give at least one replica".into());
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        Ok(Config {
            socket: DEFAULT_SOCKET.into(),
            log_level: None,
            include: None,
            databases: vec![DatabaseConfig::new(path, replica::name_the_unnamed(replicas))],
            notices: Vec::new(),
        })
    }
}

impl DatabaseConfig {
    /// A database with everything but its path and replicas at its default.
    pub fn new(path: PathBuf, replicas: Vec<ReplicaConfig>) -> Self {
        DatabaseConfig {
            meta_path: read::default_meta_path(&path),
            path,
            checkpoint: CheckpointSettings::default(),
            max_write_block: DEFAULT_MAX_WRITE_BLOCK,
            let_go_after: Some(DEFAULT_LET_GO_AFTER),
            space: SpaceLimits::default(),
            replicas,
        }
    }
}

impl ReplicaConfig {
    /// A replica with everything but its location at its default, and no name yet.
    fn new(location: Location) -> Self {
        ReplicaConfig {
            name: String::new(),
            location,
            sync_interval: None,
            durability: Durability::default(),
        }
    }
}

impl Place {
    /// The place of a byte of `text`.
    fn of(text: &str, byte: usize) -> Self {
        let before = &text[..text.floor_char_boundary(byte)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            line: 1 + before.bytes().filter(|byte| *byte == b'\n').count(),
            column: 1 + before[line_start..].chars().count(),
        }
    }
}

impl fmt::Display for ConfigErrors {
    /// One line per error: `file:line:column: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ConfigError { file, at, message }) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            if let Some(file) = file {
                write!(f, "{}:", file.display())?;
            }
            if let Some(Place { line, column }) = at {
                write!(f, "{line}:{column}:")?;
            }
            if file.is_some() || at.is_some() {
                write!(f, " ")?;
            }
            write!(f, "{message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Default for CheckpointSettings {
    /// Litestream's: 1000 pages, 10000 pages, one minute.
    fn default() -> Self {
        CheckpointSettings { min_pages: 1000, max_pages: 10_000, interval: Some(Duration::from_secs(60)) }
    }
}
