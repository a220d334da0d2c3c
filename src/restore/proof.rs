//! The page table of what is being restored, compared with what the source was wherever a trailer says it.

use super::error::Damage;
use crate::core::page::PageSize;
use crate::core::page_table::{DatabaseState, PageTable};
use crate::core::position::{Index, Offset};
use crate::core::replay::Frames;
use crate::core::wal::{FrameHeader, FrameHeaderBytes};

/// Follows every page that is restored.
pub(super) struct Proof {
    /// `None` where no database can have come to the size that was met.
    table: Option<PageTable>,
    /// The part of a page of the snapshot that waits for its rest.
    carry: Vec<u8>,
    /// How far the WAL of the present index was followed.
    at: (Index, Offset),
    /// From where on what is restored is exact: before, pages of the snapshot may be newer.
    valid_from: (Index, Offset),
    /// What the snapshot's trailer says of that position.
    expected: Option<DatabaseState>,
    /// The last position at which the two were compared, and equal.
    proven: Option<(Index, Offset)>,
}

impl Proof {
    /// Of a snapshot that is to be replayed from `index` on.
    pub(super) fn new(page_size: PageSize, index: Index) -> Self {
        let (table, at) = (Some(PageTable::new(page_size)), (index, Offset::ZERO));
        Proof { table, carry: Vec::new(), at, valid_from: at, expected: None, proven: None }
    }

    /// The last position at which what is restored was compared with the source, and equal.
    pub(super) fn proven(&self) -> Option<(Index, Offset)> {
        self.proven
    }

    /// Takes in the next bytes of the snapshot.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        let Some(table) = &mut self.table else { return };
        let size = table.page_size().get() as usize;
        if !self.carry.is_empty() {
            let (now, later) = bytes.split_at((size - self.carry.len()).min(bytes.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            if self.carry.len() < size {
                return;
            }
        }
        let carried = std::mem::take(&mut self.carry);
        let pages = bytes.chunks_exact(size);
        self.carry.extend_from_slice(pages.remainder());
        let whole = (!carried.is_empty()).then_some(carried.as_slice()).into_iter().chain(pages);
        if whole.map(|page| table.append(page)).any(|taken| taken.is_none()) {
            self.table = None;
        }
    }

    /// Says from where on the snapshot is exact, and what the source was there, if that is known.
    ///
    /// # Errors
    /// That is here, and it is not what is restored.
    pub(super) fn expect(
        &mut self,
        valid_from: (Index, Offset),
        state: Option<DatabaseState>,
    ) -> Result<(), Damage> {
        // Before the first commit, an application's file may be longer than its database.
        if valid_from == self.at
            && let (Some(table), Some(state)) = (&mut self.table, state)
            && table.state().is_some_and(|here| here.page_count > state.page_count)
        {
            table.resize(state.page_count);
        }
        (self.valid_from, self.expected) = (valid_from, state);
        self.compare_expected()
    }

    /// Says that the WAL of `index` follows, or would follow.
    ///
    /// # Errors
    /// The source was something else there.
    pub(super) fn begin_index(&mut self, index: Index) -> Result<(), Damage> {
        self.at = (index, Offset::ZERO);
        self.compare_expected()
    }

    /// Takes in verified frames.
    ///
    /// # Errors
    /// A commit among them is not what the source was there.
    pub(super) fn push(&mut self, frames: Frames) -> Result<(), Damage> {
        let Some(table) = &mut self.table else { return Ok(()) };
        let frame_length = table.page_size().frame_length();
        let mut end = self.at.1.max(Offset::FIRST_FRAME);
        for frame in frames.bytes.chunks_exact(frame_length as usize) {
            end = end.plus(frame_length);
            self.at.1 = end;
            let Some((head, page)) = frame.split_first_chunk::<{ size_of::<FrameHeaderBytes>() }>() else {
                continue;
            };
            let header = FrameHeader::parse(head);
            let Some(table) = &mut self.table else { return Ok(()) };
            if let Some(number) = header.page {
                table.push(number, page);
            }
            if let Some(page_count) = header.commit {
                if table.commit(page_count).is_none() {
                    self.table = None;
                }
                self.compare_expected()?;
            }
        }
        Ok(())
    }

    /// Compares what is restored with what the source was at `at`, the end of the last commit.
    ///
    /// # Errors
    /// They are not the same.
    pub(super) fn compare(&mut self, at: (Index, Offset), expected: DatabaseState) -> Result<(), Damage> {
        let is_exact = at >= self.valid_from;
        let restored = self.table.as_ref().filter(|_| is_exact).and_then(PageTable::state);
        let Some(restored) = restored else { return Ok(()) };
        if restored != expected {
            return Err(Damage::NotTheSource { at, expected, restored });
        }
        self.proven = Some(at);
        Ok(())
    }

    fn compare_expected(&mut self) -> Result<(), Damage> {
        match self.expected.take_if(|_| self.at == self.valid_from) {
            Some(state) => self.compare(self.valid_from, state),
            None => Ok(()),
        }
    }
}
