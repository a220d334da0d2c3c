//! The page table of a database that is replicated: entries on disk at some position, newer ones in memory.
//!
//! It belongs to a generation. While there is none, a worker reads the database file, which others write meanwhile:
//! what is copied during the reading counts instead, and so the table is exact at the position that the first look after
//! the reading reaches. Later, changes collected in memory are written into it, by a worker, too, after the shadow WAL up to
//! their position is durable; so the table never knows what the shadow may lose. (A volatile shadow is lost as a whole, and
//! the table with it.) They are first written beside it: a table that was left half changed is finished from there. On
//! recovery the XOR of all entries must be the header's.
//!
//! Entries are read one by one with `pread`, not through a map: a disk that fails is an error then, not SIGBUS. Any error
//! costs the table and nothing else: replication goes on, and it is built anew.

mod comparison;
mod part;
mod staged;
mod work;

pub use comparison::Interruption;
pub use part::PartRead;
pub use staged::StagedFrames;
pub use work::{BuiltTable, Difference, TableBuild, TableJob, TableOutcome, TableWrite, WrittenTable};

use crate::core::names::{PAGE_TABLE, PAGE_TABLE_CHANGES};
use crate::core::page::{PageCount, PageSize};
use crate::core::page_table::{DatabaseState, Entries, PageChanges, PageEntry};
use crate::core::position::{Index, Offset};
use crate::core::shadow::ShadowExtent;
use crate::core::table_file::{ENTRY_LENGTH, TableChanges, entry_offset};
use crate::database_file::DatabaseFile;
use crate::disk::{Disk, DiskFile};
use crate::shadow::{ShadowReadError, ShadowWal};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use work::{checksum_of, finish, read_frames};

/// Changed pages in memory from which on they are written into the table: half a megabyte or so.
const MANY_CHANGES: usize = 16 << 10;
/// Shadow WAL, in bytes, that is kept for the table: more, and it is written at once.
const MUCH_SHADOW: u64 = 64 << 20;
/// Fewer are written when an index is over, and so its shadow could go, but not more often than this.
const WRITE_PAUSE: Duration = Duration::from_secs(10);
/// After a table was lost: the first pause before it is built anew, doubled each time up to the longest.
const BUILD_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_BUILD_PAUSE: Duration = Duration::from_secs(600);

/// Why there is no table, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The meta folder's disk.
    #[error("cannot read or write it: {0}")]
    Disk(#[from] io::Error),
    /// The shadow WAL beside it.
    #[error(transparent)]
    Shadow(#[from] ShadowReadError),
    /// The database file.
    #[error("cannot read the database file: {0}")]
    Database(io::Error),
    /// The file has no header, or another page size than its WAL.
    #[error("the database file is not one, or not that of its WAL")]
    NotADatabase,
    /// The shadow could not be made durable before the table.
    #[error("cannot make the shadow WAL durable: {0}")]
    ShadowSync(io::Error),
    /// Nobody wants it any more.
    #[error("given up")]
    Cancelled,
}

/// The table on disk.
#[derive(Clone)]
struct Standing {
    file: Arc<dyn DiskFile>,
    position: (Index, Offset),
    page_count: PageCount,
}

impl Standing {
    fn entry(&self, number: u32, entries: &Entries) -> io::Result<PageEntry> {
        if number > self.page_count.get() {
            return Ok(entries.blank(number));
        }
        let mut bytes = [0; ENTRY_LENGTH];
        self.file.read_at(&mut bytes, entry_offset(number))?;
        Ok(PageEntry::new(u64::from_le_bytes(bytes)))
    }
}

/// What is to be done, or is being done, by a worker.
enum Work {
    None,
    /// The database is being read.
    Building,
    /// It was read, and these are its entries.
    Built(BuiltTable),
    /// Changes are being written into it, so that it stands at a position of this index.
    Writing(Arc<PageChanges>, Index),
}

/// The page table of one generation of a database.
pub struct SourceTable {
    disk: Arc<dyn Disk>,
    /// The folder of the generation.
    folder: PathBuf,
    /// The folder of its shadow files.
    shadows: PathBuf,
    entries: Option<Entries>,
    standing: Option<Standing>,
    /// Since where the table stands, or what is being written into it stands.
    changes: PageChanges,
    /// Of everything copied; `None` while there is no table.
    state: Option<DatabaseState>,
    work: Work,
    cancelled: Interruption,
    interruption: Interruption,
    written_at: Option<Instant>,
    build_pause: Duration,
    build_at: Option<Instant>,
    /// Why the table was lost, until somebody asks.
    problem: Option<TableError>,
}

impl SourceTable {
    /// The table that an earlier run left, if it is one of this shadow, or none.
    pub fn of(shadow: &mut ShadowWal) -> Self {
        let (disk, shadows) = (Arc::clone(shadow.disk()), shadow.folder().to_owned());
        let folder = shadows.parent().unwrap_or(&shadows).to_owned();
        let mut table = SourceTable {
            disk,
            folder,
            shadows,
            entries: None,
            standing: None,
            changes: PageChanges::default(),
            state: None,
            work: Work::None,
            cancelled: Interruption::default(),
            interruption: Interruption::default(),
            written_at: None,
            build_pause: BUILD_PAUSE,
            build_at: None,
            problem: None,
        };
        // What cannot be recovered is built anew.
        if table.recover(shadow).is_err() {
            table.forget();
        }
        if let (None, Some(facts)) = (table.entries, shadow.facts()) {
            table.entries = Some(Entries::of_size(facts.header.page_size()));
        }
        shadow.set_state(shadow.extent().index, table.state);
        shadow.keep_from(table.needs_from());
        table
    }

    /// What the database is where the shadow ends; `None` while that is not known.
    pub fn state(&self) -> Option<DatabaseState> {
        self.state
    }

    /// How to make entries of copied frames; `None` if nobody needs them.
    pub fn wanted_entries(&self) -> Option<Entries> {
        self.entries.filter(|_| self.is_following())
    }

    /// The index from which on the shadow must be kept for this table.
    pub fn needs_from(&self) -> Option<Index> {
        let stands = self.standing.as_ref().map(|standing| standing.position.0);
        stands.or(match &self.work {
            Work::Writing(_, index) => Some(*index),
            _ => None,
        })
    }

    /// The files of a table of this generation, whether they are there or not.
    pub fn files(&self) -> Vec<PathBuf> {
        [PAGE_TABLE, PAGE_TABLE_CHANGES].iter().map(|name| self.folder.join(name)).collect()
    }

    fn is_following(&self) -> bool {
        self.standing.is_some() || !matches!(self.work, Work::None)
    }

    /// Says that an index begins, with pages of this size.
    pub fn begin_index(&mut self, page_size: PageSize) {
        self.changes.roll_back();
        if self.entries.is_some_and(|entries| entries.page_size() != page_size) {
            self.forget();
        }
        if self.entries.is_none() {
            self.entries = Some(Entries::of_size(page_size));
        }
    }

    /// Takes in frames that are in the shadow now.
    pub fn take(&mut self, frames: &mut StagedFrames) {
        let Some(entries) = self.entries.filter(|_| self.is_following()) else { return };
        for (number, entry, commit) in frames.0.drain(..) {
            self.changes.push(number, entry);
            let Some(page_count) = commit else { continue };
            let below = below(self.standing.as_ref(), &self.work, &entries);
            match self.changes.commit(page_count, &entries, self.state, below) {
                Ok(state) => self.state = state,
                Err(e) => return self.lose(e.into()),
            }
        }
    }

    fn forget(&mut self) {
        self.cancelled.set();
        self.cancelled = Interruption::default();
        (self.standing, self.state, self.work) = (None, None, Work::None);
        (self.changes, self.entries) = (PageChanges::default(), None);
    }

    /// Gives the table up.
    fn lose(&mut self, problem: TableError) {
        let entries = self.entries;
        self.forget();
        (self.entries, self.problem) = (entries, Some(problem));
    }

    /// Why the table was lost since this was asked last. From now on it may be built anew, after a pause.
    pub fn take_problem(&mut self, now: Instant) -> Option<TableError> {
        let problem = self.problem.take()?;
        self.build_at = Some(now + self.build_pause);
        self.build_pause = (self.build_pause * 2).min(LONGEST_BUILD_PAUSE);
        Some(problem)
    }

    /// When [`SourceTable::next_job`] may answer though nothing is copied. `may_build` says that there is room,
    /// and no part of a transaction was copied behind what was taken in.
    pub fn next_timeout(&self, extent: &ShadowExtent, may_build: bool, now: Instant) -> Option<Instant> {
        if self.problem.is_some() {
            return Some(now);
        }
        match (&self.work, &self.standing) {
            // The frames of a transaction that is half copied would be missing.
            (Work::None, None) => Some(self.build_at.unwrap_or(now)).filter(|_| may_build),
            (Work::Built(_), _) => Some(now),
            (Work::None, Some(standing)) if standing.position == (extent.index, extent.end) => None,
            (Work::None, Some(standing)) => {
                let (index, offset) = standing.position;
                let is_over = index < extent.index;
                let is_much = extent.bytes_since(index, offset).is_some_and(|bytes| bytes >= MUCH_SHADOW);
                match self.changes.len() >= MANY_CHANGES || (is_over && is_much) {
                    true => Some(now),
                    false => is_over.then(|| self.written_at.map_or(now, |at| at + WRITE_PAUSE)),
                }
            }
            _ => None,
        }
    }

    /// The job that is due, if any. `shadow` is where everything that was taken in ends; `may_build` as before.
    pub fn next_job(
        &mut self,
        shadow: &ShadowWal,
        may_build: bool,
        database: &DatabaseFile,
        now: Instant,
    ) -> Option<TableJob> {
        let extent = shadow.extent();
        if self.problem.is_some() || self.next_timeout(extent, may_build, now).is_none_or(|due| due > now) {
            return None;
        }
        match std::mem::replace(&mut self.work, Work::None) {
            Work::None if self.standing.is_none() => {
                (self.work, self.changes) = (Work::Building, PageChanges::default());
                Some(TableJob::Build(TableBuild {
                    disk: Arc::clone(&self.disk),
                    folder: self.folder.clone(),
                    shadows: self.shadows.clone(),
                    copied: (extent.index, extent.end),
                    database: database.clone(),
                    cancelled: self.cancelled.clone(),
                }))
            }
            Work::Built(built) => {
                let entries = *self.entries.get_or_insert_with(|| Entries::of_size(built.page_size));
                if entries.page_size() != built.page_size {
                    self.lose(TableError::NotADatabase);
                    return None;
                }
                Some(TableJob::Write(self.write(shadow, entries, built.file, built.page_count, None)))
            }
            Work::None => {
                let standing = self.standing.clone()?;
                let (from, entries) = ((standing.position, self.state?), self.entries?);
                self.written_at = Some(now);
                Some(TableJob::Write(self.write(
                    shadow,
                    entries,
                    standing.file,
                    standing.page_count,
                    Some(from),
                )))
            }
            work @ (Work::Building | Work::Writing(..)) => {
                self.work = work;
                None
            }
        }
    }

    fn write(
        &mut self,
        shadow: &ShadowWal,
        entries: Entries,
        file: Arc<dyn DiskFile>,
        before: PageCount,
        from: Option<((Index, Offset), DatabaseState)>,
    ) -> TableWrite {
        let changes = Arc::new(self.changes.split_off());
        let position = shadow.extent().position();
        self.work = Work::Writing(Arc::clone(&changes), position.index);
        TableWrite {
            disk: Arc::clone(&self.disk),
            folder: self.folder.clone(),
            shadows: self.shadows.clone(),
            position,
            entries,
            file,
            before,
            from,
            changes,
            is_volatile: shadow.is_volatile(),
        }
    }

    /// Takes in how a job ended.
    pub fn on_job(&mut self, outcome: TableOutcome) {
        match (outcome, &self.work) {
            (TableOutcome::Built(Ok(built)), Work::Building) => self.work = Work::Built(built),
            (TableOutcome::Written(Ok(written)), Work::Writing(..)) => self.on_written(written),
            (TableOutcome::Built(Err(error)), Work::Building)
            | (TableOutcome::Written(Err(error)), Work::Writing(..)) => self.lose(error),
            // Of a table that was given up meanwhile.
            _ => {}
        }
    }

    fn on_written(&mut self, written: WrittenTable) {
        let WrittenTable { file, position, state } = written;
        self.work = Work::None;
        self.build_pause = BUILD_PAUSE;
        let standing = Standing { file, position, page_count: state.page_count };
        if self.state.is_none()
            && let Some(entries) = self.entries
        {
            // What was copied while it was written is little.
            match self.changes.apply_to(state, &entries, |number| standing.entry(number, &entries)) {
                Ok(state) => self.state = Some(state),
                Err(e) => return self.lose(e.into()),
            }
        }
        self.standing = Some(standing);
    }

    /// Whether changes are being written into it: a moment later it can be compared with.
    pub fn is_being_written(&self) -> bool {
        matches!(self.work, Work::Writing(..))
    }

    /// Takes over what is on the disk, and follows the shadow from there on.
    fn recover(&mut self, shadow: &mut ShadowWal) -> Result<(), TableError> {
        let extent = shadow.extent().clone();
        let file = match self.disk.open(&self.folder.join(PAGE_TABLE), false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let changes = self.disk.read(&self.folder.join(PAGE_TABLE_CHANGES))?;
        let Some(header) = finish(&*file, changes.as_deref().and_then(TableChanges::parse))? else {
            return Ok(());
        };
        let (index, offset) = (header.position.index, header.position.offset);
        let reaches = extent.end_of(index).is_some_and(|end| offset <= end);
        if header.position.generation != extent.generation || !reaches {
            return Ok(());
        }
        let entries = Entries::of_size(header.page_size);
        if checksum_of(&*file, header.state.page_count)? != header.state.checksum {
            return Ok(());
        }
        self.entries = Some(entries);
        self.state = Some(header.state);
        let page_count = header.state.page_count;
        self.standing = Some(Standing { file, position: (index, offset), page_count });
        self.follow(shadow, &extent, (index, offset))
    }

    /// Takes in what is in the shadow behind `from`.
    fn follow(
        &mut self,
        shadow: &mut ShadowWal,
        extent: &ShadowExtent,
        from: (Index, Offset),
    ) -> Result<(), TableError> {
        let mut staged = StagedFrames::default();
        let (mut index, mut offset) = from;
        loop {
            let Some(end) = extent.end_of(index) else {
                self.forget();
                return Ok(());
            };
            let entries = self.entries;
            let (disk, shadows) = (Arc::clone(&self.disk), self.shadows.clone());
            if offset < end {
                read_frames(&*disk, &shadows, (index, offset), end, |number, page, commit| {
                    if let Some(entries) = &entries {
                        staged.0.push((number, entries.of(number, page), commit));
                    }
                    // At a commit, so that memory stays flat.
                    if commit.is_some() {
                        self.take(&mut staged);
                    }
                    Ok(())
                })?;
            }
            if let Some(problem) = self.problem.take() {
                return Err(problem);
            }
            shadow.set_state(index, self.state);
            match index.next().filter(|_| index < extent.index) {
                Some(next) => (index, offset) = (next, Offset::ZERO),
                None => return Ok(()),
            }
        }
    }
}

impl Drop for SourceTable {
    fn drop(&mut self) {
        self.cancelled.set();
    }
}

/// The entries that pages had before the changes in memory.
fn below<'a>(
    standing: Option<&'a Standing>,
    work: &'a Work,
    entries: &'a Entries,
) -> impl FnMut(u32) -> io::Result<PageEntry> + 'a {
    move |number| {
        let being_written = match work {
            Work::Writing(changes, _) => changes.get(number, entries),
            _ => None,
        };
        match (being_written, standing) {
            (Some(entry), _) => Ok(entry),
            (None, Some(standing)) => standing.entry(number, entries),
            // Nobody asks before there is a state.
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
