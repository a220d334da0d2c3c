//! Which frames of a WAL are valid, and where the last commit ends.

use super::page::{FRAME_HEADER_LENGTH, PageCount};
use super::position::Offset;
use super::wal::{Checksum, FrameHeader, FrameHeaderBytes, Salt, WalHeader, seal};

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

    /// Gives committed frames that follow the end of this chain the salt and the checksums that SQLite has left out.
    ///
    /// A transaction that was spilled into the WAL, taken back to a savepoint, and committed then, can leave frames
    /// without either (wal.c before the fix: `walEncodeFrame` writes zeros while `iReCksum` is set, which
    /// `sqlite3WalSavepointUndo` did not take back). What follows is summed from what stands before it, as if that were
    /// right. Only the wal-index says that such frames are committed; recovery would drop them. `before` is the checksum
    /// in the frame that is before them in the WAL.
    ///
    /// # Errors
    /// The first frame that SQLite has not written so.
    pub fn resum(&self, before: Checksum, frames: &mut [u8]) -> Result<(), FrameError> {
        let (salt, order) = (self.header.salt(), self.header.order());
        let length = self.header.page_size().frame_length() as usize;
        let (mut theirs, mut ours, mut at) = (before, self.checksum, self.end);
        for frame in frames.chunks_exact_mut(length) {
            let (head, page) = frame
                .split_first_chunk_mut::<{ FRAME_HEADER_LENGTH as usize }>()
                .expect("BUG: a frame is longer than its header");
            let header = FrameHeader::parse(head);
            let sum = |from: Checksum| from.extend(order, &head[..8]).extend(order, page);
            let is_unsummed = |salt, checksum| salt == Salt::NONE && checksum == Checksum::NONE;
            let fault = if header.page.is_none() {
                Some(FrameFault::PageZero)
            } else if is_unsummed(header.salt, header.checksum) {
                None
            } else if header.salt != salt {
                Some(FrameFault::Salt)
            } else {
                // Behind one without a checksum SQLite may have begun with any.
                let is_summed = theirs == Checksum::NONE || sum(theirs) == header.checksum;
                (!is_summed).then_some(FrameFault::Checksum)
            };
            if let Some(fault) = fault {
                return Err(FrameError { at, fault });
            }
            (theirs, ours) = (header.checksum, sum(ours));
            seal(head, salt, ours);
            at = at.plus(length as u64);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::page::{PageNumber, PageSize};
    use crate::core::synthetic::SyntheticWal;

    const FRAME: usize = 24 + 512;
    const SALTED: std::ops::Range<usize> = 8..24;

    /// Five frames, the third and the last of which commit.
    fn wal() -> (WalHeader, Vec<u8>) {
        let size = PageSize::new(512).unwrap();
        let mut wal = SyntheticWal::new(size, Salt(5, 6));
        let mut frames = Vec::new();
        for number in 1..=5 {
            let commit = (number % 2 == 1 && number > 1).then(|| PageCount::new(5).unwrap());
            wal.push(&mut frames, PageNumber::new(number).unwrap(), &[number as u8; 512], commit);
        }
        (*wal.header(), frames)
    }

    /// As SQLite leaves it that commits the frames from `first` to before `end` without a checksum, and goes on with that
    /// of `from`.
    fn unsummed(frames: &[u8], header: &WalHeader, first: usize, end: usize, from: Checksum) -> Vec<u8> {
        let mut left = frames.to_vec();
        let mut checksum = from;
        for (number, frame) in left.chunks_exact_mut(FRAME).enumerate().skip(first) {
            if number < end {
                frame[SALTED].fill(0);
                continue;
            }
            let sum = checksum.extend(header.order(), &frame[..8]).extend(header.order(), &frame[24..]);
            frame[16..20].copy_from_slice(&sum.0.to_be_bytes());
            frame[20..24].copy_from_slice(&sum.1.to_be_bytes());
            checksum = sum;
        }
        left
    }

    #[test]
    fn frames_that_were_committed_without_a_checksum_get_theirs() {
        let (header, whole) = wal();
        for (first, end, from) in
            [(0, 1, Checksum::NONE), (2, 4, Checksum::NONE), (1, 3, Checksum(7, 8)), (4, 5, Checksum::NONE)]
        {
            let left = unsummed(&whole, &header, first, end, from);
            let mut chain = Chain::new(header);
            let error = chain.extend(&left, |_, _| {}).expect_err("SQLite could not recover it");
            assert_eq!(error, FrameError { at: chain.end(), fault: FrameFault::Salt }, "{first} to {end}");
            // In two parts, as two looks find it.
            for part in first + 1..=5 {
                let (mut begin, mut rest) =
                    (left[first * FRAME..part * FRAME].to_vec(), left[part * FRAME..].to_vec());
                let before = |number: usize| match number {
                    0 => header.checksum(),
                    _ => FrameHeader::parse(left[(number - 1) * FRAME..].first_chunk().unwrap()).checksum,
                };
                let mut chain = chain;
                chain.resum(before(first), &mut begin).expect("as SQLite leaves it");
                chain.extend(&begin, |_, _| {}).expect("valid now");
                chain.resum(before(part), &mut rest).expect("as SQLite leaves it");
                assert_eq!(
                    [begin, rest].concat(),
                    whole[first * FRAME..],
                    "{first} to {end}, parted at {part}"
                );
            }
        }
    }

    #[test]
    fn what_sqlite_does_not_leave_gets_no_checksum() {
        let (header, whole) = wal();
        let left = unsummed(&whole, &header, 1, 2, Checksum::NONE);
        let fault = |at: usize, byte: u8| {
            let mut damaged = left.clone();
            damaged[at] ^= byte;
            Chain::new(header).resum(header.checksum(), &mut damaged).map_err(|error| error.fault)
        };
        assert_eq!(fault(0, 0), Ok(()));
        assert_eq!(fault(30, 1), Err(FrameFault::Checksum), "a page before");
        assert_eq!(fault(3 * FRAME + 30, 1), Err(FrameFault::Checksum), "a page behind");
        assert_eq!(fault(3 * FRAME + 8, 1), Err(FrameFault::Salt));
        assert_eq!(fault(FRAME + 23, 1), Err(FrameFault::Salt), "without a salt, and with a checksum");
        assert_eq!(fault(FRAME + 3, 2), Err(FrameFault::PageZero));
    }
}
