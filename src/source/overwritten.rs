//! Letting go where something other than SQLite has written into a file that is held: nothing of ours may go into it, and
//! what was put there must be read as if we had never been there.

use super::attach::{Attached, is_at_path};
use super::held::Held;
use super::kept_out;
use super::left_behind::{Fate, LeftBehind, Paths};
use super::proof;
use crate::core::evidence::Sighting;
use crate::core::names;
use crate::locks;
use log::warn;
use std::fs;
use std::path::Path;

impl Attached {
    /// Closes everything, without a checkpoint, when another content was put into the database file: beside it, the
    /// frames of its `-wal` would be read as the new one's. Returns the WAL as long as it has to stay.
    pub fn let_go_of_overwritten(self, at: Paths) -> Option<LeftBehind> {
        // From before it is asked whose it is: what is there later may be another's.
        let ours = self.capture.live_header().ok().flatten();
        if self.is_wal_overwritten() {
            // What was put there with it.
            self.let_go_of_overwritten_wal(at.database);
            return None;
        }
        let Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: _ } = self;
        let is_at_path = is_at_path(&descriptor, at.database);
        // Whatever was mixed is gone.
        let forgotten = Held::forget(at.disk, at.meta);
        forgotten
            .unwrap_or_else(|e| warn!("{}: cannot write {}: {e}", at.database.display(), at.meta.display()));
        let generation = capture.shadow.extent().generation;
        let mut left = capture.into_live().map(|wal| LeftBehind {
            // Should it come back, its content is another's all the same: it has no identity.
            database: Some(descriptor.clone()),
            ..LeftBehind::of(wal, generation)
        });
        // The new content stays locked until our connections are closed: a program that came in before would join our
        // `-shm`.
        let fate = left.as_mut().map(|left| match is_at_path {
            true => left.settle_overwritten(at, ours),
            false => left.settle(at, None),
        });
        drop((query, write_lock, checkpointer));
        drop((guard, descriptor, lock));
        left.filter(|_| matches!(fate, Some(Fate::NoDatabase | Fate::Later(_))))
    }

    /// Closes everything when the WAL does not hold what the wal-index says. SQLite believes that until its last close, which
    /// brings everything into the file: if we are the last, so do we. Whoever recovers it, finds less.
    /// `seen` is what the file was when it was last looked at: whoever has come alone to it since may copy another over it.
    pub fn let_go_of_damaged_wal(mut self, database: &Path, seen: Option<&Sighting>) {
        let is_alone =
            locks::lock_out(&self.descriptor).unwrap_or(false) && self.replaced(database).is_none();
        let stamp = proof::stamp_of(&self.descriptor).ok();
        let is_written = seen.is_some_and(|seen| seen.alone && Some(seen.stamp) != stamp);
        if !is_alone || is_written {
            return;
        }
        let checkpointed = self.checkpoint_alone().map_err(|error| error.to_string());
        let result = checkpointed.and_then(|is_in_file| {
            self.descriptor.sync_data().map_err(|error| error.to_string())?;
            Ok(is_in_file)
        });
        match result {
            Ok(true) => {
                let (_shadow, _lock, closed) = self.close();
                if let Err(error) = closed {
                    warn!("{}: cannot close the database: {error}", database.display());
                }
            }
            // Somebody reads, and is the last then.
            Ok(false) => {}
            Err(error) => warn!(
                "{}: cannot bring what is in its -wal into the database file: {error}",
                database.display()
            ),
        }
    }

    /// Whether something other than SQLite has put another WAL into the file of ours, and nobody else has the database open.
    pub fn is_wal_overwritten(&self) -> bool {
        let is_seen = || self.extent().is_ok_and(|extent| self.capture.is_overwritten(extent));
        if !is_seen() {
            return false;
        }
        // Who begins a WAL just now writes its header first.
        let is_certain = locks::lock_out(&self.descriptor).unwrap_or(false) && is_seen();
        kept_out::let_in_unless_kept_out(&self.descriptor);
        is_certain
    }

    /// Closes everything, without a checkpoint, when another WAL was put into the file of ours, and leaves it there: whoever
    /// comes next makes the wal-index anew, and finds it. `false` if others have the database open: they read it by the
    /// old one.
    pub fn let_go_of_overwritten_wal(self, database: &Path) -> bool {
        let is_alone = locks::lock_out(&self.descriptor).unwrap_or(false);
        if is_alone && self.replaced(database).is_none() {
            // What stays is made anew by whoever comes: as long as it is there, somebody seems to be.
            let _ = fs::remove_file(names::beside(database, "-shm"));
        }
        is_alone
    }
}
