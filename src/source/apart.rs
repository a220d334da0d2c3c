//! Programs that have the database open by another name: by a hard link, or by a mount of the file alone. SQLite makes a
//! `-wal` and a `-shm` beside each name, so that we see none of their commits; and our connection keeps their last close
//! from bringing them into the file. So we go, and say so.

use super::{Source, State};
use crate::core::sync::Break;
use crate::locks;
use std::io;
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
        let is_used_apart = || -> io::Result<bool> {
            let State::Attached(attached) = &self.state else { return Ok(false) };
            let is_index_used = locks::is_index_used(attached.guard.index().file())?;
            Ok(!is_index_used && locks::is_shared(&attached.descriptor)?)
        };
        let is_apart = is_used_apart().unwrap_or(false);
        let since = is_apart.then(|| since.unwrap_or(now));
        let pause = if is_apart { SHORT_PAUSE } else { PAUSE };
        self.apart = Some(Apart { at: now + pause, since });
        if self.leaving.is_none() && since.is_some_and(|since| now >= since + MOMENT) {
            // Of a renamed file, the other name is the only one.
            self.leaving = self.replaced().or(Some(Break::UsedApart));
        }
    }
}
