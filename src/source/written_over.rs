//! A file that others have written while it is held: `cp` asks for no lock. Beside nobody, it is let go of. Beside programs
//! that have it open, it is what SQLite makes of it for them: the file, and of the WAL what was not in it yet. That is what
//! is copied, and the pages tell what has changed.

use super::capture::WrittenOver;
use super::inspect::Suspicion;
use super::recheck::Recheck;
use super::{Source, State};
use crate::core::evidence::{Sighting, Stamp, Writer};
use crate::core::settling::SETTLE_PAUSE;
use crate::core::sync::Break;
use crate::locks;
use log::{debug, warn};
use std::time::{Duration, Instant};

/// A file that does not come to rest is looked into all the same: its programs go on.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Said, and in the status, until nobody has it open any more.
pub(super) const WRITTEN_OVER: &str = "something other than SQLite has written over it while a program \
    has it open, which may go on with pages of what was there before: end that program, check it with PRAGMA \
    integrity_check, and start the program again";

/// The same, of its WAL.
const ELSEWHERE: &str = "its -wal was moved away, and nobody can open it: what is in that is \
    brought into the file once nobody has it open any more";

/// What a file became that was written beside those who have it open, none of whom checkpointed.
#[derive(Debug, Clone, Copy)]
pub(super) struct WrittenBeside {
    stamp: Stamp,
    /// Since when it is that.
    since: Instant,
    /// When that was first seen.
    first: Instant,
}

impl Source {
    /// What follows from who has written the file; whether it is to be looked into, or left. Until then nobody of us may
    /// checkpoint.
    pub(super) fn suspect(&mut self, writer: Writer, sighting: Sighting, now: Instant) -> bool {
        let before = self.written_beside.take();
        match writer {
            Writer::Another => {
                self.leaving = Some(Break::DatabaseOverwritten);
                return true;
            }
            Writer::Unknown => {
                // Whatever is written from now on is asked about again.
                (self.to_inspect, self.sighting) = (Some(Suspicion::Written), Some(sighting));
                return true;
            }
            Writer::Sqlite if before.is_none() => return false,
            Writer::Beside | Writer::Sqlite => {}
        }
        // A copy may still be on its way; and what was once seen, no checkpoint after it explains.
        let first = before.map_or(now, |before| before.first);
        let same = before.filter(|before| before.stamp == sighting.stamp);
        let beside = same.unwrap_or(WrittenBeside { stamp: sighting.stamp, since: now, first });
        let at = (beside.since + SETTLE_PAUSE).min(first + LONGEST_WAIT);
        if sighting.alone || now >= at {
            (self.to_inspect, self.sighting) = (Some(Suspicion::Beside), Some(sighting));
            return true;
        }
        if before.is_none() {
            debug!("{}: was written, and nobody has checkpointed it", self.settings.database.display());
        }
        (self.written_beside, self.look_around_at) = (Some(beside), Some(Recheck::at(at)));
        writer == Writer::Beside
    }

    /// Whether the WAL was moved away. What is in it belongs to the file, which its program's last close would bring in.
    pub(super) fn on_wal_elsewhere(&mut self, is_elsewhere: bool) {
        self.dirty.wal |= is_elsewhere;
        if is_elsewhere && !self.is_wal_elsewhere {
            warn!("{}: {ELSEWHERE}", self.settings.database.display());
        }
        self.is_wal_elsewhere = is_elsewhere;
    }

    /// What is wrong with the files of a database that is held, and what to do.
    pub fn in_the_way(&self) -> Option<&'static str> {
        let written_over = self.is_written_over.then_some(WRITTEN_OVER);
        written_over.or(self.is_wal_elsewhere.then_some(ELSEWHERE))
    }

    /// The pages of the file have shown that others have written it, and it goes on. What was in it already of the WAL is
    /// read by nobody any more.
    pub(super) fn on_written_over(&mut self, reason: Break) {
        let State::Attached(attached) = &mut self.state else { return };
        if attached.extent().is_ok_and(|extent| extent.backfilled == 0) {
            return self.request_generation(reason);
        }
        attached.capture.written_over =
            attached.capture.live_wal().map(|wal| WrittenOver { wal, is_begun: false });
        self.gaps = self.gaps.wrapping_add(1);
        self.to_compare = Some(reason);
    }

    /// Whether a part of the live WAL counts for nothing, so that no generation may begin with it.
    pub(super) fn passes_over(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.capture.is_written_over())
    }

    /// The same, and not everything in it is in the file.
    pub(super) fn must_settle(&self) -> bool {
        let State::Attached(attached) = &self.state else { return false };
        let is_settled = || attached.extent().is_ok_and(|extent| attached.capture.is_settled(extent));
        attached.capture.is_written_over() && !is_settled()
    }

    /// Does what the last close of its programs would have done, if they have gone: nobody who comes could use the wal-index.
    pub(super) fn close_written_over(&mut self, now: Instant) -> bool {
        let State::Attached(attached) = &self.state else { return false };
        if locks::is_shared(&attached.descriptor).unwrap_or(true) {
            return false;
        }
        self.take_back_table();
        let Some(attached) = self.take_held() else { return false };
        (self.requested_break, self.to_compare) = (None, None);
        attached.let_go_of_damaged_wal(&self.settings.database, None);
        self.await_the_new(Break::DatabaseOverwritten, now);
        true
    }

    /// When the pages are compared again, if that is to wait. Not for longer than whoever was in the way is there.
    pub(super) fn compare_timeout(&self, now: Instant) -> Option<Instant> {
        let waits = self.to_compare.is_some() && !self.dirty.closed;
        let again = self.compare_at.filter(|again| waits && now < again.at);
        again.map(|again| again.at)
    }
}
