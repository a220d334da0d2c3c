//! Keeping all others out of a file that was renamed: by its new name, whoever opens it finds no WAL, or another file's.
//! Its holder does, and so does another source of this agent, to whose path it has come. SQLite's lock is one for both, and
//! is gone when the last connection of ours is closed.

use crate::database_file::{DatabaseFile, FileIdentity};
use crate::locks;

/// Keeps all others out of a file that is held; does nothing while one has it open.
pub(super) fn keep_out(held: &DatabaseFile) {
    let mut keeping = held.keeping();
    keeping.by_holder |= locks::lock_out(held).unwrap_or(false);
}

/// Ends that, if it was so.
pub(super) fn let_in(held: &DatabaseFile) {
    if std::mem::take(&mut held.keeping().by_holder) {
        let_in_unless_kept_out(held);
    }
}

/// Takes a lock back that was taken for a moment.
pub(super) fn let_in_unless_kept_out(held: &DatabaseFile) {
    let keeping = held.keeping();
    if !keeping.by_holder && keeping.others == 0 {
        // Fails only if the descriptor is none, and then nothing is locked either.
        let _ = locks::let_in(held);
    }
}

/// To be told as soon as our connections are closed: for somebody else, others are kept out on.
pub(super) fn after_closing(held: &DatabaseFile) {
    let mut keeping = held.keeping();
    keeping.is_closed = true;
    if keeping.others > 0 {
        // Who was faster is seen by whoever looks again.
        let _ = locks::lock_out(held);
    }
}

/// A file of another source, of which all others are kept out as long as this lives.
pub(super) struct KeptOut(DatabaseFile);

impl KeptOut {
    /// `None` if another process has it open, or its own source does not keep others out.
    pub(super) fn of(identity: FileIdentity) -> Option<KeptOut> {
        let file = DatabaseFile::of_this_process(identity)?;
        let mut keeping = file.keeping();
        let may_lock = keeping.by_holder || keeping.is_closed;
        if !may_lock || !locks::lock_out(&file).unwrap_or(false) {
            return None;
        }
        keeping.others += 1;
        drop(keeping);
        Some(KeptOut(file))
    }

    pub(super) fn file(&self) -> &DatabaseFile {
        &self.0
    }
}

impl Drop for KeptOut {
    fn drop(&mut self) {
        let mut keeping = self.0.keeping();
        keeping.others -= 1;
        // Each fails only if the descriptor is none, and then nothing is locked either.
        let _ = match (keeping.others, keeping.is_closed, keeping.by_holder) {
            (0, true, _) => locks::unlock(&self.0),
            (0, false, false) => locks::let_in(&self.0),
            _ => Ok(()),
        };
    }
}
