//! `agent restore`: brings a database back from a replica.

use super::{FAILED, Failure, HOST_KEY, NOTHING_TO_RESTORE, OK, WRONG};
use crate::config::{Config, DatabaseConfig, ReplicaConfig};
use crate::core::restore::{Check, RestoreGap};
use crate::remote::{self, FailureKind, Location, RemoteError};
use crate::restore::{Phase, Progress, RestoreError, RestoreOptions, RestoreReport, restore};
use anyhow::{anyhow, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

/// Bring a database back from a replica; nothing that exists is ever overwritten
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration, for the replicas of DB [default: /etc/wal-agent.yml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which replica of DB, if it has several
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// The file to make [default: DB itself]
    #[arg(short, value_name = "OUT")]
    output: Option<PathBuf>,
    /// What is compared before the restored database gets its name: with the source's checksums, and by SQLite
    #[arg(long, value_enum, default_value_t = Integrity::Quick)]
    integrity: Integrity,
    /// A database of the configuration, or the URL of a replica
    #[arg(value_name = "DB|URL")]
    source: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Integrity {
    /// PRAGMA quick_check
    Quick,
    /// PRAGMA integrity_check
    Full,
    /// Neither; for a replica that is refused otherwise
    None,
}

/// Restores, and prints what was restored.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let (location, output) = source(&arguments)?;
    let check = match arguments.integrity {
        Integrity::Quick => Check::Quick,
        Integrity::Full => Check::Full,
        Integrity::None => Check::None,
    };
    let bar = ProgressBar::new(0).with_style(style());
    let restored = from_location(&location, &output, check, &mut |progress| draw(&bar, progress));
    bar.finish_and_clear();
    let report = restored.map_err(|error| Failure::new(exit_code(&error), error))?;
    super::print(&format!("{}\nfrom {location}\n{report}\n", output.display()))?;
    Ok(OK)
}

/// Restores `output` from a replica.
pub fn from_location(
    location: &Location,
    output: &Path,
    check: Check,
    progress: &mut dyn FnMut(Progress),
) -> Result<RestoreReport, RestoreError> {
    let home = super::variable("HOME").map(PathBuf::from);
    let root = location.root();
    let location = location.clone();
    let remotes = move || remote::connect(&location, home.as_deref());
    restore(RestoreOptions { remotes: &remotes, root: &root, output: output.to_owned(), check, progress })
}

/// Where from, and where to.
fn source(arguments: &Arguments) -> Result<(Location, PathBuf), Failure> {
    let wrong = |error| Failure::new(WRONG, error);
    if arguments.source.contains("://") {
        let location = Location::parse_url(&arguments.source).map_err(|error| wrong(error.into()))?;
        let output = arguments.output.clone();
        let output = output.ok_or_else(|| wrong(anyhow!("with a URL, -o must say which file to make")))?;
        return Ok((location, output));
    }
    let config = super::load(arguments.config.as_deref())?;
    let path = std::path::absolute(&arguments.source).map_err(|error| wrong(error.into()))?;
    let database = database(&config, &path).map_err(wrong)?;
    let replica = replica(database, arguments.replica.as_deref()).map_err(wrong)?;
    Ok((replica.location.clone(), arguments.output.clone().unwrap_or(path)))
}

fn database<'a>(config: &'a Config, path: &Path) -> anyhow::Result<&'a DatabaseConfig> {
    let found = config.databases.iter().find(|database| database.path == path);
    found.ok_or_else(|| anyhow!("{} is no database of the configuration", path.display()))
}

/// Of several replicas, somebody has to choose: which is newest is not known without asking all of them.
fn replica<'a>(database: &'a DatabaseConfig, name: Option<&str>) -> anyhow::Result<&'a ReplicaConfig> {
    let replicas = &database.replicas;
    let names = || replicas.iter().map(|replica| replica.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, &replicas[..]) {
        (None, [only]) => Ok(only),
        (None, _) => bail!("choose a replica with --replica: {}", names()),
        (Some(name), _) => match replicas.iter().find(|replica| replica.name == name) {
            Some(replica) => Ok(replica),
            None => bail!("there is no replica {name:?}; there are {}", names()),
        },
    }
}

fn exit_code(error: &RestoreError) -> u8 {
    match error {
        RestoreError::Gap(RestoreGap::Empty) => NOTHING_TO_RESTORE,
        RestoreError::Remote(RemoteError { kind: FailureKind::HostKey, .. }) => HOST_KEY,
        _ => FAILED,
    }
}

fn style() -> ProgressStyle {
    let template = "{msg} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    ProgressStyle::with_template(template).expect("BUG: the template is right").progress_chars("=> ")
}

/// Draws a bar on a terminal; elsewhere, nothing.
fn draw(bar: &ProgressBar, progress: Progress) {
    match progress.phase {
        Phase::Fetch => bar.set_message("fetching"),
        Phase::Check => bar.set_message("checking"),
    }
    if progress.total > 0 {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }
}
