//! Frames that were copied, and are not known to be worth anything yet.

use crate::core::page::{PageCount, PageNumber};
use crate::core::page_table::PageEntry;

/// Of each, the page, its entry, and the size of the database if it commits.
#[derive(Default)]
pub struct StagedFrames(pub(super) Vec<(PageNumber, PageEntry, Option<PageCount>)>);

impl StagedFrames {
    /// Forgets all; call it before a copy.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes in a frame.
    pub fn push(&mut self, number: PageNumber, entry: PageEntry, commit: Option<PageCount>) {
        self.0.push((number, entry, commit));
    }
}
