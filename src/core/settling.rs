//! When a database file that we do not hold, and that changes, has come to rest, or will not.

use super::evidence::DatabaseHeader;
use super::page::DATABASE_MAGIC;
use std::time::{Duration, Instant};

/// A file that was put in the database's place, or over it, is opened by us when nothing has happened to it for so
/// long: it might still be on its way, or be given to its application. When that opens it, so do we, at once.
pub const SETTLE_PAUSE: Duration = Duration::from_secs(3);
/// The longest that is waited while an application without a WAL commits ever again.
const LONGEST_SETTLING: Duration = Duration::from_secs(10);
/// So many commits are no copy that is on its way: who copies a file writes its first page once. What is copied is not
/// opened however long that takes: SQLite would write into the half of it.
const COMMITS: u32 = 3;

/// A file that changes.
#[derive(Debug, Clone, Copy)]
pub struct Settling {
    began: Instant,
    counter: Option<u32>,
    commits: u32,
}

impl Settling {
    /// It has just changed.
    pub fn new(now: Instant) -> Settling {
        Settling { began: now, counter: None, commits: 0 }
    }

    /// It has changed again; its header, if it can be read. When it is opened unless it changes once more.
    pub fn on_change(&mut self, header: Option<&DatabaseHeader>, now: Instant) -> Instant {
        if let Some(counter) = header.and_then(change_counter) {
            self.commits += u32::from(self.counter.is_some_and(|before| counter > before));
            self.counter = Some(counter);
        }
        let at_rest = now + SETTLE_PAUSE;
        if self.commits >= COMMITS { at_rest.min(self.began + LONGEST_SETTLING) } else { at_rest }
    }
}

/// What each commit without a WAL makes greater (file format 1.3.7).
fn change_counter(header: &DatabaseHeader) -> Option<u32> {
    let counter = header.starts_with(DATABASE_MAGIC).then(|| header[24..28].try_into().ok()).flatten()?;
    Some(u32::from_be_bytes(counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(counter: u32) -> DatabaseHeader {
        let mut header = [0; 100];
        header[..16].copy_from_slice(DATABASE_MAGIC);
        header[24..28].copy_from_slice(&counter.to_be_bytes());
        header
    }

    /// Changes each second; when it is opened, in seconds, if that is while it changes.
    fn opened_after(headers: impl Iterator<Item = Option<DatabaseHeader>>) -> Option<u64> {
        let began = Instant::now();
        let mut settling = Settling::new(began);
        headers.zip(0..).find_map(|(header, second)| {
            let now = began + Duration::from_secs(second);
            (settling.on_change(header.as_ref(), now) <= now).then_some(second)
        })
    }

    #[test]
    fn who_commits_each_second_is_not_waited_for_longer_than_that() {
        assert_eq!(opened_after((7..67).map(|counter| Some(header(counter)))), Some(10));
    }

    #[test]
    fn a_copy_is_waited_for_however_long_it_takes() {
        let over_another = (0..600).map(|second| Some(header(if second < 5 { 7 } else { 900 })));
        assert_eq!(opened_after(over_another), None);
        let without_a_beginning = (0..600).map(|_| Some([0; 100]));
        assert_eq!(opened_after(without_a_beginning), None);
        assert_eq!(opened_after((0..600).map(|_| None)), None, "it cannot be read");
    }
}
