//! The bytes of a page table on disk, and of the changes that are about to be written into it.
//!
//! The table is a header and eight bytes a page. The changes are written first, and made durable: a table that was left
//! half changed is finished from them. Entries are absolute, so doing that twice does no harm.

use super::checksum::Crc64;
use super::page::{PageCount, PageSize};
use super::page_table::{DatabaseChecksum, DatabaseState, PageEntry};
use super::position::{Generation, Index, Offset, Position};

/// Bytes of a header: magic, six numbers, and the CRC-64 of all before it.
pub const HEADER_LENGTH: usize = 8 + 6 * 8 + 8;
/// Bytes of an entry.
pub const ENTRY_LENGTH: usize = 8;

/// Version 1.
const MAGIC: [u8; 8] = *b"walpgt\x00\x01";
/// Bytes of one change: page number and entry.
const CHANGE_LENGTH: usize = 8 + ENTRY_LENGTH;

/// What a table is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHeader {
    /// The entries are those of the database at exactly this position.
    pub position: Position,
    /// The size of its pages.
    pub page_size: PageSize,
    /// Its size, and the XOR of all entries.
    pub state: DatabaseState,
}

impl TableHeader {
    /// The bytes at the beginning of the table.
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let Position { generation, index, offset } = self.position;
        let DatabaseState { page_count, checksum } = self.state;
        let (size, count) = (u64::from(self.page_size.get()), u64::from(page_count.get()));
        let numbers = [generation.get(), u64::from(index.get()), offset.get(), size, count, checksum.get()];
        let mut bytes = Vec::with_capacity(HEADER_LENGTH);
        bytes.extend_from_slice(&MAGIC);
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        let crc = Crc64::of(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.try_into().expect("BUG: a header is the magic, six numbers and a CRC")
    }

    /// Reads the header at the beginning of a table; `None` if there is no whole one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.get(..HEADER_LENGTH)?.split_at(HEADER_LENGTH - 8);
        if body.get(..8)? != MAGIC || crc != Crc64::of(body).to_le_bytes() {
            return None;
        }
        let small = |at| u32::try_from(number(body, at)?).ok();
        let generation = Generation::from_random(number(body, 8)?);
        let position = Position::new(generation, Index::new(small(16)?)?, Offset::new(number(body, 24)?));
        let checksum = DatabaseChecksum::new(number(body, 48)?);
        let state = DatabaseState { page_count: PageCount::new(small(40)?)?, checksum };
        Some(TableHeader { position, page_size: PageSize::new(small(32)?)?, state })
    }
}

/// Where the entry of a page stands in the table, in bytes.
pub fn entry_offset(number: u32) -> u64 {
    HEADER_LENGTH as u64 + (u64::from(number) - 1) * ENTRY_LENGTH as u64
}

/// The length of a table of so many pages, in bytes.
pub fn table_length(page_count: PageCount) -> u64 {
    entry_offset(page_count.get()) + ENTRY_LENGTH as u64
}

/// Changes that bring a table from one position to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChanges {
    /// Where the table stands before.
    pub from: Position,
    /// The header of the table after.
    pub to: TableHeader,
    /// The entries that are new, in the order of pages.
    pub writes: Vec<(u32, PageEntry)>,
}

impl TableChanges {
    /// All bytes of the file of changes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * HEADER_LENGTH + 16 + self.writes.len() * CHANGE_LENGTH);
        // Of where it comes from, the position matters.
        bytes.extend_from_slice(&TableHeader { position: self.from, ..self.to }.encode());
        bytes.extend_from_slice(&self.to.encode());
        bytes.extend_from_slice(&(self.writes.len() as u64).to_le_bytes());
        for (number, entry) in &self.writes {
            bytes.extend_from_slice(&u64::from(*number).to_le_bytes());
            bytes.extend_from_slice(&entry.get().to_le_bytes());
        }
        let crc = Crc64::of(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a file of changes; `None` if it is not whole. What is behind them, of longer ones before, means nothing.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let from = TableHeader::parse(bytes)?.position;
        let to = TableHeader::parse(bytes.get(HEADER_LENGTH..)?)?;
        let start = 2 * HEADER_LENGTH + 8;
        let count = usize::try_from(number(bytes, start - 8)?).ok()?;
        let end = start.checked_add(count.checked_mul(CHANGE_LENGTH)?)?;
        if bytes.get(end..end.checked_add(8)?)? != Crc64::of(bytes.get(..end)?).to_le_bytes() {
            return None;
        }
        let change = |change: &[u8]| {
            let page = u32::try_from(number(change, 0)?).ok()?;
            Some((page, PageEntry::new(number(change, 8)?))).filter(|_| page > 0)
        };
        let writes = bytes.get(start..end)?.chunks_exact(CHANGE_LENGTH).map(change);
        Some(TableChanges { from, to, writes: writes.collect::<Option<_>>()? })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
