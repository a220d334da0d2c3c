//! Which pages of a database file are read next to be compared with the page table, while others have it open; and what
//! that says. A checkpoint of theirs explains that the file was written, and not what else was written into it.
//!
//! A part is read each second, from the first page to the last, and again from the first as long as the file is another
//! one than when the last pass began. A file that rests is read once.

use super::evidence::Stamp;
use super::page::{PageCount, PageNumber, PageSize};
use super::page_table::{Entries, PageEntry};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// What is read at once, in bytes, and the pause before the next part: nobody feels it, and a gigabyte takes 17 minutes.
const PART: u32 = 1 << 20;
const PAUSE: Duration = Duration::from_secs(1);
/// The same, as often as the agent has databases: all of them together are read no faster than ten are.
const SHARE: Duration = Duration::from_millis(100);

/// Numbers of pages.
pub type Pages = RangeInclusive<u32>;

/// How far the file is read. It goes on where it was when others come back to the database.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scrub {
    /// The last page that was read in this pass; 0 before the first.
    read: u32,
    /// The last page of this pass: a file that grows faster than it is read is read from the first page again all the same.
    end: u32,
    /// What the file was when this pass began.
    begun: Option<Stamp>,
    /// What it was when the last whole pass began.
    finished: Option<Stamp>,
    /// When the next part may be read; at once before the first.
    at: Option<Instant>,
}

impl Scrub {
    /// When the next part of a file that is this now is to be read, if any is.
    pub fn next_timeout(&self, stamp: Stamp, now: Instant) -> Option<Instant> {
        (self.read > 0 || self.finished != Some(stamp)).then(|| self.at.unwrap_or(now))
    }

    /// The part that is read now. The agent has so many `databases`.
    pub fn begin(
        &mut self,
        stamp: Stamp,
        (page_size, page_count): (PageSize, PageCount),
        databases: u32,
        now: Instant,
    ) -> Pages {
        let is_another = self.begun.is_some_and(|begun| begun.inode != stamp.inode);
        if self.read == 0 || self.read >= page_count.get() || is_another {
            (self.read, self.end, self.begun) = (0, page_count.get(), Some(stamp));
        }
        self.at = Some(now + PAUSE.max(SHARE.saturating_mul(databases)));
        let most = PART / page_size.get();
        self.read + 1..=self.read.saturating_add(most).min(self.end).min(page_count.get())
    }

    /// That part was compared. The database has so many pages now.
    pub fn on_compared(&mut self, pages: &Pages, page_count: PageCount) {
        self.read = *pages.end();
        if self.read >= self.end.min(page_count.get()) {
            (self.read, self.finished) = (0, self.begun);
        }
    }
}

/// Entries of the same pages.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// In the page table, before the file was read.
    pub before: &'a [PageEntry],
    /// Of the file.
    pub read: &'a [PageEntry],
    /// In the page table, once everything was copied that can have been in the file when it was read.
    pub after: &'a [PageEntry],
}

impl Part<'_> {
    /// The pages that are not what the table says, though nobody has committed them meanwhile. Some may be in the WAL, and
    /// not in the file yet. One that was never written counts for nothing: it may hold what it held before the database
    /// shrank.
    pub fn differing(self, first: u32, entries: &Entries) -> Vec<PageNumber> {
        let Part { before, read, after } = self;
        let known = before.iter().zip(after).zip(read).zip(first..);
        let differs = known.filter(|(((before, after), read), number)| {
            before == after && after != read && **after != entries.blank(*number)
        });
        differs.filter_map(|(_, number)| PageNumber::new(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: u64) -> Stamp {
        let modified = Duration::from_secs(seconds);
        Stamp { inode: 7, size: 4096, modified, changed: modified }
    }

    fn pages(count: u32) -> (PageSize, PageCount) {
        (PageSize::new(4096).expect("it is one"), PageCount::new(count).expect("there are some"))
    }

    #[test]
    fn a_file_is_read_part_by_part_and_again_once_it_was_written() {
        let start = Instant::now();
        let (mut scrub, of) = (Scrub::default(), pages(300));
        assert_eq!(scrub.next_timeout(stamp(1), start), Some(start));
        let first = scrub.begin(stamp(1), of, 1, start);
        assert_eq!(first, 1..=256);
        scrub.on_compared(&first, of.1);
        let later = scrub.next_timeout(stamp(2), start).expect("the rest is left");
        assert_eq!(later, start + PAUSE);
        let rest = scrub.begin(stamp(2), of, 1, later);
        assert_eq!(rest, 257..=300);
        assert_eq!(scrub.next_timeout(stamp(2), later), Some(later + PAUSE), "not compared yet");
        scrub.on_compared(&rest, of.1);
        assert_eq!(scrub.next_timeout(stamp(1), later), None, "nothing was written since this pass began");
        assert_eq!(scrub.next_timeout(stamp(2), later), Some(later + PAUSE), "written in the middle of it");
        assert_eq!(scrub.begin(stamp(2), of, 1, later), 1..=256);
    }

    #[test]
    fn a_part_that_was_not_compared_is_read_again_and_a_database_may_shrink_meanwhile() {
        let now = Instant::now();
        let mut scrub = Scrub::default();
        let first = scrub.begin(stamp(1), pages(600), 1, now);
        assert_eq!(scrub.begin(stamp(1), pages(600), 1, now), first);
        scrub.on_compared(&first, pages(600).1);
        assert_eq!(scrub.begin(stamp(2), pages(100), 1, now), 1..=100);
        scrub.on_compared(&(1..=100), pages(100).1);
        assert_eq!(scrub.next_timeout(stamp(2), now), None);
    }

    #[test]
    fn a_pass_ends_where_the_file_ended_when_it_began_and_many_databases_take_turns() {
        let (now, one, many) = (Instant::now(), pages(300), pages(3000));
        let mut scrub = Scrub::default();
        let first = scrub.begin(stamp(1), one, 1, now);
        scrub.on_compared(&first, many.1);
        let rest = scrub.begin(stamp(2), many, 1000, now);
        assert_eq!(rest, 257..=300);
        scrub.on_compared(&rest, many.1);
        assert_eq!(scrub.next_timeout(stamp(2), now), Some(now + SHARE * 1000));
        let second = scrub.begin(stamp(2), many, 1, now);
        assert_eq!(second, 1..=256);
        scrub.on_compared(&second, many.1);
        let another = Stamp { inode: 8, ..stamp(2) };
        assert_eq!(scrub.begin(another, many, 1, now), 1..=256, "another file is at the path");
    }

    #[test]
    fn only_a_page_that_nobody_committed_meanwhile_differs() {
        let entries = Entries::of_size(pages(1).0);
        let [a, b, c] = [1, 2, 3].map(PageEntry::new);
        let blank = entries.blank(14);
        let before = [a, a, a, a, blank];
        let read = [a, b, b, b, b];
        let after = [a, b, c, a, blank];
        let part = Part { before: &before, read: &read, after: &after };
        let differing: Vec<u32> = part.differing(10, &entries).into_iter().map(PageNumber::get).collect();
        assert_eq!(differing, [13]);
    }
}
