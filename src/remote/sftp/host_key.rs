//! Which keys a server may show: those in the configuration, or else those in known_hosts.

use crate::remote::location::SftpLocation;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use ssh2::{CheckResult, KnownHostFileKind, Session};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Keys of all users, beside their own known_hosts.
const SYSTEM_KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";

/// Host key methods of a handshake, by family, the preferred first. No certificates: nothing here knows an authority
/// to check them by.
const METHODS: [&[&str]; 3] = [
    &["ssh-ed25519"],
    &["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"],
    &["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
];

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A server's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostKey {
    blob: Vec<u8>,
}

/// The keys a server may show.
#[derive(Debug)]
pub(super) struct Trust {
    host: String,
    port: u16,
    keys: Vec<Known>,
    fingerprints: Vec<String>,
    revoked: Vec<Known>,
    /// What was not understood: told when no key matches.
    not_read: Vec<String>,
}

/// A key, and where it is written: "host-key", "/home/x/.ssh/known_hosts line 3".
#[derive(Debug, Clone)]
struct Known {
    key: HostKey,
    place: String,
}

/// A line of known_hosts.
struct Line {
    hosts: String,
    is_revoked: bool,
    known: Known,
}

impl HostKey {
    /// From the bytes a server shows.
    pub(super) fn from_blob(blob: &[u8]) -> Self {
        HostKey { blob: blob.to_vec() }
    }

    /// From its base64 text, which must be of the type that stands before it.
    fn parse(kind: &str, text: &str) -> Option<Self> {
        let key = HostKey { blob: BASE64.decode(text).ok()? };
        (key.kind() == Some(kind)).then_some(key)
    }

    /// The type, which is the first string of the blob.
    fn kind(&self) -> Option<&str> {
        let (length, rest) = self.blob.split_first_chunk::<4>()?;
        let kind = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        str::from_utf8(kind).ok().filter(|kind| kind.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    fn fingerprint(&self) -> String {
        let digest = BASE64.encode(Sha256::digest(&self.blob));
        format!("SHA256:{}", digest.trim_end_matches('='))
    }

    fn line(&self) -> String {
        format!("{} {}", self.kind().unwrap_or("?"), BASE64.encode(&self.blob))
    }

    fn describe(&self) -> String {
        format!("{} {}", self.kind().unwrap_or("?"), self.fingerprint())
    }
}

impl Trust {
    /// What the configuration says; if it says nothing, what known_hosts of the user and of the machine say.
    ///
    /// # Errors
    /// When the configuration has something that is neither a key nor a fingerprint.
    pub(super) fn load(location: &SftpLocation, home: Option<&Path>) -> Result<Trust, String> {
        let host = location.host.to_lowercase();
        let (mut keys, mut fingerprints, mut not_read) = (Vec::new(), Vec::new(), Vec::new());
        for text in &location.host_keys {
            match text.trim().strip_prefix("SHA256:") {
                Some(digest) => fingerprints.push(format!("SHA256:{}", digest.trim_end_matches('='))),
                None => keys.push(Known { key: parse_configured(text)?, place: "host-key".to_owned() }),
            }
        }
        let mut revoked = Vec::new();
        if location.host_keys.is_empty() {
            let of_user = home.map(|home| home.join(".ssh/known_hosts"));
            let paths = of_user.into_iter().chain([PathBuf::from(SYSTEM_KNOWN_HOSTS)]);
            let lines: Vec<_> = paths.flat_map(|path| read_known_hosts(&path, &mut not_read)).collect();
            (keys, revoked) = select(&lines, &host, location.port);
        }
        Ok(Trust { host, port: location.port, keys, fingerprints, revoked, not_read })
    }

    /// What to ask the server for, one handshake after the other: keys of these types, the first preferred.
    pub(super) fn attempts(&self) -> Vec<String> {
        if !self.fingerprints.is_empty() {
            // A fingerprint does not tell its key's type.
            return METHODS.iter().map(|family| family.join(",")).collect();
        }
        let is_known = |method: &str| {
            let kind = if method.starts_with("rsa-sha2-") { "ssh-rsa" } else { method };
            self.keys.iter().any(|known| known.key.kind() == Some(kind))
        };
        let mut methods = METHODS.concat();
        methods.sort_by_key(|method| !is_known(method));
        vec![methods.join(",")]
    }

    /// Whether the server may be trusted.
    ///
    /// # Errors
    /// Why not, with all keys in question, and what to do.
    pub(super) fn judge(&self, shown: &HostKey) -> Result<(), String> {
        let (host, shows) = (&self.host, shown.describe());
        if let Some(revoked) = self.revoked.iter().find(|known| known.key == *shown) {
            return Err(format!("{host} shows the key {shows}, which is revoked ({})", revoked.place));
        }
        let fingerprint = shown.fingerprint();
        if self.keys.iter().any(|known| known.key == *shown) || self.fingerprints.contains(&fingerprint) {
            return Ok(());
        }
        let known = self.keys.iter().map(|known| format!("{} ({})", known.key.describe(), known.place));
        let known: Vec<_> =
            known.chain(self.fingerprints.iter().map(|f| format!("{f} (host-key)"))).collect();
        let accept = format!(
            "If that is right (compare `ssh-keygen -lf /etc/ssh/ssh_host_..._key.pub` on the server), accept it by \
             `host-key: {}` in the configuration, or by `ssh-keyscan -p {} {host} >> ~/.ssh/known_hosts`",
            shown.line(),
            self.port
        );
        let not_read =
            self.not_read.iter().map(|place| format!(". Not understood: {place}")).collect::<String>();
        Err(if known.is_empty() {
            format!("the host key of {host} is not known: it shows {shows}. {accept}{not_read}")
        } else {
            format!(
                "the host key of {host} is NOT THE KNOWN ONE: it shows {shows}, known is {}. Somebody may be listening \
                 in, or the server was set up anew. {accept}, and remove the old one{not_read}",
                known.join(", ")
            )
        })
    }
}

/// A key as `ssh-keyscan` or a `.pub` file has it: a type and base64, after a host's name or without.
fn parse_configured(text: &str) -> Result<HostKey, String> {
    let fields: Vec<_> = text.split_whitespace().take(3).collect();
    let key = fields.windows(2).find_map(|pair| HostKey::parse(pair[0], pair[1]));
    key.ok_or_else(|| format!("host-key {text:?} is neither a key (`ssh-ed25519 AAAA...`) nor `SHA256:...`"))
}

/// The lines of a known_hosts file; no file, no lines.
fn read_known_hosts(path: &Path, not_read: &mut Vec<String>) -> Vec<Line> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                not_read.push(format!("{}: {error}", path.display()));
            }
            return Vec::new();
        }
    };
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(text.lines()) {
        let place = format!("{} line {number}", path.display());
        let is_empty = text.trim().is_empty() || text.trim_start().starts_with('#');
        match parse_line(text, place.clone()) {
            Some(line) => lines.push(line),
            None if is_empty || text.starts_with("@cert-authority") => {}
            None => not_read.push(place),
        }
    }
    lines
}

/// `None` for what is not a host's key.
fn parse_line(text: &str, place: String) -> Option<Line> {
    let mut fields = text.split_whitespace().peekable();
    let marker = fields.next_if(|field| field.starts_with('@'));
    if marker.is_some_and(|marker| marker != "@revoked") {
        return None;
    }
    let hosts = fields.next()?.to_owned();
    let key = HostKey::parse(fields.next()?, fields.next()?)?;
    Some(Line { hosts, is_revoked: marker.is_some(), known: Known { key, place } })
}

/// The keys and the revoked keys of a host. Like OpenSSH, keys of the bare name count for any port which has no keys
/// of its own.
fn select(lines: &[Line], host: &str, port: u16) -> (Vec<Known>, Vec<Known>) {
    let names =
        if port == 22 { vec![host.to_owned()] } else { vec![format!("[{host}]:{port}"), host.to_owned()] };
    let of = |name: &str, is_revoked: bool| -> Vec<Known> {
        let wanted = lines.iter().filter(|line| line.is_revoked == is_revoked && line.is_of(name));
        wanted.map(|line| line.known.clone()).collect()
    };
    let keys = names.iter().map(|name| of(name, false)).find(|keys| !keys.is_empty());
    (keys.unwrap_or_default(), names.iter().flat_map(|name| of(name, true)).collect())
}

impl Line {
    fn is_of(&self, name: &str) -> bool {
        if self.hosts.starts_with("|1|") {
            return self.is_of_hashed(name);
        }
        let (mut is_of, mut is_not) = (false, false);
        for pattern in self.hosts.to_lowercase().split(',') {
            match pattern.strip_prefix('!') {
                Some(pattern) => is_not |= matches(pattern.as_bytes(), name.as_bytes()),
                None => is_of |= matches(pattern.as_bytes(), name.as_bytes()),
            }
        }
        is_of && !is_not
    }

    /// libssh2 knows how names are hashed: given this line alone and its own key, only the name decides.
    fn is_of_hashed(&self, name: &str) -> bool {
        let line = format!("{} {}", self.hosts, self.known.key.line());
        let known = Session::new().and_then(|session| session.known_hosts()).and_then(|mut known| {
            known.read_str(&line, KnownHostFileKind::OpenSSH)?;
            Ok(known)
        });
        known.is_ok_and(|known| matches!(known.check(name, &self.known.key.blob), CheckResult::Match))
    }
}

/// Whether a name is what a pattern with `*` and `?` says.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, name)| matches(pattern, name))
        }
        (Some((b'?', pattern)), Some((_, name))) => matches(pattern, name),
        (Some((wanted, pattern)), Some((byte, name))) => wanted == byte && matches(pattern, name),
        _ => false,
    }
}
