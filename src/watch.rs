//! What happens in the databases' folders, by inotify. Its thread only marks a database and wakes the loop.

use crate::core::names;
use crate::core::sync::Dirty;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const WAL: u8 = 1;
const DATABASE: u8 = 2;
const FOLDER: u8 = 4;
const CLOSED: u8 = 8;
const ALL: u8 = WAL | DATABASE | FOLDER | CLOSED;

/// The files that databases live in, and what was seen of them.
struct Marks {
    /// A file, to the database it belongs to and what a write to it means.
    files: HashMap<PathBuf, (usize, u8)>,
    seen: Vec<AtomicU8>,
    /// Folders whose watch is gone.
    lost: Mutex<Vec<PathBuf>>,
    any_lost: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Marks {
    /// Whether it says anything new.
    fn mark(&self, database: usize, bits: u8) -> bool {
        // Whoever takes the marks looks afterwards; so only the first mark since must wake.
        let is_new = self.seen[database].fetch_or(bits, Ordering::SeqCst) & bits != bits;
        if is_new {
            (self.wake)();
        }
        is_new
    }

    fn mark_all(&self) {
        for database in 0..self.seen.len() {
            self.mark(database, ALL);
        }
    }

    /// Whether it is one more write to what the loop is about to look at anyway.
    fn on_event(&self, event: notify::Result<Event>) -> bool {
        let Some(event) = event.ok().filter(|event| !event.need_rescan()) else {
            self.mark_all();
            return false;
        };
        let is_write = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        let (adds, keeps) = match event.kind {
            _ if is_write => (0, ALL),
            EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                (FOLDER, ALL)
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (CLOSED, 0),
            // Opening, our own among it, and changes of mode or times mean nothing.
            _ => return false,
        };
        let mut is_known = is_write;
        for path in &event.paths {
            match self.files.get(path) {
                Some(&(database, bits)) => is_known &= !self.mark(database, bits & keeps | adds),
                None if adds == FOLDER => self.on_folder(path),
                None => is_known = false,
            }
        }
        is_known
    }

    /// The watched folder itself went away.
    fn on_folder(&self, folder: &Path) {
        let inside = |file: &Path| file.parent() == Some(folder);
        let mut is_ours = false;
        for (file, (database, _)) in &self.files {
            if inside(file) {
                is_ours = true;
                self.mark(*database, ALL);
            }
        }
        if is_ours {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
            self.any_lost.store(true, Ordering::SeqCst);
        }
    }
}

/// A writer that does not pause would wake the watch's thread for each of its writes, and pay for it. While the thread
/// sleeps, the kernel makes one event of them.
struct Drowsing {
    /// Writes in a row that said nothing new.
    known: u32,
    woke: Instant,
}

/// So many writes in a row that say nothing new are a writer that does not pause.
const MANY_KNOWN: u32 = 8;
/// How long the watch's thread sleeps then; no other database's event waits longer.
const NAP: Duration = Duration::from_micros(500);
/// Events that come sooner after a nap were read before it.
const READ_BEFORE: Duration = Duration::from_micros(20);

impl Drowsing {
    fn after(&mut self, is_known: bool) {
        self.known = if is_known { self.known.saturating_add(1) } else { 0 };
        if self.known >= MANY_KNOWN && self.woke.elapsed() > READ_BEFORE {
            std::thread::sleep(NAP);
            self.woke = Instant::now();
        }
    }
}

/// Watches the folders of all databases.
pub struct Watch {
    watcher: RecommendedWatcher,
    marks: Arc<Marks>,
    databases: Vec<PathBuf>,
    /// Folders, and which ones they were when they began to be watched: device and inode.
    watched: HashMap<PathBuf, (u64, u64)>,
}

impl Watch {
    /// Begins with no folder watched. `wake` is called when there is something new to [`Watch::take`].
    ///
    /// # Errors
    /// The kernel has no inotify instance left, for example.
    pub fn new(databases: &[PathBuf], wake: Box<dyn Fn() + Send + Sync>) -> Result<Self, String> {
        let mut files = HashMap::new();
        for (database, path) in databases.iter().enumerate() {
            let beside = |suffix| names::beside(path, suffix);
            files.insert(path.clone(), (database, DATABASE));
            files.insert(beside("-wal"), (database, WAL));
            files.insert(beside("-shm"), (database, WAL));
            files.insert(beside("-journal"), (database, FOLDER));
        }
        let seen = databases.iter().map(|_| AtomicU8::new(ALL)).collect();
        let (lost, any_lost) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let marks = Arc::new(Marks { files, seen, lost, any_lost, wake });
        let handler = Arc::clone(&marks);
        let mut drowsing = Drowsing { known: 0, woke: Instant::now() };
        let watcher = notify::recommended_watcher(move |event| drowsing.after(handler.on_event(event)))
            .map_err(|error| format!("cannot watch files: {error}"))?;
        Ok(Watch { watcher, marks, databases: databases.to_vec(), watched: HashMap::new() })
    }

    /// Watches the folder of a database, if it is not watched already. `Ok(false)` if there is no such folder.
    ///
    /// # Errors
    /// The kernel has no watch left, for example; then only the slow look notices what happens.
    pub fn follow(&mut self, database: usize) -> Result<bool, String> {
        if self.marks.any_lost.swap(false, Ordering::SeqCst) {
            let mut lost = self.marks.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.drain(..).for_each(|folder| {
                // The kernel has dropped the watch already; what is left is notify's own note of it.
                let _ = self.watcher.unwatch(&folder);
                self.watched.remove(&folder);
            });
        }
        let Some(folder) = self.databases[database].parent() else { return Ok(false) };
        if self.watched.contains_key(folder) {
            return Ok(true);
        }
        let Some(identity) = identity_of(folder) else { return Ok(false) };
        match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(folder.to_owned(), identity);
                // What happened before the watch was there was not seen.
                self.marks.mark(database, ALL);
                Ok(true)
            }
            Err(_) if !folder.is_dir() => Ok(false),
            Err(error) => Err(format!("cannot watch {}: {error}", folder.display())),
        }
    }

    /// Watches every folder anew, since what is mounted has changed: a file system that took the place of another one may
    /// have its numbers, device and inode.
    pub fn begin_anew(&self) {
        self.watched.keys().for_each(|folder| self.marks.on_folder(folder));
    }

    /// Notices folders that are other ones now, of which no event tells: one above which a folder was renamed, or one
    /// that something was mounted over where that cannot be seen.
    pub fn check(&self) {
        for (folder, identity) in &self.watched {
            if identity_of(folder) != Some(*identity) {
                self.marks.on_folder(folder);
            }
        }
    }

    /// Whether a watched folder went away, and [`Watch::follow`] is to be tried again.
    pub fn has_lost(&self) -> bool {
        self.marks.any_lost.load(Ordering::SeqCst)
    }

    /// What was seen of a database since this was last called.
    pub fn take(&self, database: usize) -> Dirty {
        let bits = self.marks.seen[database].swap(0, Ordering::SeqCst);
        let has = |bit| bits & bit != 0;
        Dirty { wal: has(WAL), database: has(DATABASE), folder: has(FOLDER), closed: has(CLOSED) }
    }
}

/// Device and inode of a folder, if there is one.
fn identity_of(folder: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
