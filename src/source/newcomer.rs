//! A file that comes to the database's path while another one is held: whoever opens it must not meet the WAL of that.

use super::{Source, State};
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::locks;
use std::io;
use std::path::Path;

/// The file that is at the database's path now.
pub(super) enum Newcomer {
    /// There is none, or it is the old one again.
    None,
    /// Nobody has it open, or can open it as long as this is held.
    Locked(DatabaseFile),
    /// Somebody has opened it with the old WAL.
    Open,
}

impl Newcomer {
    /// Locks what is at `path`, if that is not what is held, and not `locked` already.
    pub(super) fn lock(locked: Option<DatabaseFile>, held: FileIdentity, path: &Path) -> Newcomer {
        // A link is none, see `FileIdentity::of_path`.
        let Some(there) = FileIdentity::of_path(path).filter(|there| *there != held) else {
            return Newcomer::None;
        };
        if let Some(file) = locked.filter(|file| file.identity() == there) {
            return Newcomer::Locked(file);
        }
        match DatabaseFile::open(path) {
            // Another database of this agent, which its own source holds.
            Ok(None) => Newcomer::None,
            Ok(Some(file)) if locks::lock_out(&file).unwrap_or(false) => Newcomer::Locked(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Newcomer::None,
            _ => Newcomer::Open,
        }
    }

    pub(super) fn file(&self) -> Option<&DatabaseFile> {
        match self {
            Newcomer::Locked(file) => Some(file),
            Newcomer::None | Newcomer::Open => None,
        }
    }
}

impl Source {
    /// While a worker has what is held, or a part of it, nobody leaves it: that may take as long as an fsync does.
    pub(super) fn keep_newcomer_out(&mut self) {
        let held = match &self.state {
            State::Lent => self.loan.file,
            State::Attached(attached) => Some(attached.descriptor.identity()),
            _ => None,
        };
        let Some(held) = held else { return };
        let newcomer = Newcomer::lock(self.loan.newcomer.take(), held, &self.settings.database);
        // Whoever opens it waits: nobody needs to know any more what the pages of the old one are.
        if !matches!(newcomer, Newcomer::None) {
            self.loan.interruption.set();
        }
        self.loan.newcomer = match newcomer {
            Newcomer::Locked(file) => Some(file),
            Newcomer::None | Newcomer::Open => None,
        };
    }

    /// Whoever waits for what has come to the path need not wait any more, unless what is held is still to be left.
    pub(super) fn let_newcomer_in(&mut self) {
        if !matches!(self.state, State::Lent) && self.leaving.is_none() {
            self.loan.newcomer = None;
        }
    }
}
