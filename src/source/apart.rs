//! Programs that have the database open by another name: by a hard link, or by a mount of the file alone. SQLite makes a
//! `-wal` and a `-shm` beside each name, so that we see none of their commits; and our connection keeps their last close
//! from bringing them into the file. So we go, and say so.

use super::{Attached, Source, State};
use crate::core::sync::Break;
use crate::locks;
use log::warn;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is asked.
const PAUSE: Duration = Duration::from_secs(5);
/// The same, while somebody seems to be there.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// Whoever opens a database has no lock on its wal-index yet, for a moment.
const MOMENT: Duration = Duration::from_secs(1);

/// What is known of such programs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Apart {
    at: Instant,
    since: Option<Instant>,
}

impl Apart {
    /// Nothing; it is asked at once.
    pub(super) fn unknown(now: Instant) -> Apart {
        Apart { at: now, since: None }
    }
}

impl Source {
    /// When it is asked again whether somebody works with another WAL.
    pub(super) fn apart_timeout(&self) -> Option<Instant> {
        self.apart.map(|apart| apart.at)
    }

    /// Asks whether everybody who has the database open works with our wal-index, if it is time.
    pub(super) fn look_apart(&mut self, now: Instant) {
        let Some(Apart { at, since }) = self.apart else { return };
        if now < at {
            return;
        }
        let State::Attached(attached) = &self.state else { return };
        let is_apart = attached.is_used_apart().unwrap_or(false);
        let since = is_apart.then(|| since.unwrap_or(now));
        let pause = if is_apart { SHORT_PAUSE } else { PAUSE };
        self.apart = Some(Apart { at: now + pause, since });
        if self.leaving.is_none() && since.is_some_and(|since| now >= since + MOMENT) {
            // Of a renamed file, the other name is the only one.
            self.leaving = self.replaced().or(Some(Break::UsedApart));
        }
    }
}

impl Attached {
    /// Whether others have the database open, and none of them our wal-index.
    fn is_used_apart(&self) -> io::Result<bool> {
        Ok(!locks::is_index_used(self.guard.index().file())? && locks::is_shared(&self.descriptor)?)
    }

    /// Closes everything while others work with another WAL, without a checkpoint. What is in our WAL and in the file, too,
    /// must not be read beside what they write into the file: then it is emptied.
    pub(super) fn let_go_beside_others(mut self, database: &Path) {
        let is_in_file = self.extent().is_ok_and(|extent| {
            extent.frames > 0
                && extent.is_backfilled()
                && (self.guard.lets_restart()
                    || self.guard.let_restart(&self.query, extent, |_| true).unwrap_or(false))
        });
        let Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: _ } = self;
        drop((query, write_lock));
        if is_in_file && let Some(Err(error)) = checkpointer.as_ref().map(|last| last.empty_wal()) {
            warn!("{}: cannot empty its -wal: {error}", database.display());
        }
        drop((checkpointer, capture));
        drop((guard, descriptor, lock));
    }
}

/// Whether somebody has the database open, and nobody its wal-index. We must have neither.
pub(super) fn is_used_apart(database: &File, wal_index: &Path) -> bool {
    locks::is_shared(database).unwrap_or(false) && !locks::is_index_shared(wal_index).unwrap_or(false)
}
