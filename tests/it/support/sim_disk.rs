//! Support: the local disk, with faults, and with what of it would survive a power cut.
//!
//! Files are real ones (the live WAL is copied into them by the kernel). Beside each, what is *durable* is remembered:
//! its content and its name at its last sync, and the names of a folder at that folder's last sync. A file that is written, and a
//! name that is given or taken, without a sync may survive a power cut, be lost, or survive in a part: of every write
//! since the last sync, each on its own. What a failed sync should have made durable never becomes so, whatever is synced
//! later, unless it is written anew: Linux takes the pages for clean that it could not write.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wal_agent::core::machine::Machine;
use wal_agent::core::space::DiskSpace;
use wal_agent::disk::{Disk, DiskFile, OsDisk, WalMap};

/// The unit in which a write may be torn, in bytes.
const SECTOR: u64 = 512;

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// The agent ends here: the operation is not carried out, nor is any after it.
    Crash,
    /// The same, but a part of a write is carried out before.
    TornCrash,
    /// It fails with EIO, and is not carried out.
    Failed,
    /// From here on, so many operations that need space fail with ENOSPC, writes after a part.
    Full(usize),
}

/// Called before an operation, with its number.
type Before = Box<dyn FnMut(usize) + Send>;

#[derive(Clone, Copy)]
enum Pending {
    Write { at: u64, length: u64 },
    Length(u64),
}

/// A file, by inode.
#[derive(Default, Clone)]
struct Image {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// What a failed sync should have made durable, and what was not written since: the next sync passes over it.
    lost: Vec<Range<u64>>,
}

impl Image {
    /// A file that is whole on the disk.
    fn of_durable(content: Vec<u8>) -> Self {
        Image { durable: content, ..Image::default() }
    }

    fn change(&mut self, pending: Pending) {
        let anew = match pending {
            Pending::Write { at, length } => at..at + length,
            // What is cut off is not there any more; what comes there later is new.
            Pending::Length(length) => length..u64::MAX,
        };
        let rest =
            |lost: &Range<u64>| [lost.start..lost.end.min(anew.start), lost.start.max(anew.end)..lost.end];
        self.lost = self.lost.iter().flat_map(rest).filter(|range| !range.is_empty()).collect();
        self.pending.push(pending);
    }

    fn fail_sync(&mut self) {
        for pending in self.pending.drain(..) {
            if let Pending::Write { at, length } = pending {
                self.lost.push(at..at + length);
            }
        }
    }

    fn sync(&mut self, content: Vec<u8>) {
        let before = std::mem::replace(&mut self.durable, content);
        self.pending.clear();
        for at in self.lost.iter().cloned().flatten().map(|at| at as usize) {
            if let Some(byte) = self.durable.get_mut(at) {
                *byte = before.get(at).copied().unwrap_or(0);
            }
        }
    }
}

#[derive(Default)]
struct State {
    operations: usize,
    /// How often power was lost.
    boots: u32,
    hides_boot: bool,
    /// How often everything went on in another machine.
    machines: u32,
    faults: BTreeMap<usize, DiskFault>,
    full_for: usize,
    /// `None` for more than anybody needs.
    space: Option<DiskSpace>,
    has_crashed: bool,
    images: BTreeMap<u64, Image>,
    /// Durable names.
    names: BTreeMap<PathBuf, u64>,
    log: Vec<String>,
    injected: BTreeMap<String, u64>,
}

/// The disk.
#[derive(Clone)]
pub struct SimDisk {
    root: PathBuf,
    state: Arc<Mutex<State>>,
    before: Arc<Mutex<Option<Before>>>,
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: u64,
    file: Arc<dyn DiskFile>,
}

/// What an operation may do.
enum Verdict {
    Go,
    /// Write a part of it, then fail.
    Part(io::Error),
}

impl SimDisk {
    /// A disk that keeps what is below `root`.
    pub fn new(root: &Path) -> Self {
        SimDisk { root: root.to_owned(), state: Arc::default(), before: Arc::default() }
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.state().operations
    }

    /// The operation `later` operations from now fails.
    pub fn plan(&self, later: usize, fault: DiskFault) {
        let mut state = self.state();
        let at = state.operations + later;
        state.faults.insert(at, fault);
    }

    /// No fault is left.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.full_for = 0;
    }

    /// Calls `before` before every operation from now on.
    pub fn interrupt(&self, before: Option<Before>) {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    /// Whether the agent has ended at an operation.
    pub fn has_crashed(&self) -> bool {
        self.state().has_crashed
    }

    /// The next agent may use the disk.
    pub fn restart(&self) {
        let mut state = self.state();
        (state.has_crashed, state.full_for) = (false, 0);
        state.faults.clear();
    }

    /// What was done, for people.
    pub fn log(&self) -> String {
        self.state().log.join("\n")
    }

    /// Faults by kind.
    pub fn injected(&self) -> BTreeMap<String, u64> {
        self.state().injected.clone()
    }

    /// What the disk says of its room from now on, whatever is written; `None` for more than anybody needs.
    pub fn set_space(&self, space: Option<DiskSpace>) {
        self.state().space = space;
    }

    /// The kernel does not tell which boot this is.
    pub fn hide_boot(&self) {
        self.state().hides_boot = true;
    }

    /// Everything goes on in another machine.
    pub fn become_another_machine(&self) {
        self.state().machines += 1;
    }

    /// Whether all of a file would survive a power cut.
    pub fn is_durable(&self, path: &Path) -> bool {
        let (Ok(inode), Ok(live)) = (inode(path), std::fs::read(path)) else { return false };
        self.state().images.get(&inode).is_some_and(|image| image.durable.starts_with(&live))
    }

    /// Power is lost: of what was not synced, some of everything survives.
    pub fn lose_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = self.state();
        state.boots += 1;
        let mut live = BTreeMap::new();
        collect(&self.root, &mut live);
        // How much has come to the disk by itself: nothing, some, or nearly everything.
        let share = [0.0, 0.5, 0.9][random.random_range(0..3)];
        // Often the names have come to the disk by themselves.
        let keeps_names = random.random_bool(0.6);
        let mut after = BTreeMap::new();
        for (path, inode) in live.iter().chain(&state.names) {
            let is_settled = live.get(path) == Some(inode) && state.names.get(path) == Some(inode);
            let is_kept = if keeps_names { live.get(path) == Some(inode) } else { random.random_bool(0.5) };
            if is_settled || (!after.contains_key(path) && is_kept) {
                after.insert(path.clone(), *inode);
            }
        }
        let contents: BTreeMap<PathBuf, Vec<u8>> = after
            .iter()
            .filter_map(|(path, inode)| {
                let image = state.images.get(inode)?;
                let live = live.iter().find(|(_, live)| *live == inode);
                let live = live.and_then(|(path, _)| std::fs::read(path).ok()).unwrap_or_default();
                Some((path.clone(), survivors(image, &live, share, &mut random)))
            })
            .collect();
        self.become_only(contents, state);
    }

    /// Everything that is there now.
    pub fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut live = BTreeMap::new();
        collect(&self.root, &mut live);
        live.into_keys().map(|path| (path.clone(), std::fs::read(path).expect("it is there"))).collect()
    }

    /// What there was once is there again, and durable; the machine is another boot if it `reboots`.
    pub fn set_back(&self, image: &BTreeMap<PathBuf, Vec<u8>>, reboots: bool) {
        let mut state = self.state();
        state.boots += u32::from(reboots);
        self.become_only(image.clone(), state);
    }

    /// These files are there, durable, and nothing else is.
    fn become_only(&self, contents: BTreeMap<PathBuf, Vec<u8>>, mut state: MutexGuard<'_, State>) {
        let mut live = BTreeMap::new();
        collect(&self.root, &mut live);
        for path in live.keys().filter(|path| !contents.contains_key(*path)) {
            let is_lock = path.file_name() == Some(OsStr::new("lock"));
            if !is_lock {
                std::fs::remove_file(path).expect("the folder is ours");
            }
        }
        (state.images, state.names) = (BTreeMap::new(), BTreeMap::new());
        for (path, content) in contents {
            let folder = path.parent().expect("a file is in a folder");
            std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::write(&path, &content))
                .expect("our folder");
            let inode = inode(&path).expect("it was just made");
            state.images.insert(inode, Image::of_durable(content));
            state.names.insert(path, inode);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, and says whether it may be carried out.
    fn operate(&self, what: &str, path: &Path, needs_space: bool) -> io::Result<Verdict> {
        let number = self.state().operations;
        if let Ok(mut before) = self.before.try_lock()
            && let Some(before) = before.as_mut()
        {
            before(number);
        }
        let mut state = self.state();
        if state.has_crashed {
            return Err(io::Error::other("the agent has ended"));
        }
        state.operations += 1;
        let fault = state.faults.remove(&number);
        let name = path.strip_prefix(&self.root).unwrap_or(path).display();
        let entry = format!("{number}: {what} {name} {}", fault.map_or(String::new(), |f| format!("{f:?}")));
        state.log.push(entry);
        if let Some(fault) = fault {
            let kind = match fault {
                DiskFault::Full(_) => "disk full".to_owned(),
                fault => format!("disk {fault:?} {what}"),
            };
            *state.injected.entry(kind).or_default() += 1;
        }
        let ended = || io::Error::other("the agent ends");
        match fault {
            Some(DiskFault::Crash) => {
                state.has_crashed = true;
                return Err(ended());
            }
            Some(DiskFault::TornCrash) => {
                state.has_crashed = true;
                return Ok(Verdict::Part(ended()));
            }
            Some(DiskFault::Failed) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(DiskFault::Full(operations)) => state.full_for = operations,
            None => {}
        }
        if needs_space && state.full_for > 0 {
            state.full_for -= 1;
            return Ok(Verdict::Part(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        Ok(Verdict::Go)
    }

    /// The same, for an operation that has no parts.
    fn whole(&self, what: &str, path: &Path, needs_space: bool) -> io::Result<()> {
        match self.operate(what, path, needs_space)? {
            Verdict::Go => Ok(()),
            Verdict::Part(error) => Err(error),
        }
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> io::Result<Arc<dyn DiskFile>> {
        let inode = inode(path)?;
        self.state().images.entry(inode).or_default();
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), inode, file }))
    }
}

impl Disk for SimDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.whole("create folder", path, true)?;
        OsDisk.create_folder(path)
    }

    fn space(&self, _: &Path) -> io::Result<DiskSpace> {
        Ok(self.state().space.unwrap_or(DiskSpace { total: u64::MAX, free: u64::MAX }))
    }

    fn boot(&self) -> Option<String> {
        let state = self.state();
        (!state.hides_boot).then(|| format!("boot-{}", state.boots))
    }

    fn machine(&self) -> Machine {
        Machine::new(None, Some(&self.state().machines.to_string()))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.whole("list", folder, false)?;
        let mut names = OsDisk.list(folder)?;
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.whole(if create { "create" } else { "open" }, path, create)?;
        let file = OsDisk.open(path, create)?;
        if create {
            self.state().images.entry(inode(path)?).or_default().change(Pending::Length(0));
        }
        self.file(path, file)
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.whole("read", path, false)?;
        OsDisk.read(path)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Verdict::Part(error) = self.operate("replace", path, true)? {
            std::fs::write(path.with_extension("tmp"), &content[..content.len() / 2])?;
            return Err(error);
        }
        OsDisk.replace(path, content)?;
        let write = Pending::Write { at: 0, length: content.len() as u64 };
        let image = Image { pending: vec![write], ..Image::default() };
        self.state().images.insert(inode(path)?, image);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.whole("remove", path, false)?;
        OsDisk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.whole("sync folder", folder, false)?;
        OsDisk.sync_folder(folder)?;
        let mut state = self.state();
        state.names.retain(|path, _| path.parent() != Some(folder));
        for name in OsDisk.list(folder)? {
            let path = folder.join(name);
            if path.is_file() {
                let inode = inode(&path)?;
                state.names.insert(path, inode);
            }
        }
        Ok(())
    }
}

impl SimFile {
    fn pending(&self, pending: Pending) {
        self.disk.state().images.entry(self.inode).or_default().change(pending);
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.disk.whole("length", &self.path, false)?;
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.disk.whole("set length", &self.path, false)?;
        self.file.set_length(length)?;
        self.pending(Pending::Length(length));
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.disk.whole("read", &self.path, false)?;
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let verdict = self.disk.operate("write", &self.path, true)?;
        let (bytes, result) = match verdict {
            Verdict::Go => (bytes, Ok(())),
            Verdict::Part(error) => (&bytes[..bytes.len() / 2], Err(error)),
        };
        self.file.write_at(bytes, at)?;
        self.pending(Pending::Write { at, length: bytes.len() as u64 });
        result
    }

    fn copy_from(&self, map: &WalMap, from: u64, length: u64, at: u64) -> io::Result<u64> {
        let verdict = self.disk.operate("copy", &self.path, true)?;
        let (length, error) = match verdict {
            Verdict::Go => (length, None),
            Verdict::Part(error) => (length / 2, Some(error)),
        };
        let copied = self.file.copy_from(map, from, length, at)?;
        self.pending(Pending::Write { at, length: copied });
        error.map_or(Ok(copied), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let allowed = self.disk.whole("sync", &self.path, false);
        let mut content = vec![0; self.file.length()? as usize];
        self.file.read_at(&mut content, 0)?;
        let mut state = self.disk.state();
        if state.has_crashed {
            return allowed;
        }
        let image = state.images.entry(self.inode).or_default();
        if allowed.is_err() {
            image.fail_sync();
            return allowed;
        }
        image.sync(content);
        // So do the file systems that matter.
        state.names.insert(self.path.clone(), self.inode);
        Ok(())
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    path.metadata().map(|metadata| metadata.ino())
}

/// All files below a folder, by path.
fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("the folder is ours").path();
        match path.is_dir() {
            true => collect(&path, files),
            false => drop(files.insert(path.clone(), inode(&path).expect("it is there"))),
        }
    }
}

/// What of a file survives: everything durable, and some of what came after.
fn survivors(image: &Image, live: &[u8], share: f64, random: &mut StdRng) -> Vec<u8> {
    let mut content = image.durable.clone();
    for pending in &image.pending {
        match *pending {
            Pending::Length(length) if random.random_bool(share) => content.resize(length as usize, 0),
            Pending::Length(_) => {}
            Pending::Write { at, length } => {
                let end = (at + length).min(live.len() as u64);
                let mut sector = at / SECTOR * SECTOR;
                let (is_kept, is_torn) = (random.random_bool(share), random.random_bool(0.5));
                while sector < end {
                    let (from, to) = (sector.max(at) as usize, (sector + SECTOR).min(end) as usize);
                    if is_kept || (is_torn && random.random_bool(share)) {
                        content.resize(content.len().max(to), 0);
                        content[from..to].copy_from_slice(&live[from..to]);
                    }
                    sector += SECTOR;
                }
            }
        }
    }
    content
}
