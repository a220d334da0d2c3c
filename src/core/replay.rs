//! The content of one WAL, verified as it arrives: whole frames out, each proven to continue the ones before it.

use super::page::PageSize;
use super::position::{Offset, WAL_HEADER_LENGTH};
use super::scan::{Chain, Commit, FrameError};
use super::wal::{HeaderError, Salt, WalHeader};

/// Why the content of a WAL cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    /// It does not begin with a WAL header.
    #[error("the WAL header is not valid: {0}")]
    Header(#[from] HeaderError),
    /// The WAL belongs to another database.
    #[error("the WAL has pages of {wal} bytes, the database of {database}")]
    PageSize {
        /// In the WAL's header.
        wal: PageSize,
        /// In the database's header.
        database: PageSize,
    },
    /// A frame that does not continue the WAL.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Whole frames that passed salt and checksum, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Frames<'a> {
    /// Headers and pages as they stand in the WAL.
    pub bytes: &'a [u8],
    /// How many of these bytes belong to a committed transaction; those behind them wait for their commit.
    pub committed: usize,
}

/// One WAL on its way in. Content may be cut anywhere.
#[derive(Debug)]
pub struct Replay {
    page_size: PageSize,
    /// The part of a header or of a frame that waits for its rest.
    carry: Vec<u8>,
    chain: Option<Chain>,
    received: Offset,
}

impl Replay {
    /// A WAL of a database with pages of `page_size`, at its first byte.
    pub fn new(page_size: PageSize) -> Self {
        Replay { page_size, carry: Vec::new(), chain: None, received: Offset::ZERO }
    }

    /// Takes in the next bytes of the WAL and hands the frames they complete to `each`.
    ///
    /// # Errors
    /// The first thing that is not valid, or the first error of `each`.
    pub fn feed<E: From<ReplayFault>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Frames) -> Result<(), E>,
    ) -> Result<(), E> {
        self.received = self.received.plus(bytes.len() as u64);
        if self.chain.is_none() && !self.read_header(&mut bytes)? {
            return Ok(());
        }
        if !self.carry.is_empty() {
            if !self.fill_carry(&mut bytes, self.page_size.frame_length()) {
                return Ok(());
            }
            let frame = std::mem::take(&mut self.carry);
            self.verify(&frame, &mut each)?;
        }
        let taken = self.verify(bytes, &mut each)?;
        self.carry.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    /// Bytes taken in, counted from the beginning of the WAL.
    pub fn received(&self) -> Offset {
        self.received
    }
    /// Where the last valid frame ends; 0 before the header is whole.
    pub fn end(&self) -> Offset {
        self.chain.as_ref().map_or(Offset::ZERO, Chain::end)
    }
    /// The last commit.
    pub fn commit(&self) -> Option<Commit> {
        self.chain.as_ref().and_then(Chain::commit)
    }
    /// The salt of the header, once it is whole.
    pub fn salt(&self) -> Option<Salt> {
        self.chain.as_ref().map(|chain| chain.header().salt())
    }
    /// Bytes behind the last commit, or behind the header if there is none: they cannot be restored.
    pub fn uncommitted(&self) -> u64 {
        let whole = self.commit().map_or(self.end().min(Offset::FIRST_FRAME), |commit| commit.end);
        self.received.since(whole)
    }

    fn fill_carry(&mut self, bytes: &mut &[u8], wanted: u64) -> bool {
        let missing = (wanted as usize).saturating_sub(self.carry.len());
        let (now, later) = bytes.split_at(missing.min(bytes.len()));
        self.carry.extend_from_slice(now);
        *bytes = later;
        self.carry.len() as u64 == wanted
    }

    fn read_header(&mut self, bytes: &mut &[u8]) -> Result<bool, ReplayFault> {
        if !self.fill_carry(bytes, WAL_HEADER_LENGTH) {
            return Ok(false);
        }
        let header = self.carry.first_chunk().expect("BUG: the carry holds a whole header");
        let header = WalHeader::parse(header)?;
        self.carry.clear();
        if header.page_size() != self.page_size {
            return Err(ReplayFault::PageSize { wal: header.page_size(), database: self.page_size });
        }
        self.chain = Some(Chain::new(header));
        Ok(true)
    }

    /// Hands on the whole frames at the beginning of `bytes`; returns how many bytes they are.
    fn verify<E: From<ReplayFault>>(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Frames) -> Result<(), E>,
    ) -> Result<usize, E> {
        let chain = self.chain.as_mut().expect("BUG: frames come behind a header");
        let start = chain.end();
        let taken = chain.extend(bytes, |_, _| {}).map_err(ReplayFault::from)?;
        let committed = chain.commit().map_or(0, |commit| commit.end.since(start)) as usize;
        if taken > 0 {
            each(Frames { bytes: bytes.get(..taken).unwrap_or_default(), committed })?;
        }
        Ok(taken)
    }
}
