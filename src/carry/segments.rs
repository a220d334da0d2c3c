//! Segments: begun as a whole, extended while they grow, and sealed.

use super::{BLOCK, Carrier, CarryError, Order, pipelined};
use crate::core::checksum::Crc64;
use crate::core::page_table::DatabaseState;
use crate::core::position::{Index, Offset};
use crate::core::replica::{Outcome, SEGMENT_LENGTH, SegmentStart, cut_of};
use crate::core::segment::{self, EMPTY_LENGTH, END_MARK, FRAME_HEADER, SegmentTrailer, Trailer, Write};
use crate::precedence::Deference;
use crate::remote::{FailureKind, Remote};
use crate::shadow::{ShadowReadError, ShadowReader};

/// Bytes that are read and compressed between two moments in which others are let go first.
const PIECE: usize = 128 << 10;

/// So many databases' checksums are known at the most; behind that, sealing reads.
const MOST_CONTENTS: usize = 64;

/// What was read of a segment that grows, for the checksum in its trailer. It is the same on every replica: what is in the
/// shadow never changes.
pub(super) struct Content {
    segment: SegmentStart,
    end: Offset,
    crc: Crc64,
}

/// What is read of the shadow on its way into a segment.
struct Reading<'a> {
    reader: ShadowReader,
    /// Of all that was read of the segment; `None` where its beginning was not read by us.
    crc: Option<Crc64>,
    /// `None` for whoever is behind: the way is long enough.
    deference: Option<&'a mut Deference>,
}

impl Reading<'_> {
    /// Hands out the frames of a segment that begins at `start` in pieces of at most `size` bytes, up to `to` or where the
    /// segment is cut.
    fn each_piece(
        &mut self,
        start: Offset,
        to: Offset,
        size: usize,
        piece: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), ShadowReadError> {
        let mut buffer = Vec::new();
        loop {
            self.reader.read(&mut buffer, to, cut_of(start), size)?;
            if buffer.is_empty() {
                return Ok(());
            }
            if let Some(deference) = &mut self.deference {
                deference.let_go_first();
            }
            if let Some(crc) = &mut self.crc {
                crc.update(&buffer);
            }
            if !piece(&buffer) {
                return Ok(());
            }
        }
    }

    /// Reads, verifies and compresses what is to be sent, and sends blocks of at most [`BLOCK`] bytes together. More than
    /// a segment is compressed beside the sending; less comes while the application writes, which needs the processor, too.
    fn each_block(
        &mut self,
        start: Offset,
        to: Offset,
        mut send: impl FnMut(&mut Vec<u8>) -> Result<(), CarryError>,
    ) -> Result<(), CarryError> {
        if to.since(self.reader.position()) > SEGMENT_LENGTH {
            return pipelined(|piece| self.each_piece(start, to, BLOCK, piece), |block, _| send(block));
        }
        let (mut sent, mut blocks, mut waiting) = (Ok(()), Vec::new(), 0);
        self.each_piece(start, to, PIECE, &mut |raw| {
            if waiting + raw.len() > BLOCK {
                sent = send(&mut blocks);
                blocks.clear();
                waiting = 0;
            }
            if sent.is_ok() {
                segment::push_block(&mut blocks, raw);
                waiting += raw.len();
            }
            sent.is_ok()
        })?;
        sent?;
        if blocks.is_empty() { Ok(()) } else { send(&mut blocks) }
    }
}

pub(super) fn open_shadow(
    order: &Order,
    index: Index,
    from: Offset,
) -> Result<ShadowReader, ShadowReadError> {
    ShadowReader::open(&*order.disk, &order.shadow, index, from)
}

impl Carrier {
    /// Reads a segment from `from` on.
    fn read(
        &mut self,
        order: &Order,
        segment: SegmentStart,
        from: Offset,
    ) -> Result<Reading<'_>, ShadowReadError> {
        let reader = open_shadow(order, segment.index, from)?;
        let is_behind = order.shadow_end.0.get() > segment.index.get() + 1;
        let crc = if from == segment.start { Some(Crc64::new()) } else { self.known(order, segment, from) };
        let deference = (!is_behind).then_some(&mut self.deference);
        Ok(Reading { reader, crc, deference })
    }

    /// The checksum of a segment up to `end`, if that is what was read of its generation last; it is forgotten by this.
    fn known(&mut self, order: &Order, segment: SegmentStart, end: Offset) -> Option<Crc64> {
        let content = self.contents.remove(&order.generation)?;
        ((content.segment, content.end) == (segment, end)).then_some(content.crc)
    }

    fn keep(&mut self, order: &Order, segment: SegmentStart, end: Offset, crc: Option<Crc64>) {
        let Some(crc) = crc else { return };
        if self.contents.len() >= MOST_CONTENTS {
            self.contents.clear();
        }
        self.contents.insert(order.generation, Content { segment, end, crc });
    }

    /// Writes a segment as it is by now. Under its own name it then grows.
    pub(super) fn begin(
        &mut self,
        remote: &mut dyn Remote,
        order: &Order,
        segment: SegmentStart,
        to: Offset,
        replace: bool,
    ) -> Result<Outcome, CarryError> {
        let mut reading = self.read(order, segment, segment.start)?;
        let length = write(remote, order, segment, &mut reading, to, replace, None)?;
        let (end, crc) = (reading.reader.position(), reading.crc);
        self.keep(order, segment, end, crc);
        Ok(Outcome::Appended { end, length })
    }

    /// Writes a segment of which nothing more will come, with its trailer.
    pub(super) fn send_sealed(
        &mut self,
        remote: &mut dyn Remote,
        order: &Order,
        segment: SegmentStart,
        end: Offset,
        replace: bool,
        state: Option<DatabaseState>,
    ) -> Result<Outcome, CarryError> {
        let mut reading = self.read(order, segment, segment.start)?;
        let SegmentStart { index, start } = segment;
        let trailer = SegmentTrailer { index, start, end, last_of_index: true, crc: 0, state };
        let length = write(remote, order, segment, &mut reading, end, replace, Some(trailer))?;
        Ok(Outcome::Appended { end, length })
    }

    /// Appends to the open segment, block by block; each leaves a whole frame.
    pub(super) fn extend(
        &mut self,
        remote: &mut dyn Remote,
        order: &Order,
        segment: SegmentStart,
        length: u64,
        from: Offset,
        to: Offset,
    ) -> Result<Outcome, CarryError> {
        let path = order.path(&order.segment(segment).path());
        let mut reading = self.read(order, segment, from)?;
        let mut length = length;
        reading.each_block(segment.start, to, |block| {
            let grown = block.len() as u64;
            for Write { at, bytes } in segment::append(length, block) {
                remote.write_at(&path, at, bytes)?;
            }
            length += grown;
            Ok(())
        })?;
        order.sync(remote, &path)?;
        let (end, crc) = (reading.reader.position(), reading.crc);
        self.keep(order, segment, end, crc);
        Ok(Outcome::Appended { end, length })
    }

    /// Writes the trailer behind the EndMark. Its checksum is that of the shadow: the content is what was read there.
    pub(super) fn seal(
        &mut self,
        remote: &mut dyn Remote,
        order: &Order,
        segment: SegmentStart,
        length: u64,
        trailer: SegmentTrailer,
    ) -> Result<(), CarryError> {
        assert!(length > EMPTY_LENGTH, "BUG: an empty segment is sealed");
        let crc = match self.known(order, segment, trailer.end) {
            Some(crc) => crc,
            None => self.read_all(order, segment, trailer.end)?,
        };
        let trailer = Trailer::Segment(SegmentTrailer { crc: crc.value(), ..trailer });
        let path = order.path(&order.segment(segment).path());
        remote.write_at(&path, length, &trailer.encode())?;
        order.sync(remote, &path)?;
        remote.close(&path);
        Ok(())
    }

    /// The checksum of a segment up to `end`, where it ends.
    fn read_all(
        &mut self,
        order: &Order,
        segment: SegmentStart,
        end: Offset,
    ) -> Result<Crc64, ShadowReadError> {
        let mut reader = open_shadow(order, segment.index, segment.start)?;
        let (mut crc, mut buffer) = (Crc64::new(), Vec::new());
        loop {
            self.deference.let_go_first();
            reader.read(&mut buffer, end, end, PIECE)?;
            if buffer.is_empty() {
                return Ok(crc);
            }
            crc.update(&buffer);
        }
    }
}

/// Writes a segment up to `to` as a whole, under a temporary name, and gives it its own; returns its length. `trailer` gets
/// the checksum of its content.
fn write(
    remote: &mut dyn Remote,
    order: &Order,
    segment: SegmentStart,
    reading: &mut Reading<'_>,
    to: Offset,
    replace: bool,
    trailer: Option<SegmentTrailer>,
) -> Result<u64, CarryError> {
    let object = order.segment(segment);
    let (path, temporary) = (order.path(&object.path()), order.path(&object.temporary_path(order.attempt)));
    let set_aside = order.path(&object.set_aside_path(order.attempt));
    if remote.create(&temporary)? && order.has_written {
        // It is another place: what is mounted has changed, or the folder was moved away.
        remote.remove(&temporary)?;
        return Err(CarryError::PlaceGone(order.path("")));
    }
    // The first block goes with the header, so that a small segment is one write.
    let mut waiting = FRAME_HEADER.to_vec();
    let mut at = 0;
    reading.each_block(segment.start, to, |block| {
        waiting.extend_from_slice(block);
        if waiting.len() > segment::PACKET {
            remote.write_at(&temporary, at, &waiting)?;
            at += waiting.len() as u64;
            waiting.clear();
        }
        Ok(())
    })?;
    waiting.extend_from_slice(&END_MARK);
    if let Some(trailer) = trailer {
        let end = reading.reader.position();
        if end != trailer.end {
            let why = format!("its index was to end at {}, and its segment is cut at {end}", trailer.end);
            return Err(ShadowReadError::Damaged(why).into());
        }
        let crc = reading.crc.as_ref().expect("BUG: it is read from its beginning").value();
        waiting.extend_from_slice(&Trailer::Segment(SegmentTrailer { crc, ..trailer }).encode());
    }
    remote.write_at(&temporary, at, &waiting)?;
    order.sync(remote, &temporary)?;
    if replace {
        // Moved, not removed: if this ends between the two renames, the next look moves it back.
        match remote.rename(&path, &set_aside) {
            Err(error) if error.kind != FailureKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    order.name(remote, &temporary, &path)?;
    if replace {
        remote.remove(&set_aside)?;
    }
    // OpenSSH renames by a second link, so that whoever follows the folder there with inotify would not see what is
    // written through the handle of the first name.
    remote.close(&path);
    Ok(at + waiting.len() as u64)
}
