//! The decoding thread: objects in, verified pages out.

use super::error::{Damage, RestoreError};
use super::fetch::Feed;
use super::output::Output;
use super::proof::Proof;
use super::report::Cut;
use crate::core::frame::{Ending, FrameDecoder};
use crate::core::inventory::Segment;
use crate::core::names::Object;
use crate::core::page::{DATABASE_MAGIC, PageSize};
use crate::core::position::{Index, Offset, Position};
use crate::core::replay::{Frames, Replay, ReplayFault};
use crate::core::restore::{Note, PlannedIndex, RestoreGap, RestorePlan};
use crate::core::segment::{SegmentTrailer, SnapshotTrailer, Trailer};
use crate::core::wal::Salt;
use std::collections::HashSet;

/// The header of a database file says how large a page is (SQLite file format, 1.3).
const DATABASE_HEADER: usize = 100;

/// What carrying out a plan came to.
pub(super) struct Applied {
    pub(super) position: Position,
    pub(super) proven: Option<Position>,
    pub(super) page_size: PageSize,
    pub(super) cut: Option<Cut>,
    pub(super) notes: Vec<Note>,
}

/// Carries out one plan, in the order in which its objects arrive.
pub(super) struct Applier<'a, 'f> {
    plan: &'a RestorePlan,
    feed: &'a mut Feed<'f>,
    output: &'a mut Output,
    /// There is one as soon as the size of pages is known.
    compares: bool,
    proof: Option<Proof>,
    cut: Option<Cut>,
    notes: Vec<Note>,
    /// The first index whose salts jumped, and how many did.
    jumps: Option<(Index, u32)>,
    /// Of the WALs so far.
    salts: HashSet<Salt>,
}

/// The content of one object, after it passed by.
struct Content {
    length: u64,
    /// `None` where the frame has a checksum of its own: one is enough.
    crc: Option<u64>,
    ending: Ending,
}

/// One WAL, replayed.
struct Replayed {
    replay: Replay,
    /// Its last segment was sealed as the last of the WAL.
    complete: bool,
    /// A trailer says which index it is.
    is_vouched: bool,
}

/// How a WAL began.
#[derive(Clone, Copy)]
struct Begun {
    salt: Salt,
    is_vouched: bool,
}

/// Why a block of a segment was not taken.
enum Refused {
    Wal(ReplayFault),
    Output(RestoreError),
}

impl From<ReplayFault> for Refused {
    fn from(fault: ReplayFault) -> Self {
        Refused::Wal(fault)
    }
}

impl<'a, 'f> Applier<'a, 'f> {
    /// With `compares`, what is restored is compared with what the source was.
    pub(super) fn new(
        plan: &'a RestorePlan,
        feed: &'a mut Feed<'f>,
        output: &'a mut Output,
        compares: bool,
    ) -> Self {
        Applier {
            plan,
            feed,
            output,
            compares,
            proof: None,
            cut: None,
            notes: Vec::new(),
            jumps: None,
            salts: HashSet::new(),
        }
    }

    /// Writes the snapshot and replays every WAL on it.
    pub(super) fn apply(mut self) -> Result<Applied, RestoreError> {
        let plan = self.plan;
        let (page_size, trailer) = self.write_snapshot()?;
        self.output.end_snapshot(page_size);
        let snapshot = plan.snapshot.object(plan.generation);
        let not_the_source = |damage| RestoreError::Damaged { object: snapshot, damage };
        if let (Some(proof), Some(SnapshotTrailer { valid_from, state, .. })) = (&mut self.proof, trailer) {
            proof.expect(valid_from, state).map_err(not_the_source)?;
        }
        let mut end = (plan.snapshot.index, Offset::ZERO);
        // The end of an index that is complete is the beginning of the next one.
        let mut reached = end;
        let mut begun = None;
        for (at, index) in plan.indexes.iter().enumerate() {
            self.prove(|proof| proof.begin_index(index.index)).map_err(not_the_source)?;
            let Replayed { replay, complete, is_vouched } =
                self.replay(index, plan.indexes.get(at + 1), page_size)?;
            let now = replay.salt().map(|salt| Begun { salt, is_vouched });
            self.compare_salts(index, begun, now)?;
            begun = now;
            if let Some(commit) = replay.commit() {
                self.output.set_page_count(commit.page_count)?;
                end = (index.index, commit.end);
            }
            reached = match index.index.next() {
                Some(next) if complete => (next, Offset::ZERO),
                _ => end,
            };
        }
        if let Some(SnapshotTrailer { valid_from, .. }) =
            trailer.filter(|trailer| trailer.valid_from > reached)
        {
            let object = plan.snapshot.object(plan.generation);
            return Err(RestoreError::SnapshotTooNew { object, valid_from, reached: end });
        }
        if reached != end {
            self.prove(|proof| proof.begin_index(reached.0)).map_err(not_the_source)?;
        }
        let jumps = self.jumps.map(|(first, count)| Note::SaltsJumped { first, count });
        self.notes.extend(jumps);
        let position = Position::new(plan.generation, end.0, end.1);
        let proven = self.proof.as_ref().and_then(Proof::proven);
        // The end of an index that is complete is the beginning of the next one.
        let proven = proven.map(|at| if at == reached { end } else { at });
        let proven = proven.map(|(index, offset)| Position::new(plan.generation, index, offset));
        Ok(Applied { position, proven, page_size, cut: self.cut, notes: self.notes })
    }

    fn prove(&mut self, step: impl FnOnce(&mut Proof) -> Result<(), Damage>) -> Result<(), Damage> {
        self.proof.as_mut().map_or(Ok(()), step)
    }

    fn write_snapshot(&mut self) -> Result<(PageSize, Option<SnapshotTrailer>), RestoreError> {
        let object = self.plan.snapshot.object(self.plan.generation);
        let damaged = |damage| RestoreError::Damaged { object, damage };
        let mut start = Vec::with_capacity(DATABASE_HEADER);
        let (output, proof, compares) = (&mut *self.output, &mut self.proof, self.compares);
        let index = self.plan.snapshot.index;
        let content = decode(self.feed, object, |block| {
            let known = start.len();
            start.extend(block.iter().take(DATABASE_HEADER - known));
            match proof {
                Some(proof) => proof.append(block),
                None => {
                    if let Some(page_size) = database_page_size(&start).filter(|_| compares) {
                        let proof = proof.insert(Proof::new(page_size, index));
                        proof.append(&start[..known]);
                        proof.append(block);
                    }
                }
            }
            output.append(block)
        })?;
        let page_size = database_page_size(&start).ok_or(damaged(Damage::NotADatabase))?;
        match content.ending {
            Ending::Torn => Err(damaged(Damage::CutShort)),
            Ending::Whole { trailer: Some(Trailer::Snapshot(trailer)), .. } => {
                agree_snapshot(&trailer, self.plan.snapshot.index, page_size, &content)
                    .map_err(|what| damaged(Damage::Trailer(what)))?;
                Ok((page_size, Some(trailer)))
            }
            Ending::Whole { trailer: Some(_), .. } => Err(damaged(Damage::Trailer("name"))),
            Ending::Whole { checked: true, .. } => Ok((page_size, None)),
            Ending::Whole { .. } => Err(damaged(Damage::Unverifiable)),
        }
    }

    /// Replays one WAL.
    fn replay(
        &mut self,
        index: &PlannedIndex,
        next: Option<&PlannedIndex>,
        page_size: PageSize,
    ) -> Result<Replayed, RestoreError> {
        let mut replay = Replay::new(page_size);
        let (mut complete, mut is_vouched) = (false, false);
        for (at, segment) in index.segments.iter().enumerate() {
            let object = segment.object(self.plan.generation);
            self.follows(&replay, segment)?;
            let content = self.replay_segment(&mut replay, object, next.is_some())?;
            let following =
                index.segments.get(at + 1).or_else(|| next.and_then(|next| next.segments.first()));
            let trailer = self.judge_ending(&content, object, following.is_some())?;
            let Some(trailer) = trailer else { continue };
            agree_segment(&trailer, segment, &content)
                .map_err(|what| RestoreError::Damaged { object, damage: Damage::Trailer(what) })?;
            (complete, is_vouched) = (trailer.last_of_index, true);
            if let Some(state) = trailer.state {
                let is_commit = replay.commit().is_some_and(|commit| commit.end == trailer.end);
                let compared = match is_commit {
                    true => self.prove(|proof| proof.compare((trailer.index, trailer.end), state)),
                    false => Err(Damage::Trailer("commits")),
                };
                compared.map_err(|damage| RestoreError::Damaged { object, damage })?;
            }
            self.agree_last(&trailer, object, following)?;
        }
        self.judge_commit(&replay, index, next.is_some())?;
        Ok(Replayed { replay, complete, is_vouched })
    }

    /// A segment must begin exactly where the one before it ended.
    fn follows(&self, replay: &Replay, segment: &Segment) -> Result<(), RestoreError> {
        let object = segment.object(self.plan.generation);
        let end = replay.received();
        match segment.start.cmp(&end) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(RestoreError::Damaged { object, damage: Damage::Overlap(end) }),
            std::cmp::Ordering::Greater => Err(self.hole(segment.index, end, object)),
        }
    }

    fn hole(&self, index: Index, start: Offset, found: Object) -> RestoreError {
        let missing = Object::Segment { generation: self.plan.generation, index, start };
        RestoreGap::Hole { missing, found }.into()
    }

    /// Writes a segment's frames. In an index that must end with a commit they are written at once: without that
    /// commit there will be no output at all.
    fn replay_segment(
        &mut self,
        replay: &mut Replay,
        object: Object,
        must_commit: bool,
    ) -> Result<Content, RestoreError> {
        let (output, proof) = (&mut *self.output, &mut self.proof);
        let snapshot = self.plan.snapshot.object(self.plan.generation);
        decode(self.feed, object, |block| {
            let fed = replay.feed(block, |frames: Frames| {
                let proven = proof.as_mut().map_or(Ok(()), |proof| proof.push(frames));
                // What is met on the way is what the snapshot's trailer said.
                let not_the_source = |damage| RestoreError::Damaged { object: snapshot, damage };
                proven.map_err(not_the_source).map_err(Refused::Output)?;
                let written = match must_commit {
                    true => output.write_through(frames),
                    false => output.write_committed(frames),
                };
                written.map_err(Refused::Output)
            });
            fed.map_err(|refused| match refused {
                Refused::Wal(fault) => RestoreError::Damaged { object, damage: fault.into() },
                Refused::Output(error) => error,
            })
        })
    }

    /// Only the very last segment may be cut short.
    fn judge_ending(
        &mut self,
        content: &Content,
        object: Object,
        followed: bool,
    ) -> Result<Option<SegmentTrailer>, RestoreError> {
        let damaged = |damage| Err(RestoreError::Damaged { object, damage });
        match content.ending {
            Ending::Torn if followed => damaged(Damage::CutShort),
            Ending::Torn => {
                self.cut = Some(Cut { object, torn: true, bytes: 0 });
                Ok(None)
            }
            Ending::Whole { trailer: Some(Trailer::Snapshot(_)), .. } => damaged(Damage::Trailer("name")),
            Ending::Whole { trailer, unfinished, .. } => {
                if unfinished > 0 && !followed {
                    self.notes.push(Note::Unfinished { object, bytes: unfinished });
                }
                Ok(trailer.and_then(|trailer| match trailer {
                    Trailer::Segment(trailer) => Some(trailer),
                    Trailer::Snapshot(_) => None,
                }))
            }
        }
    }

    /// The segment that was sealed as the last of its index must be it, and only that one.
    fn agree_last(
        &self,
        trailer: &SegmentTrailer,
        object: Object,
        following: Option<&Segment>,
    ) -> Result<(), RestoreError> {
        let Some(following) = following else { return Ok(()) };
        match (trailer.last_of_index, following.index == trailer.index) {
            (false, true) | (true, false) => Ok(()),
            (true, true) => Err(RestoreError::Damaged { object, damage: Damage::Trailer("place") }),
            (false, false) => {
                Err(self.hole(trailer.index, trailer.end, following.object(self.plan.generation)))
            }
        }
    }

    /// What is behind the last commit is cut off at the very end, and damage anywhere else.
    fn judge_commit(
        &mut self,
        replay: &Replay,
        index: &PlannedIndex,
        followed: bool,
    ) -> Result<(), RestoreError> {
        let bytes = replay.uncommitted();
        let last = index.segments.last().expect("BUG: a planned index has a segment");
        let object = last.object(self.plan.generation);
        let has_header = replay.end() >= Offset::FIRST_FRAME;
        if followed {
            return match bytes == 0 && has_header {
                true => Ok(()),
                false => Err(RestoreError::Damaged { object, damage: Damage::NoCommit }),
            };
        }
        match &mut self.cut {
            Some(cut) => cut.bytes = bytes,
            None if bytes > 0 => self.cut = Some(Cut { object, torn: false, bytes }),
            None => {}
        }
        Ok(())
    }

    /// No two WALs have the same salts. A restart adds 1 to the first one, and a WAL that is made anew has a random one: what
    /// is smaller by less than the number of indexes belongs to an earlier index, or is so by chance, as some of thousands
    /// are. So that counts only where no trailer says which index it is; what was exchanged with such a one is refused
    /// because of its trailer.
    fn compare_salts(
        &mut self,
        index: &PlannedIndex,
        before: Option<Begun>,
        now: Option<Begun>,
    ) -> Result<(), RestoreError> {
        let Some(now) = now else { return Ok(()) };
        let is_first = self.salts.insert(now.salt);
        let is_earlier = before.is_some_and(|before| {
            let back = before.salt.0.wrapping_sub(now.salt.0) as usize;
            !before.is_vouched && !now.is_vouched && back < self.plan.indexes.len()
        });
        if !is_first || is_earlier {
            let first = index.segments.first().expect("BUG: a planned index has a segment");
            let object = first.object(self.plan.generation);
            return Err(RestoreError::Damaged { object, damage: Damage::OutOfOrder });
        }
        if before.is_some_and(|before| now.salt.0 != before.salt.0.wrapping_add(1)) {
            let (_, count) = self.jumps.get_or_insert((index.index, 0));
            *count += 1;
        }
        Ok(())
    }
}

/// Hands the content of the next object to `each`, block by block.
fn decode(
    feed: &mut Feed,
    object: Object,
    mut each: impl FnMut(&[u8]) -> Result<(), RestoreError>,
) -> Result<Content, RestoreError> {
    let mut decoder = FrameDecoder::new();
    let damaged = |error| RestoreError::Damaged { object, damage: Damage::Frame(error) };
    while let Some(bytes) = feed.next()? {
        let mut bytes = bytes.as_slice();
        while let Some(block) = decoder.next_block(&mut bytes).map_err(damaged)? {
            each(block)?;
        }
    }
    let ending = decoder.finish().map_err(damaged)?;
    Ok(Content { length: decoder.length(), crc: decoder.crc(), ending })
}

fn database_page_size(start: &[u8]) -> Option<PageSize> {
    let header = start.first_chunk::<DATABASE_HEADER>()?;
    header.starts_with(DATABASE_MAGIC).then_some(())?;
    PageSize::from_database_header([header[16], header[17]])
}

fn agree_snapshot(
    trailer: &SnapshotTrailer,
    index: Index,
    page_size: PageSize,
    content: &Content,
) -> Result<(), &'static str> {
    let length = trailer.page_count.file_length(trailer.page_size);
    agree(trailer.index == index, "name")?;
    agree(trailer.page_size == page_size && length == content.length, "length")?;
    agree(content.crc.is_none_or(|crc| crc == trailer.crc), "content")
}

fn agree_segment(trailer: &SegmentTrailer, segment: &Segment, content: &Content) -> Result<(), &'static str> {
    agree((trailer.index, trailer.start) == (segment.index, segment.start), "name")?;
    agree(trailer.end == segment.start.plus(content.length), "length")?;
    agree(content.crc.is_none_or(|crc| crc == trailer.crc), "content")
}

fn agree(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}
