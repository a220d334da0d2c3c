//! Where a byte stands in the history of a database: generation, index, offset.

use super::page::PageSize;
use std::fmt;
use std::str::FromStr;

/// Length of a WAL header in bytes (SQLite file format, 4.1).
pub const WAL_HEADER_LENGTH: u64 = 32;

/// Litestream's largest index; an index at or above it forces a new generation.
pub const MAX_INDEX: u32 = 0x7FFF_FFFF;

/// A text that is not a generation, index, offset or position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    text: String,
    expected: &'static str,
}

fn parse_hex(text: &str, digits: usize, expected: &'static str) -> Result<u64, ParseError> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let is_hex = text.len() == digits && text.bytes().all(lower_hex);
    if let Some(value) = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten() {
        return Ok(value);
    }
    Err(ParseError { text: text.to_owned(), expected })
}

/// One unbroken history of a database: 16 lowercase hex digits, random.
/// Equal or not; which of two is newer, only their objects' times tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation(u64);

impl Generation {
    /// Makes a generation of random bits; the caller brings the randomness.
    pub fn from_random(bits: u64) -> Self {
        Generation(bits)
    }

    /// All its bits.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_hex(text, 16, "a generation (16 lowercase hex digits)").map(Generation)
    }
}

/// The n-th WAL of a generation, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(u32);

impl Index {
    /// The first WAL of a generation.
    pub const ZERO: Index = Index(0);

    /// `None` at or above [`MAX_INDEX`].
    pub fn new(value: u32) -> Option<Self> {
        (value < MAX_INDEX).then_some(Index(value))
    }

    /// The index after this one; `None` when the generation has no more.
    pub fn next(self) -> Option<Self> {
        Index::new(self.0 + 1)
    }

    /// The index before this one; `None` for the first.
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Index)
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Index {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "an index (8 lowercase hex digits, below 7fffffff)";
        let value = parse_hex(text, 8, expected)?;
        u32::try_from(value)
            .ok()
            .and_then(Index::new)
            .ok_or_else(|| ParseError { text: text.to_owned(), expected })
    }
}

/// A byte in the WAL of an index: 0, or the header and whole frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u64);

impl Offset {
    /// The first byte of the WAL header.
    pub const ZERO: Offset = Offset(0);
    /// The first byte of the first frame.
    pub const FIRST_FRAME: Offset = Offset(WAL_HEADER_LENGTH);

    /// Any byte count; whether it falls between two frames, only a page size can tell.
    pub fn new(bytes: u64) -> Self {
        Offset(bytes)
    }

    /// The end of the `frames`-th frame.
    pub fn after_frames(page_size: PageSize, frames: u32) -> Self {
        Offset(WAL_HEADER_LENGTH + u64::from(frames) * page_size.frame_length())
    }

    /// Bytes from the beginning of the WAL.
    pub fn get(self) -> u64 {
        self.0
    }

    /// This offset moved `bytes` on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Offset(self.0 + bytes)
    }

    /// Bytes from `earlier` to here; 0 if it is not earlier.
    pub fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    /// At least 8 hex digits; an offset of 4 GiB or more has more and names no segment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Offset {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_hex(text, 8, "an offset (8 lowercase hex digits)").map(Offset)
    }
}

/// The next byte wanted in a generation: everything before it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The history this position belongs to.
    pub generation: Generation,
    /// The WAL of that history.
    pub index: Index,
    /// The byte of that WAL.
    pub offset: Offset,
}

impl Position {
    /// The position of `offset` in the `index`-th WAL of `generation`.
    pub fn new(generation: Generation, index: Index, offset: Offset) -> Self {
        Position { generation, index, offset }
    }
}

impl PartialOrd for Position {
    /// `None` across generations: their bytes have nothing to do with each other.
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self.generation == other.generation)
            .then(|| (self.index, self.offset).cmp(&(other.index, other.offset)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.generation, self.index, self.offset)
    }
}

impl FromStr for Position {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError { text: text.to_owned(), expected: "a position (generation/index:offset)" };
        let (generation, rest) = text.split_once('/').ok_or_else(error)?;
        let (index, offset) = rest.split_once(':').ok_or_else(error)?;
        // Offsets of 4 GiB and more are written with more digits, but never with a leading zero.
        let digits = offset.len();
        if !(8..=16).contains(&digits) || (digits > 8 && offset.starts_with('0')) {
            return Err(error());
        }
        Ok(Position {
            generation: generation.parse()?,
            index: index.parse()?,
            offset: Offset(parse_hex(offset, digits, "an offset")?),
        })
    }
}
