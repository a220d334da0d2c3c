//! A replica in a local folder.

use super::{Entry, FailureKind, Remote, RemoteError};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// A folder that holds a replica.
pub struct DirRemote {
    root: PathBuf,
}

impl DirRemote {
    /// The replica in `root`.
    pub fn new(root: PathBuf) -> Self {
        DirRemote { root }
    }

    fn failed(&self, verb: &str, path: &str, error: &io::Error) -> RemoteError {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => FailureKind::NotFound,
            _ => FailureKind::Other,
        };
        RemoteError { kind, action: format!("{verb} {path}"), reason: error.to_string() }
    }
}

impl Remote for DirRemote {
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError> {
        let read = || -> io::Result<Vec<Entry>> {
            fs::read_dir(self.root.join(folder))?
                .map(|entry| {
                    let entry = entry?;
                    let meta = entry.metadata()?;
                    Ok(Entry {
                        name: entry.file_name().to_string_lossy().into_owned(),
                        size: meta.len(),
                        modified: meta
                            .modified()?
                            .duration_since(UNIX_EPOCH)
                            .ok()
                            .map(|time| time.as_secs() as i64),
                        is_folder: meta.is_dir(),
                    })
                })
                .collect()
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|error| self.failed("list", folder, &error)),
        }
    }
    fn create(&mut self, path: &str) -> Result<(), RemoteError> {
        File::create(self.root.join(path)).map(drop).map_err(|error| self.failed("create", path, &error))
    }
    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        let file = File::options().write(true).open(self.root.join(path));
        file.and_then(|file| file.write_all_at(bytes, at)).map_err(|error| self.failed("write", path, &error))
    }
    fn sync(&mut self, _path: &str) -> Result<bool, RemoteError> {
        Ok(false)
    }
    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError> {
        fs::rename(self.root.join(from), self.root.join(to))
            .map_err(|error| self.failed("rename", from, &error))
    }
    fn remove(&mut self, path: &str) -> Result<(), RemoteError> {
        fs::remove_file(self.root.join(path)).map_err(|error| self.failed("remove", path, &error))
    }
    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let mut read = || -> io::Result<usize> {
            let file = File::open(self.root.join(path))?;
            let mut done = 0;
            loop {
                match file.read_at(&mut buffer[done..], at + done as u64)? {
                    0 => return Ok(done),
                    n => done += n,
                }
            }
        };
        read().map_err(|error| self.failed("read", path, &error))
    }
    fn close(&mut self, _path: &str) {}
}
