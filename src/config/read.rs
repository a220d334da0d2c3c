//! From the tree to the values: what each key means, and what fits together.

use super::section::{Findings, Keys, Section, Text};
use super::tree::Node;
use super::{
    CheckpointSettings, Config, DEFAULT_LET_GO_AFTER, DEFAULT_MAX_WRITE_BLOCK, DEFAULT_SOCKET,
    DatabaseConfig, LEAST_LET_GO_AFTER, Place, replica,
};
use crate::core::space::SpaceLimits;
use log::LevelFilter;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const TOP: Keys = Keys {
    known: &["socket", "include", "dbs", "logging"],
    unsupported: &[
        ("addr", "there is no metrics port: `agent status --json` has the numbers"),
        ("exec", "start the application and the agent as services of their own"),
        ("access-key-id", NO_CLOUD),
        ("secret-access-key", NO_CLOUD),
    ],
};

/// The keys of an included file: databases belong to somebody, all else to the machine.
const INCLUDED: Keys = Keys { known: &["dbs"], unsupported: &[] };

const LOGGING: Keys = Keys { known: &["level", "type", "stderr"], unsupported: &[] };

const DATABASE: Keys = Keys {
    known: &[
        "path",
        "meta-path",
        "monitor-interval",
        "checkpoint-interval",
        "min-checkpoint-page-count",
        "max-checkpoint-page-count",
        "max-write-block",
        "let-go-after",
        "max-local-bytes",
        "min-free-bytes",
        "replicas",
    ],
    unsupported: &[("replica", "write replicas, a list")],
};

/// What to do about the keys of cloud storage.
pub const NO_CLOUD: &str = "replicas live on SFTP servers and in folders";

/// What paths are relative to.
pub struct Folders<'a> {
    /// For `~`.
    pub home: Option<PathBuf>,
    /// For paths that are not absolute.
    pub current: &'a Path,
}

/// Which file of a configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The one that was named.
    Main,
    /// One of the folder that it includes.
    Included,
}

/// Reads a whole file. What is returned is valid only if nothing was found to be wrong.
pub fn config(
    root: &Node,
    part: Part,
    folders: &Folders<'_>,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Option<Config> {
    let (name, keys) = match part {
        Part::Main => ("the configuration", &TOP),
        Part::Included => ("an included file", &INCLUDED),
    };
    let top = Section::open(root, name, keys, findings)?;
    let socket = top.text("socket", findings).and_then(|text| folders.path(text, "socket", findings));
    let include = top.text("include", findings).and_then(|text| folders.path(text, "include", findings));
    let log_level = top.get("logging").and_then(|node| logging(node, findings));
    let nodes = top.list("dbs", findings);
    if nodes.is_empty() && include.is_none() {
        findings.error(top.at, "dbs is missing or empty: there is no database to replicate");
    }
    let databases = nodes.iter().filter_map(|node| database(node, folders, seen, findings)).collect();
    let socket = socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
    Some(Config { socket, log_level, include, databases, notices: std::mem::take(&mut findings.notices) })
}

/// The socket alone, if there is one and it is right.
pub fn socket(root: &Node, folders: &Folders<'_>) -> Option<PathBuf> {
    let mut unheard = Findings::default();
    let top = Section::open(root, "the configuration", &TOP, &mut unheard)?;
    let text = top.text("socket", &mut unheard)?;
    folders.path(text, "socket", &mut unheard)
}

/// What no two entries may share, across all databases of all files, and where it was first.
#[derive(Default)]
pub struct Seen {
    /// The file that is read, if it is one.
    pub file: Option<PathBuf>,
    databases: Vec<(PathBuf, Origin)>,
    /// Where meta folders and replicas are.
    spots: Vec<(replica::Spot, Origin)>,
}

/// A line of a file.
#[derive(Clone)]
struct Origin {
    file: Option<PathBuf>,
    line: usize,
}

impl Seen {
    /// Notes a database; or returns where it was before.
    fn database(&mut self, path: &Path, at: Place) -> Option<String> {
        let here = self.here(at);
        note(&mut self.databases, path.to_owned(), here).map(|before| self.describe(&before))
    }

    /// Notes the place of a meta folder or replica; or returns where it was before.
    pub fn spot(&mut self, spot: replica::Spot, at: Place) -> Option<String> {
        let here = self.here(at);
        note(&mut self.spots, spot, here).map(|before| self.describe(&before))
    }

    fn here(&self, at: Place) -> Origin {
        Origin { file: self.file.clone(), line: at.line }
    }

    fn describe(&self, Origin { file, line }: &Origin) -> String {
        match file {
            Some(file) if Some(file) != self.file.as_ref() => format!("line {line} of {}", file.display()),
            _ => format!("line {line}"),
        }
    }
}

/// Notes `value`, first seen `at`; or returns where it was before.
pub fn note<T: PartialEq, P: Clone>(seen: &mut Vec<(T, P)>, value: T, at: P) -> Option<P> {
    let before = seen.iter().find(|(other, _)| *other == value).map(|(_, place)| place.clone());
    seen.push((value, at));
    before
}

fn logging(node: &Node, findings: &mut Findings) -> Option<LevelFilter> {
    let section = Section::open(node, "logging", &LOGGING, findings)?;
    for key in ["type", "stderr"] {
        if section.get(key).is_some() {
            findings.notice(&format!("logging: {key} has no effect: the log is plain lines on stderr"));
        }
    }
    let levels = [
        ("debug", LevelFilter::Debug),
        ("info", LevelFilter::Info),
        ("warn", LevelFilter::Warn),
        ("warning", LevelFilter::Warn),
        ("error", LevelFilter::Error),
    ];
    section.choice("level", &levels, findings)
}

fn database(
    node: &Node,
    folders: &Folders<'_>,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Option<DatabaseConfig> {
    let section = Section::open(node, "a database", &DATABASE, findings)?;
    if section.duration("monitor-interval", findings).is_some() {
        findings.notice("monitor-interval has no effect: every commit wakes the agent");
    }
    let path = database_path(&section, folders, seen, findings);
    let meta_path = section.text("meta-path", findings);
    let meta_path = match (meta_path, &path) {
        (Some(text), _) => folders.path(text, "meta-path", findings).map(|path| (text.at, path)),
        (None, Some(path)) => Some((section.at, default_meta_path(path))),
        (None, None) => None,
    };
    if let Some((at, path)) = &meta_path
        && let Some(before) = seen.spot(replica::Spot::of_folder(path), *at)
    {
        findings.error(*at, format!("meta-path: {before} has this folder already"));
    }
    let checkpoint = checkpoint(&section, findings);
    let max_write_block = section.duration("max-write-block", findings).unwrap_or(DEFAULT_MAX_WRITE_BLOCK);
    if max_write_block.is_zero() {
        let instead =
            "max-write-block must be more than 0; with max-checkpoint-page-count: 0, writers never wait";
        findings.error(section.at_key("max-write-block"), instead);
    }
    let let_go_after = let_go_after(&section, findings);
    let space = SpaceLimits {
        max_local: section.bytes("max-local-bytes", findings),
        min_free: section.bytes("min-free-bytes", findings),
    };
    let replicas = replica::replicas(&section, folders, seen, findings);
    let (path, meta_path) = (path?, meta_path?.1);
    Some(DatabaseConfig { path, meta_path, checkpoint, max_write_block, let_go_after, space, replicas })
}

fn let_go_after(section: &Section<'_>, findings: &mut Findings) -> Option<Duration> {
    // A wrong duration is reported below.
    if section.text("let-go-after", &mut Findings::default()).is_some_and(|text| text.text == "never") {
        return None;
    }
    let quiet = section.duration("let-go-after", findings).unwrap_or(DEFAULT_LET_GO_AFTER);
    if quiet < LEAST_LET_GO_AFTER {
        let wrong = "let-go-after must be at least 100ms, or never: a program that opens the database in that moment \
                     finds it locked";
        findings.error(section.at_key("let-go-after"), wrong);
    }
    Some(quiet)
}

fn database_path(
    section: &Section<'_>,
    folders: &Folders<'_>,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Option<PathBuf> {
    let Some(text) = section.text("path", findings) else {
        findings.error(section.at, "path is missing: which database is it?");
        return None;
    };
    let path = folders.path(text, "path", findings)?;
    if path.file_name().is_none() {
        findings.error(text.at, "path must be a database file");
        return None;
    }
    if let Some(before) = seen.database(&path, text.at) {
        findings.error(text.at, format!("this database is given twice, first in {before}"));
        return None;
    }
    Some(path)
}

/// Where the local state of a database is, unless said otherwise: `.app.db-agent` beside `app.db`.
pub fn default_meta_path(database: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push("-agent");
    database.with_file_name(name)
}

fn checkpoint(section: &Section<'_>, findings: &mut Findings) -> CheckpointSettings {
    let default = CheckpointSettings::default();
    let min_pages = section.count("min-checkpoint-page-count", findings).unwrap_or(default.min_pages);
    let max_pages = section.count("max-checkpoint-page-count", findings);
    if min_pages == 0 {
        let at = section.at_key("min-checkpoint-page-count");
        findings.error(at, "min-checkpoint-page-count must be at least 1");
    }
    if max_pages.is_some_and(|max| max != 0 && max < min_pages) {
        let at = section.at_key("max-checkpoint-page-count");
        let wrong = format!("max-checkpoint-page-count must be 0 or at least the minimum, {min_pages}");
        findings.error(at, wrong);
    }
    let max_pages = max_pages.unwrap_or(default.max_pages.max(min_pages));
    let interval = match section.duration("checkpoint-interval", findings) {
        None => default.interval,
        Some(interval) => some_unless_zero(interval),
    };
    CheckpointSettings { min_pages, max_pages, interval }
}

/// 0 stands for never, or for at once.
pub fn some_unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

impl Folders<'_> {
    /// Makes a path absolute. `~` at its beginning is the home folder.
    pub fn path(&self, text: Text<'_>, key: &str, findings: &mut Findings) -> Option<PathBuf> {
        if text.text.contains("://") {
            let instead = format!("{key} must be a path, not a URL; a replica's URL goes into url");
            findings.error(text.at, instead);
            return None;
        }
        let path = Path::new(text.text);
        let path = match path.strip_prefix("~") {
            Err(_) => self.current.join(path),
            Ok(rest) => match &self.home {
                Some(home) => home.join(rest),
                None => {
                    findings.error(text.at, format!("{key} begins with ~, and HOME is not set"));
                    return None;
                }
            },
        };
        Some(tidy(&path))
    }
}

/// The same path without `.` and doubled slashes. `..` stays: before it, there may be a symbolic link.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}
