//! Where a replica lives, as the configuration says it.

use std::fmt;
use std::path::PathBuf;

/// A destination and the replica's path on it.
#[derive(Debug, Clone)]
pub enum Location {
    /// A local folder.
    Folder(PathBuf),
    /// A folder on an SFTP server.
    Sftp(SftpLocation),
}

/// A folder on an SFTP server, and how to log in there.
#[derive(Debug, Clone)]
pub struct SftpLocation {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The account.
    pub user: String,
    /// Its password, if that is how it logs in.
    pub password: Option<Secret>,
    /// Its private key, if that is how it logs in.
    pub key_path: Option<PathBuf>,
    /// The keys the server may show; if empty, those in known_hosts.
    pub host_keys: Vec<String>,
    /// The folder.
    pub path: String,
}

/// A text that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
