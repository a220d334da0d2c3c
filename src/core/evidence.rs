//! What proves that a database which nobody held is still what was copied: its file's times, size and inode, noted
//! while everything was in it and all others were kept out.

use super::position::{Generation, Index, Offset, Position};
use super::wal::Salt;
use std::time::Duration;

/// A file system that keeps nanoseconds gives a later write another time if this has passed (its clock ticks every
/// 10 ms at the slowest).
const FINE_AGE: Duration = Duration::from_millis(20);
/// The same, for a file system that keeps seconds (or two of them, as FAT).
const COARSE_AGE: Duration = Duration::from_secs(3);

/// A file as `fstat` describes it. Times are since 1970; anything that writes to the file changes `modified`, and
/// whatever sets that back changes `changed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The file's number on its file system.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// mtime.
    pub modified: Duration,
    /// ctime.
    pub changed: Duration,
}

impl Stamp {
    /// Whether nothing but its name may have changed: a rename changes `changed`.
    pub fn is_but_for_its_name(self, later: Stamp) -> bool {
        Stamp { changed: later.changed, ..self } == later
    }

    /// How long until a later write is sure to show; zero if it is by now.
    pub fn ripens_in(&self, now: Duration) -> Duration {
        let is_coarse = self.modified.subsec_nanos() == 0 || self.changed.subsec_nanos() == 0;
        let age = if is_coarse { COARSE_AGE } else { FINE_AGE };
        (self.modified.max(self.changed) + age).saturating_sub(now)
    }
}

/// The proof, as it was when the database was let go of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Everything before this was in the database file.
    pub position: Position,
    /// The database file.
    pub stamp: Stamp,
    /// The boot it was noted in: a power cut can take back what times promise.
    pub boot: String,
}

impl Evidence {
    /// Whether the file is still what it was at [`Evidence::position`].
    pub fn holds(&self, position: Position, stamp: Stamp, boot: &str) -> bool {
        self.position == position && self.stamp == stamp && self.boot == boot
    }

    /// As a line of text.
    pub fn to_line(&self) -> String {
        let Evidence { position, stamp, boot } = self;
        let time = |t: Duration| format!("{}.{:09}", t.as_secs(), t.subsec_nanos());
        let (generation, index, offset) = (position.generation, position.index, position.offset.get());
        let (modified, changed) = (time(stamp.modified), time(stamp.changed));
        format!("{generation} {index} {offset} {} {} {modified} {changed} {boot}\n", stamp.inode, stamp.size)
    }

    /// From such a line; `None` for any other.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let mut next = || words.next();
        let generation: Generation = next()?.parse().ok()?;
        let index: Index = next()?.parse().ok()?;
        let offset = Offset::new(next()?.parse().ok()?);
        let (inode, size) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let (modified, changed) = (parse_time(next()?)?, parse_time(next()?)?);
        let boot = next()?.to_owned();
        let position = Position { generation, index, offset };
        let is_all = words.next().is_none() && !boot.is_empty();
        is_all.then_some(Evidence { position, stamp: Stamp { inode, size, modified, changed }, boot })
    }
}

fn parse_time(text: &str) -> Option<Duration> {
    let (seconds, nanos) = text.split_once('.')?;
    let nanos: u32 = (nanos.len() == 9).then(|| nanos.parse().ok()).flatten()?;
    Some(Duration::new(seconds.parse().ok()?, nanos))
}

/// What was seen of a database file at one moment while we hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The file.
    pub stamp: Stamp,
    /// The WAL, by its salts in the wal-index, and how many of its frames were in the file.
    pub backfilled: (Salt, u32),
    /// All of them were.
    pub is_backfilled: bool,
    /// The frames of a checkpoint that had not come to its end when the stamp was this; zero if there was none.
    pub cut_off: u32,
    /// Somebody checkpointed while it was looked at: the stamp says nothing.
    pub is_checkpointed: bool,
    /// Nobody but us had the database open.
    pub alone: bool,
    /// The database's own header.
    pub header: DatabaseHeader,
}

/// The first 100 bytes of a database (file format 1.3), with its change counter and its size. Zeros if the file is shorter.
pub type DatabaseHeader = [u8; 100];

impl Sighting {
    /// What is to be remembered once the file is looked at again. While a checkpoint is under way, or was cut off, anybody
    /// may have written what is new in the file: then what it was before counts, until a checkpoint has ended.
    #[must_use]
    pub fn followed_by(self, later: Sighting) -> Sighting {
        if later.is_checkpointed {
            // Its stamp may be from before the checkpoint's last write, and what it says of the WAL from after that.
            return Sighting { alone: later.alone, ..self };
        }
        let is_known = self.may_be_checkpointed_since(&later) || later.cut_off == 0;
        match is_known || later.alone {
            true => later,
            false => Sighting { stamp: self.stamp, header: self.header, cut_off: self.cut_off, ..later },
        }
    }

    /// Who has written the file since, if no checkpoint has ended. (`cp` over a database keeps its inode.)
    ///
    /// Somebody may have been killed in their checkpoint, even somebody who was never seen, or may be in it. But then the
    /// header is the old one or one from the WAL: `is_in_wal` is asked, where nobody is there to be kept waiting.
    /// `None` if it does not know.
    pub fn writer(
        &self,
        later: &Sighting,
        is_in_wal: impl FnOnce(&DatabaseHeader) -> Option<bool>,
    ) -> Option<Writer> {
        if self.stamp == later.stamp || self.may_be_checkpointed_since(later) {
            return Some(Writer::Sqlite);
        }
        if !self.alone && !later.alone {
            let is_written = !later.may_be_in_checkpoint() && !self.stamp.is_but_for_its_name(later.stamp);
            return Some(if is_written { Writer::Beside } else { Writer::Sqlite });
        }
        let may_be_ours = !later.alone || self.header == later.header || is_in_wal(&later.header)?;
        Some(if may_be_ours { Writer::Unknown } else { Writer::Another })
    }

    /// Whether a checkpoint may have ended since. That only the next WAL has begun writes nothing: each one adds one to the
    /// first salt (wal.c, `walRestartHdr`).
    fn may_be_checkpointed_since(&self, later: &Sighting) -> bool {
        let ((before, _), (salt, backfilled)) = (self.backfilled, later.backfilled);
        let has_only_begun = self.is_backfilled && backfilled == 0 && salt.0 == before.0.wrapping_add(1);
        self.backfilled != later.backfilled && !has_only_begun
    }

    /// Whether SQLite may have written into the file, though not more is known to be in it.
    fn may_be_in_checkpoint(&self) -> bool {
        self.is_checkpointed || self.cut_off > 0
    }
}

/// Who has written a database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Whoever has it open, or had; or nobody.
    Sqlite,
    /// Nobody who was seen before. Its pages can tell.
    Unknown,
    /// None of those who had it open all the time, by a checkpoint. Its pages can tell.
    Beside,
    /// Something other than SQLite.
    Another,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(modified: Duration) -> Stamp {
        Stamp { inode: 7, size: 4096, modified, changed: modified }
    }

    fn evidence() -> Evidence {
        let position = Position {
            generation: Generation::from_random(1),
            index: Index::ZERO,
            offset: Offset::new(4152),
        };
        Evidence { position, stamp: stamp(Duration::new(1000, 5)), boot: "a-b-c".to_owned() }
    }

    /// Three frames are in the file, and no more in the WAL.
    fn sighting(alone: bool) -> Sighting {
        Sighting {
            stamp: stamp(Duration::new(1, 1)),
            backfilled: (Salt(1, 2), 3),
            is_backfilled: true,
            cut_off: 0,
            is_checkpointed: false,
            alone,
            header: [0; 100],
        }
    }

    #[test]
    fn a_line_comes_back_and_no_other_line_does() {
        let line = evidence().to_line();
        assert_eq!(Evidence::parse(&line), Some(evidence()));
        for end in 0..line.len() {
            assert_eq!(Evidence::parse(&line[..end]), None, "{}", &line[..end]);
        }
        assert_eq!(Evidence::parse(&line.replace('\n', " more\n")), None);
    }

    #[test]
    fn evidence_holds_only_if_nothing_differs() {
        let evidence = evidence();
        let (position, same, boot) = (evidence.position, evidence.stamp, "a-b-c");
        assert!(evidence.holds(position, same, boot));
        assert!(!evidence.holds(position, same, "another boot"));
        assert!(!evidence.holds(Position { offset: Offset::ZERO, ..position }, same, boot));
        let later = Duration::new(1000, 6);
        for other in [
            Stamp { inode: 8, ..same },
            Stamp { size: 8192, ..same },
            Stamp { modified: later, ..same },
            Stamp { changed: later, ..same },
        ] {
            assert!(!evidence.holds(position, other, boot), "{other:?}");
        }
    }

    #[test]
    fn times_count_once_a_later_write_must_show() {
        let at = |seconds, millis: u32| Duration::new(seconds, millis * 1_000_000);
        assert_eq!(stamp(at(10, 1)).ripens_in(at(10, 1)), FINE_AGE);
        assert_eq!(stamp(at(10, 1)).ripens_in(at(10, 21)), Duration::ZERO);
        assert_eq!(stamp(at(10, 0)).ripens_in(at(10, 500)), Duration::from_millis(2500), "whole seconds");
        assert_eq!(stamp(at(10, 0)).ripens_in(at(13, 0)), Duration::ZERO);
        assert_eq!(stamp(at(20, 1)).ripens_in(at(10, 1)), at(10, 20), "the clock was set back");
    }

    #[test]
    fn what_is_written_beside_users_is_asked_about_where_none_of_them_can_have_checkpointed() {
        let stamp = stamp(Duration::new(1, 1));
        let before = sighting(false);
        let written = Sighting { stamp: Stamp { size: 1, ..stamp }, header: [1; 100], ..before };
        let writer = |before: Sighting, later: Sighting| before.writer(&later, |_| Some(false));
        assert_eq!(writer(before, before), Some(Writer::Sqlite));
        assert_eq!(writer(before, written), Some(Writer::Beside));
        let renamed = Sighting { stamp: Stamp { changed: Duration::new(2, 2), ..stamp }, ..before };
        assert_eq!(writer(before, renamed), Some(Writer::Sqlite), "not written");
        let ended = Sighting { backfilled: (Salt(1, 2), 4), ..written };
        for begun in [Sighting { is_checkpointed: true, ..written }, Sighting { cut_off: 4, ..written }] {
            assert_eq!(writer(before, begun), Some(Writer::Sqlite), "perhaps");
            let followed = before.followed_by(begun);
            assert_eq!(followed, before, "what was before counts as a whole");
            assert_eq!(writer(followed, written), Some(Writer::Beside), "without having checkpointed");
            assert_eq!(writer(followed, ended), Some(Writer::Sqlite));
            assert_eq!(writer(followed, Sighting { alone: true, ..written }), Some(Writer::Another));
        }
        assert_eq!(before.followed_by(ended), ended);
        let (ending, done) = (
            Sighting { is_checkpointed: true, ..ended },
            Sighting { stamp: Stamp { modified: Duration::new(3, 3), ..stamp }, ..ended },
        );
        assert_eq!(writer(before.followed_by(ending), done), Some(Writer::Sqlite), "its last write");
        let next = Sighting { backfilled: (Salt(2, 9), 0), ..written };
        assert_eq!(writer(before, next), Some(Writer::Beside), "the next WAL has begun");
        assert_eq!(writer(Sighting { is_backfilled: false, ..before }, next), Some(Writer::Sqlite));
        for later in [(Salt(2, 9), 1), (Salt(3, 9), 0)] {
            let later = Sighting { backfilled: later, ..written };
            assert_eq!(writer(before, later), Some(Writer::Sqlite), "after a checkpoint");
        }
    }

    #[test]
    fn only_a_header_that_no_checkpoint_can_have_written_is_anothers() {
        let stamp = stamp(Duration::new(1, 1));
        let before = sighting(true);
        let written = Sighting { stamp: Stamp { size: 1, ..stamp }, ..before };
        let unasked = |_: &DatabaseHeader| -> Option<bool> { panic!("asked") };
        assert_eq!(
            before.writer(&written, unasked),
            Some(Writer::Unknown),
            "somebody may have come, and been killed"
        );
        assert_eq!(before.writer(&before, unasked), Some(Writer::Sqlite));
        let somebody_came = Sighting { alone: false, ..written };
        assert_eq!(
            before.writer(&somebody_came, unasked),
            Some(Writer::Unknown),
            "perhaps only after it was written"
        );
        let backfilled = Sighting { backfilled: (Salt(1, 2), 4), ..written };
        assert_eq!(before.writer(&backfilled, unasked), Some(Writer::Sqlite));
        let used = Sighting { alone: false, ..before };
        assert_eq!(used.writer(&written, unasked), Some(Writer::Unknown), "killed before it wrote page 1");
        let other = Sighting { header: [1; 100], ..written };
        let wrote_page_1 = |header: &DatabaseHeader| Some(*header == [1; 100]);
        assert_eq!(used.writer(&other, wrote_page_1), Some(Writer::Unknown));
        assert_eq!(before.writer(&other, wrote_page_1), Some(Writer::Unknown));
        assert_eq!(used.writer(&other, |_| None), None);
        assert_eq!(used.writer(&other, |_| Some(false)), Some(Writer::Another), "no checkpoint writes this");
        assert_eq!(before.writer(&other, |_| Some(false)), Some(Writer::Another));
    }
}
