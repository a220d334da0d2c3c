//! The shadow WAL: our copy of the committed frames, in the meta folder, one file an index.
//!
//! Invariant: bytes below the end are committed, passed salt and checksum, and never change, so workers read them
//! without a lock. The end is a number: what lies behind it in the file means nothing.

mod begun;
mod reader;
mod volatile;

pub use reader::{ShadowReadError, ShadowReader};
pub use volatile::{Durability, DurabilityChange, sync_indexes};

use crate::core::evidence::DatabaseHeader;
use crate::core::names;
use crate::core::page::PageNumber;
use crate::core::page_table::DatabaseState;
use crate::core::position::{Generation, Index, Offset};
use crate::core::scan::{Chain, FrameError};
use crate::core::shadow::ShadowExtent;
use crate::core::sync::{Break, ShadowFacts};
use crate::core::wal::{FrameHeader, FrameHeaderBytes, WalHeader};
use crate::disk::{Disk, DiskFile, WalMap, is_unreadable};
use begun::{GENERATION_FILE, begun, keep_begun, other_generations};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volatile::Mark;

/// The most that is copied and verified in one go: bounds memory, and how long a turn of the event loop takes.
const WINDOW: u64 = 1 << 20;
/// The most scratch space, in bytes, that a database keeps while only small commits come.
const LASTING_SCRATCH: u64 = 64 << 10;
/// So often a shadow that the disk fails to read is tried at a start: it may fail for a moment.
const MOST_READS: u32 = 3;
const FRAME_HEADER_LENGTH: usize = 24;

/// Why a range was not copied.
#[derive(Debug, thiserror::Error)]
pub enum AbsorbError {
    /// The shadow's disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// The live WAL ends before the range does.
    #[error("the WAL has shrunk")]
    Shrunk,
    /// A committed frame is not valid.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The file of the present index.
struct Present {
    file: Arc<dyn DiskFile>,
    chain: Chain,
    durable: Offset,
}

/// The shadow WAL of one database's present generation.
pub struct ShadowWal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    extent: ShadowExtent,
    present: Option<Present>,
    /// The index from which on the page table needs the files.
    needed_from: Option<Index>,
    /// Folders of earlier generations, and files before a gap, which nobody needs any more.
    stale: Vec<PathBuf>,
    durability: Durability,
    scratch: Vec<u8>,
}

/// A part of the shadow to make durable.
pub struct ShadowSync {
    /// The file.
    pub file: Arc<dyn DiskFile>,
    end: Offset,
}

/// A state to go back to when a copy turns out to be worthless.
#[derive(Clone, Copy)]
pub struct Saved {
    chain: Option<Chain>,
    end: Offset,
}

impl ShadowWal {
    /// Begins a generation of the database file `inode`, without a WAL yet. What is left of others is for [`ShadowWal::take_stale`].
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(disk: Arc<dyn Disk>, meta: &Path, generation: Generation, inode: u64) -> io::Result<Self> {
        let folder = meta.join(names::wal_folder(generation));
        let stale = other_generations(&*disk, meta, generation)?;
        disk.create_folder(&folder)?;
        keep_begun(&*disk, meta, generation, inode, disk.machine())?;
        let extent = ShadowExtent::beginning(generation);
        Ok(ShadowWal {
            disk,
            folder,
            extent,
            present: None,
            needed_from: None,
            stale,
            durability: Durability::Durable,
            scratch: Vec::new(),
        })
    }

    /// Opens what an earlier run left of the database file `inode`. The file of the last index is verified, frame by
    /// frame. Where nothing had been copied yet, a WAL may have come and gone since, and nobody can tell.
    ///
    /// # Errors
    /// The disk's; `Ok(Err)` says why there is nothing to go on from.
    pub fn recover(disk: &Arc<dyn Disk>, meta: &Path, inode: u64) -> io::Result<Result<Self, Break>> {
        let mut recovered = ShadowWal::try_recover(Arc::clone(disk), meta, inode);
        for _ in 1..MOST_READS {
            if recovered.as_ref().is_err_and(is_unreadable) {
                recovered = ShadowWal::try_recover(Arc::clone(disk), meta, inode);
            }
        }
        match recovered {
            // The database and its WAL may be readable all the same.
            Err(error) if is_unreadable(&error) => Ok(Err(Break::ShadowDamaged)),
            recovered => recovered,
        }
    }

    fn try_recover(disk: Arc<dyn Disk>, meta: &Path, inode: u64) -> io::Result<Result<Self, Break>> {
        let Some(begun) = begun(&*disk, meta)? else { return Ok(Err(Break::FirstRun)) };
        let Some(generation) = begun.generation else { return Ok(Err(Break::ShadowDamaged)) };
        if begun.inode != Some(inode) {
            return Ok(Err(Break::DatabaseReplaced));
        }
        let is_marked = Mark::of(&*disk, meta, generation)? != Mark::None;
        let left_of = |first| if is_marked { Durability::Volatile(first) } else { Durability::Durable };
        let folder = meta.join(names::wal_folder(generation));
        let mut files = BTreeMap::new();
        for name in disk.list(&folder)? {
            if let Some(index) = names::parse_shadow(&name) {
                files.insert(index, disk.open(&folder.join(name), false)?);
            }
        }
        let mut stale = other_generations(&*disk, meta, generation)?;
        let mut scratch = Vec::new();
        // An index that was begun and never got its first commit is none; its WAL, or another one, comes again.
        while files.len() > 1
            && let Some(last) = files.last_entry()
            && verify_file(&**last.get(), &mut scratch)?.and_then(|chain| chain.commit()).is_none()
        {
            disk.remove(&folder.join(names::shadow_file(*last.key())))?;
            last.remove();
        }
        let Some((index, file)) = files.pop_last() else {
            let beginning = ShadowExtent::beginning(generation);
            return Ok(Ok(ShadowWal {
                disk,
                folder,
                extent: beginning,
                present: None,
                needed_from: None,
                stale,
                durability: left_of(Index::ZERO),
                scratch,
            }));
        };
        // After a power cut a file may be missing in between: a replica that still needs it cannot go on.
        let first = first_without_gap(&files, index);
        let kept = files.split_off(&first);
        stale.extend(files.into_keys().map(|index| folder.join(names::shadow_file(index))));
        let complete = kept
            .iter()
            .map(|(index, file)| Ok((*index, Offset::new(file.length()?))))
            .collect::<io::Result<_>>()?;
        let mut shadow = ShadowWal {
            disk,
            folder,
            extent: ShadowExtent { generation, complete, index, end: Offset::ZERO, states: BTreeMap::new() },
            present: None,
            needed_from: None,
            stale,
            durability: left_of(first),
            scratch,
        };
        let Some(chain) = verify_file(&*file, &mut shadow.scratch)? else {
            return Ok(Err(Break::ShadowDamaged));
        };
        let Some(commit) = chain.commit() else { return Ok(Err(Break::ShadowDamaged)) };
        // What was written after the last commit is of no use: the chain goes on from the commit.
        let last = last_frame(&*file, &chain, commit.end)?;
        let chain = Chain::resume(*chain.header(), commit.end, &last);
        shadow.extent.end = commit.end;
        shadow.present = Some(Present { file, chain, durable: Offset::ZERO });
        Ok(Ok(shadow))
    }

    /// What replicas compare themselves with.
    pub fn extent(&self) -> &ShadowExtent {
        &self.extent
    }

    /// Where the shadow files are.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether no part of a transaction was copied behind the end.
    pub fn is_whole(&self) -> bool {
        self.bytes_behind_end() == 0
    }

    /// Bytes of a transaction that was not copied to its end yet.
    pub fn bytes_behind_end(&self) -> u64 {
        let copied = self.present.as_ref().map(|present| present.chain.end());
        copied.map_or(0, |copied| copied.since(self.extent.end.max(Offset::FIRST_FRAME)))
    }

    /// Keeps what the database is where an index ends.
    pub fn set_state(&mut self, index: Index, state: Option<DatabaseState>) {
        match state {
            Some(state) => self.extent.states.insert(index, state),
            None => self.extent.states.remove(&index),
        };
    }

    /// The folder of the shadow files, for readers.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the present index stands; `None` before its first commit.
    pub fn facts(&self) -> Option<ShadowFacts> {
        self.present.as_ref().map(|p| ShadowFacts { header: *p.chain.header(), end: self.extent.end })
    }

    /// The header of the last copied frame; `None` before the first.
    ///
    /// # Errors
    /// The disk's.
    pub fn last_frame_header(&self) -> io::Result<Option<FrameHeaderBytes>> {
        match &self.present {
            Some(present) => last_frame(&*present.file, &present.chain, self.extent.end).map(Some),
            None => Ok(None),
        }
    }

    /// The chain of the present index up to its end; `None` before its first commit.
    ///
    /// # Errors
    /// The disk's.
    pub fn chain(&self) -> io::Result<Option<Chain>> {
        let Some(present) = self.present.as_ref().filter(|_| self.extent.end > Offset::ZERO) else {
            return Ok(None);
        };
        let last = last_frame(&*present.file, &present.chain, self.extent.end)?;
        Ok(Some(Chain::resume(*present.chain.header(), self.extent.end, &last)))
    }

    /// Begins the next index (the first, if there is none yet) with a header whose first commit is in the WAL.
    ///
    /// # Errors
    /// The disk's; `Ok(Err)` says why the generation cannot go on.
    pub fn begin_index(&mut self, header: WalHeader) -> io::Result<Result<(), Break>> {
        let index = match &self.present {
            None => self.extent.index,
            Some(present) => {
                let Some(next) = self.extent.index.next() else { return Ok(Err(Break::IndexExhausted)) };
                // It exists nowhere else now. Only where everything was backfilled already when we attached, the WAL
                // can have been restarted before a worker had made it durable.
                let must_be_durable = !self.is_volatile() && present.durable < self.extent.end;
                if must_be_durable && present.file.sync().is_err() {
                    return Ok(Err(Break::ShadowSyncFailed));
                }
                // Readers of complete indexes, and a later recovery, go by the file's length.
                present.file.set_length(self.extent.end.get())?;
                next
            }
        };
        let file = self.disk.open(&self.folder.join(names::shadow_file(index)), true)?;
        file.write_at(header.bytes(), 0)?;
        if self.present.is_some() {
            self.extent.complete.insert(self.extent.index, self.extent.end);
        }
        (self.extent.index, self.extent.end) = (index, Offset::ZERO);
        self.present = Some(Present { file, chain: Chain::new(header), durable: Offset::ZERO });
        Ok(Ok(()))
    }

    /// The present state, to go back to with [`ShadowWal::go_back`].
    pub fn save(&self) -> Saved {
        Saved { chain: self.present.as_ref().map(|p| p.chain), end: self.extent.end }
    }

    /// Forgets what was copied since `saved` into the same index.
    pub fn go_back(&mut self, saved: Saved) {
        if let (Some(present), Some(chain)) = (&mut self.present, saved.chain) {
            present.chain = chain;
            self.extent.end = saved.end;
        }
    }

    /// Copies the next committed frames, up to a bounded number of bytes before `to`, verifies the copy, and moves
    /// the end to its last commit. What was valid is handed to `each`.
    ///
    /// # Errors
    /// Why nothing more than before is in the shadow.
    pub fn absorb(
        &mut self,
        map: &WalMap,
        to: Offset,
        each: impl FnMut(&FrameHeader, &[u8]),
    ) -> Result<(), AbsorbError> {
        let (from, length) = self.next_part(to)?;
        let present = self.present.as_mut().expect("BUG: a part has a file");
        if present.file.copy_from(map, from.get(), length, from.get())? < length {
            return Err(AbsorbError::Shrunk);
        }
        self.scratch.resize(length as usize, 0);
        present.file.read_at(&mut self.scratch, from.get())?;
        let mut chain = present.chain;
        chain.extend(&self.scratch, each)?;
        present.chain = chain;
        if let Some(commit) = chain.commit() {
            self.extent.end = commit.end;
        }
        // A thousand databases that were busy once must not keep a window each.
        if self.scratch.capacity() as u64 > LASTING_SCRATCH && length <= LASTING_SCRATCH {
            self.scratch = Vec::new();
        }
        Ok(())
    }

    /// Where the next part of the committed frames before `to` begins, and how long it is.
    ///
    /// # Errors
    /// Frames behind the last commit are valid, and yet the wal-index calls more committed.
    pub fn next_part(&self, to: Offset) -> Result<(Offset, u64), AbsorbError> {
        let present = self.present.as_ref().expect("BUG: frames are copied after their header");
        let from = present.chain.end();
        let frame = present.chain.header().page_size().frame_length();
        let length = to.since(from).min(WINDOW / frame * frame);
        if length == 0 { Err(AbsorbError::Shrunk) } else { Ok((from, length)) }
    }

    /// Takes in the next part, in which SQLite has left out checksums; see [`Chain::resum`]. `before` is the header of the
    /// frame before it in the live WAL, if there is one.
    ///
    /// # Errors
    /// As [`ShadowWal::absorb`].
    pub fn absorb_unsummed(
        &mut self,
        mut frames: Vec<u8>,
        before: Option<&FrameHeaderBytes>,
        each: impl FnMut(&FrameHeader, &[u8]),
    ) -> Result<(), AbsorbError> {
        let chain = &self.present.as_ref().expect("BUG: a part has a file").chain;
        let before = before.map(|before| FrameHeader::parse(before).checksum);
        chain.resum(before.unwrap_or(chain.header().checksum()), &mut frames)?;
        self.append(&frames, each)
    }

    /// The database's header in every frame of the present index that holds page 1, in their order.
    ///
    /// # Errors
    /// The disk's.
    pub fn headers(&self) -> io::Result<Vec<DatabaseHeader>> {
        let mut headers = Vec::new();
        self.each_frame(0, |number, begin| {
            if number.get() == 1 {
                headers.push(*begin);
            }
        })?;
        Ok(headers)
    }

    /// The numbers of all pages in the present index behind its first `frames`.
    ///
    /// # Errors
    /// The disk's.
    pub fn pages_behind(&self, frames: u32) -> io::Result<HashSet<PageNumber>> {
        let mut pages = HashSet::new();
        self.each_frame(frames, |number, _| {
            pages.insert(number);
        })?;
        Ok(pages)
    }

    /// Hands out the page number of each frame of the present index behind its first `frames`, and the first bytes of
    /// its page.
    fn each_frame(&self, frames: u32, mut each: impl FnMut(PageNumber, &DatabaseHeader)) -> io::Result<()> {
        let Some(present) = &self.present else { return Ok(()) };
        let page_size = present.chain.header().page_size();
        let mut at = Offset::after_frames(page_size, frames);
        let mut bytes = [0; FRAME_HEADER_LENGTH + 100];
        while at < self.extent.end {
            present.file.read_at(&mut bytes, at.get())?;
            let (header, page) = bytes.split_first_chunk::<FRAME_HEADER_LENGTH>().expect("BUG: it is longer");
            if let Some(number) = FrameHeader::parse(header).page {
                each(number, page.try_into().expect("BUG: 100 bytes were read"));
            }
            at = at.plus(page_size.frame_length());
        }
        Ok(())
    }

    /// Takes in whole frames of our own making, which follow the end of the present index, and hands each to `each`.
    ///
    /// # Errors
    /// Why they are not in the shadow.
    pub fn append(
        &mut self,
        frames: &[u8],
        each: impl FnMut(&FrameHeader, &[u8]),
    ) -> Result<(), AbsorbError> {
        let present = self.present.as_mut().expect("BUG: frames come after their header");
        present.file.write_at(frames, present.chain.end().get())?;
        present.chain.extend(frames, each)?;
        if let Some(commit) = present.chain.commit() {
            self.extent.end = commit.end;
        }
        Ok(())
    }

    /// What is to be made durable before the next index begins; `None` if everything is, or need not be.
    pub fn to_sync(&self) -> Option<ShadowSync> {
        let present = self.present.as_ref().filter(|p| p.durable < self.extent.end && !self.is_volatile())?;
        Some(ShadowSync { file: Arc::clone(&present.file), end: self.extent.end })
    }

    /// Takes in that a part is durable, if it is one of the present file.
    pub fn on_synced(&mut self, sync: &ShadowSync) {
        if let Some(present) = self.present.as_mut().filter(|p| Arc::ptr_eq(&p.file, &sync.file)) {
            present.durable = present.durable.max(sync.end);
        }
    }

    /// What nobody needs any more and is still to be removed.
    pub fn take_stale(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.stale)
    }

    /// Keeps the files from this index on, whoever else needs them.
    pub fn keep_from(&mut self, index: Option<Index>) {
        self.needed_from = index;
    }

    /// Removes the files of indexes before `index`, which no replica needs any more, unless the page table does.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget_before(&mut self, index: Index) -> io::Result<()> {
        let index = self.needed_from.map_or(index, |needed| needed.min(index));
        while let Some(entry) = self.extent.complete.first_entry().filter(|e| *e.key() < index) {
            self.disk.remove(&self.folder.join(names::shadow_file(*entry.key())))?;
            entry.remove();
        }
        self.extent.states.retain(|kept, _| *kept >= index);
        Ok(())
    }
}

/// The first of the indexes that lead to `last` without a gap.
fn first_without_gap<T>(before: &BTreeMap<Index, T>, last: Index) -> Index {
    let mut first = last;
    while let Some(index) = first.previous().filter(|index| before.contains_key(index)) {
        first = index;
    }
    first
}

/// The chain of all valid frames of a shadow file; `None` if not even the header is valid.
fn verify_file(file: &dyn DiskFile, scratch: &mut Vec<u8>) -> io::Result<Option<Chain>> {
    let length = file.length()?;
    if length < Offset::FIRST_FRAME.get() {
        return Ok(None);
    }
    let mut header = [0; 32];
    file.read_at(&mut header, 0)?;
    let Ok(header) = WalHeader::parse(&header) else { return Ok(None) };
    let mut chain = Chain::new(header);
    let frame = header.page_size().frame_length();
    loop {
        let whole = length.saturating_sub(chain.end().get()) / frame * frame;
        let window = whole.min(WINDOW / frame * frame);
        scratch.resize(window as usize, 0);
        file.read_at(scratch, chain.end().get())?;
        if window == 0 || chain.extend(scratch, |_, _| {}).is_err() {
            return Ok(Some(chain));
        }
    }
}

fn last_frame(file: &dyn DiskFile, chain: &Chain, end: Offset) -> io::Result<FrameHeaderBytes> {
    let mut bytes = [0; 24];
    let at = end.get().saturating_sub(chain.header().page_size().frame_length());
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}
