//! Programs that have the database open by another name: by a hard link, or by a mount of the file alone. SQLite makes a
//! `-wal` and a `-shm` beside each name, so that we see none of their commits; and our connection keeps their last close
//! from bringing them into the file. So we go, and say so.

use super::held::Held;
use super::left_behind::Paths;
use super::proof;
use super::{Attached, Source, State};
use crate::core::evidence::{Sighting, Stamp};
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
/// How often each program is asked about by itself, beside others that work with our wal-index: all who lock anything wait
/// for that list.
const LIST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of such programs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Apart {
    at: Instant,
    since: Option<Instant>,
    list_at: Instant,
    /// The file when nobody else had it open, the last time.
    alone: Option<Sighting>,
}

impl Apart {
    /// Nothing; it is asked at once.
    pub(super) fn unknown(now: Instant) -> Apart {
        Apart { at: now, since: None, list_at: now + LIST_PAUSE, alone: None }
    }
}

impl Source {
    /// When it is asked again whether somebody works with another WAL.
    pub(super) fn apart_timeout(&self) -> Option<Instant> {
        self.apart.map(|apart| apart.at)
    }

    /// Somebody has come: it is asked at once.
    pub(super) fn ask_apart(&mut self, now: Instant) {
        if let Some(apart) = &mut self.apart {
            apart.at = apart.at.min(now);
        }
    }

    /// Keeps what the file is while nobody else has it open.
    pub(super) fn note_alone(&mut self) {
        if let (Some(apart), Some(sighting)) = (&mut self.apart, self.sighting.filter(|seen| seen.alone)) {
            apart.alone = Some(sighting);
        }
    }

    /// The file before others came, as far as anybody has looked.
    pub(super) fn seen_alone(&self) -> Option<Sighting> {
        self.apart.and_then(|apart| apart.alone)
    }

    /// Asks whether everybody who has the database open works with our wal-index, if it is time.
    pub(super) fn look_apart(&mut self, now: Instant) {
        let Some(apart) = self.apart.filter(|apart| now >= apart.at) else { return };
        let State::Attached(attached) = &self.state else { return };
        let is_unlocked = attached.is_index_unlocked().unwrap_or(false);
        let is_suspected = apart.since.is_some_and(|since| now >= since + MOMENT);
        // What is slow waits until it is no moment any more.
        let is_listed = now >= apart.list_at || is_unlocked && is_suspected;
        let is_apart = match is_listed {
            true => is_used_apart(&attached.descriptor, &self.wal_index, is_unlocked),
            false => is_unlocked,
        };
        let since = is_apart.then(|| apart.since.unwrap_or(now));
        let pause = match (is_apart, is_listed) {
            (true, true) => MOMENT,
            (true, false) => SHORT_PAUSE,
            (false, _) => PAUSE,
        };
        let list_at = if is_listed && !is_apart { now + LIST_PAUSE } else { apart.list_at };
        self.apart = Some(Apart { at: now + pause, since, list_at, ..apart });
        let is_certain = is_listed && is_apart && is_suspected;
        if is_certain && self.leaving.is_none() {
            // Of a renamed file, the other name is the only one.
            self.leaving = self.replaced().or(Some(Break::UsedApart));
        }
    }
}

impl Attached {
    /// Whether others have the database open, and none of them has a lock on our wal-index.
    fn is_index_unlocked(&self) -> io::Result<bool> {
        Ok(!locks::is_index_used(self.guard.index().file())? && locks::is_shared(&self.descriptor)?)
    }

    /// Closes everything while others work with another WAL, without a checkpoint. What is in our WAL and in the file, too,
    /// must not be read beside what they write into the file: then it is emptied. What is in our WAL alone continues the
    /// file only as long as that is what it was before they came, as far as that was seen: `before`.
    pub(super) fn let_go_beside_others(mut self, at: Paths, before: Option<&Sighting>) {
        let name = at.database.display();
        let extent = self.extent().unwrap_or_default();
        let is_in_file = extent.frames > 0
            && extent.is_backfilled()
            && (self.guard.lets_restart()
                || self.guard.let_restart(&self.query, extent, |_| true).unwrap_or(false));
        let in_file = self.in_file();
        let is_same = |before: &&Sighting| in_file == Some((before.backfilled, before.is_backfilled));
        let before = before.filter(is_same).map(|before| before.stamp);
        if extent.left() > 0
            && let Err(error) = self.keep_left(at, before)
        {
            warn!("{name}: cannot write {}: {error}", at.meta.display());
        }
        let Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: _ } = self;
        drop((query, write_lock));
        if is_in_file && let Some(Err(error)) = checkpointer.as_ref().map(|last| last.empty_wal()) {
            warn!("{name}: cannot empty its -wal: {error}");
        }
        drop((checkpointer, capture));
        drop((guard, descriptor, lock));
    }

    /// Their last closes write the file only once we have gone, so that what it is now will mostly do.
    fn keep_left(&self, at: Paths, before: Option<Stamp>) -> io::Result<()> {
        let Some(wal) = self.capture.live_file() else { return Ok(()) };
        let held = Held::of(&self.descriptor.metadata()?, &wal.metadata()?);
        let stamp = before.map_or_else(|| proof::stamp_of(&self.descriptor), Ok)?;
        let is_used = locks::is_index_used(self.guard.index().file())?;
        held.left(Some(stamp), is_used).keep(at.disk, at.meta)
    }
}

/// Whether somebody has the database open, and not its wal-index, on which nobody else may have a lock if it `is_unlocked`. A
/// program that has opened and closed that by itself has lost its locks on it, and works with it all the same. Slow.
pub(super) fn is_used_apart(database: &File, wal_index: &Path, is_unlocked: bool) -> bool {
    let is_shared = || locks::is_shared(database).unwrap_or(false);
    let is_nobodys = || is_unlocked && locks::process_with(wal_index).is_none();
    // Asked again afterwards: whoever was there may just have ended.
    is_shared() && (is_nobodys() || is_listed_apart(database, wal_index)) && is_shared()
}

fn is_listed_apart(database: &File, wal_index: &Path) -> bool {
    database.metadata().is_ok_and(|database| locks::is_any_apart(&database, wal_index))
}
