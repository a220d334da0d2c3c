//! Reading LZ4 frames as they arrive: bytes in, blocks of content out, and in the end what became of the tail.
//!
//! `lz4_flex`'s own frame reader hides where a frame ends and what stands behind its EndMark; a restore must know both,
//! to tell an upload that was cut off from a byte that changed. Memory is bounded by one block before and after
//! compression, 4 MiB each.

use super::checksum::Crc64;
use super::segment::{END_MARK, MAX_BLOCK, TRAILER_LENGTH, TRAILER_LENGTH_1, Trailer};
use lz4_flex::block::decompress_into_with_dict;
use twox_hash::XxHash32;

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];
/// How a file encrypted with age begins; Litestream 0.3.10 and later can write such objects.
const AGE: &[u8] = b"age-encryption.org/v1";
/// A linked block may refer to so many bytes before it.
const WINDOW: usize = 64 << 10;
const STORED: u32 = 1 << 31;

/// Why an object is not a whole and unchanged LZ4 frame, and where in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {fault}")]
pub struct FrameError {
    /// Where the part that is wrong begins, in bytes of the object.
    pub at: u64,
    /// What is wrong with it.
    pub fault: FrameFault,
}

/// What is wrong with a part of an LZ4 frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// It does not begin as an LZ4 frame does.
    #[error("it is not an LZ4 frame")]
    NotLz4,
    /// Encrypted by Litestream 0.3.10 or later.
    #[error("it is encrypted with age, which is not supported")]
    Encrypted,
    /// A version or a dictionary that no replica uses.
    #[error("its LZ4 frame header asks for what no replica uses")]
    Unsupported,
    /// The frame header's own checksum is wrong.
    #[error("the checksum of its LZ4 frame header is wrong")]
    Header,
    /// A block larger than the frame header allows.
    #[error("the length of a block is wrong")]
    BlockLength,
    /// A block that reaches past the end of the object, which nevertheless ends as a whole one does.
    #[error("the length of a block reaches past the end of an object that is not cut short")]
    PastEnd,
    /// A block that cannot be decompressed.
    #[error("a block cannot be decompressed")]
    Block,
    /// A block whose checksum is wrong.
    #[error("the checksum of a block is wrong")]
    BlockChecksum,
    /// The content's checksum is wrong.
    #[error("the checksum of its content is wrong")]
    ContentChecksum,
    /// The content is longer or shorter than the frame header says.
    #[error("its content is not as long as its LZ4 frame header says")]
    ContentLength,
}

/// How an object ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its EndMark and, where it has one, its content checksum.
    Whole {
        /// Whether a content checksum was there, and right.
        checked: bool,
        /// What we wrote behind a complete object.
        trailer: Option<Trailer>,
        /// Bytes behind the frame that are not a trailer: an append that did not finish.
        unfinished: u64,
    },
    /// Before that: the upload was cut off, or the server lost the tail. The blocks handed out are all there is.
    Torn,
}

/// What the decoder collects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Magic, FLG and BD: enough to know how long the header is.
    HeaderStart,
    Header,
    BlockLength,
    Block {
        stored: bool,
    },
    ContentChecksum,
    Behind,
}

/// What a frame header says about the frame.
#[derive(Debug, Clone, Copy, Default)]
struct Descriptor {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    max_block: usize,
    content_length: Option<u64>,
}

/// Decodes one frame. Hand it the object's bytes with [`FrameDecoder::next_block`], then ask [`FrameDecoder::finish`].
pub struct FrameDecoder {
    part: Part,
    /// Where `part` begins in the object.
    at: u64,
    /// Bytes of `part` so far, and how many it needs.
    input: Vec<u8>,
    wanted: usize,
    descriptor: Descriptor,
    /// The last block decoded.
    output: Vec<u8>,
    /// The end of the content so far, which a linked block may refer to.
    window: Vec<u8>,
    /// Of the content: the frame's own kind, or else ours, for a trailer.
    hash: XxHash32,
    crc: Crc64,
    length: u64,
    behind: u64,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder {
            part: Part::HeaderStart,
            at: 0,
            input: Vec::new(),
            wanted: 6,
            descriptor: Descriptor::default(),
            output: Vec::new(),
            window: Vec::new(),
            hash: XxHash32::with_seed(0),
            crc: Crc64::new(),
            length: 0,
            behind: 0,
        }
    }
}

impl FrameDecoder {
    /// A decoder at the first byte of an object.
    pub fn new() -> Self {
        FrameDecoder::default()
    }

    /// Takes bytes off the front of `bytes` until a block is complete, and returns its content; `None` when `bytes`
    /// is used up. Call it again until then.
    ///
    /// # Errors
    /// The first part of the frame that is wrong. The decoder is of no more use then.
    pub fn next_block(&mut self, bytes: &mut &[u8]) -> Result<Option<&[u8]>, FrameError> {
        while self.part != Part::Behind {
            if !self.collect(bytes) {
                return Ok(None);
            }
            if let Part::Block { stored } = self.part {
                let length = self.decode_block(stored).map_err(|fault| FrameError { at: self.at, fault })?;
                self.begin(Part::BlockLength, 4);
                return Ok(self.output.get(..length));
            }
            self.read_part().map_err(|fault| FrameError { at: self.at, fault })?;
        }
        let kept = TRAILER_LENGTH.saturating_sub(self.input.len()).min(bytes.len());
        self.input.extend_from_slice(bytes.get(..kept).unwrap_or_default());
        self.behind += bytes.len() as u64;
        *bytes = &[];
        Ok(None)
    }

    /// Says how the object ended, once all its bytes were handed in.
    ///
    /// # Errors
    /// The object is not cut short and yet its last block is incomplete, or it does not even begin as a frame.
    pub fn finish(&self) -> Result<Ending, FrameError> {
        let fault = match self.part {
            Part::Behind => {
                let trailer = Trailer::parse(&self.input);
                let unfinished = self.behind.saturating_sub(trailer.map_or(0, |(_, length)| length as u64));
                let trailer = trailer.map(|(trailer, _)| trailer);
                let checked = self.descriptor.content_checksum;
                return Ok(Ending::Whole { checked, trailer, unfinished });
            }
            Part::HeaderStart | Part::Header if !begins_as(&self.input, &MAGIC) => not_a_frame(&self.input),
            Part::Block { .. } if self.ends_as_whole() => FrameFault::PastEnd,
            _ => return Ok(Ending::Torn),
        };
        Err(FrameError { at: self.at, fault })
    }

    /// Bytes of content so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The CRC-64 of the content so far, for comparison with a trailer; `None` where the frame has a checksum of its own,
    /// which is verified here.
    pub fn crc(&self) -> Option<u64> {
        (!self.descriptor.content_checksum).then(|| self.crc.value())
    }

    /// Moves bytes into `input` until the part is complete.
    fn collect(&mut self, bytes: &mut &[u8]) -> bool {
        let missing = self.wanted.saturating_sub(self.input.len());
        let (now, later) = bytes.split_at(missing.min(bytes.len()));
        self.input.extend_from_slice(now);
        *bytes = later;
        self.input.len() == self.wanted
    }

    fn begin(&mut self, part: Part, wanted: usize) {
        self.at += self.input.len() as u64;
        self.input.clear();
        self.part = part;
        self.wanted = wanted;
    }

    /// Reads a complete part that is not a block.
    fn read_part(&mut self) -> Result<(), FrameFault> {
        match self.part {
            Part::HeaderStart => {
                self.part = Part::Header;
                self.wanted = header_length(&self.input)?;
            }
            Part::Header => {
                self.descriptor = Descriptor::parse(&self.input)?;
                self.begin(Part::BlockLength, 4);
            }
            Part::BlockLength => self.read_block_length()?,
            Part::ContentChecksum => {
                if little_endian(&self.input) != Some(self.hash.finish_32()) {
                    return Err(FrameFault::ContentChecksum);
                }
                self.begin(Part::Behind, 0);
            }
            Part::Block { .. } | Part::Behind => unreachable!("BUG: next_block reads these parts"),
        }
        Ok(())
    }

    fn read_block_length(&mut self) -> Result<(), FrameFault> {
        let word = little_endian(&self.input).expect("BUG: a block length has four bytes");
        let length = (word & !STORED) as usize;
        let checksum = if self.descriptor.block_checksums { 4 } else { 0 };
        match (length, word & STORED != 0) {
            (0, false) => self.read_end_mark(),
            (1.., stored) if length <= self.descriptor.max_block => {
                self.begin(Part::Block { stored }, length + checksum);
                Ok(())
            }
            _ => Err(FrameFault::BlockLength),
        }
    }

    fn read_end_mark(&mut self) -> Result<(), FrameFault> {
        if self.descriptor.content_length.is_some_and(|length| length != self.length) {
            return Err(FrameFault::ContentLength);
        }
        match self.descriptor.content_checksum {
            true => self.begin(Part::ContentChecksum, 4),
            false => self.begin(Part::Behind, 0),
        }
        Ok(())
    }

    /// Decodes the block in `input` into the beginning of `output`; returns its length.
    fn decode_block(&mut self, stored: bool) -> Result<usize, FrameFault> {
        let data = match self.descriptor.block_checksums {
            true => {
                let (data, checksum) = self.input.split_last_chunk::<4>().ok_or(FrameFault::Block)?;
                if XxHash32::oneshot(0, data) != u32::from_le_bytes(*checksum) {
                    return Err(FrameFault::BlockChecksum);
                }
                data
            }
            false => &self.input,
        };
        // No byte of a block gives more than 255 of content: a short block needs no large buffer.
        let room = self.descriptor.max_block.min(data.len().saturating_mul(255));
        if self.output.len() < room {
            // Fresh memory is zero without being touched; what was there is of no use any more.
            self.output = vec![0; room];
        }
        let length = match stored {
            true => self.output.get_mut(..data.len()).map(|to| to.copy_from_slice(data)).map(|()| data.len()),
            false => decompress_into_with_dict(data, &mut self.output, &self.window).ok(),
        };
        let length = length.ok_or(FrameFault::Block)?;
        let content = self.output.get(..length).ok_or(FrameFault::Block)?;
        self.length += length as u64;
        match self.descriptor.content_checksum {
            true => std::hash::Hasher::write(&mut self.hash, content),
            false => self.crc.update(content),
        }
        if self.descriptor.linked {
            slide(&mut self.window, content);
        }
        Ok(length)
    }

    /// Whether an object whose last block is incomplete nevertheless has a whole object's last bytes: then the
    /// block's length changed. A cut-off upload looks like that only if it stops right behind four zero bytes.
    fn ends_as_whole(&self) -> bool {
        let checksum = if self.descriptor.content_checksum { 4 } else { 0 };
        let before = |behind: usize, length: usize| {
            let end = self.input.len().checked_sub(behind)?;
            self.input.get(end.checked_sub(length)?..end)
        };
        before(checksum, END_MARK.len()).is_some_and(|bytes| bytes == END_MARK)
            || [TRAILER_LENGTH, TRAILER_LENGTH_1]
                .into_iter()
                .any(|length| before(0, length).is_some_and(|bytes| Trailer::parse(bytes).is_some()))
    }
}

/// Whether `bytes` could be the beginning of something that begins with `start`.
fn begins_as(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(a, b)| a == b)
}

fn not_a_frame(bytes: &[u8]) -> FrameFault {
    if begins_as(bytes, AGE) { FrameFault::Encrypted } else { FrameFault::NotLz4 }
}

fn little_endian(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.first_chunk()?))
}

/// Keeps the last [`WINDOW`] bytes of all content.
fn slide(window: &mut Vec<u8>, content: &[u8]) {
    let new = content.get(content.len().saturating_sub(WINDOW)..).unwrap_or_default();
    let excess = (window.len() + new.len()).saturating_sub(WINDOW);
    window.drain(..excess);
    window.extend_from_slice(new);
}

const FLAG_INDEPENDENT: u8 = 0x20;
const FLAG_BLOCK_CHECKSUMS: u8 = 0x10;
const FLAG_CONTENT_LENGTH: u8 = 0x08;
const FLAG_CONTENT_CHECKSUM: u8 = 0x04;

/// How long a frame header is, from magic, FLG and BD.
fn header_length(start: &[u8]) -> Result<usize, FrameFault> {
    let &[a, b, c, d, flags, block] = start else { return Err(FrameFault::NotLz4) };
    if [a, b, c, d] != MAGIC {
        return Err(not_a_frame(start));
    }
    // Version 01, reserved bits 0, no dictionary; the largest block is 64 KiB, 256 KiB, 1 MiB or 4 MiB.
    if flags & 0xC3 != 0x40 || block & 0x8F != 0 || block < 0x40 {
        return Err(FrameFault::Unsupported);
    }
    Ok(start.len() + 1 + if flags & FLAG_CONTENT_LENGTH != 0 { 8 } else { 0 })
}

impl Descriptor {
    fn parse(header: &[u8]) -> Result<Self, FrameFault> {
        let (&checksum, described) =
            header.get(MAGIC.len()..).and_then(<[u8]>::split_last).ok_or(FrameFault::Header)?;
        let [_, second, ..] = XxHash32::oneshot(0, described).to_le_bytes();
        let &[flags, block, ref length @ ..] = described else { return Err(FrameFault::Header) };
        if checksum != second {
            return Err(FrameFault::Header);
        }
        let max_block = 1usize << (8 + 2 * (block >> 4));
        debug_assert!(max_block <= MAX_BLOCK);
        Ok(Descriptor {
            linked: flags & FLAG_INDEPENDENT == 0,
            block_checksums: flags & FLAG_BLOCK_CHECKSUMS != 0,
            content_checksum: flags & FLAG_CONTENT_CHECKSUM != 0,
            max_block,
            content_length: length.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
        })
    }
}
