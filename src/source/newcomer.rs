//! A file that comes to the database's path while another one is held: whoever opens it must not meet the WAL of that.

use super::attach::Attached;
use super::kept;
use super::kept_out::{self, KeptOut};
use super::left_behind::Paths;
use super::{Source, State};
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::locks;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The file that is at the database's path now.
#[derive(Clone, Default)]
pub(super) enum Newcomer {
    /// There is none, or it is the old one again.
    #[default]
    None,
    /// Nobody has it open, or can open it as long as this is held.
    Locked(DatabaseFile),
    /// The same, of a file that another source of this agent holds.
    OfAnotherSource(Arc<KeptOut>),
    /// It cannot be locked: somebody has it open, by whatever name.
    Busy,
    /// Nothing is in its way any more.
    Free,
}

impl Newcomer {
    /// What is at `path`, if that is not what is held; locked.
    fn followed_by(self, held: FileIdentity, path: &Path) -> Newcomer {
        // A link is none, see `FileIdentity::of_path`.
        let there = FileIdentity::of_path(path).filter(|there| *there != held);
        match (self, there) {
            (Newcomer::Free, _) => Newcomer::Free,
            (_, None) => Newcomer::None,
            (locked, Some(there)) if locked.file().is_some_and(|file| file.identity() == there) => locked,
            (_, Some(there)) => match DatabaseFile::open(path) {
                Ok(None) => match KeptOut::of(there) {
                    Some(kept_out) => Newcomer::OfAnotherSource(Arc::new(kept_out)),
                    // Its own source has not heard of it yet, or a program has it open.
                    None => Newcomer::Busy,
                },
                Ok(Some(file)) if locks::lock_out(&file).unwrap_or(false) => Newcomer::Locked(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Newcomer::None,
                _ => Newcomer::Busy,
            },
        }
    }

    pub(super) fn file(&self) -> Option<&DatabaseFile> {
        match self {
            Newcomer::Locked(file) => Some(file),
            Newcomer::OfAnotherSource(kept_out) => Some(kept_out.file()),
            Newcomer::None | Newcomer::Busy | Newcomer::Free => None,
        }
    }
}

/// The database's path while a file is held that was there: what has come to it, for the loop, which hears of that, and
/// for the worker that leaves what is held.
#[derive(Clone)]
pub struct Door {
    held: FileIdentity,
    threshold: Arc<Mutex<Threshold>>,
}

#[derive(Default)]
struct Threshold {
    newcomer: Newcomer,
    /// What our WAL is called since it was moved out of the way.
    aside: Option<PathBuf>,
}

impl Door {
    /// Nothing has come to it yet.
    pub(super) fn of(held: FileIdentity) -> Self {
        Door { held, threshold: Arc::default() }
    }

    fn threshold(&self) -> MutexGuard<'_, Threshold> {
        self.threshold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks what is at `path`, if that is not what is held. As long as that lasts, nobody opens it.
    pub(super) fn keep_out(&self, path: &Path) -> Newcomer {
        let mut threshold = self.threshold();
        threshold.newcomer = std::mem::take(&mut threshold.newcomer).followed_by(self.held, path);
        threshold.newcomer.clone()
    }

    /// Lets in whoever waits, and whoever comes.
    pub(super) fn let_in(&self) {
        self.threshold().newcomer = Newcomer::Free;
    }

    /// If something has come to the path, and nobody has the old file open, moves our WAL and wal-index out of the way, and
    /// lets all in: what is done with both then may take as long as an fsync does. What the WAL is called since, if so. Only
    /// for whoever leaves it at once, and looks what is at the path then: the old file may come back.
    pub(super) fn make_way(&self, attached: &Attached, at: Paths) -> Option<PathBuf> {
        if let Some(aside) = self.threshold().aside.clone() {
            return Some(aside);
        }
        let newcomer = self.keep_out(at.database);
        let is_used = || {
            let wal_index = attached.guard.index().file();
            locks::is_index_used(wal_index).unwrap_or(true)
        };
        let is_awaited = !matches!(newcomer, Newcomer::None | Newcomer::Free);
        if !is_awaited || locks::is_shared(&attached.descriptor).unwrap_or(true) || is_used() {
            return None;
        }
        let aside = attached.move_aside(at)?;
        let mut threshold = self.threshold();
        threshold.aside = Some(aside.clone());
        // Else somebody came with the first of both, and is told of.
        if !is_used() {
            threshold.newcomer = Newcomer::Free;
        }
        Some(aside)
    }
}

impl Attached {
    /// Takes the names at the database's path from our WAL and our wal-index; what the WAL is called since. `None` if one of
    /// the names is not theirs, or the WAL cannot be moved.
    fn move_aside(&self, at: Paths) -> Option<PathBuf> {
        let is_at = |path: &Path, file: &File| {
            FileIdentity::of_file(file).is_ok_and(|file| FileIdentity::of_path(path) == Some(file))
        };
        let (wal, wal_index) = (self.capture.live_file()?, self.guard.index().file());
        if !is_at(at.wal, wal) || !is_at(&at.wal_index(), wal_index) {
            return None;
        }
        // In this order: who comes in between has our wal-index, which can be seen.
        let aside = kept::set_aside(wal, at, self.capture.shadow.extent().generation).ok()?;
        // What stays is found, and removed, once both are closed.
        let _ = kept::remove_name(&at.wal_index(), wal_index);
        Some(aside)
    }
}

impl Source {
    /// While a worker has what is held, or a part of it, nobody leaves it: that may take as long as an fsync does. So what
    /// has come to the path is locked, and so is what is held, if it is not there any more and nobody has it open: by its
    /// new name, whoever opens it finds no WAL.
    pub(super) fn keep_newcomer_out(&mut self) {
        let path = &self.settings.database;
        let held = match &self.state {
            State::Attached(attached) => Some(&attached.descriptor),
            _ => self.loan.file.as_ref(),
        };
        if let Some(held) = held.filter(|held| FileIdentity::of_path(path) != Some(held.identity())) {
            self.loan.door.get_or_insert_with(|| Door::of(held.identity()));
            kept_out::keep_out(held);
            // Whoever opens one of them waits.
            self.loan.interruption.set();
        }
        if let Some(door) = &self.loan.door {
            door.keep_out(path);
        }
    }

    /// Whoever waits for what has come to the path need not wait any more, unless what is held is still to be left.
    pub(super) fn let_newcomer_in(&mut self) {
        if matches!(self.state, State::Lent) || self.leaving.is_some() {
            return;
        }
        self.loan.door = None;
        if let State::Attached(attached) = &self.state {
            kept_out::let_in(&attached.descriptor);
        }
    }
}
