//! Looking what a replica holds of a generation.

use super::segments::open_shadow;
use super::{BLOCK, CarryError, MOST_OBJECTS, Order};
use crate::core::frame::FrameDecoder;
use crate::core::names;
use crate::core::position::Offset;
use crate::core::replica::{Listing, SegmentStart};
use crate::core::segment::{self, TRAILER_LENGTH, Trailer};
use crate::remote::{Entry, Remote, join};
use crate::shadow::ShadowReadError;
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
        let mut beginning = vec![0; segment::MOST_BLOCK_BYTES];
        let read = remote.read_at(&path, 0, &mut beginning)?;
        beginning.truncate(read);
        listing.last_is_ours = is_ours(order, last, &beginning)?;
        if listing.last_is_ours && is_first {
            let length_of_wal = length_of_wal(remote, &path, last, length, beginning)?;
            listing.last_end = Some(last.start.plus(length_of_wal));
        }
        remote.close(&path);
    }
    Ok(listing)
}

/// Whether a segment begins with the bytes that the shadow has there. A frame's checksum covers everything before it
/// in its WAL, and a header's salt is random: so the two histories are the same up to there. They are not after a
/// rollback of this machine, or after a power cut that took what the server has.
fn is_ours(order: &Order, segment: SegmentStart, beginning: &[u8]) -> Result<bool, CarryError> {
    let Some(theirs) = segment::first_block(beginning) else { return Ok(false) };
    match open_shadow(order, segment.index, Offset::ZERO) {
        Ok(reader) => Ok(reader.compare(segment.start, &theirs)?),
        // The course knows what it means that the shadow has no such index.
        Err(ShadowReadError::Disk(e)) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// How much WAL a segment of ours holds: the trailer of a long one says, or else its blocks, as far as they are whole.
/// `bytes` is its beginning.
fn length_of_wal(
    remote: &mut dyn Remote,
    path: &str,
    segment: SegmentStart,
    length: u64,
    mut bytes: Vec<u8>,
) -> Result<u64, CarryError> {
    if let Some(at) = length.checked_sub(TRAILER_LENGTH as u64).filter(|_| length > bytes.len() as u64) {
        let mut trailer = [0; TRAILER_LENGTH];
        let read = remote.read_at(path, at, &mut trailer)?;
        if let Some((Trailer::Segment(trailer), _)) = trailer.get(..read).and_then(Trailer::parse)
            && (trailer.index, trailer.start) == (segment.index, segment.start)
        {
            return Ok(trailer.end.since(segment.start));
        }
    }
    let (mut decoder, mut at) = (FrameDecoder::new(), 0);
    while !bytes.is_empty() {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            if decoder.next_block(&mut rest).is_err() {
                return Ok(decoder.length());
            }
        }
        at += bytes.len() as u64;
        bytes.resize(BLOCK, 0);
        let read = remote.read_at(path, at, &mut bytes)?;
        bytes.truncate(read);
    }
    Ok(decoder.length())
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
