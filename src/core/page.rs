//! Pages: their size, numbers and count.

use std::fmt;

/// How a database file begins (SQLite file format, 1.3.1).
pub const DATABASE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Length of a frame header in bytes (SQLite file format, 4.1).
pub const FRAME_HEADER_LENGTH: u64 = 24;

/// The size of a database page in bytes: a power of two, 512 to 65536 (SQLite file format, 1.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// `None` unless `bytes` is a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(PageSize(bytes))
    }

    /// Reads the two bytes at offset 16 of a database file, where 1 stands for 65536.
    pub fn from_database_header(field: [u8; 2]) -> Option<Self> {
        match u16::from_be_bytes(field) {
            1 => PageSize::new(65536),
            other => PageSize::new(u32::from(other)),
        }
    }

    /// Bytes of a page.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Bytes of a frame: its header and one page.
    pub fn frame_length(self) -> u64 {
        FRAME_HEADER_LENGTH + u64::from(self.0)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a page, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(std::num::NonZeroU32);

impl PageNumber {
    /// `None` for 0, which no page has.
    pub fn new(number: u32) -> Option<Self> {
        std::num::NonZeroU32::new(number).map(PageNumber)
    }
    /// The number itself.
    pub fn get(self) -> u32 {
        self.0.get()
    }
    /// Where the page begins in the database file, in bytes.
    pub fn file_offset(self, page_size: PageSize) -> u64 {
        u64::from(self.0.get() - 1) * u64::from(page_size.get())
    }
}

/// The size of a database in pages; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(std::num::NonZeroU32);

impl PageCount {
    /// `None` for 0: a committed database has at least one page.
    pub fn new(count: u32) -> Option<Self> {
        std::num::NonZeroU32::new(count).map(PageCount)
    }
    /// What the header of a database file says, where that is valid (SQLite file format, 1.3.7).
    pub fn from_database_header(header: &[u8; 100]) -> Option<Self> {
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        word(28).filter(|_| word(24) == word(92)).and_then(PageCount::new)
    }
    /// The count itself.
    pub fn get(self) -> u32 {
        self.0.get()
    }
    /// The length of a database file of so many pages, in bytes.
    pub fn file_length(self, page_size: PageSize) -> u64 {
        u64::from(self.0.get()) * u64::from(page_size.get())
    }
}
