//! One look at the live WAL: what is committed, by the wal-index, is copied into the shadow.

use crate::core::evidence::Stamp;
use crate::core::page::PageSize;
use crate::core::position::{Offset, WAL_HEADER_LENGTH};
use crate::core::scan::Chain;
use crate::core::sync::{Break, ShadowFacts, SyncDecision, WalFacts, decide};
use crate::core::wal::{FrameHeader, FrameHeaderBytes, Salt, WalHeader, WalHeaderBytes};
use crate::core::wal_index::WalExtent;
use crate::disk::WalMap;
use crate::page_table::{SourceTable, StagedFrames};
use crate::shadow::{AbsorbError, ShadowWal};
use crate::sqlite::SqliteError;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// A header that keeps changing while we look is a writer restarting again and again; then the loop gets its turn.
const MOST_LOOKS: u32 = 8;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Everything committed is in the shadow.
    UpToDate {
        /// The wal-index.
        extent: WalExtent,
        /// Frames of this WAL stand behind the last commit: a transaction in flight, or taken back.
        in_flight: bool,
    },
    /// Everything that was committed when it was asked is in the shadow. It had to be copied, so there may be more by
    /// now.
    Copied {
        /// The wal-index then.
        extent: WalExtent,
    },
    /// A bounded part was copied; there is more.
    More {
        /// Committed bytes that are not in the shadow yet, as this look saw them.
        left: u64,
    },
    /// The next WAL is there, and the copy of the one before is not durable yet, as it must be: a power cut would leave a
    /// gap between the two. Look again once it is; until then the next one cannot be restarted.
    Unsynced {
        /// As in [`Look::More`].
        left: u64,
    },
    /// SQLite or a writer was in the way; look again in a moment.
    Again,
    /// Continuity is lost.
    Broken(Break),
}

/// A look that could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The wal-index could not be asked.
    #[error("cannot ask SQLite about the WAL: {0}")]
    Sqlite(#[from] SqliteError),
    /// The live WAL could not be read.
    #[error("cannot read {0}: {1}")]
    Wal(PathBuf, io::Error),
    /// The shadow could not be written.
    #[error("cannot write the shadow WAL: {0}")]
    Shadow(#[from] io::Error),
}

/// The `-wal` file, open and mapped.
struct LiveWal {
    file: File,
    map: WalMap,
}

/// A WAL of which a part was in the database file already when others wrote over that.
#[derive(Debug, Clone, Copy)]
pub struct WrittenOver {
    /// Its header.
    pub wal: WalHeader,
    /// A generation has begun with what they wrote.
    pub is_begun: bool,
}

/// Copies the live WAL of one database into its shadow.
pub struct Capture {
    wal_path: PathBuf,
    live: Option<LiveWal>,
    /// The copy.
    pub shadow: ShadowWal,
    /// Of the pages in it.
    pub table: SourceTable,
    staged: StagedFrames,
    /// Whether we held the WAL without a gap since the shadow's end was copied.
    pub guarded: bool,
    /// Whether it is proven that nothing was committed between the shadow's end and our beginning to hold.
    pub continues: bool,
    /// The WAL whose content is in the shadow, or was in the database file when the generation began, though not as an index:
    /// its header and frames. Nothing of it is copied.
    pub settled: Option<(Option<WalHeader>, u32)>,
    /// What was in the file then is read by nobody any more, and no index may begin with it.
    pub written_over: Option<WrittenOver>,
    /// The live WAL when frames were seen behind its last commit that are those of our wal-index: taken back, or never
    /// finished.
    pub in_flight: Option<Stamp>,
    /// Whether SQLite has left out checksums in the live WAL: whoever recovers it loses what was committed from there on.
    pub is_unsummed: bool,
    /// Where the shadow ended when that was found last, and the header of its last frame as it is in the live WAL.
    unsummed_tail: Option<(Offset, FrameHeaderBytes)>,
}

impl Capture {
    /// A capture that has not looked yet, and so is not guarded.
    pub fn new(wal_path: PathBuf, mut shadow: ShadowWal) -> Self {
        let table = SourceTable::of(&mut shadow);
        let staged = StagedFrames::default();
        Capture {
            wal_path,
            live: None,
            shadow,
            table,
            staged,
            guarded: false,
            continues: false,
            settled: None,
            written_over: None,
            in_flight: None,
            is_unsummed: false,
            unsummed_tail: None,
        }
    }

    /// Begins a generation: the first look at it compares with nothing. Of a WAL that was written over, everything must be
    /// settled.
    pub fn begin(&mut self, mut shadow: ShadowWal) {
        self.table = SourceTable::of(&mut shadow);
        self.settled = self.settled.filter(|_| self.is_written_over());
        if let Some(written_over) = &mut self.written_over {
            written_over.is_begun = true;
        }
        (self.shadow, self.guarded, self.continues) = (shadow, self.settled.is_some(), false);
    }

    /// Whether the live WAL is one that was written over.
    pub fn is_written_over(&self) -> bool {
        self.written_over.is_some_and(|written_over| Some(written_over.wal) == self.live_wal())
    }

    /// Whether all that is committed in it is settled.
    pub fn is_settled(&self, extent: WalExtent) -> bool {
        self.settled.is_some_and(|(header, frames)| header == self.live_wal() && frames == extent.frames)
    }

    /// Looks at the WAL, and copies what is newly committed, up to a bounded number of bytes.
    /// The WAL must be held already.
    ///
    /// `ask` is what the wal-index says. The header is read, the wal-index asked, the header read again: while it is the
    /// same, the answer belongs to it. After the copy it is read once more: while it is the same, no copied byte was
    /// overwritten.
    ///
    /// # Errors
    /// What could not be read or written. Nothing is lost by it.
    pub fn look(&mut self, ask: impl Fn() -> Result<WalExtent, SqliteError>) -> Result<Look, LookError> {
        for _ in 0..MOST_LOOKS {
            if !self.open_live()? {
                return Ok(Look::Broken(Break::WalReplaced));
            }
            let before = self.live_header()?;
            let extent = match ask() {
                Err(SqliteError::Busy) => return Ok(Look::Again),
                other => other?,
            };
            if self.live_header()? != before {
                continue;
            }
            let live = before.and_then(|bytes| WalHeader::parse(&bytes).ok());
            if extent.frames > 0 && is_another(live, extent) {
                return Ok(Look::Broken(Break::WalOverwritten));
            }
            if let Some((header, frames)) = self.settled.filter(|_| extent.frames > 0) {
                match (header == live, frames == extent.frames) {
                    (true, true) => {
                        let in_flight = self.has_frame_behind(live, extent.frames)?;
                        return Ok(Look::UpToDate { extent, in_flight });
                    }
                    (true, false) if frames > 0 => return Ok(Look::Broken(Break::WalContinued)),
                    // Another one; or this one, with nothing in it yet then.
                    _ => self.settled = None,
                }
            }
            let guarded = self.guarded || self.continues;
            let facts = WalFacts {
                shadow: self.shadow.facts(),
                live,
                frames: extent.frames,
                guarded,
                tail_matches: guarded || self.tail_matches()?,
            };
            let to = match decide(&facts) {
                SyncDecision::Wait => {
                    (self.guarded, self.continues) = (true, false);
                    let in_flight = self.has_frame_behind(live, extent.frames)?;
                    return Ok(Look::UpToDate { extent, in_flight });
                }
                SyncDecision::NewGeneration(reason) => return Ok(Look::Broken(reason)),
                SyncDecision::Copy { to } => to,
                SyncDecision::NextIndex { to, .. } if self.shadow.to_sync().is_some() => {
                    return Ok(Look::Unsynced { left: to.get() });
                }
                SyncDecision::NextIndex { header, to } => match self.shadow.begin_index(header) {
                    Ok(Ok(())) => {
                        (self.is_unsummed, self.unsummed_tail) = (false, None);
                        self.table.begin_index(header.page_size());
                        self.keep_state();
                        to
                    }
                    Ok(Err(reason)) => return Ok(Look::Broken(reason)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        return Ok(Look::Broken(Break::ShadowMissing));
                    }
                    Err(e) => return Err(e.into()),
                },
            };
            return match self.copy(to, before)? {
                None if self.guarded && to == self.shadow.extent().end => Ok(Look::Copied { extent }),
                None => Ok(Look::More { left: to.since(self.shadow.extent().end) }),
                Some(reason) => Ok(Look::Broken(reason)),
            };
        }
        Ok(Look::Again)
    }

    /// Whether more was committed to the WAL with this salt than so many frames, or may have been.
    pub fn has_grown_beyond(&self, (salt, frames): (Salt, u32)) -> bool {
        let settled = self.settled.filter(|(header, _)| header.is_some_and(|header| header.salt() == salt));
        if let Some((_, settled)) = settled {
            return settled > frames;
        }
        let copied = self.shadow.facts().filter(|facts| facts.header.salt() == salt);
        copied.is_none_or(|copied| copied.end > Offset::after_frames(copied.header.page_size(), frames))
    }

    /// Whether everything that the wal-index says is committed, of the WAL that is there now, is in the shadow.
    pub fn holds(&self, extent: WalExtent) -> bool {
        if self.is_settled(extent) {
            return true;
        }
        let live = self.live_wal();
        let is_copied = |shadow: &ShadowFacts| {
            Some(shadow.header) == live
                && shadow.end == Offset::after_frames(shadow.header.page_size(), extent.frames)
        };
        extent.frames == 0 || self.shadow.facts().as_ref().is_some_and(is_copied)
    }

    /// Whether something other than SQLite has put another WAL into the file. Nobody must be able to write it: who begins
    /// one writes its header first, and says later in the wal-index that it is there.
    pub fn is_overwritten(&self, extent: WalExtent) -> bool {
        let live = self.live_wal();
        let is_copied = live.is_some() && live == self.shadow.facts().map(|facts| facts.header);
        // Of a header alone, a new wal-index says nothing, not even its salts; frames may be of a transaction taken back.
        let has_commit = || self.has_commit_behind(extent).unwrap_or(false);
        is_another(live, extent) && (extent.frames > 0 || !is_copied && has_commit())
    }

    /// Finds out whether checksums are missing in the live WAL, of which nothing was copied, up to so many frames.
    ///
    /// # Errors
    /// What could not be read.
    pub fn look_for_unsummed(&mut self, frames: u32) -> Result<(), LookError> {
        let Some(header) = self.live_wal() else { return Ok(()) };
        let end = Offset::after_frames(header.page_size(), frames);
        let chain = self.follow(Chain::new(header), |chain| chain.end() < end)?;
        self.is_unsummed |= chain.end() < end;
        Ok(())
    }

    /// Whether the live WAL holds commits that are neither in the shadow nor what the wal-index says: somebody has committed by
    /// another wal-index.
    ///
    /// # Errors
    /// What could not be read.
    pub fn has_commit_behind(&self, extent: WalExtent) -> Result<bool, LookError> {
        let Some(header) = self.live_wal() else { return Ok(false) };
        let chain = self.follow(self.known_chain(header, extent)?, |chain| chain.commit().is_none())?;
        Ok(chain.commit().is_some())
    }

    /// Follows a chain through the valid frames of the live WAL, one by one, as long as it is `wanted`.
    fn follow(&self, mut chain: Chain, wanted: impl Fn(&Chain) -> bool) -> Result<Chain, LookError> {
        let mut frame = vec![0; chain.header().page_size().frame_length() as usize];
        while wanted(&chain)
            && self.read_live(&mut frame, chain.end().get())?
            && chain.extend(&frame, |_, _| {}).is_ok()
        {}
        Ok(chain)
    }

    /// The chain of the live WAL, which has this header, from where it is known: its content is in the shadow, or in the
    /// wal-index.
    fn known_chain(&self, header: WalHeader, extent: WalExtent) -> Result<Chain, LookError> {
        let after = |frames| Offset::after_frames(header.page_size(), frames);
        let settled = self.settled.filter(|(settled, _)| *settled == Some(header));
        let copied = self.shadow.facts().filter(|facts| facts.header == header);
        let indexed = Some(extent).filter(|extent| extent.salt == Some(header.salt()));
        let ends = [
            settled.map(|(_, frames)| after(frames)),
            copied.map(|facts| facts.end),
            indexed.map(|extent| after(extent.frames)),
        ];
        let end = ends.into_iter().flatten().max().unwrap_or(Offset::FIRST_FRAME);
        let last = self.live_frame_before(end, header.page_size())?;
        Ok(last.map_or(Chain::new(header), |last| Chain::resume(header, end, &last)))
    }

    /// The file that is open as the WAL, if one is.
    pub fn live_file(&self) -> Option<&File> {
        self.live.as_ref().map(|live| &live.file)
    }

    /// Ends copying; the file that is open as the WAL, if one is.
    pub fn into_live(self) -> Option<File> {
        self.live.map(|live| live.file)
    }

    /// Copies a part up to `to`, as long as the header stays the one that `to` belongs to.
    fn copy(&mut self, to: Offset, header: Option<WalHeaderBytes>) -> Result<Option<Break>, LookError> {
        let Some(live) = &mut self.live else { return Ok(Some(Break::HeaderInvalid)) };
        if live.map.length() < to.get() {
            live.map =
                WalMap::new(&live.file, to.get()).map_err(|e| LookError::Wal(self.wal_path.clone(), e))?;
        }
        let saved = self.shadow.save();
        let staged = self.staged.begin(self.table.wanted_entries());
        let result = self.shadow.absorb(&live.map, to, staged);
        let result = match result {
            Err(AbsorbError::Frame(_)) => self.copy_unsummed(to)?,
            result => result,
        };
        if self.live_header()? == header {
            return match result {
                Ok(()) => {
                    self.table.take(&mut self.staged);
                    self.keep_state();
                    Ok(None)
                }
                Err(AbsorbError::Disk(error)) => Err(LookError::Shadow(error)),
                Err(AbsorbError::Shrunk | AbsorbError::Frame(_)) => Ok(Some(Break::ChainBroken)),
            };
        }
        // Guarded, this cannot be. What was overwritten, nobody knows.
        self.shadow.go_back(saved);
        Ok(Some(Break::WalRestarted))
    }

    /// Copies a part in which SQLite has left out checksums.
    fn copy_unsummed(&mut self, to: Offset) -> Result<Result<(), AbsorbError>, LookError> {
        let (from, length) = match self.shadow.next_part(to) {
            Ok(part) => part,
            Err(error) => return Ok(Err(error)),
        };
        let mut frames = vec![0; length as usize];
        let Some(facts) = self.shadow.facts() else { return Ok(Err(AbsorbError::Shrunk)) };
        let page_size = facts.header.page_size();
        if !self.read_live(&mut frames, from.get())? {
            return Ok(Err(AbsorbError::Shrunk));
        }
        let before = self.live_frame_before(from, page_size)?;
        let staged = self.staged.begin(self.table.wanted_entries());
        let result = self.shadow.absorb_unsummed(frames, before.as_ref(), staged);
        if result.is_ok() {
            let end = self.shadow.extent().end;
            self.unsummed_tail = self.live_frame_before(end, page_size)?.map(|last| (end, last));
            self.is_unsummed = true;
        }
        Ok(result)
    }

    /// Keeps what the database is where the shadow ends, and what the table needs of the shadow.
    pub fn keep_state(&mut self) {
        self.shadow.set_state(self.shadow.extent().index, self.table.state());
        self.shadow.keep_from(self.table.needs_from());
    }

    /// Opens the WAL if there is one. `false` if the one that was open is not at its path any more.
    ///
    /// # Errors
    /// It cannot be opened, or mapped.
    pub fn open_live(&mut self) -> Result<bool, LookError> {
        let error = |e| LookError::Wal(self.wal_path.clone(), e);
        if let Some(live) = &self.live {
            return Ok(live.file.metadata().map_err(error)?.nlink() > 0);
        }
        match File::open(&self.wal_path) {
            Ok(file) => {
                let length = file.metadata().map_err(error)?.len();
                let map = WalMap::new(&file, length).map_err(error)?;
                self.live = Some(LiveWal { file, map });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(error(e)),
        }
        Ok(true)
    }

    /// The first 32 bytes of the live WAL; `None` if it is shorter.
    ///
    /// # Errors
    /// The kernel's.
    pub fn live_header(&self) -> Result<Option<WalHeaderBytes>, LookError> {
        let mut bytes = [0; WAL_HEADER_LENGTH as usize];
        Ok(self.read_live(&mut bytes, 0)?.then_some(bytes))
    }

    /// The same, if it is valid.
    pub fn live_wal(&self) -> Option<WalHeader> {
        self.live_header().ok().flatten().and_then(|bytes| WalHeader::parse(&bytes).ok())
    }

    /// Fills `buffer` from the live WAL; `false` if it ends before.
    fn read_live(&self, buffer: &mut [u8], at: u64) -> Result<bool, LookError> {
        let Some(live) = &self.live else { return Ok(false) };
        match live.file.read_exact_at(buffer, at) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(LookError::Wal(self.wal_path.clone(), e)),
        }
    }

    /// Whether the live WAL holds our last copied frame: its checksum covers everything before it.
    fn tail_matches(&self) -> Result<bool, LookError> {
        let Some(facts) = self.shadow.facts() else { return Ok(true) };
        let Some(ours) = self.shadow.last_frame_header()? else { return Ok(true) };
        // What was given a checksum is not the same.
        let ours = self.unsummed_tail.filter(|(end, _)| *end == facts.end).map_or(ours, |(_, tail)| tail);
        // Before the first commit, this is the WAL's header.
        let mut theirs = [0; 24];
        let at = facts.end.get().saturating_sub(facts.header.page_size().frame_length());
        Ok(self.read_live(&mut theirs, at)? && theirs == ours)
    }

    /// The header of the frame of the live WAL that ends at `end`; `None` if there is none.
    fn live_frame_before(
        &self,
        end: Offset,
        page_size: PageSize,
    ) -> Result<Option<FrameHeaderBytes>, LookError> {
        let mut bytes = [0; 24];
        let at = end.get().saturating_sub(page_size.frame_length());
        Ok((end > Offset::FIRST_FRAME && self.read_live(&mut bytes, at)?).then_some(bytes))
    }

    /// Whether a frame of this WAL stands behind its last commit.
    fn has_frame_behind(&self, live: Option<WalHeader>, frames: u32) -> Result<bool, LookError> {
        let Some(header) = live else { return Ok(false) };
        let mut bytes = [0; 24];
        let at = Offset::after_frames(header.page_size(), frames).get();
        let is_there = self.read_live(&mut bytes, at)?;
        let frame = FrameHeader::parse(&bytes);
        // SQLite gives those that it is still to sum no salt.
        Ok(is_there && frame.page.is_some() && [header.salt(), Salt::NONE].contains(&frame.salt))
    }
}

/// Whether a header is not that of the WAL that the wal-index speaks of.
fn is_another(live: Option<WalHeader>, extent: WalExtent) -> bool {
    extent.salt.is_some_and(|salt| live.is_none_or(|header| header.salt() != salt))
}
