//! The bytes of a WAL: its header and its frames (SQLite file format, section 4).

use super::page::{FRAME_HEADER_LENGTH, PageCount, PageNumber, PageSize};
use super::position::WAL_HEADER_LENGTH;

const MAGIC: u32 = 0x377F_0682;
const FORMAT_VERSION: u32 = 3_007_000;

/// Bytes of a WAL header.
pub type WalHeaderBytes = [u8; WAL_HEADER_LENGTH as usize];
/// Bytes of a frame header.
pub type FrameHeaderBytes = [u8; FRAME_HEADER_LENGTH as usize];

/// How checksums read the words of a WAL; the lowest bit of the magic number tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Magic 0x377f0682.
    Little,
    /// Magic 0x377f0683.
    Big,
}

impl ByteOrder {
    /// That of this machine.
    pub const NATIVE: ByteOrder =
        if cfg!(target_endian = "little") { ByteOrder::Little } else { ByteOrder::Big };
}

/// Two random words that every frame of one WAL shares with its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt(pub u32, pub u32);

impl Salt {
    /// What a frame has that SQLite was still to sum.
    pub const NONE: Salt = Salt(0, 0);
}

/// SQLite's cumulative WAL checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(pub u32, pub u32);

impl Checksum {
    /// As [`Salt::NONE`].
    pub const NONE: Checksum = Checksum(0, 0);

    /// The checksum after `bytes`, whose length is a multiple of 8.
    #[must_use]
    pub fn extend(self, order: ByteOrder, bytes: &[u8]) -> Checksum {
        match order {
            ByteOrder::Little => self.extend_with(bytes, u32::from_le_bytes),
            ByteOrder::Big => self.extend_with(bytes, u32::from_be_bytes),
        }
    }

    #[inline(always)]
    fn extend_with(self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Checksum {
        let Checksum(mut s0, mut s1) = self;
        for pair in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
            s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
        }
        Checksum(s0, s1)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// Why 32 bytes are not the header of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first four bytes are not a WAL's.
    #[error("the magic number {0:#010x} is not a WAL's")]
    Magic(u32),
    /// SQLite has written one format version only, 3007000.
    #[error("format version {0} is not 3007000")]
    Version(u32),
    /// Not a power of two from 512 to 65536.
    #[error("page size {0} is not a power of two from 512 to 65536")]
    PageSize(u32),
    /// The header's own checksum is wrong: it is torn, or not a header.
    #[error("the checksum of the header is wrong")]
    Checksum,
}

/// A WAL header whose checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    bytes: WalHeaderBytes,
    order: ByteOrder,
    page_size: PageSize,
}

impl WalHeader {
    /// Parses and verifies a header.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn parse(bytes: &WalHeaderBytes) -> Result<Self, HeaderError> {
        let order = match word(bytes, 0) {
            MAGIC => ByteOrder::Little,
            magic if magic == MAGIC | 1 => ByteOrder::Big,
            magic => return Err(HeaderError::Magic(magic)),
        };
        if word(bytes, 4) != FORMAT_VERSION {
            return Err(HeaderError::Version(word(bytes, 4)));
        }
        let page_size = PageSize::new(word(bytes, 8)).ok_or(HeaderError::PageSize(word(bytes, 8)))?;
        let header = WalHeader { bytes: *bytes, order, page_size };
        if Checksum::default().extend(order, &bytes[..24]) != header.checksum() {
            return Err(HeaderError::Checksum);
        }
        Ok(header)
    }

    /// The 32 bytes as they stand in the file. Two headers are the same WAL if all of them are equal.
    pub fn bytes(&self) -> &WalHeaderBytes {
        &self.bytes
    }
    /// The size of the pages in this WAL.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }
    /// How this WAL's checksums read words.
    pub fn order(&self) -> ByteOrder {
        self.order
    }
    /// What every frame of this WAL carries.
    pub fn salt(&self) -> Salt {
        Salt(word(&self.bytes, 16), word(&self.bytes, 20))
    }
    /// The seed of the first frame's checksum.
    pub fn checksum(&self) -> Checksum {
        Checksum(word(&self.bytes, 24), word(&self.bytes, 28))
    }
}

/// What the 24 bytes before a page say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that follows; `None` for page 0, which no valid frame has.
    pub page: Option<PageNumber>,
    /// The size of the database after this commit; `None` inside a transaction.
    pub commit: Option<PageCount>,
    /// Equal to the WAL header's in a valid frame.
    pub salt: Salt,
    /// Covers everything before it in the WAL, and this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// Reads the fields; whether they are right, only [`super::scan::Chain`] can tell.
    pub fn parse(bytes: &FrameHeaderBytes) -> Self {
        FrameHeader {
            page: PageNumber::new(word(bytes, 0)),
            commit: PageCount::new(word(bytes, 4)),
            salt: Salt(word(bytes, 8), word(bytes, 12)),
            checksum: Checksum(word(bytes, 16), word(bytes, 20)),
        }
    }
}

/// Writes the salt and the checksum into a frame's header.
pub fn seal(header: &mut FrameHeaderBytes, salt: Salt, checksum: Checksum) {
    let words = [salt.0, salt.1, checksum.0, checksum.1];
    for (bytes, word) in header[8..].chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
}
