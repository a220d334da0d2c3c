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
const CHECK_PAUSE: Duration = Duration::from_secs(5);

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

/// What is watched of a folder.
#[derive(Clone, Copy)]
enum Watched {
    /// Nothing; it is tried at that time. Whether anything may have happened there that nobody has heard of.
    Nothing { try_at: Instant, is_unheard: bool },
    /// The folder, and which one that was: device and inode.
    Folder(u64, u64),
    /// Nothing, as long as its only database is followed without events.
    Unheard,
}

/// Has all watches.
pub(super) struct Keeper {
    watcher: RecommendedWatcher,
    marks: Arc<Marks>,
    databases: Vec<PathBuf>,
    folders: HashMap<PathBuf, Watched>,
    /// Why folders could not be watched, the last time.
    failures: HashMap<PathBuf, String>,
}

impl Keeper {
    pub(super) fn new(watcher: RecommendedWatcher, marks: Arc<Marks>, databases: &[PathBuf]) -> Keeper {
        let unheard = Watched::Nothing { try_at: Instant::now(), is_unheard: true };
        let folders = marks.folders.keys().map(|folder| (folder.clone(), unheard)).collect();
        Keeper { watcher, marks, databases: databases.to_vec(), folders, failures: HashMap::new() }
    }

    /// Keeps the watches until it is to end.
    pub(super) fn run(mut self, wishes: &Receiver<Wish>) {
        let mut checked = Instant::now();
        loop {
            self.follow();
            let check_at = checked + CHECK_PAUSE;
            let next = self.next_try().map_or(check_at, |at| at.min(check_at));
            let first = match wishes.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(wish) => Some(wish),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (mut is_anew, is_checked) = (false, Instant::now() >= check_at);
            for wish in first.into_iter().chain(wishes.try_iter()) {
                match wish {
                    Wish::FollowAnew(folder) => self.forget(&folder),
                    // Mounts often come in numbers.
                    Wish::BeginAnew => is_anew = true,
                    Wish::Doze(database, true) => self.begin_dozing(database),
                    Wish::Doze(database, false) => self.end_dozing(database),
                    Wish::End => return,
                }
            }
            if is_anew || is_checked {
                checked = Instant::now();
                self.check(is_anew);
            }
        }
    }

    fn next_try(&self) -> Option<Instant> {
        let try_at = |watched: &Watched| match watched {
            Watched::Nothing { try_at, .. } => Some(*try_at),
            _ => None,
        };
        self.folders.values().filter_map(try_at).min()
    }

    /// Asks something of the watch's thread, which hurries to answer.
    fn ask<T>(&mut self, question: impl FnOnce(&mut RecommendedWatcher) -> T) -> T {
        self.marks.is_awaited.store(true, Ordering::SeqCst);
        let answer = question(&mut self.watcher);
        self.marks.is_awaited.store(false, Ordering::SeqCst);
        answer
    }

    /// Tries to watch each folder for which it is time.
    fn follow(&mut self) {
        let now = Instant::now();
        let is_due = |(folder, watched): (&PathBuf, &Watched)| match watched {
            Watched::Nothing { try_at, is_unheard } if *try_at <= now => Some((folder.clone(), *is_unheard)),
            _ => None,
        };
        for (folder, is_unheard) in self.folders.iter().filter_map(is_due).collect::<Vec<_>>() {
            let watched = self.try_to_watch(&folder);
            if watched.is_some() || is_unheard {
                // What happened before the watch was there was not heard.
                self.mark_all(&folder);
            }
            // What cannot be watched is looked at each time instead.
            let is_unheard = identity_of(&folder).is_some();
            let nothing = Watched::Nothing { try_at: now + FOLLOW_PAUSE, is_unheard };
            self.folders.insert(folder, watched.unwrap_or(nothing));
        }
    }

    fn mark_all(&self, folder: &Path) {
        for database in self.marks.folders.get(folder).into_iter().flatten() {
            self.marks.mark(*database, ALL);
        }
    }

    fn try_to_watch(&mut self, folder: &Path) -> Option<Watched> {
        let (device, inode) = identity_of(folder)?;
        match self.ask(|watcher| watcher.watch(folder, RecursiveMode::NonRecursive)) {
            Ok(()) => {
                self.failures.remove(folder);
                return Some(Watched::Folder(device, inode));
            }
            Err(error) if folder.is_dir() => {
                let error = error.to_string();
                if self.failures.get(folder) != Some(&error) {
                    warn!("cannot watch {}: {error}; it is looked at each second instead", folder.display());
                    self.failures.insert(folder.to_owned(), error);
                }
            }
            // It has just gone.
            Err(_) => {}
        }
        None
    }

    /// Drops the watch of a folder, which is followed anew then.
    fn forget(&mut self, folder: &Path) {
        let Some(watched) = self.folders.get_mut(folder) else { return };
        let before = *watched;
        *watched = Watched::Nothing { try_at: Instant::now(), is_unheard: true };
        match before {
            Watched::Nothing { .. } | Watched::Unheard => {}
            // The kernel has dropped it already if it has gone; what is left is notify's own note of it.
            Watched::Folder(..) => drop(self.ask(|watcher| watcher.unwatch(folder))),
        }
    }

    /// Notices folders that are other ones now, of which no event tells: one above which a folder was renamed, or one
    /// that something was mounted over where that cannot be seen. `is_anew`: any may be, even one with the same numbers.
    fn check(&mut self, is_anew: bool) {
        let is_other = |(folder, watched): (&PathBuf, &Watched)| match *watched {
            Watched::Nothing { .. } | Watched::Unheard => false,
            Watched::Folder(device, inode) => is_anew || identity_of(folder) != Some((device, inode)),
        };
        let others = self.folders.iter().filter(|entry| is_other(*entry));
        let others: Vec<_> = others.map(|(folder, _)| folder.clone()).collect();
        others.iter().for_each(|folder| self.forget(folder));
        self.follow();
    }

    fn begin_dozing(&mut self, database: usize) {
        let Some(folder) = self.databases[database].parent().map(Path::to_owned) else { return };
        let is_alone = self.marks.folders.get(&folder).is_some_and(|databases| databases.len() == 1);
        // Also where it is about to be watched: everything counts as seen at the end.
        if is_alone && self.folders.contains_key(&folder) {
            self.forget(&folder);
            self.folders.insert(folder, Watched::Unheard);
        }
    }

    fn end_dozing(&mut self, database: usize) {
        let Some(folder) = self.databases[database].parent().map(Path::to_owned) else { return };
        if matches!(self.folders.get(&folder), Some(Watched::Unheard)) {
            self.forget(&folder);
        }
    }
}

/// Device and inode of a folder, if there is one.
fn identity_of(folder: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
