//! The fetching thread: objects in the order of a plan, in large reads, ahead of whoever decodes them.

use super::error::RestoreError;
use super::report::{Phase, Progress};
use crate::core::inventory::Inventory;
use crate::core::names::GENERATIONS;
use crate::core::restore::Wanted;
use crate::remote::{FailureKind, Remote, RemoteError, join, objects_of};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::time::Duration;

/// Opens a connection to a replica.
pub type OpenRemote<'a> = dyn Fn() -> Result<Box<dyn Remote>, RemoteError> + Sync + 'a;

/// Bytes asked for at once: libssh2 keeps packets in flight only within one call.
const READ: u64 = 2 << 20;
/// Asked for beyond the size listed, so that a short answer proves the end without another round trip.
const BEYOND: u64 = 512;
/// Reads waiting to be decoded: 16 MiB at most.
const READS_AHEAD: usize = 8;
/// Pauses before a broken connection is made anew; half a minute in all, a server's restart.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];

/// A replica, reached by a connection that is made anew when it breaks.
pub(super) struct Connection<'a> {
    open: &'a OpenRemote<'a>,
    root: &'a str,
    remote: Option<Box<dyn Remote>>,
    /// A replica that was never reached is reported at once; one that went away is waited for.
    was_reached: bool,
}

impl<'a> Connection<'a> {
    pub(super) fn new(open: &'a OpenRemote<'a>, root: &'a str) -> Self {
        Connection { open, root, remote: None, was_reached: false }
    }

    /// Lists all objects of the replica.
    pub(super) fn inventory(&mut self) -> Result<Inventory, RemoteError> {
        let root = self.root;
        self.run(|remote| read_inventory(remote, root))
    }

    fn run<T>(
        &mut self,
        mut action: impl FnMut(&mut dyn Remote) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.run_once(&mut action) {
                Err(error) if error.kind == FailureKind::Disconnected && self.was_reached => error,
                result => return result,
            };
            self.remote = None;
            let Some(pause) = pauses.next() else { return Err(error) };
            std::thread::sleep(*pause);
        }
    }

    fn run_once<T>(
        &mut self,
        action: &mut impl FnMut(&mut dyn Remote) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let remote = match &mut self.remote {
            Some(remote) => remote,
            none => none.insert((self.open)()?),
        };
        self.was_reached = true;
        action(remote.as_mut())
    }
}

/// Lists all objects of a replica.
///
/// # Errors
/// The first listing that fails; a replica without a folder is empty, and no error.
pub fn read_inventory(remote: &mut dyn Remote, root: &str) -> Result<Inventory, RemoteError> {
    let mut generations = Vec::new();
    for folder in remote.list(&join(root, GENERATIONS))? {
        let Ok(generation) = folder.name.parse() else { continue };
        if !folder.is_folder {
            continue;
        }
        generations.push(objects_of(generation, root, |folder| remote.list(folder))?);
    }
    generations.sort_by_cached_key(|objects| objects.generation().to_string());
    Ok(Inventory { generations })
}

/// A part of an object. `last` says that the object ends with it.
pub(super) struct Part {
    bytes: Vec<u8>,
    last: bool,
}

type Fetched = Result<Part, RestoreError>;

/// Between the fetching thread and the one that decodes.
pub(super) fn channel() -> (Sender<Fetched>, Receiver<Fetched>) {
    bounded(READS_AHEAD)
}

/// Why fetching ends early.
enum Stopped {
    NobodyListens,
    Failed(RestoreError),
}

/// Sends all objects, part by part, until the first failure or until nobody listens.
pub(super) fn fetch_all(connection: &mut Connection, objects: &[Wanted], sender: &Sender<Fetched>) {
    for (at, wanted) in objects.iter().enumerate() {
        let may_grow = at + 1 == objects.len();
        match fetch(connection, wanted, may_grow, sender) {
            Ok(()) => {}
            Err(Stopped::NobodyListens) => return,
            Err(Stopped::Failed(error)) => {
                // Nobody has to listen: then they failed before us.
                let _ = sender.send(Err(error));
                return;
            }
        }
    }
}

/// Sends one object. One that `may_grow` is read until there is nothing more: a server can answer in the middle of
/// an append, but not twice.
fn fetch(
    connection: &mut Connection,
    wanted: &Wanted,
    may_grow: bool,
    sender: &Sender<Fetched>,
) -> Result<(), Stopped> {
    let Wanted { object, ref path, size } = *wanted;
    let path = join(connection.root, path);
    let mut at = 0;
    loop {
        let most = match size.checked_sub(at) {
            // It has grown since it was listed, nobody knows how far.
            None if may_grow => READ,
            listed => (listed.unwrap_or_default() + BEYOND).min(READ),
        };
        let bytes = read(connection, &path, at, most as usize).map_err(|error| {
            Stopped::Failed(match error.kind {
                FailureKind::NotFound => RestoreError::Vanished { object },
                _ => error.into(),
            })
        })?;
        at += bytes.len() as u64;
        let last = if may_grow { bytes.is_empty() } else { (bytes.len() as u64) < most };
        sender.send(Ok(Part { bytes, last })).map_err(|_| Stopped::NobodyListens)?;
        if last {
            if let Some(remote) = &mut connection.remote {
                remote.close(&path);
            }
            return Ok(());
        }
    }
}

fn read(connection: &mut Connection, path: &str, at: u64, wanted: usize) -> Result<Vec<u8>, RemoteError> {
    let mut bytes = vec![0; wanted];
    let length = connection.run(|remote| remote.read_at(path, at, &mut bytes))?;
    bytes.truncate(length);
    Ok(bytes)
}

/// The decoding thread's end: the parts of one object after another.
pub(super) struct Feed<'a> {
    receiver: Receiver<Fetched>,
    /// Whether the present object has ended.
    ended: bool,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        receiver: Receiver<Fetched>,
        total: u64,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Feed { receiver, ended: false, done: 0, total, progress }
    }

    /// The next bytes of the present object; `None` at its end, after which the next object begins.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, RestoreError> {
        if std::mem::take(&mut self.ended) {
            return Ok(None);
        }
        let part =
            self.receiver.recv().expect("BUG: the fetching thread ends only behind the last object")?;
        self.ended = part.last;
        self.done += part.bytes.len() as u64;
        (self.progress)(Progress { phase: Phase::Fetch, done: self.done, total: self.total });
        Ok(Some(part.bytes))
    }

    pub(super) fn fetched(&self) -> u64 {
        self.done
    }
}
