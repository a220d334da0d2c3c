//! What the shadow WAL holds, as a value that replicas compare themselves with.

use super::page_table::DatabaseState;
use super::position::{Generation, Index, Offset, Position};
use std::collections::BTreeMap;

/// The bytes that are in the shadow WAL. Invariant: everything before `end` is committed, valid and never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowExtent {
    /// The history.
    pub generation: Generation,
    /// Where each earlier index that is still kept ended.
    pub complete: BTreeMap<Index, Offset>,
    /// The present index.
    pub index: Index,
    /// The end of its last commit; 0 before the first.
    pub end: Offset,
    /// What the database was where an index ended, and at the end, as far as the page table knew.
    pub states: BTreeMap<Index, DatabaseState>,
}

impl ShadowExtent {
    /// A generation in which nothing has been copied yet.
    pub fn beginning(generation: Generation) -> Self {
        let (complete, states) = (BTreeMap::new(), BTreeMap::new());
        ShadowExtent { generation, complete, index: Index::ZERO, end: Offset::ZERO, states }
    }

    /// The next byte that will be committed.
    pub fn position(&self) -> Position {
        Position::new(self.generation, self.index, self.end)
    }

    /// Where the bytes of an index end; `None` if they are not kept.
    pub fn end_of(&self, index: Index) -> Option<Offset> {
        if index == self.index { Some(self.end) } else { self.complete.get(&index).copied() }
    }

    /// What the database was at a position; `None` if that is not known.
    pub fn state_at(&self, index: Index, offset: Offset) -> Option<DatabaseState> {
        self.states.get(&index).copied().filter(|_| self.end_of(index) == Some(offset))
    }

    /// All bytes that are kept.
    pub fn bytes_kept(&self) -> u64 {
        self.complete.values().map(|end| end.get()).sum::<u64>() + self.end.get()
    }

    /// Bytes from a position to the end; `None` if something in between is not kept.
    pub fn bytes_since(&self, index: Index, offset: Offset) -> Option<u64> {
        let mut bytes = self.end_of(index)?.since(offset);
        let mut at = index;
        while at < self.index {
            at = at.next()?;
            bytes += self.end_of(at)?.get();
        }
        Some(bytes)
    }
}
