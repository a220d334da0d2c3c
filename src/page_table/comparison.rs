//! Comparing all pages of a database with its table.

use super::work::{Difference, Unwritten, compare, file_page_count_of, page_count_of};
use super::{SourceTable, TableError, Work};
use crate::core::page::{PageCount, PageNumber, PageSize};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Once it is set, what a worker does ends with [`TableError::Cancelled`].
#[derive(Debug, Clone, Default)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Sets it, for good.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl SourceTable {
    /// Ends the comparisons from here on, until this is called again.
    pub fn renew_interruption(&mut self) -> Interruption {
        self.interruption = Interruption::default();
        self.interruption.clone()
    }

    /// Compares a database file, which must be the whole database and must not change meanwhile, with the table.
    ///
    /// # Errors
    /// What could not be read, or is no database of this kind.
    pub fn compare(&self, database: &File) -> Result<Difference, TableError> {
        let count = |page_size, _| page_count_of(database, page_size);
        let mut difference = self.compare_with(count, Unwritten::Zeros, database)?;
        if difference.pages.is_empty() && Some(difference.page_count) != self.state.map(|s| s.page_count) {
            // Only a commit can say the new size, and a commit has a page.
            difference.pages.extend(PageNumber::new(1));
        }
        Ok(difference)
    }

    /// Compares all pages of a database, of which some may be in its WAL only: its file may be shorter, and its header
    /// old. Pages that were never written count for nothing.
    ///
    /// # Errors
    /// What could not be read.
    pub fn compare_file(&self, database: &File) -> Result<Difference, TableError> {
        let count = |page_size, known| Ok(file_page_count_of(database, page_size)?.max(known));
        self.compare_with(count, Unwritten::Anything, database)
    }

    /// `page_count` is told the size of the pages, and how many there should be.
    fn compare_with(
        &self,
        page_count: impl FnOnce(PageSize, PageCount) -> Result<PageCount, TableError>,
        unwritten: Unwritten,
        database: &File,
    ) -> Result<Difference, TableError> {
        let (Some(entries), Some(standing), Some(state), Work::None) =
            (self.entries, &self.standing, self.state, &self.work)
        else {
            return Err(TableError::Cancelled);
        };
        let page_count = page_count(entries.page_size(), state.page_count)?;
        let counts = (standing.page_count, state.page_count);
        compare(
            (database, page_count),
            &*standing.file,
            counts,
            &self.changes,
            (entries, unwritten),
            &self.interruption,
        )
    }
}
