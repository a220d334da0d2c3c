//! What the wal-index (`-shm`) says of a WAL (wal.c, `WalIndexHdr` and `WalCkptInfo`).

use super::wal::{ByteOrder, Checksum, Salt};

/// Bytes of the wal-index's beginning: its header, twice, and how many frames are in the database file.
pub const BEGINNING_LENGTH: usize = BACKFILLED + 4;
/// Where it says how many frames are in the database file (`WalCkptInfo.nBackfill`).
pub const BACKFILLED: usize = 2 * HEADER_LENGTH;

const HEADER_LENGTH: usize = 48;
/// The layout that all SQLite since 3.7.0 has (wal.c, `WALINDEX_MAX_VERSION`).
const VERSION: u32 = 3_007_000;
const IS_INIT: usize = 12;
const FRAMES: usize = 16;
const SALT: usize = 32;
/// What is before it is covered by it.
const CHECKSUM: usize = 40;

/// A WAL at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalExtent {
    /// Committed frames (mxFrame); 0 when the WAL is empty or about to be written anew.
    pub frames: u32,
    /// Frames that are in the database file, too (nBackfill).
    pub backfilled: u32,
    /// What the header of the WAL has that this is about, if there are committed frames; `None` where SQLite was asked.
    pub salt: Option<Salt>,
}

/// What SQLite says at the end of a checkpoint, but not of which WAL: the next one may have begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpointed {
    /// Committed frames.
    pub frames: u32,
    /// Frames that are in the database file, too.
    pub backfilled: u32,
}

impl Checkpointed {
    /// The extent of that WAL, whichever it is.
    pub fn extent(self) -> WalExtent {
        WalExtent { frames: self.frames, backfilled: self.backfilled, salt: None }
    }
}

impl WalExtent {
    /// Whether the next writer may restart the WAL, if nobody holds a slot.
    pub fn is_backfilled(self) -> bool {
        self.frames == self.backfilled
    }

    /// How much of which WAL is in the database file, and whether that is all; `None` if no WAL was named.
    pub fn in_file(self) -> Option<((Salt, u32), bool)> {
        Some(((self.salt?, self.backfilled), self.is_backfilled()))
    }

    /// Frames that are not in the database file yet.
    pub fn left(self) -> u32 {
        self.frames.saturating_sub(self.backfilled)
    }

    /// Reads the beginning of a wal-index. `None` in the moment in which somebody writes it, or if nobody has made it
    /// yet: SQLite takes the write lock then, and makes it anew.
    pub fn parse(beginning: &[u8; BEGINNING_LENGTH]) -> Option<WalExtent> {
        let (headers, backfilled) = beginning.split_at(BACKFILLED);
        let (header, copy) = headers.split_at(HEADER_LENGTH);
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let checksum = Checksum(word(CHECKSUM)?, word(CHECKSUM + 4)?);
        let is_whole = header == copy
            && word(0) == Some(VERSION)
            && header[IS_INIT] != 0
            && Checksum::default().extend(ByteOrder::NATIVE, &header[..CHECKSUM]) == checksum;
        let backfilled = backfilled.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        let salt = |at: usize| header[at..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let salt = Some(Salt(salt(SALT)?, salt(SALT + 4)?));
        is_whole.then_some(WalExtent { frames: word(FRAMES)?, backfilled, salt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(frames: u32) -> [u8; HEADER_LENGTH] {
        let mut header = [0; HEADER_LENGTH];
        header[..4].copy_from_slice(&VERSION.to_ne_bytes());
        header[IS_INIT] = 1;
        header[SALT..SALT + 8].copy_from_slice(&[0, 0, 0, 5, 0, 0, 0, 6]);
        header[FRAMES..FRAMES + 4].copy_from_slice(&frames.to_ne_bytes());
        let Checksum(first, second) = Checksum::default().extend(ByteOrder::NATIVE, &header[..CHECKSUM]);
        header[CHECKSUM..CHECKSUM + 4].copy_from_slice(&first.to_ne_bytes());
        header[CHECKSUM + 4..].copy_from_slice(&second.to_ne_bytes());
        header
    }

    fn beginning(header: [u8; HEADER_LENGTH], copy: [u8; HEADER_LENGTH]) -> [u8; BEGINNING_LENGTH] {
        let mut beginning = [0; BEGINNING_LENGTH];
        beginning[..HEADER_LENGTH].copy_from_slice(&header);
        beginning[HEADER_LENGTH..2 * HEADER_LENGTH].copy_from_slice(&copy);
        beginning[2 * HEADER_LENGTH..].copy_from_slice(&3_u32.to_ne_bytes());
        beginning
    }

    #[test]
    fn a_header_counts_if_both_copies_say_the_same() {
        let whole = Some(WalExtent { frames: 7, backfilled: 3, salt: Some(Salt(5, 6)) });
        assert_eq!(WalExtent::parse(&beginning(header(7), header(7))), whole);
        assert_eq!(WalExtent::parse(&beginning(header(7), header(8))), None);
        assert_eq!(WalExtent::parse(&[0; BEGINNING_LENGTH]), None, "nobody has made it yet");
    }

    #[test]
    fn a_header_with_one_wrong_byte_does_not_count_though_both_copies_have_it() {
        for at in 0..HEADER_LENGTH {
            let mut wrong = header(7);
            wrong[at] ^= 1;
            assert_eq!(WalExtent::parse(&beginning(wrong, wrong)), None, "byte {at}");
        }
    }
}
