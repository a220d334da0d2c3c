//! Objects as LZ4 frames that grow: every prefix of the writes planned here decodes to whole, earlier content.
//!
//! A frame is `header, blocks, EndMark`. Readers stop at the EndMark, so what comes behind it is ours: first the
//! next blocks while they are on their way, and, once the object is complete, its trailer.

use super::checksum::Crc64;
use super::page::{PageCount, PageSize};
use super::page_table::{DatabaseChecksum, DatabaseState};
use super::position::{Index, Offset};

/// Version 1, independent blocks, no checksums, no size; blocks of at most 4 MiB; the header's checksum.
pub const FRAME_HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x60, 0x70, 0x73];
/// A block of length 0 ends a frame.
pub const END_MARK: [u8; 4] = [0; 4];
/// Length of a frame without blocks.
pub const EMPTY_LENGTH: u64 = (FRAME_HEADER.len() + END_MARK.len()) as u64;
/// The largest block, in bytes before compression: what the frame header says.
pub const MAX_BLOCK: usize = 4 << 20;
/// The most bytes that libssh2 sends in one SFTP packet: a write up to here lands whole or not at all.
pub const PACKET: usize = 30_000;

const STORED: u32 = 1 << 31;

/// Appends `raw` (1 to [`MAX_BLOCK`] bytes) to `out` as one block: compressed, or stored where that is no shorter.
pub fn push_block(out: &mut Vec<u8>, raw: &[u8]) {
    assert!(!raw.is_empty() && raw.len() <= MAX_BLOCK, "BUG: a block of {} bytes", raw.len());
    let start = out.len();
    out.resize(start + 4 + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
    let size = match lz4_flex::block::compress_into(raw, &mut out[start + 4..]) {
        Ok(length) if length < raw.len() => {
            out.truncate(start + 4 + length);
            length as u32
        }
        _ => {
            out.truncate(start + 4);
            out.extend_from_slice(raw);
            raw.len() as u32 | STORED
        }
    };
    out[start..start + 4].copy_from_slice(&size.to_le_bytes());
}

/// Bytes of a frame header and the largest first block.
pub const MOST_BLOCK_BYTES: usize = FRAME_HEADER.len() + 4 + MAX_BLOCK;

/// One write into an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// Where in the object, in bytes.
    pub at: u64,
    /// What.
    pub bytes: &'a [u8],
}

/// The writes, in order, that append `blocks` (from [`push_block`]) to a frame of `length` bytes with its EndMark.
/// `blocks` gets the new EndMark at its end; the frame's new length is `length + blocks`' length before that.
///
/// Invariant: no byte before the old EndMark changes, and the old EndMark is overwritten last, by one packet.
pub fn append(length: u64, blocks: &mut Vec<u8>) -> Vec<Write<'_>> {
    assert!(length >= EMPTY_LENGTH && blocks.len() > 4, "BUG: nothing to append, or to nothing");
    blocks.extend_from_slice(&END_MARK);
    let end_mark_at = length - END_MARK.len() as u64;
    if blocks.len() <= PACKET {
        return vec![Write { at: end_mark_at, bytes: blocks }];
    }
    let (first_size, rest) = blocks.split_at(END_MARK.len());
    vec![Write { at: length, bytes: rest }, Write { at: end_mark_at, bytes: first_size }]
}

/// What stands behind the EndMark of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentTrailer {
    /// The WAL it is a part of.
    pub index: Index,
    /// Its first byte.
    pub start: Offset,
    /// The byte behind its last one.
    pub end: Offset,
    /// Whether its WAL ends there, too.
    pub last_of_index: bool,
    /// CRC-64 of the content before compression.
    pub crc: u64,
    /// What the database was at exactly `end`, where that was known.
    pub state: Option<DatabaseState>,
}

/// What stands behind the EndMark of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotTrailer {
    /// The WAL to replay on it, from offset 0.
    pub index: Index,
    /// Replaying to any position from here on is exact; to an earlier one it is not.
    pub valid_from: (Index, Offset),
    /// The size of the pages.
    pub page_size: PageSize,
    /// The pages in the file as it was read.
    pub page_count: PageCount,
    /// CRC-64 of the content before compression.
    pub crc: u64,
    /// What the database was at exactly `valid_from`, where that was known.
    pub state: Option<DatabaseState>,
}

/// Facts about a whole object, written behind its EndMark, where Litestream does not look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// Of a sealed segment.
    Segment(SegmentTrailer),
    /// Of a snapshot.
    Snapshot(SnapshotTrailer),
}

/// Begins every trailer: ours. The last byte is the version; the first one had no state of the database.
const TRAILER_MAGIC: [u8; 8] = *b"walagt\x00\x02";
const TRAILER_MAGIC_1: [u8; 8] = *b"walagt\x00\x01";
/// Bytes of a trailer: magic, kind, eight numbers, and the CRC-64 of all before it.
pub const TRAILER_LENGTH: usize = 8 + 8 + 8 * 8 + 8;
/// The same of version 1, which has six numbers.
pub const TRAILER_LENGTH_1: usize = TRAILER_LENGTH - 2 * 8;

const KIND_SEGMENT: u64 = 1;
const KIND_SEGMENT_LAST: u64 = 2;
const KIND_SNAPSHOT: u64 = 3;

impl Trailer {
    /// The bytes to write behind the EndMark.
    pub fn encode(&self) -> [u8; TRAILER_LENGTH] {
        let (kind, fields, state) = match *self {
            Trailer::Segment(SegmentTrailer { index, start, end, last_of_index, crc, state }) => {
                let kind = if last_of_index { KIND_SEGMENT_LAST } else { KIND_SEGMENT };
                (kind, [u64::from(index.get()), start.get(), end.get(), 0, 0, crc], state)
            }
            Trailer::Snapshot(SnapshotTrailer { index, valid_from, page_size, page_count, crc, state }) => {
                let (valid_index, valid_offset) = (u64::from(valid_from.0.get()), valid_from.1.get());
                let (size, count) = (u64::from(page_size.get()), u64::from(page_count.get()));
                let index = u64::from(index.get());
                (KIND_SNAPSHOT, [index, valid_index, valid_offset, size, count, crc], state)
            }
        };
        // No database has no pages.
        let state = state.map_or([0, 0], |s| [u64::from(s.page_count.get()), s.checksum.get()]);
        let mut bytes = Vec::with_capacity(TRAILER_LENGTH);
        bytes.extend_from_slice(&TRAILER_MAGIC);
        bytes.extend_from_slice(&kind.to_be_bytes());
        fields.iter().chain(&state).for_each(|field| bytes.extend_from_slice(&field.to_be_bytes()));
        let crc = Crc64::of(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.try_into().expect("BUG: a trailer is 10 numbers of 8 bytes and the magic")
    }

    /// Reads the trailer at the beginning of what stands behind an EndMark, and says how long it is; `None` if there
    /// is no whole one.
    pub fn parse(bytes: &[u8]) -> Option<(Trailer, usize)> {
        let length = match *bytes.first_chunk::<8>()? {
            TRAILER_MAGIC => TRAILER_LENGTH,
            TRAILER_MAGIC_1 => TRAILER_LENGTH_1,
            _ => return None,
        };
        let (body, crc) = bytes.get(..length)?.split_at(length - 8);
        if crc != Crc64::of(body).to_be_bytes() {
            return None;
        }
        Some((Trailer::parse_body(body)?, length))
    }

    /// The magic and the numbers, whose CRC was right.
    fn parse_body(body: &[u8]) -> Option<Trailer> {
        let number = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let small = |at: usize| u32::try_from(number(at)?).ok();
        let index = Index::new(small(16)?)?;
        let crc = number(56)?;
        let state = small(64).and_then(PageCount::new).zip(number(72));
        let state = state
            .map(|(page_count, bits)| DatabaseState { page_count, checksum: DatabaseChecksum::new(bits) });
        match number(8)? {
            kind @ (KIND_SEGMENT | KIND_SEGMENT_LAST) => Some(Trailer::Segment(SegmentTrailer {
                index,
                start: Offset::new(number(24)?),
                end: Offset::new(number(32)?),
                last_of_index: kind == KIND_SEGMENT_LAST,
                crc,
                state,
            })),
            KIND_SNAPSHOT => Some(Trailer::Snapshot(SnapshotTrailer {
                index,
                valid_from: (Index::new(small(24)?)?, Offset::new(number(32)?)),
                page_size: PageSize::new(small(40)?)?,
                page_count: PageCount::new(small(48)?)?,
                crc,
                state,
            })),
            _ => None,
        }
    }
}
