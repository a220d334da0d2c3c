//! Frames that were copied, and are not known to be worth anything yet.

use crate::core::page::{PageCount, PageNumber};
use crate::core::page_table::{Entries, PageEntry};
use crate::core::wal::FrameHeader;

/// Of each, the page, its entry, and the size of the database if it commits.
#[derive(Default)]
pub struct StagedFrames(pub(super) Vec<(PageNumber, PageEntry, Option<PageCount>)>);

impl StagedFrames {
    /// Forgets all, and takes in each frame that is handed to what it returns; none without `entries`.
    pub fn begin(&mut self, entries: Option<Entries>) -> impl FnMut(&FrameHeader, &[u8]) {
        self.0.clear();
        move |frame, page| {
            if let (Some(entries), Some(number)) = (&entries, frame.page) {
                self.0.push((number, entries.of(number, page), frame.commit));
            }
        }
    }
}
