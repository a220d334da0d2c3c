//! Support: a server in memory with files that have names and inodes, as a real one has, and faults at chosen operations.
//! Its clock is the count of its operations.

use super::history::Objects;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use wal_agent::core::segment::PACKET;
use wal_agent::remote::{Entry, FailureKind, Remote, RemoteError};

/// What becomes of the operation that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The line is cut before it reached the server.
    Lost,
    /// It was carried out, and the answer was lost.
    Unanswered,
    /// Of a write of several packets, the first so many arrived; of anything else, nothing.
    Torn(usize),
    /// A stopped server process carries it out so many operations later.
    Late(usize),
    /// The server refuses it, and the connection stays.
    Refused(FailureKind),
}

/// What an operation does to the server.
enum Change {
    Nothing,
    Create(String),
    Write(usize, u64, Vec<u8>),
    Time(usize, i64),
    Sync(usize),
    Rename(String, String),
    Remove(String),
}

/// Asked after every operation, also one that failed.
type Check = Box<dyn FnMut(&Objects) + Send>;

struct State {
    names: BTreeMap<String, usize>,
    /// Those that would survive a power cut: of each file, those that it had at its last sync.
    durable: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    operations: usize,
    /// Its clock is so many seconds ahead of the number of operations.
    ahead: i64,
    faults: BTreeMap<usize, Fault>,
    late: Vec<(usize, Change)>,
    check: Option<Check>,
    log: Vec<String>,
    injected: BTreeMap<String, u64>,
    refuses_all: bool,
}

#[derive(Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    /// What they were at the last sync.
    synced: Vec<u8>,
    modified: i64,
}

/// The server.
#[derive(Clone)]
pub struct FaultyServer(Arc<Mutex<State>>);

/// A connection; of no more use after its line was cut.
struct Connection {
    server: FaultyServer,
    handles: HashMap<String, usize>,
    is_cut: bool,
}

impl FaultyServer {
    /// A server on which the n-th operation, counted from 0, fails; `check` sees all objects after each operation.
    pub fn new(fault: Option<(usize, Fault)>, check: impl FnMut(&Objects) + Send + 'static) -> Self {
        let server = FaultyServer::reliable();
        server.state().faults.extend(fault);
        server.state().check = Some(Box::new(check));
        server
    }

    /// A server without faults, until [`FaultyServer::plan`].
    pub fn reliable() -> Self {
        FaultyServer(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            inodes: Vec::new(),
            operations: 0,
            ahead: 0,
            faults: BTreeMap::new(),
            late: Vec::new(),
            check: None,
            log: Vec::new(),
            injected: BTreeMap::new(),
            refuses_all: false,
        })))
    }

    /// The operation `later` operations from now fails.
    pub fn plan(&self, later: usize, fault: Fault) {
        let mut state = self.state();
        let at = state.operations + later;
        state.faults.insert(at, fault);
    }

    /// Whether a fault was planned, and has not come yet.
    pub fn has_faults(&self) -> bool {
        !self.state().faults.is_empty()
    }

    /// Whether every operation is refused from now on.
    pub fn refuse_all(&self, refuses_all: bool) {
        self.state().refuses_all = refuses_all;
    }

    /// Its clock is set ahead or back.
    pub fn set_clock(&self, seconds: i64) {
        self.state().ahead += seconds;
    }

    /// Everything that it holds is gone.
    pub fn lose_all(&self) {
        let mut state = self.state();
        state.names.clear();
        state.durable.clear();
    }

    /// Of the first object whose path contains this, half is gone.
    pub fn cut_short(&self, part: &str) {
        let mut state = self.state();
        let inode = state.names.iter().find(|(path, _)| path.contains(part)).map(|(_, inode)| *inode);
        let inode = &mut state.inodes[inode.expect("there is such an object")];
        let half = inode.bytes.len() / 2;
        inode.bytes.truncate(half);
        inode.synced.truncate(half);
    }

    /// No fault is left; what a stopped server process has left to do is done.
    pub fn heal(&self) {
        self.state().faults.clear();
        self.wake();
    }

    /// Faults by kind.
    pub fn injected(&self) -> BTreeMap<String, u64> {
        self.state().injected.clone()
    }

    /// Another server that holds the same now. With `synced`, as if this one had lost power: what was written to a
    /// file since its last sync is gone, and so is a name that it was given since.
    pub fn copy(&self, synced: bool) -> Self {
        let copy = FaultyServer::reliable();
        let state = self.state();
        let inode = |inode: &Inode| match synced {
            true => Inode { bytes: inode.synced.clone(), ..inode.clone() },
            false => inode.clone(),
        };
        copy.state().names = if synced { state.durable.clone() } else { state.names.clone() };
        let names = copy.state().names.clone();
        copy.state().durable = names;
        copy.state().inodes = state.inodes.iter().map(inode).collect();
        copy
    }

    /// A server that holds these objects, all of the same age.
    pub fn holding(objects: Objects) -> Self {
        let server = FaultyServer::reliable();
        let mut state = server.state();
        for (number, (path, bytes)) in objects.into_iter().enumerate() {
            state.names.insert(path.clone(), number);
            state.durable.insert(path, number);
            state.inodes.push(Inode { synced: bytes.clone(), bytes, modified: 0 });
        }
        drop(state);
        server
    }

    pub fn connect(&self) -> Box<dyn Remote> {
        Box::new(Connection { server: self.clone(), handles: HashMap::new(), is_cut: false })
    }

    /// How many operations there were so far.
    pub fn operations(&self) -> usize {
        self.state().operations
    }

    /// What was done, for people.
    pub fn log(&self) -> String {
        self.state().log.join("\n")
    }

    /// A stopped server process goes on now, if one has something left to do.
    pub fn wake(&self) {
        let mut state = self.state();
        for (_, change) in std::mem::take(&mut state.late) {
            state.log.push("woken".to_owned());
            let _ = state.apply(change); // nobody hears of it
            state.check();
        }
    }

    pub fn objects(&self) -> Objects {
        self.state().objects()
    }

    /// Orders what paths have in common by when the first file of it was made, whatever the server's clock says.
    pub fn made_first(&self, part: &str) -> Option<usize> {
        let state = self.state();
        state.names.iter().filter(|(path, _)| path.contains(part)).map(|(_, inode)| *inode).min()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// Each operation takes a second.
    fn now(&self) -> i64 {
        self.operations as i64 + self.ahead
    }

    fn objects(&self) -> Objects {
        self.names.iter().map(|(name, inode)| (name.clone(), self.inodes[*inode].bytes.clone())).collect()
    }

    fn check(&mut self) {
        if self.check.is_some() {
            let objects = self.objects();
            self.check.iter_mut().for_each(|check| check(&objects));
        }
    }

    fn apply(&mut self, change: Change) -> Result<Option<usize>, FailureKind> {
        match change {
            Change::Nothing => {}
            Change::Create(path) => {
                if let Some(inode) = self.names.get(&path) {
                    self.inodes[*inode].bytes.clear();
                    return Ok(Some(*inode));
                }
                self.names.insert(path, self.inodes.len());
                self.inodes.push(Inode { modified: self.now(), ..Inode::default() });
                return Ok(Some(self.inodes.len() - 1));
            }
            Change::Write(inode, at, bytes) => {
                self.inodes[inode].modified = self.now();
                let file = &mut self.inodes[inode].bytes;
                let (start, end) = (at as usize, at as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(&bytes);
            }
            Change::Time(inode, seconds) => self.inodes[inode].modified = seconds,
            Change::Sync(inode) => {
                self.inodes[inode].synced = self.inodes[inode].bytes.clone();
                self.durable.retain(|_, of| *of != inode);
                self.durable.extend(
                    self.names.iter().filter(|(_, of)| **of == inode).map(|(name, of)| (name.clone(), *of)),
                );
            }
            Change::Rename(from, to) => {
                if self.names.contains_key(&to) {
                    return Err(FailureKind::Exists);
                }
                let inode = self.names.remove(&from).ok_or(FailureKind::NotFound)?;
                self.names.insert(to, inode);
            }
            Change::Remove(path) => drop(self.names.remove(&path)),
        }
        Ok(None)
    }

    /// The late operation, if its time has come.
    fn carry_out_late(&mut self) {
        let now = self.operations;
        let due: Vec<_> = self.late.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, change) in due {
            self.log.push("carried out late".to_owned());
            let _ = self.apply(change); // nobody hears of it
        }
    }
}

impl Connection {
    /// Carries out one operation, or what the fault leaves of it; the inode that was made, if one was.
    fn operate(&mut self, what: String, change: Change) -> Result<Option<usize>, RemoteError> {
        let failed = |kind| RemoteError { kind, action: what.clone(), reason: format!("{kind}, as asked") };
        if self.is_cut {
            return Err(failed(FailureKind::Disconnected));
        }
        let mut state = self.server.state();
        state.carry_out_late();
        let number = state.operations;
        state.operations += 1;
        let fault = state.faults.remove(&number);
        if let Some(fault) = fault {
            let kind = format!("{fault:?}");
            let kind = kind.split('(').next().unwrap_or_default().to_lowercase();
            let verb = what.split(' ').next().unwrap_or_default();
            *state.injected.entry(format!("server {kind} {verb}")).or_default() += 1;
        }
        state.log.push(format!("{number}: {what} {}", fault.map_or(String::new(), |f| format!("{f:?}"))));
        let result = match fault {
            None if state.refuses_all => Err(failed(FailureKind::Denied)),
            None => state.apply(change).map_err(failed),
            Some(Fault::Refused(kind)) => Err(failed(kind)),
            Some(fault) => {
                match (fault, change) {
                    (Fault::Unanswered, change) => {
                        let _ = state.apply(change); // nobody hears of it
                    }
                    (Fault::Torn(packets), Change::Write(inode, at, mut bytes)) if bytes.len() > PACKET => {
                        bytes.truncate(packets * PACKET);
                        let _ = state.apply(Change::Write(inode, at, bytes)); // as above
                    }
                    (Fault::Late(operations), change) => state.late.push((number + operations, change)),
                    _ => {}
                }
                Err(failed(FailureKind::Disconnected))
            }
        };
        state.check();
        drop(state);
        self.is_cut |= matches!(&result, Err(error) if error.kind == FailureKind::Disconnected);
        result
    }

    /// The inode behind an open file, which follows it through renames and outlives its name.
    fn inode(&mut self, path: &str) -> Result<usize, RemoteError> {
        if let Some(inode) = self.handles.get(path) {
            return Ok(*inode);
        }
        let inode = self.server.state().names.get(path).copied();
        let action = format!("open {path}");
        let reason = "not there".to_owned();
        let inode = inode.ok_or(RemoteError { kind: FailureKind::NotFound, action, reason })?;
        self.handles.insert(path.to_owned(), inode);
        Ok(inode)
    }
}

impl Remote for Connection {
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError> {
        self.operate(format!("list {folder}"), Change::Nothing)?;
        let state = self.server.state();
        let mut entries = BTreeMap::new();
        for (path, inode) in &state.names {
            let Some(inside) = path.strip_prefix(folder).and_then(|path| path.strip_prefix('/')) else {
                continue;
            };
            let (name, is_folder) = inside.split_once('/').map_or((inside, false), |(name, _)| (name, true));
            let file = &state.inodes[*inode];
            let (size, modified) =
                if is_folder { (0, None) } else { (file.bytes.len() as u64, Some(file.modified)) };
            entries.insert(name, Entry { name: name.to_owned(), size, modified, is_folder });
        }
        Ok(entries.into_values().collect())
    }

    fn create(&mut self, path: &str) -> Result<bool, RemoteError> {
        self.handles.remove(path);
        let made = self.operate(format!("create {path}"), Change::Create(path.to_owned()))?;
        self.handles.extend(made.map(|inode| (path.to_owned(), inode)));
        Ok(false)
    }

    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        let inode = self.inode(path)?;
        let what = format!("write {path} {at}+{}", bytes.len());
        self.operate(what, Change::Write(inode, at, bytes.to_vec())).map(drop)
    }

    fn sync(&mut self, path: &str) -> Result<bool, RemoteError> {
        let inode = self.inode(path)?;
        self.operate(format!("sync {path}"), Change::Sync(inode)).map(|_| true)
    }

    fn set_modified(&mut self, path: &str, seconds: i64) -> Result<(), RemoteError> {
        let inode = self.inode(path)?;
        self.operate(format!("set the time of {path} {seconds}"), Change::Time(inode, seconds)).map(drop)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError> {
        self.operate(format!("rename {from} {to}"), Change::Rename(from.to_owned(), to.to_owned()))?;
        let inode = self.handles.remove(from);
        self.handles.extend(inode.map(|inode| (to.to_owned(), inode)));
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), RemoteError> {
        self.handles.remove(path);
        self.operate(format!("remove {path}"), Change::Remove(path.to_owned())).map(drop)
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let inode = self.inode(path)?;
        self.operate(format!("read {path} {at}+{}", buffer.len()), Change::Nothing)?;
        let state = self.server.state();
        let rest = state.inodes[inode].bytes.get(at as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn close(&mut self, path: &str) {
        self.handles.remove(path);
    }
}
