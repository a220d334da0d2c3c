//! What happens in the databases' folders, by inotify. Its thread only marks a database and wakes the loop.

mod keeper;

use crate::core::names;
use crate::core::sync::Dirty;
use crossbeam_channel::{Sender, unbounded};
use keeper::{Keeper, Wish};
use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

const WAL: u8 = 1;
const DATABASE: u8 = 2;
const FOLDER: u8 = 4;
const CLOSED: u8 = 8;
const RIGHTS: u8 = 16;
const ALL: u8 = WAL | DATABASE | FOLDER | CLOSED | RIGHTS;

/// The files that databases live in, and what was seen of them.
struct Marks {
    /// A file, to the database it belongs to and what a write to it means.
    files: HashMap<PathBuf, (usize, u8)>,
    /// A folder, to the databases in it.
    folders: HashMap<PathBuf, Vec<usize>>,
    seen: Vec<AtomicU8>,
    /// Somebody waits for the watch's thread to have read all events.
    is_awaited: AtomicBool,
    wishes: Sender<Wish>,
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
            EventKind::Modify(ModifyKind::Metadata(_)) => return self.on_rights(&event.paths),
            // Opening, our own among it, means nothing.
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

    /// Owner, mode or times of files were changed. Those of `-wal` and `-shm` follow the database's.
    fn on_rights(&self, paths: &[PathBuf]) -> bool {
        for path in paths {
            if let Some(&(database, DATABASE)) = self.files.get(path) {
                self.mark(database, RIGHTS);
            }
        }
        false
    }

    /// The watched folder itself went away. The keeper marks its databases once more when it has watched what is there then.
    fn on_folder(&self, folder: &Path) {
        let Some(databases) = self.folders.get(folder) else { return };
        for database in databases {
            self.mark(*database, ALL);
        }
        // The keeper ends only with the watch.
        let _ = self.wishes.send(Wish::FollowAnew(folder.to_owned()));
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
    fn after(&mut self, is_known: bool, is_awaited: bool) {
        // The loop has looked while this slept, and the writer has not paused.
        let goes_on = || self.known >= MANY_KNOWN && self.woke.elapsed() < NAP;
        self.known = if is_awaited {
            0
        } else if is_known {
            self.known.saturating_add(1)
        } else if goes_on() {
            MANY_KNOWN - 1
        } else {
            0
        };
        if self.known >= MANY_KNOWN && self.woke.elapsed() > READ_BEFORE {
            std::thread::sleep(NAP);
            self.woke = Instant::now();
        }
    }
}

/// Watches the folders of all databases.
pub struct Watch {
    marks: Arc<Marks>,
    wishes: Sender<Wish>,
    /// Which databases are to be followed without events.
    dozing: Vec<bool>,
}

impl Watch {
    /// Begins with no folder watched; soon all are that there are. `wake` is called when there is something new to
    /// [`Watch::take`].
    ///
    /// # Errors
    /// The kernel has no inotify instance left, for example.
    pub fn new(databases: &[PathBuf], wake: Box<dyn Fn() + Send + Sync>) -> Result<Self, String> {
        let (mut files, mut folders) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for (database, path) in databases.iter().enumerate() {
            let beside = |suffix| names::beside(path, suffix);
            files.insert(path.clone(), (database, DATABASE));
            files.insert(beside("-wal"), (database, WAL));
            files.insert(beside("-shm"), (database, WAL));
            files.insert(beside("-journal"), (database, FOLDER));
            if let Some(folder) = path.parent() {
                folders.entry(folder.to_owned()).or_default().push(database);
            }
        }
        let seen = databases.iter().map(|_| AtomicU8::new(ALL)).collect();
        let (wishes, wished) = unbounded();
        let is_awaited = AtomicBool::new(false);
        let marks = Arc::new(Marks { files, folders, seen, is_awaited, wishes: wishes.clone(), wake });
        let handler = Arc::clone(&marks);
        let mut drowsing = Drowsing { known: 0, woke: Instant::now() };
        let watcher = notify::recommended_watcher(move |event| {
            let is_known = handler.on_event(event);
            drowsing.after(is_known, handler.is_awaited.load(Ordering::SeqCst));
        });
        let watcher = watcher.map_err(|error| format!("cannot watch files: {error}"))?;
        let keeper = Keeper::new(watcher, Arc::clone(&marks), databases);
        std::thread::spawn(move || keeper.run(&wished));
        Ok(Watch { marks, wishes, dozing: vec![false; databases.len()] })
    }

    /// Whether a database is to be followed without events, which cost its writers more than anything else: its folder is
    /// not watched then. Whatever was not heard meanwhile counts as seen afterwards. Does nothing where the folder is that
    /// of other databases, too.
    pub fn doze(&mut self, database: usize, is_dozing: bool) {
        if std::mem::replace(&mut self.dozing[database], is_dozing) != is_dozing {
            self.wish(Wish::Doze(database, is_dozing));
        }
    }

    /// Watches every folder anew, since what is mounted has changed: a file system that took the place of another one may
    /// have its numbers, device and inode.
    pub fn begin_anew(&self) {
        self.wish(Wish::BeginAnew);
    }

    /// What was seen of a database since this was last called.
    pub fn take(&self, database: usize) -> Dirty {
        let bits = self.marks.seen[database].swap(0, Ordering::SeqCst);
        let has = |bit| bits & bit != 0;
        Dirty {
            wal: has(WAL),
            database: has(DATABASE),
            folder: has(FOLDER),
            closed: has(CLOSED),
            rights: has(RIGHTS),
        }
    }

    fn wish(&self, wish: Wish) {
        self.wishes.send(wish).expect("BUG: the keeper ends only with the watch");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It is not waited for: it may be waiting for the watch's thread.
        self.wish(Wish::End);
    }
}
