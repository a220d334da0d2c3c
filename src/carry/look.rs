//! Looking what a replica holds of a generation.

use super::segments::open_shadow;
use super::{BLOCK, CarryError, MOST_OBJECTS, Order, listed, newest_of_others};
use crate::core::checksum::Crc64;
use crate::core::frame::FrameDecoder;
use crate::core::names::{self, Object};
use crate::core::position::Offset;
use crate::core::replica::{LastSegment, Listing, SegmentStart, Surveyed};
use crate::core::segment::{self, EMPTY_LENGTH, SegmentTrailer, TRAILER_LENGTH, Trailer};
use crate::remote::{Entry, FailureKind, Remote, RemoteError, join};
use crate::shadow::{ShadowReadError, ShadowReader};
use std::cmp::Ordering;
use std::io;

/// How many of the generations before the present one a run looks into once, and each survey: the server's clock may have been
/// ahead while they were written to, and another agent may go on in one.
const MOST_EARLIER: usize = 4;

/// What is there of the generation. Objects that were never finished are removed: nobody will finish them. One that
/// was set aside, and whose successor has not come, gets its name back: it holds what was acknowledged.
pub(super) fn look(
    remote: &mut dyn Remote,
    order: &Order,
    written: Option<(SegmentStart, u64)>,
) -> Result<Listing, CarryError> {
    let (mut listing, mut newest) = (Listing::default(), None);
    for folder in folders(order) {
        let mut entries = remote.list(&folder)?;
        entries.truncate(MOST_OBJECTS);
        put_back(remote, &folder, &mut entries)?;
        for entry in entries {
            if is_remnant(&entry) {
                remote.remove(&join(&folder, &entry.name))?;
            } else if add(&mut listing, &entry) {
                newest = newest.max(entry.modified);
            }
        }
    }
    if let Some(&(last, length)) = listing.segments.iter().max() {
        let path = order.path(&order.segment(last).path());
        listing.last = Some(match open_shadow(order, last.index, Offset::ZERO) {
            Ok(reader) => {
                // What this run has written, the shadow has, unless the machine was set back together with its memory.
                let is_known = written == Some((last, length));
                Comparison { order, reader, path: &path, segment: last, length }.of(remote, is_known)?
            }
            Err(ShadowReadError::Disk(e)) if e.kind() == io::ErrorKind::NotFound => {
                // It is yet to come, or is not kept any more and will not come again.
                let is_to_come = (last.index, last.start) >= order.shadow_end;
                if is_to_come { LastSegment::Unreached } else { LastSegment::Other }
            }
            Err(e) => return Err(e.into()),
        });
        remote.close(&path);
    }
    // A machine that was set back to an image of itself does not know of generations that it has begun since.
    let earlier = if written.is_none() { MOST_EARLIER } else { 0 };
    listing.is_older = newest_of_others(remote, order, earlier)?.is_some_and(|others| Some(others) >= newest);
    if let Some(index) = listing.snapshot().filter(|_| order.fsync) {
        sync_name(remote, &order.path(&Object::Snapshot { generation: order.generation, index }.path()))?;
    }
    for left in &order.left {
        remove_unfinished(remote, &order.path(&names::snapshots_folder(*left)))?;
    }
    Ok(listing)
}

/// A snapshot that was sent, or half of it, when another generation began. What was set aside there is somebody's only one. What
/// cannot be removed is in nobody's way.
fn remove_unfinished(remote: &mut dyn Remote, folder: &str) -> Result<(), RemoteError> {
    let is_unfinished = |name: &str| names::is_temporary(name) && names::parse_set_aside(name).is_none();
    for entry in listed(remote, folder)?.iter().filter(|entry| is_unfinished(&entry.name)) {
        unless_disconnected(remote.remove(&join(folder, &entry.name)))?;
    }
    Ok(())
}

/// What could not be done does no harm, unless the connection is of no more use.
fn unless_disconnected<T>(done: Result<T, RemoteError>) -> Result<(), RemoteError> {
    match done {
        Err(error) if error.kind == FailureKind::Disconnected => Err(error),
        _ => Ok(()),
    }
}

/// A snapshot's name may be there, and not be durable: nobody knows how far its publication came. Where it cannot be synced,
/// the next survey misses it.
fn sync_name(remote: &mut dyn Remote, path: &str) -> Result<(), RemoteError> {
    let synced = remote.sync_name(path);
    remote.close(path);
    unless_disconnected(synced)
}

/// What is there, by names, lengths and times. Touches nothing: others may be about to write.
pub(super) fn survey(remote: &mut dyn Remote, order: &Order) -> Result<Surveyed, CarryError> {
    let (mut listing, mut ours) = (Listing::default(), None);
    for folder in folders(order) {
        let mut entries = remote.list(&folder)?;
        entries.truncate(MOST_OBJECTS);
        for entry in entries.iter().filter(|entry| !is_remnant(entry)) {
            if add(&mut listing, entry) {
                ours = ours.max(entry.modified);
            }
        }
    }
    Ok(Surveyed { listing, ours, others: newest_of_others(remote, order, MOST_EARLIER)? })
}

/// Those of the generation.
fn folders(order: &Order) -> [String; 2] {
    [names::snapshots_folder(order.generation), names::wal_folder(order.generation)]
        .map(|folder| order.path(&folder))
}

/// Whether it is an object of a generation, which is in the listing then.
fn add(listing: &mut Listing, entry: &Entry) -> bool {
    if let Some(index) = names::parse_snapshot(&entry.name) {
        listing.snapshots.push((index, entry.size));
    } else if let Some((index, start)) = names::parse_segment(&entry.name) {
        listing.segments.push((SegmentStart { index, start }, entry.size));
    } else {
        return false;
    }
    true
}

/// Whether it is an object that nobody finished; or a snapshot of which a server that lost power kept the name alone, and
/// which no other one can replace.
fn is_remnant(entry: &Entry) -> bool {
    let is_empty = names::parse_snapshot(&entry.name).is_some() && entry.size <= EMPTY_LENGTH;
    is_empty || names::is_temporary(&entry.name)
}

/// Compares the last segment on the replica with the shadow of its index. After a rollback of this machine, or a power cut
/// that took what the server has, two histories have the same beginning, and one must not be continued with the other.
struct Comparison<'a> {
    order: &'a Order,
    reader: ShadowReader,
    path: &'a str,
    segment: SegmentStart,
    /// On the replica, in bytes.
    length: u64,
}

/// Where a block and the shadow are not the same.
enum Difference {
    /// In a frame that SQLite has written.
    History,
    /// In one that nobody can have written; it begins here.
    Damage(Offset),
}

impl Comparison<'_> {
    /// Reads the beginning of a segment that `is_known`, and of another one as much as it takes to know all of it.
    fn of(&self, remote: &mut dyn Remote, is_known: bool) -> Result<LastSegment, CarryError> {
        let ours = self.shadow_end()?;
        if ours <= self.segment.start {
            return Ok(LastSegment::Unreached);
        }
        let same = |end: Offset| match end > self.segment.start {
            true => LastSegment::Same { compared: end.min(ours), end: (!is_known).then_some(end) },
            // Not even its first frame is whole.
            false => LastSegment::Other,
        };
        let (mut decoder, mut end) = (FrameDecoder::new(), self.segment.start);
        let (mut bytes, mut at) = (vec![0; segment::MOST_BLOCK_BYTES], 0);
        loop {
            let read = remote.read_at(self.path, at, &mut bytes)?;
            let mut rest = &bytes[..read];
            while !rest.is_empty() {
                // What is behind a torn block is nothing that we could have acknowledged.
                let Ok(block) = decoder.next_block(&mut rest) else { return Ok(same(end)) };
                let Some(block) = block else { continue };
                match self.difference(end, block, ours)? {
                    None => end = end.plus(block.len() as u64),
                    Some(Difference::History) => return Ok(LastSegment::Other),
                    Some(Difference::Damage(at)) => return Ok(same(at)),
                }
            }
            if read == 0 || is_known {
                return Ok(same(end));
            }
            if at == 0
                && let Some(trailer) = self.trailer_behind(remote, read as u64)?
                && trailer.end <= ours
                && trailer.crc == self.checksum(trailer.end)?
            {
                return Ok(same(trailer.end));
            }
            at += read as u64;
            bytes.resize(BLOCK, 0);
        }
    }

    /// Where `theirs`, which belongs at `at`, and the shadow, which ends at `end`, are not the same.
    fn difference(
        &self,
        at: Offset,
        theirs: &[u8],
        end: Offset,
    ) -> Result<Option<Difference>, ShadowReadError> {
        let there = end.since(at).min(theirs.len() as u64) as usize;
        let ours = self.reader.bytes(at, there)?;
        let Some(differs) = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs) else {
            return Ok(None);
        };
        let length = self.reader.frame_length();
        let differs = at.plus(differs as u64);
        let frame = Offset::FIRST_FRAME.plus(differs.since(Offset::FIRST_FRAME) / length * length);
        // A block of ours begins and ends with a frame; the first of a WAL, with its header.
        let whole = frame
            .get()
            .checked_sub(at.get())
            .and_then(|from| theirs.get(from as usize..)?.get(..length as usize));
        let is_damage = match whole.filter(|_| differs >= Offset::FIRST_FRAME) {
            Some(whole) => !open_shadow(self.order, self.segment.index, frame)?.accepts(whole),
            None => false,
        };
        Ok(Some(if is_damage { Difference::Damage(frame) } else { Difference::History }))
    }

    /// The checksum of what the shadow has of the segment up to `end`, as it is on the disk: of another history, no commit
    /// need end there.
    fn checksum(&self, end: Offset) -> Result<u64, ShadowReadError> {
        let (mut crc, mut at) = (Crc64::new(), self.segment.start);
        while at < end {
            let bytes = self.reader.bytes(at, end.since(at).min(BLOCK as u64) as usize)?;
            crc.update(&bytes);
            at = at.plus(bytes.len() as u64);
        }
        Ok(crc.value())
    }

    /// Where the shadow of its index ended when this was ordered.
    fn shadow_end(&self) -> Result<Offset, ShadowReadError> {
        let (index, end) = self.order.shadow_end;
        match self.segment.index.cmp(&index) {
            Ordering::Less => self.reader.length(),
            Ordering::Equal => Ok(end),
            Ordering::Greater => Ok(Offset::ZERO),
        }
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
