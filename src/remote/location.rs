//! Where a replica lives: a folder, or a path on an SFTP server.

use std::fmt;
use std::path::PathBuf;

/// The port of SSH servers.
pub const SSH_PORT: u16 = 22;

/// Where a replica lives. Its `Display` never shows the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine, absolute.
    Folder(PathBuf),
    /// A path on an SFTP server.
    Sftp(SftpLocation),
}

/// A path on an SFTP server, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpLocation {
    /// A name or an address, without brackets.
    pub host: String,
    /// 22 unless given.
    pub port: u16,
    /// The account.
    pub user: String,
    /// The account's password, if it has one.
    pub password: Option<Secret>,
    /// A private key file.
    pub key_path: Option<PathBuf>,
    /// Host keys that are accepted, as in a `known_hosts` file: `ssh-ed25519 AAAA...`. Empty: ask `known_hosts`.
    pub host_keys: Vec<String>,
    /// Absolute with a leading slash, else below the account's login folder; empty for that folder itself.
    pub path: String,
}

/// A password. Neither `Debug` nor `Display` shows anything of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a text is not a location. Says nothing of the text itself, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LocationError(String);

impl Location {
    /// Reads `sftp://user[:password]@host[:port]/path`, `file:///path`, or a plain absolute path.
    ///
    /// In a URL, user, password and path are percent-decoded, and the path keeps its leading slash.
    ///
    /// # Errors
    /// Says what is missing or wrong, and never repeats the text.
    pub fn parse_url(text: &str) -> Result<Self, LocationError> {
        match text.split_once("://") {
            Some(("sftp", rest)) => parse_sftp(rest).map(Location::Sftp),
            Some(("file", path)) => parse_folder(&decode_path(path)?, "file:///path"),
            Some((scheme @ ("s3" | "gcs" | "gs" | "abs"), _)) => {
                Err(error(format!("{scheme}:// is not supported by wal-agent; use sftp:// or file://")))
            }
            Some(_) => Err(error("the scheme of the URL is neither sftp:// nor file://")),
            None => parse_folder(text, "/path"),
        }
    }

    /// The replica's own path, before `generations/`: what [`super::join`] takes as `root`.
    pub fn root(&self) -> String {
        match self {
            // Paths of folders come from texts, so they are UTF-8.
            Location::Folder(path) => path.to_string_lossy().into_owned(),
            Location::Sftp(sftp) => sftp.path.clone(),
        }
    }
}

impl SftpLocation {
    /// The server and account, without the path: `user@host`, with the port if it is not 22.
    pub fn account(&self) -> String {
        let SftpLocation { user, host, port, .. } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == SSH_PORT { format!("{user}@{host}") } else { format!("{user}@{host}:{port}") }
    }
}

impl Secret {
    /// Keeps `text` out of every log and error from here on.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }
    /// The password itself, for the server alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Folder(path) => write!(f, "file://{}", path.display()),
            Location::Sftp(sftp) => sftp.fmt(f),
        }
    }
}

impl fmt::Display for SftpLocation {
    /// A path below the login folder is shown behind `/~/`, as ssh tools do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login_folder = if self.path.starts_with('/') { "" } else { "/~/" };
        write!(f, "sftp://{}{login_folder}{}", self.account(), self.path)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Splits `host`, `host:port`, `[address]` or `[address]:port`; a bare IPv6 address is a host, too.
///
/// # Errors
/// Says what is wrong with the host or the port.
pub fn split_host(text: &str) -> Result<(String, u16), LocationError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, behind) =
                rest.split_once(']').ok_or_else(|| error("the host has a [ without a ]"))?;
            match behind.strip_prefix(':') {
                None if behind.is_empty() => (address, None),
                None => return Err(error("only :port may follow the ] of the host")),
                Some(port) => (address, Some(port)),
            }
        }
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(error("the host is missing"));
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c)) {
        return Err(error("the host has a character that no host name has"));
    }
    let port = match port {
        None => SSH_PORT,
        Some(port) => parse_port(port)?,
    };
    Ok((host.to_owned(), port))
}

fn parse_port(text: &str) -> Result<u16, LocationError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if port != 0 && digits => Ok(port),
        _ => Err(error("the port is not a number from 1 to 65535")),
    }
}

fn parse_sftp(rest: &str) -> Result<SftpLocation, LocationError> {
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (account, host) =
        authority.rsplit_once('@').ok_or_else(|| error("the user is missing: sftp://user@host/path"))?;
    let (user, password) = match account.split_once(':') {
        Some((user, password)) => (user, Some(percent_decode(password)?)),
        None => (account, None),
    };
    if user.is_empty() {
        return Err(error("the user is missing: sftp://user@host/path"));
    }
    let (host, port) = split_host(host)?;
    Ok(SftpLocation {
        host,
        port,
        user: percent_decode(user)?,
        password: password.filter(|text| !text.is_empty()).map(Secret),
        key_path: None,
        host_keys: Vec::new(),
        path: decode_path(path)?,
    })
}

fn parse_folder(path: &str, form: &str) -> Result<Location, LocationError> {
    if !path.starts_with('/') {
        return Err(error(format!("the path of a folder must be absolute: {form}")));
    }
    Ok(Location::Folder(PathBuf::from(path).components().collect()))
}

fn decode_path(text: &str) -> Result<String, LocationError> {
    if text.contains(['?', '#']) {
        return Err(error("the path of the URL has a ? or # (write %3F or %23)"));
    }
    percent_decode(text)
}

fn percent_decode(text: &str) -> Result<String, LocationError> {
    let wrong = || error("a % in the URL is not followed by two hex digits (write %25 for %)");
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
        let value = digit()? << 4 | digit()?;
        decoded.push(u8::try_from(value).expect("BUG: two hex digits are one byte"));
    }
    String::from_utf8(decoded).map_err(|_| error("the URL is not UTF-8 once its % are decoded"))
}

fn error(message: impl Into<String>) -> LocationError {
    LocationError(message.into())
}
