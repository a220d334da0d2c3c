//! Which frames of a WAL are valid, and where the last commit ends.

use super::page::{FRAME_HEADER_LENGTH, PageCount};
use super::position::Offset;
use super::wal::{Checksum, FrameHeader, FrameHeaderBytes, WalHeader};

/// Why a frame does not continue its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The frame was written under another header.
    #[error("its salt is not the header's")]
    Salt,
    /// The cumulative checksum is wrong: a byte here or before it changed.
    #[error("its checksum is wrong")]
    Checksum,
    /// No database has a page 0.
    #[error("it is for page 0")]
    PageZero,
}

/// A frame that does not continue its WAL, and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame at offset {at} is not valid: {fault}")]
pub struct FrameError {
    /// Where the frame begins.
    pub at: Offset,
    /// What is wrong with it.
    pub fault: FrameFault,
}

/// The end of a committed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The byte behind its last frame.
    pub end: Offset,
    /// The size of the database from here on.
    pub page_count: PageCount,
}

/// The valid frames of a WAL so far. Invariant: every byte before `end` passed salt and checksum,
/// and `commit` ends at or before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    header: WalHeader,
    end: Offset,
    checksum: Checksum,
    commit: Option<Commit>,
}

impl Chain {
    /// A WAL of which only the header is known.
    pub fn new(header: WalHeader) -> Self {
        Chain { header, end: Offset::FIRST_FRAME, checksum: header.checksum(), commit: None }
    }

    /// A WAL of which everything before `end` is known to be valid; `last` is the header of the frame that ends there.
    pub fn resume(header: WalHeader, end: Offset, last: &FrameHeaderBytes) -> Self {
        Chain { header, end, checksum: FrameHeader::parse(last).checksum, commit: None }
    }

    /// The WAL's header.
    pub fn header(&self) -> &WalHeader {
        &self.header
    }
    /// Where the valid frames end.
    pub fn end(&self) -> Offset {
        self.end
    }
    /// The last commit seen by this chain.
    pub fn commit(&self) -> Option<Commit> {
        self.commit
    }

    /// Takes in the whole frames at the beginning of `bytes`, which follow the end of the chain, and hands each to
    /// `each` with its page. Returns how many bytes it took; a part of a frame at the end is left.
    ///
    /// # Errors
    /// The first frame that is not valid; everything before it is taken in.
    pub fn extend(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&FrameHeader, &[u8]),
    ) -> Result<usize, FrameError> {
        let frame_length = self.header.page_size().frame_length() as usize;
        let mut taken = 0;
        for frame in bytes.chunks_exact(frame_length) {
            let header = self.verify(frame).map_err(|fault| FrameError { at: self.end, fault })?;
            self.checksum = header.checksum;
            self.end = self.end.plus(frame_length as u64);
            if let Some(page_count) = header.commit {
                self.commit = Some(Commit { end: self.end, page_count });
            }
            each(&header, &frame[FRAME_HEADER_LENGTH as usize..]);
            taken += frame_length;
        }
        Ok(taken)
    }

    /// The parsed header of a whole frame that continues this chain.
    fn verify(&self, frame: &[u8]) -> Result<FrameHeader, FrameFault> {
        let (head, page) =
            frame.split_first_chunk::<{ FRAME_HEADER_LENGTH as usize }>().ok_or(FrameFault::Checksum)?;
        let header = FrameHeader::parse(head);
        if header.salt != self.header.salt() {
            return Err(FrameFault::Salt);
        }
        if header.page.is_none() {
            return Err(FrameFault::PageZero);
        }
        let order = self.header.order();
        let checksum = self.checksum.extend(order, &head[..8]).extend(order, page);
        if checksum != header.checksum {
            return Err(FrameFault::Checksum);
        }
        Ok(header)
    }
}
