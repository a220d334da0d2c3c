//! A part of a database file, to be compared with its page table while others go on writing.

use super::work::{read_entries, read_or_zeros};
use super::{SourceTable, TableError, Work};
use crate::core::page::PageNumber;
use crate::core::page_table::{Entries, PageEntry};
use crate::core::scrub::Pages;
use crate::core::table_file::ENTRY_LENGTH;
use crate::database_file::DatabaseFile;
use std::io;

/// A part to read, for a worker.
pub struct PartRead {
    pub(super) database: DatabaseFile,
    pub(super) entries: Entries,
    pub(super) pages: Pages,
}

impl PartRead {
    pub(super) fn run(self) -> Result<Vec<PageEntry>, TableError> {
        let PartRead { database, entries, pages } = self;
        let size = entries.page_size().get() as usize;
        let mut buffer = vec![0; pages.clone().count() * size];
        let at = u64::from(pages.start().saturating_sub(1)) * size as u64;
        read_or_zeros(&database, &mut buffer, at).map_err(TableError::Database)?;
        let read = pages.filter_map(PageNumber::new).zip(buffer.chunks_exact(size));
        Ok(read.map(|(number, page)| entries.of(number, page)).collect())
    }
}

impl SourceTable {
    /// The entries of some pages at the end of what was taken in; `None` while not all are known.
    ///
    /// # Errors
    /// The disk's.
    pub fn part(&self, pages: &Pages) -> io::Result<Option<Vec<PageEntry>>> {
        let (Some(entries), Some(standing), Some(_)) = (&self.entries, &self.standing, self.state) else {
            return Ok(None);
        };
        let (wanted, mut known) = ((*pages.start(), pages.clone().count()), Vec::new());
        read_entries(&*standing.file, standing.page_count, wanted, &mut known)?;
        let mut known = known.as_chunks::<ENTRY_LENGTH>().0.iter();
        let entry = |number| {
            let below = known.next().map(|bytes| PageEntry::new(u64::from_le_bytes(*bytes)));
            let being_written = match &self.work {
                Work::Writing(changes, _) => changes.get(number, entries),
                _ => None,
            };
            let changed = self.changes.get(number, entries).or(being_written);
            changed.or(below).unwrap_or(entries.blank(number))
        };
        Ok(Some(pages.clone().map(entry).collect()))
    }

    /// The job of reading these pages of the database.
    pub fn read_part(&self, database: &DatabaseFile, pages: Pages) -> Option<PartRead> {
        Some(PartRead { database: database.clone(), entries: self.entries?, pages })
    }
}
