//! Looking what a replica holds of a generation.

use super::segments::{checksum, open_shadow};
use super::{BLOCK, CarryError, MOST_OBJECTS, Order};
use crate::core::frame::FrameDecoder;
use crate::core::names;
use crate::core::position::Offset;
use crate::core::replica::{Listing, SegmentStart};
use crate::core::segment::{self, SegmentTrailer, TRAILER_LENGTH, Trailer};
use crate::remote::{Entry, Remote, join};
use crate::shadow::{ShadowReadError, ShadowReader};
use std::io;

/// What is there of the generation. Objects that were never finished are removed: nobody will finish them. One that
/// was set aside, and whose successor has not come, gets its name back: it holds what was acknowledged.
pub(super) fn look(remote: &mut dyn Remote, order: &Order, is_first: bool) -> Result<Listing, CarryError> {
    let mut listing = Listing::default();
    for folder in [names::snapshots_folder(order.generation), names::wal_folder(order.generation)] {
        let folder = order.path(&folder);
        let mut entries = remote.list(&folder)?;
        entries.truncate(MOST_OBJECTS);
        put_back(remote, &folder, &mut entries)?;
        for entry in entries {
            if let Some(index) = names::parse_snapshot(&entry.name) {
                listing.snapshots.push(index);
            } else if let Some((index, start)) = names::parse_segment(&entry.name) {
                listing.segments.push((SegmentStart { index, start }, entry.size));
            } else if names::is_temporary(&entry.name) {
                remote.remove(&join(&folder, &entry.name))?;
            }
        }
    }
    if let Some(&(last, length)) = listing.segments.iter().max() {
        let path = order.path(&order.segment(last).path());
        let found = match open_shadow(order, last.index, Offset::ZERO) {
            Ok(reader) => {
                LastSegment { order, reader, path: &path, segment: last, length }.read(remote, is_first)?
            }
            // The course knows what it means that the shadow has no such index.
            Err(ShadowReadError::Disk(e)) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e.into()),
        };
        (listing.last_is_ours, listing.last_end) = (found.is_some(), found.filter(|_| is_first));
        remote.close(&path);
    }
    Ok(listing)
}

/// The last segment on the replica, and the shadow of its index.
struct LastSegment<'a> {
    order: &'a Order,
    reader: ShadowReader,
    path: &'a str,
    segment: SegmentStart,
    /// On the replica, in bytes.
    length: u64,
}

impl LastSegment<'_> {
    /// Reads its beginning, or, if it `is_first`, as much as it takes to know where its WAL ends. `None` if it is not what
    /// the shadow has there, as far as that reaches: after a rollback of this machine, or a power cut that took what the
    /// server has, two histories have the same beginning, and one must not be continued with the other.
    fn read(&self, remote: &mut dyn Remote, is_first: bool) -> Result<Option<Offset>, CarryError> {
        let (mut decoder, mut end) = (FrameDecoder::new(), self.segment.start);
        let (mut bytes, mut at) = (vec![0; segment::MOST_BLOCK_BYTES], 0);
        loop {
            let read = remote.read_at(self.path, at, &mut bytes)?;
            let mut rest = &bytes[..read];
            while !rest.is_empty() {
                // What is behind a torn block is nothing that we could have acknowledged.
                let Ok(block) = decoder.next_block(&mut rest) else { return Ok(self.if_any(end)) };
                let Some(block) = block else { continue };
                if !self.reader.agrees(end, block, self.shadow_end()?)? {
                    return Ok(None);
                }
                end = end.plus(block.len() as u64);
            }
            if read == 0 || !is_first {
                return Ok(self.if_any(end));
            }
            if at == 0
                && let Some(trailer) = self.trailer_behind(remote, read as u64)?
                && trailer.end <= self.shadow_end()?
            {
                let ours = checksum(self.order, self.segment, trailer.end, || ())?;
                return Ok((ours.value() == trailer.crc).then_some(trailer.end));
            }
            at += read as u64;
            bytes.resize(BLOCK, 0);
        }
    }

    /// The end, unless nothing was there to be compared.
    fn if_any(&self, end: Offset) -> Option<Offset> {
        (end > self.segment.start).then_some(end)
    }

    /// Where the shadow of its index ends.
    fn shadow_end(&self) -> Result<Offset, ShadowReadError> {
        let (index, end) = self.order.shadow_end;
        if self.segment.index == index { Ok(end) } else { self.reader.length() }
    }

    /// The trailer of a segment that is longer than `read`.
    fn trailer_behind(
        &self,
        remote: &mut dyn Remote,
        read: u64,
    ) -> Result<Option<SegmentTrailer>, CarryError> {
        let at = self.length.checked_sub(TRAILER_LENGTH as u64).filter(|_| self.length > read);
        let Some(at) = at else { return Ok(None) };
        let mut bytes = [0; TRAILER_LENGTH];
        let there = remote.read_at(self.path, at, &mut bytes)?;
        let trailer = bytes.get(..there).and_then(Trailer::parse);
        let is_its = |trailer: &SegmentTrailer| {
            (trailer.index, trailer.start) == (self.segment.index, self.segment.start)
        };
        Ok(match trailer {
            Some((Trailer::Segment(trailer), _)) => Some(trailer).filter(is_its),
            Some((Trailer::Snapshot(_), _)) | None => None,
        })
    }
}

/// Gives objects that were set aside their names back where nothing has taken them.
fn put_back(remote: &mut dyn Remote, folder: &str, entries: &mut [Entry]) -> Result<(), CarryError> {
    // Of several for one name, the longest holds the most.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.size));
    for at in 0..entries.len() {
        let name = names::parse_set_aside(&entries[at].name).map(|(name, _)| name.to_owned());
        if let Some(name) = name.filter(|name| entries.iter().all(|entry| entry.name != *name)) {
            remote.rename(&join(folder, &entries[at].name), &join(folder, &name))?;
            entries[at].name = name;
        }
    }
    Ok(())
}
