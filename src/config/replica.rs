//! The replicas of a database.

use super::read::{Folders, NO_CLOUD, Seen, note, some_unless_zero};
use super::section::{Findings, Keys, Section, Text};
use super::tree::Node;
use super::{Durability, Place, ReplicaConfig};
use crate::remote::location::split_host;
use crate::remote::{Location, Secret, SftpLocation};
use std::path::Path;

const REPLICA: Keys = Keys {
    known: &[
        "type",
        "name",
        "path",
        "url",
        "host",
        "user",
        "password",
        "key-path",
        "host-key",
        "durability",
        "sync-interval",
        "retention",
        "retention-check-interval",
        "snapshot-interval",
        "validation-interval",
    ],
    unsupported: &[
        ("access-key-id", NO_CLOUD),
        ("secret-access-key", NO_CLOUD),
        ("region", NO_CLOUD),
        ("bucket", NO_CLOUD),
        ("endpoint", NO_CLOUD),
        ("force-path-style", NO_CLOUD),
        ("skip-verify", NO_CLOUD),
        ("account-name", NO_CLOUD),
        ("account-key", NO_CLOUD),
        ("age", "replicas are not encrypted: use an encrypted disk on the server"),
    ],
};

/// The keys that only an SFTP server has.
const SFTP_ONLY: [&str; 5] = ["host", "user", "password", "key-path", "host-key"];

/// The keys of Litestream's housekeeping, which this version does not do, with what that means.
const NOT_ENFORCED: [(&str, &str); 4] = [
    ("retention", "nothing is removed from a replica"),
    ("retention-check-interval", "nothing is removed from a replica"),
    ("snapshot-interval", "a snapshot is made when a generation begins"),
    ("validation-interval", "replicas are not read back"),
];

/// What no two may share: a folder of this machine, or a path of an account of a server.
#[derive(PartialEq)]
pub struct Spot(String);

/// Reads all replicas of a database.
pub fn replicas(
    database: &Section<'_>,
    folders: &Folders<'_>,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Vec<ReplicaConfig> {
    let nodes = database.list("replicas", findings);
    if nodes.is_empty() {
        findings
            .error(database.at_key("replicas"), "replicas is missing or empty: give at least one replica");
    }
    let mut given: Vec<(String, Place)> = Vec::new();
    let read = |node| replica(node, folders, &mut given, seen, findings);
    let replicas: Vec<_> = nodes.iter().filter_map(read).collect();
    name_the_unnamed(replicas)
}

/// The type of an unnamed replica becomes its name; from the second on, with a number.
pub fn name_the_unnamed(mut replicas: Vec<ReplicaConfig>) -> Vec<ReplicaConfig> {
    for at in 0..replicas.len() {
        if !replicas[at].name.is_empty() {
            continue;
        }
        let kind = match replicas[at].location {
            Location::Folder(_) => "file",
            Location::Sftp(_) => "sftp",
        };
        let numbered = (2..).map(|number| format!("{kind}-{number}"));
        let free = |name: &String| replicas.iter().all(|other| other.name != *name);
        let name = std::iter::once(kind.to_owned()).chain(numbered).find(free);
        replicas[at].name = name.expect("BUG: of infinitely many names, one is free");
    }
    replicas
}

/// Reads one replica; its name stays empty if none is given.
fn replica(
    node: &Node,
    folders: &Folders<'_>,
    given: &mut Vec<(String, Place)>,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Option<ReplicaConfig> {
    let section = Section::open(node, "a replica", &REPLICA, findings)?;
    for (key, meaning) in NOT_ENFORCED {
        if section.duration(key, findings).is_some() {
            findings.notice(&format!("{key} is accepted and not enforced by this version: {meaning}"));
        }
    }
    let name = section.text("name", findings);
    if let Some(text) = name
        && let Some(before) = note(given, text.text.to_owned(), text.at)
    {
        let message = format!("the name {} is that of the replica of line {}", text.shown(), before.line);
        findings.error(text.at, message);
    }
    let sync_interval = section.duration("sync-interval", findings).and_then(some_unless_zero);
    let durabilities = [("fsync", Durability::Fsync), ("write", Durability::Write)];
    let durability = section.choice("durability", &durabilities, findings).unwrap_or_default();
    let location = location(&section, folders, findings)?;
    if let Some(before) = seen.spot(Spot::of(&location), section.at) {
        let message = format!("{before} has this place already; give this replica one of its own");
        findings.error(section.at, message);
    }
    let name = name.map(|text| text.text.to_owned()).unwrap_or_default();
    Some(ReplicaConfig { name, location, sync_interval, durability })
}

fn location(section: &Section<'_>, folders: &Folders<'_>, findings: &mut Findings) -> Option<Location> {
    if let Some(url) = section.text("url", findings) {
        return url_location(url, section, folders, findings);
    }
    let Some(kind) = section.text("type", findings) else {
        return folder(section, folders, findings);
    };
    match kind.text {
        "file" => folder(section, folders, findings),
        "sftp" => sftp(None, section, folders, findings),
        "s3" | "gcs" | "abs" => {
            findings.error(kind.at, format!("type {} is not supported by wal-agent; {NO_CLOUD}", kind.text));
            None
        }
        _ => {
            findings.error(kind.at, format!("type: {} is neither sftp nor file", kind.shown()));
            None
        }
    }
}

/// Litestream's rule: the URL decides what and where; the account may be given beside it, and then wins.
fn url_location(
    url: Text<'_>,
    section: &Section<'_>,
    folders: &Folders<'_>,
    findings: &mut Findings,
) -> Option<Location> {
    for key in ["path", "host"] {
        if section.text(key, findings).is_some() {
            findings.error(section.at_key(key), format!("url and {key} exclude each other"));
        }
    }
    if !url.text.contains("://") {
        findings.error(url.at, "url must begin with sftp:// or file://; a folder's path goes into path");
        return None;
    }
    match Location::parse_url(url.text) {
        Ok(Location::Sftp(sftp_location)) => sftp(Some(sftp_location), section, folders, findings),
        Ok(folder) => {
            refuse_sftp_keys(section, findings);
            Some(folder)
        }
        Err(error) => {
            findings.error(url.at, format!("url: {error}"));
            None
        }
    }
}

fn folder(section: &Section<'_>, folders: &Folders<'_>, findings: &mut Findings) -> Option<Location> {
    refuse_sftp_keys(section, findings);
    let Some(text) = section.text("path", findings) else {
        findings.error(section.at, "path or url is missing: where does this replica live?");
        return None;
    };
    let path = folders.path(text, "path", findings)?;
    if path.to_str().is_none() {
        findings.error(text.at, "path must be absolute here: the current folder's name is not UTF-8");
        return None;
    }
    Some(Location::Folder(path))
}

fn refuse_sftp_keys(section: &Section<'_>, findings: &mut Findings) {
    for key in SFTP_ONLY {
        if section.get(key).is_some() {
            let message =
                format!("{key} is for SFTP servers, and this replica is a folder: is type: sftp missing?");
            findings.error(section.at_key(key), message);
        }
    }
}

fn sftp(
    from_url: Option<SftpLocation>,
    section: &Section<'_>,
    folders: &Folders<'_>,
    findings: &mut Findings,
) -> Option<Location> {
    let user = section.text("user", findings).map(|text| text.text.to_owned());
    let password = section.text("password", findings).map(|text| Secret::new(text.text));
    let key_path =
        section.text("key-path", findings).and_then(|text| folders.path(text, "key-path", findings));
    let host_keys = host_keys(section, findings);
    if let Some(mut location) = from_url {
        location.user = user.unwrap_or(location.user);
        location.password = password.or(location.password);
        return Some(Location::Sftp(SftpLocation { key_path, host_keys, ..location }));
    }
    let path = section.text("path", findings);
    if let Some(text) = path.filter(|text| text.text.contains("://")) {
        findings.error(text.at, "path must be a path on the server; a URL goes into url");
    }
    let path = path.map(|text| text.text.to_owned()).unwrap_or_default();
    if user.is_none() {
        findings.error(section.at, "user is missing: who logs in on the server?");
    }
    let Some(host) = section.text("host", findings) else {
        findings.error(section.at, "host is missing: which server is it?");
        return None;
    };
    let (host, port) = match split_host(host.text) {
        Ok(host) => host,
        Err(error) => {
            findings.error(host.at, format!("host: {error}"));
            return None;
        }
    };
    Some(Location::Sftp(SftpLocation { host, port, user: user?, password, key_path, host_keys, path }))
}

/// Each is a key as `ssh-keyscan` or a `.pub` file has it, or a fingerprint as `ssh-keygen -l` prints it.
fn host_keys(section: &Section<'_>, findings: &mut Findings) -> Vec<String> {
    let texts = section.texts("host-key", findings);
    for text in texts.iter().filter(|text| !is_host_key(text.text)) {
        findings.error(
            text.at,
            "host-key must be a key, as in ssh-ed25519 AAAA..., or a fingerprint, SHA256:...",
        );
    }
    texts.into_iter().map(|text| text.text.to_owned()).collect()
}

/// The base64 of every key begins with AAAA, the upper bytes of the length of its type.
fn is_host_key(text: &str) -> bool {
    let words: Vec<_> = text.split_whitespace().take(3).collect();
    match words[..] {
        [fingerprint] => fingerprint.starts_with("SHA256:"),
        _ => words.windows(2).any(|pair| pair[0].contains('-') && pair[1].starts_with("AAAA")),
    }
}

impl Spot {
    /// Two locations with the same spot would overwrite each other.
    pub fn of(location: &Location) -> Self {
        let sftp = match location {
            Location::Folder(path) => return Spot::of_folder(path),
            Location::Sftp(sftp) => sftp,
        };
        let relative = if sftp.path.starts_with('/') { "/" } else { "" };
        let path: Vec<_> = sftp.path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let account = format!("{}@{}:{}", sftp.user, sftp.host.to_lowercase(), sftp.port);
        Spot(format!("sftp://{account} {relative}{}", path.join("/")))
    }

    /// The spot of a folder of this machine.
    pub fn of_folder(path: &Path) -> Self {
        Spot(format!("file://{}", path.display()))
    }
}
