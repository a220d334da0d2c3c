//! Keeps the watches on the folders. On a thread of its own: what it asks of the watch's thread is answered only once that
//! has read all events, and beside writers that never pause nobody knows when that is.

use super::{ALL, Marks};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::warn;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A folder that is not there, or cannot be watched, is tried again after this.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Watched folders are compared with those at their paths so often.
const CHECK_PAUSE: Duration = Duration::from_secs(60);

/// What is asked of the keeper.
pub(super) enum Wish {
    /// The watch of a folder is gone.
    FollowAnew(PathBuf),
    /// What is mounted has changed.
    BeginAnew,
    /// A database is to be followed without events, or with them again.
    Doze(usize, bool),
    /// The watch is not needed any more.
    End,
}

/// Has all watches.
pub(super) struct Keeper {
    watcher: RecommendedWatcher,
    marks: Arc<Marks>,
    databases: Vec<PathBuf>,
    /// Folders, and which ones they were when they began to be watched: device and inode.
    watched: HashMap<PathBuf, (u64, u64)>,
}

impl Keeper {
    pub(super) fn new(watcher: RecommendedWatcher, marks: Arc<Marks>, databases: &[PathBuf]) -> Keeper {
        Keeper { watcher, marks, databases: databases.to_vec(), watched: HashMap::new() }
    }

    /// Keeps the watches until it is to end.
    pub(super) fn run(mut self, wishes: &Receiver<Wish>) {
        let mut check_at = Instant::now() + CHECK_PAUSE;
        loop {
            let is_complete = self.follow_all();
            let until_check = check_at.saturating_duration_since(Instant::now());
            let pause = if is_complete { until_check } else { until_check.min(FOLLOW_PAUSE) };
            match wishes.recv_timeout(pause) {
                Ok(Wish::FollowAnew(folder)) => self.forget(&folder),
                Ok(Wish::BeginAnew) => self.begin_anew(),
                Ok(Wish::Doze(database, true)) => self.begin_dozing(database),
                Ok(Wish::Doze(database, false)) => self.end_dozing(database),
                Ok(Wish::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= check_at {
                check_at = Instant::now() + CHECK_PAUSE;
                self.check();
            }
        }
    }

    /// Asks something of the watch's thread, which hurries to answer.
    fn ask<T>(&mut self, question: impl FnOnce(&mut RecommendedWatcher) -> T) -> T {
        self.marks.is_awaited.store(true, Ordering::SeqCst);
        let answer = question(&mut self.watcher);
        self.marks.is_awaited.store(false, Ordering::SeqCst);
        answer
    }

    /// Watches the folders that are not watched yet; whether all are.
    fn follow_all(&mut self) -> bool {
        let mut is_complete = true;
        for database in 0..self.databases.len() {
            match self.follow(database) {
                Ok(is_watched) => is_complete &= is_watched,
                Err(error) => {
                    is_complete = false;
                    warn!("{error}; changes are noticed late");
                }
            }
        }
        is_complete
    }

    /// `Ok(false)` if there is no such folder.
    fn follow(&mut self, database: usize) -> Result<bool, String> {
        let Some(folder) = self.folder(database) else { return Ok(false) };
        if self.watched.contains_key(&folder) || self.is_dozing(database) {
            return Ok(true);
        }
        let Some(identity) = identity_of(&folder) else { return Ok(false) };
        match self.ask(|watcher| watcher.watch(&folder, RecursiveMode::NonRecursive)) {
            Ok(()) => {
                self.watched.insert(folder, identity);
                // What happened before the watch was there was not seen.
                self.marks.mark(database, ALL);
                Ok(true)
            }
            Err(_) if !folder.is_dir() => Ok(false),
            Err(error) => Err(format!("cannot watch {}: {error}", folder.display())),
        }
    }

    fn folder(&self, database: usize) -> Option<PathBuf> {
        self.databases[database].parent().map(Path::to_owned)
    }

    fn is_dozing(&self, database: usize) -> bool {
        self.marks.dozing[database].load(Ordering::SeqCst)
    }

    fn forget(&mut self, folder: &Path) {
        // The kernel has dropped the watch already; what is left is notify's own note of it.
        let _ = self.ask(|watcher| watcher.unwatch(folder));
        self.watched.remove(folder);
    }

    fn begin_anew(&mut self) {
        let dozing = self.wake_all();
        for folder in self.watched.keys().cloned().collect::<Vec<_>>() {
            self.lose(&folder);
        }
        self.send_to_sleep(&dozing);
    }

    /// Notices folders that are other ones now, of which no event tells: one above which a folder was renamed, or one
    /// that something was mounted over where that cannot be seen.
    fn check(&mut self) {
        let dozing = self.wake_all();
        let is_other = |(folder, identity): (&PathBuf, &(u64, u64))| {
            (identity_of(folder) != Some(*identity)).then(|| folder.clone())
        };
        for folder in self.watched.iter().filter_map(is_other).collect::<Vec<_>>() {
            self.lose(&folder);
        }
        self.send_to_sleep(&dozing);
    }

    fn lose(&mut self, folder: &Path) {
        self.forget(folder);
        self.marks.on_folder(folder);
    }

    /// Whatever became of their folders meanwhile is seen then.
    fn wake_all(&mut self) -> Vec<usize> {
        let dozing: Vec<_> = (0..self.databases.len()).filter(|database| self.is_dozing(*database)).collect();
        dozing.iter().for_each(|database| self.end_dozing(*database));
        dozing
    }

    fn send_to_sleep(&mut self, databases: &[usize]) {
        self.follow_all();
        databases.iter().for_each(|database| self.begin_dozing(*database));
    }

    fn begin_dozing(&mut self, database: usize) {
        let path = self.databases[database].clone();
        let Some(folder) = self.folder(database).filter(|folder| self.watched.contains_key(folder)) else {
            return;
        };
        let is_alone = self.databases.iter().filter(|other| other.parent() == Some(&folder)).count() == 1;
        if is_alone && self.ask(|watcher| watcher.watch(&path, RecursiveMode::NonRecursive)).is_ok() {
            self.marks.dozing[database].store(true, Ordering::SeqCst);
            self.forget(&folder);
            // The file may have gone before it was watched.
            self.marks.mark(database, ALL);
        }
    }

    fn end_dozing(&mut self, database: usize) {
        if self.marks.dozing[database].swap(false, Ordering::SeqCst) {
            let path = self.databases[database].clone();
            // The kernel has dropped it already if the file has gone.
            let _ = self.ask(|watcher| watcher.unwatch(&path));
        }
    }
}

/// Device and inode of a folder, if there is one.
fn identity_of(folder: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
