//! Giving the shadow WAL up when there is no room for it: the application must not see a full disk because of us.

use super::recheck::Recheck;
use super::refusal::Refusal;
use super::{LONGEST_BREAK_PAUSE, Source, State};
use crate::core::space::{DiskSpace, Scarcity, ShadowSize, Shortage, SpaceLimits};
use crate::core::sync::Break;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The disk is asked again after so many bytes more or less in the shadow, or after [`ASK_PAUSE`].
const ASK_BYTES: u64 = 1 << 20;
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// An application that has written less since the shadow was last given up does not fill the disk.
const MUCH: u64 = 4 << 20;
/// The first pause before a new generation is tried; doubled each time. Longer ones are for replicas that stay away.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is known of the room for the shadow WAL.
#[derive(Debug, Default)]
pub struct Room {
    /// When the disk was last asked, and what the shadow had then.
    asked: Option<(Instant, u64)>,
    /// The folder of a shadow that was given up, until it is removed.
    pub given_up: Option<PathBuf>,
    again: Option<Recheck>,
    /// How much there was to keep when it was given up.
    filled: u64,
    scarcity: Option<Scarcity>,
}

impl Source {
    /// Whether the shadow must be given up before anything more is copied, of which there are `left` bytes. It is, once
    /// nothing of it is lent.
    pub(super) fn has_no_room(&mut self, left: u64, now: Instant) -> bool {
        let Some(shadow) = self.shadow() else { return false };
        // Of a large transaction, nothing is committed before all of it is copied.
        let copied = shadow.bytes_behind_end();
        let kept = shadow.extent().bytes_kept() + copied;
        let (left, behind) = (left.saturating_sub(copied), self.behind + copied);
        let is_filled = self.lets_fill && kept + left >= self.room.filled + MUCH;
        let shadow = ShadowSize { kept, left, behind, is_filled };
        let is_known = |(at, then): (Instant, u64)| now < at + ASK_PAUSE && kept.abs_diff(then) < ASK_BYTES;
        if self.room.asked.is_some_and(is_known) {
            return false;
        }
        self.room.asked = Some((now, kept));
        // A disk that cannot tell is judged by the next write.
        let disk = self.disk.space(&self.settings.meta).ok();
        self.room.scarcity = self.settings.space.scarcity(kept, self.behind, disk);
        match self.settings.space.shortage(shadow, disk) {
            Some(shortage) => {
                self.room.filled = kept + left;
                self.give_up(shortage);
            }
            None => return false,
        }
        true
    }

    /// The disk is full: what it said is not asked again.
    pub(super) fn is_full(&mut self) {
        let free = self.disk.space(&self.settings.meta).map_or(0, |DiskSpace { free, .. }| free);
        self.give_up(Shortage::Free(free));
    }

    fn give_up(&mut self, shortage: Shortage) {
        self.leaving = Some(Break::NoRoom(shortage));
    }

    /// Lets go of the database without a checkpoint: its WAL is the application's alone again. The shadow is removed.
    pub(super) fn let_go_for_room(&mut self, state: State, shortage: Shortage, now: Instant) {
        if let State::Attached(attached) = state {
            self.room.given_up = Some(attached.capture.shadow.folder().to_owned());
        }
        self.forced_break = Some(Break::NoRoom(shortage));
        self.refuse(Refusal::NoRoom(shortage), now);
        self.room.again = Some(Recheck::after(self.room.again, FIRST_PAUSE, LONGEST_BREAK_PAUSE, now));
        (self.retry, self.room.asked, self.room.scarcity) = (self.room.again, None, None);
    }

    /// The disk is not asked while nothing is written, but what the replicas lack is known.
    pub(super) fn on_behind(&mut self) {
        self.room.scarcity = self.room.scarcity.filter(|_| SpaceLimits::is_behind(self.behind));
    }

    /// Whether room for the shadow WAL gets scarce: then nothing is written or kept that is not needed.
    pub fn scarcity(&self) -> Option<Scarcity> {
        self.room.scarcity
    }

    /// Whether the last shadow was given up, and there is none yet that a replica could be compared with.
    pub fn has_given_up(&self) -> bool {
        matches!(self.state, State::Refused(Refusal::NoRoom(_)))
    }

    /// The replicas have caught up with something: the next shortage is another one.
    pub(super) fn has_room_again(&mut self) {
        (self.room.again, self.room.filled) = (None, 0);
    }
}
