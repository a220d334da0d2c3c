//! One entry for every page of a database, and the XOR of all entries as the checksum of the database at a position.
//!
//! An entry mixes the page's CRC with its number: CRCs are linear, so that without the mixing two pages that changed
//! places would cancel each other. XOR lets the checksum follow a commit in as many steps as it has pages.

use super::checksum::Crc64;
use super::page::{PageCount, PageNumber, PageSize};
use std::collections::HashMap;
use std::fmt;

/// SQLite locks bytes from here on, so the page that holds them is never used, and is never in a WAL.
const LOCK_BYTES: u64 = 1 << 30;
/// Spreads page numbers over all bits: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64: every bit of the input changes half of the output's.
fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What stands in the table for one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PageEntry(u64);

impl PageEntry {
    /// As it was written with [`PageEntry::get`].
    pub fn new(bits: u64) -> Self {
        PageEntry(bits)
    }
    /// All its bits.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The XOR of the entries of all pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatabaseChecksum(u64);

impl DatabaseChecksum {
    /// As it was written with [`DatabaseChecksum::get`].
    pub fn new(bits: u64) -> Self {
        DatabaseChecksum(bits)
    }
    /// All its bits.
    pub fn get(self) -> u64 {
        self.0
    }
    /// Takes an entry in, or out again.
    pub fn toggle(&mut self, entry: PageEntry) {
        self.0 ^= entry.0;
    }
}

impl fmt::Display for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// All of a database's content at one position, in sixteen bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseState {
    /// Its size.
    pub page_count: PageCount,
    /// The XOR of the entries of its pages.
    pub checksum: DatabaseChecksum,
}

impl fmt::Display for DatabaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages with checksum {}", self.page_count.get(), self.checksum)
    }
}

/// Makes the entries of pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries {
    page_size: PageSize,
    /// The CRC of a page of zeros.
    blank: u64,
}

impl Entries {
    /// For pages of `page_size`.
    pub fn of_size(page_size: PageSize) -> Self {
        Entries { page_size, blank: Crc64::of(&vec![0; page_size.get() as usize]) }
    }

    /// The size of the pages.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The entry of a page with this content.
    pub fn of(&self, number: PageNumber, page: &[u8]) -> PageEntry {
        self.entry(number.get(), || Crc64::of(page))
    }

    /// The entry of a page that the database has grown by, and that nobody has written.
    pub fn blank(&self, number: u32) -> PageEntry {
        self.entry(number, || self.blank)
    }

    /// The lock-byte page does not count, whatever stands there.
    fn entry(&self, number: u32, crc: impl FnOnce() -> u64) -> PageEntry {
        if u64::from(number) == LOCK_BYTES / u64::from(self.page_size.get()) + 1 {
            return PageEntry(0);
        }
        PageEntry(mix64(crc().wrapping_add(u64::from(number).wrapping_mul(GOLDEN))))
    }
}

/// What became of pages since some position: laid over the entries of then, they are the entries of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageChanges {
    entries: HashMap<u32, PageEntry>,
    /// The smallest size since then: what was beyond it then is gone, also where the database has grown again.
    least: Option<PageCount>,
    page_count: Option<PageCount>,
    /// Pages of a transaction that has not been committed yet, in the order of its frames.
    open: Vec<(PageNumber, PageEntry)>,
}

impl PageChanges {
    /// The size after the last commit; `None` before the first.
    pub fn page_count(&self) -> Option<PageCount> {
        self.page_count
    }

    /// Pages that changed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there was no commit.
    pub fn is_empty(&self) -> bool {
        self.page_count.is_none()
    }

    /// The entry of a page up to the present size; `None` if it has not changed.
    pub fn get(&self, number: u32, entries: &Entries) -> Option<PageEntry> {
        let is_new = || self.least.is_some_and(|least| number > least.get());
        self.entries.get(&number).copied().or_else(|| is_new().then(|| entries.blank(number)))
    }

    /// Takes in a frame, which counts once its transaction is committed.
    pub fn push(&mut self, number: PageNumber, entry: PageEntry) {
        self.open.push((number, entry));
    }

    /// Forgets the frames of the open transaction.
    pub fn roll_back(&mut self) {
        self.open.clear();
    }

    /// Takes in that the frames pushed so far are committed, and `page_count` is the size now. Moves `state` on;
    /// `below` says the entries that pages had before all these changes.
    ///
    /// # Errors
    /// The first one of `below`; the changes are taken in all the same, but the state is not known any more.
    pub fn commit<E>(
        &mut self,
        page_count: PageCount,
        entries: &Entries,
        state: Option<DatabaseState>,
        mut below: impl FnMut(u32) -> Result<PageEntry, E>,
    ) -> Result<Option<DatabaseState>, E> {
        let mut error = None;
        let mut checksum = DatabaseChecksum::default();
        let mut entry_below = |number| {
            below(number).unwrap_or_else(|e| {
                error.get_or_insert(e);
                PageEntry::default()
            })
        };
        if let Some(state) = state {
            checksum = state.checksum;
            for number in page_count.get() + 1..=state.page_count.get() {
                checksum.toggle(self.get(number, entries).unwrap_or_else(|| entry_below(number)));
            }
            for number in state.page_count.get() + 1..=page_count.get() {
                checksum.toggle(entries.blank(number));
            }
        }
        self.resize(page_count);
        for (number, entry) in std::mem::take(&mut self.open) {
            let number = number.get();
            if number > page_count.get() {
                continue;
            }
            if state.is_some() {
                checksum.toggle(self.get(number, entries).unwrap_or_else(|| match number {
                    // It has just come, and came blank.
                    _ if state.is_some_and(|state| number > state.page_count.get()) => entries.blank(number),
                    _ => entry_below(number),
                }));
                checksum.toggle(entry);
            }
            self.entries.insert(number, entry);
        }
        match error {
            Some(error) => Err(error),
            None => Ok(state.map(|_| DatabaseState { page_count, checksum })),
        }
    }

    fn resize(&mut self, page_count: PageCount) {
        if let Some(before) = self.page_count.filter(|before| *before > page_count) {
            if ((before.get() - page_count.get()) as usize) < self.entries.len() {
                for number in page_count.get() + 1..=before.get() {
                    self.entries.remove(&number);
                }
            } else {
                self.entries.retain(|number, _| *number <= page_count.get());
            }
        }
        self.page_count = Some(page_count);
        self.least = Some(self.least.map_or(page_count, |least| least.min(page_count)));
    }

    /// Separates all that is committed; the open transaction stays.
    #[must_use]
    pub fn split_off(&mut self) -> PageChanges {
        let open = std::mem::take(&mut self.open);
        std::mem::replace(self, PageChanges { open, ..PageChanges::default() })
    }

    /// The state that these changes make of the `state` they began on.
    ///
    /// # Errors
    /// The first one of `below`.
    pub fn apply_to<E>(
        &self,
        state: DatabaseState,
        entries: &Entries,
        mut below: impl FnMut(u32) -> Result<PageEntry, E>,
    ) -> Result<DatabaseState, E> {
        let (Some(page_count), Some(least)) = (self.page_count, self.least) else { return Ok(state) };
        let mut checksum = state.checksum;
        let (before, least) = (state.page_count.get(), least.get().min(state.page_count.get()));
        for number in least + 1..=before {
            checksum.toggle(below(number)?);
        }
        for (number, _) in self.entries.iter().filter(|(number, _)| **number <= least) {
            checksum.toggle(below(*number)?);
        }
        for (_, entry) in self.writes(state.page_count, entries) {
            checksum.toggle(entry);
        }
        Ok(DatabaseState { page_count, checksum })
    }

    /// What is to be written over the entries of a database of `before` pages, in the order of pages.
    pub fn writes(&self, before: PageCount, entries: &Entries) -> Vec<(u32, PageEntry)> {
        let mut writes: Vec<_> = self.entries.iter().map(|(number, entry)| (*number, *entry)).collect();
        if let (Some(page_count), Some(least)) = (self.page_count, self.least) {
            let come = least.min(before).get() + 1..=page_count.get();
            let blank = come.filter(|number| !self.entries.contains_key(number));
            writes.extend(blank.map(|number| (number, entries.blank(number))));
        }
        writes.sort_unstable_by_key(|(number, _)| *number);
        writes
    }
}

/// The table of a whole database, in memory: eight bytes a page.
#[derive(Debug, Clone)]
pub struct PageTable {
    entries: Entries,
    /// Of pages from 1.
    table: Vec<PageEntry>,
    checksum: DatabaseChecksum,
    /// Pages of a transaction that has not been committed yet.
    open: Vec<(PageNumber, PageEntry)>,
    /// Pages taken in so far.
    taken: u64,
}

/// Pages that a table may have beyond twice those that were taken in: a size that was made up costs no memory.
const ROOM: u64 = 1024;

impl PageTable {
    /// The table of no pages.
    pub fn new(page_size: PageSize) -> Self {
        PageTable {
            entries: Entries::of_size(page_size),
            table: Vec::new(),
            checksum: DatabaseChecksum::default(),
            open: Vec::new(),
            taken: 0,
        }
    }

    /// The size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.entries.page_size()
    }

    /// The state of what was taken in; `None` for no pages.
    pub fn state(&self) -> Option<DatabaseState> {
        let count = u32::try_from(self.table.len()).ok().and_then(PageCount::new)?;
        Some(DatabaseState { page_count: count, checksum: self.checksum })
    }

    /// Takes in the next page of a database file; `None` if there cannot be one.
    pub fn append(&mut self, page: &[u8]) -> Option<()> {
        let number = u32::try_from(self.table.len() + 1).ok().and_then(PageNumber::new)?;
        let entry = self.entries.of(number, page);
        self.table.push(entry);
        self.checksum.toggle(entry);
        self.taken += 1;
        Some(())
    }

    /// Takes in a frame, which counts once its transaction is committed.
    pub fn push(&mut self, number: PageNumber, page: &[u8]) {
        self.open.push((number, self.entries.of(number, page)));
        self.taken += 1;
    }

    /// Takes in that the frames so far are committed, and the size now; `None` if no database can have come to that size.
    pub fn commit(&mut self, page_count: PageCount) -> Option<()> {
        if u64::from(page_count.get()) > 2 * self.taken + ROOM {
            return None;
        }
        self.resize(page_count);
        for (number, entry) in std::mem::take(&mut self.open) {
            // What lies beyond the size was given up within the transaction.
            if let Some(present) = self.table.get_mut(number.get() as usize - 1) {
                self.checksum.toggle(std::mem::replace(present, entry));
                self.checksum.toggle(entry);
            }
        }
        Some(())
    }

    /// Cuts the database, or grows it with blank pages.
    pub fn resize(&mut self, page_count: PageCount) {
        let count = page_count.get() as usize;
        let gone = self.table.drain(count.min(self.table.len())..);
        gone.for_each(|entry| self.checksum.toggle(entry));
        for number in self.table.len() + 1..=count {
            let entry = self.entries.blank(number as u32);
            self.table.push(entry);
            self.checksum.toggle(entry);
        }
    }
}
