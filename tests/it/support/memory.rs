//! Support: a replica in memory, with faults on request.

use crate::support::history::Objects;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use wal_agent::core::restore::Check;
use wal_agent::remote::{Entry, FailureKind, Remote, RemoteError};
use wal_agent::restore::{Progress, RestoreError, RestoreOptions, RestoreReport, restore};

/// What happens before a read is answered.
type OnRead = Box<dyn FnMut(&mut Objects, &str, u64) -> Result<(), FailureKind> + Send>;

/// What becomes of a listing of a folder before it is answered.
type OnList = Box<dyn FnMut(&str, &mut Vec<Entry>) + Send>;

struct State {
    objects: Objects,
    /// Seconds; the same for all objects of a path that contains the text.
    times: Vec<(String, i64)>,
    on_read: OnRead,
    on_list: OnList,
    connections: usize,
}

/// A server. Connections to it are made with [`Server::connect`].
#[derive(Clone)]
pub struct Server(Arc<Mutex<State>>);

impl Server {
    pub fn new(objects: Objects) -> Self {
        let on_read = Box::new(|_: &mut Objects, _: &str, _| Ok(()));
        let on_list = Box::new(|_: &str, _: &mut Vec<Entry>| ());
        Server(Arc::new(Mutex::new(State { objects, times: Vec::new(), on_read, on_list, connections: 0 })))
    }

    pub fn with_time(self, path_contains: &str, time: i64) -> Self {
        self.state().times.push((path_contains.to_owned(), time));
        self
    }

    pub fn on_read(
        self,
        on_read: impl FnMut(&mut Objects, &str, u64) -> Result<(), FailureKind> + Send + 'static,
    ) -> Self {
        self.state().on_read = Box::new(on_read);
        self
    }

    pub fn on_list(self, on_list: impl FnMut(&str, &mut Vec<Entry>) + Send + 'static) -> Self {
        self.state().on_list = Box::new(on_list);
        self
    }

    pub fn connections(&self) -> usize {
        self.state().connections
    }

    pub fn connect(&self) -> Box<dyn Remote> {
        self.state().connections += 1;
        Box::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// Restores everything a server has, without asking SQLite.
pub fn restore_from(server: &Server, output: &Path) -> Result<RestoreReport, RestoreError> {
    restore_checked(server, output, Check::None)
}

pub fn restore_checked(server: &Server, output: &Path, check: Check) -> Result<RestoreReport, RestoreError> {
    restore(RestoreOptions {
        remotes: &|| Ok(server.connect()),
        root: "",
        output: output.to_owned(),
        check,
        progress: &mut |_: Progress| {},
    })
}

fn failed(kind: FailureKind, path: &str) -> RemoteError {
    RemoteError { kind, action: format!("read {path}"), reason: kind.to_string() }
}

impl Remote for Server {
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError> {
        let mut state = self.state();
        let inside = |path: &str| Some(path.strip_prefix(folder)?.strip_prefix('/')?.to_owned());
        let folders: BTreeSet<String> = state
            .objects
            .keys()
            .filter_map(|path| Some(inside(path)?.split_once('/')?.0.to_owned()))
            .collect();
        let folders =
            folders.into_iter().map(|name| Entry { name, size: 0, modified: None, is_folder: true });
        let time = |path: &str| {
            state.times.iter().find(|(part, _)| path.contains(part.as_str())).map(|(_, time)| *time)
        };
        let files = state.objects.iter().filter_map(|(path, bytes)| {
            let name = inside(path).filter(|name| !name.contains('/'))?;
            Some(Entry { name, size: bytes.len() as u64, modified: time(path), is_folder: false })
        });
        let mut entries = folders.chain(files).collect();
        (state.on_list)(folder, &mut entries);
        Ok(entries)
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let mut state = self.state();
        let State { objects, on_read, .. } = &mut *state;
        on_read(objects, path, at).map_err(|kind| failed(kind, path))?;
        let object = objects.get(path).ok_or_else(|| failed(FailureKind::NotFound, path))?;
        let rest = object.get(at as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn close(&mut self, _path: &str) {}

    fn create(&mut self, path: &str) -> Result<bool, RemoteError> {
        Err(failed(FailureKind::Denied, path))
    }
    fn write_at(&mut self, path: &str, _at: u64, _bytes: &[u8]) -> Result<(), RemoteError> {
        Err(failed(FailureKind::Denied, path))
    }
    fn sync(&mut self, path: &str) -> Result<bool, RemoteError> {
        Err(failed(FailureKind::Denied, path))
    }
    fn set_modified(&mut self, path: &str, _seconds: i64) -> Result<(), RemoteError> {
        Err(failed(FailureKind::Denied, path))
    }
    fn rename(&mut self, from: &str, _to: &str) -> Result<(), RemoteError> {
        Err(failed(FailureKind::Denied, from))
    }
    fn remove(&mut self, path: &str) -> Result<(), RemoteError> {
        Err(failed(FailureKind::Denied, path))
    }
}
