//! A file that comes to the database's path while another one is held: whoever opens it must not meet the WAL of that.

use super::{Source, State};
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::locks;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The file that is at the database's path now.
#[derive(Clone, Default)]
pub(super) enum Newcomer {
    /// There is none, or it is the old one again.
    #[default]
    None,
    /// Nobody has it open, or can open it as long as this is held.
    Locked(DatabaseFile),
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
            (Newcomer::Locked(file), Some(there)) if file.identity() == there => Newcomer::Locked(file),
            (_, Some(_)) => match DatabaseFile::open(path) {
                // Another database of this agent, which its own source holds.
                Ok(None) => Newcomer::None,
                Ok(Some(file)) if locks::lock_out(&file).unwrap_or(false) => Newcomer::Locked(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Newcomer::None,
                _ => Newcomer::Busy,
            },
        }
    }

    pub(super) fn file(&self) -> Option<&DatabaseFile> {
        match self {
            Newcomer::Locked(file) => Some(file),
            _ => None,
        }
    }
}

/// The database's path while a file is held that was there: what has come to it, for the loop, which hears of that, and
/// for the worker that leaves what is held.
#[derive(Clone)]
pub struct Door {
    held: FileIdentity,
    newcomer: Arc<Mutex<Newcomer>>,
}

impl Door {
    /// Nothing has come to it yet.
    pub(super) fn of(held: FileIdentity) -> Self {
        Door { held, newcomer: Arc::default() }
    }

    fn newcomer(&self) -> MutexGuard<'_, Newcomer> {
        self.newcomer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks what is at `path`, if that is not what is held. As long as that lasts, nobody opens it.
    pub(super) fn keep_out(&self, path: &Path) -> Newcomer {
        let mut newcomer = self.newcomer();
        *newcomer = std::mem::take(&mut *newcomer).followed_by(self.held, path);
        newcomer.clone()
    }

    /// Lets in whoever waits, and whoever comes.
    pub(super) fn let_in(&self) {
        *self.newcomer() = Newcomer::Free;
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
            self.loan.is_locked |= locks::lock_out(held).unwrap_or(false);
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
        if std::mem::take(&mut self.loan.is_locked)
            && let State::Attached(attached) = &self.state
        {
            // Fails only if the descriptor is none, and then nothing is locked either.
            let _ = locks::let_in(&attached.descriptor);
        }
    }
}
