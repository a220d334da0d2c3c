//! What a worker does for a page table: it reads the whole database, or writes changes into the table.

use super::TableError;
use super::comparison::Interruption;
use super::part::PartRead;
use crate::core::names::{PAGE_TABLE, PAGE_TABLE_CHANGES};
use crate::core::page::{PageCount, PageNumber, PageSize};
use crate::core::page_table::{DatabaseChecksum, DatabaseState, Entries, PageChanges, PageEntry};
use crate::core::position::{Index, Offset, Position};
use crate::core::table_file::{
    ENTRY_LENGTH, HEADER_LENGTH, TableChanges, TableHeader, entry_offset, table_length,
};
use crate::database_file::DatabaseFile;
use crate::disk::{Disk, DiskFile, read_full};
use crate::shadow::{ShadowReader, sync_indexes};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Read, and written, in one go, in bytes: bounds memory.
const CHUNK: usize = 1 << 20;

/// Work on a table, for a worker.
pub enum TableJob {
    /// Read the whole database. It takes long.
    Build(TableBuild),
    /// Write changes into the table.
    Write(TableWrite),
    /// Read a part of the database.
    Read(PartRead),
}

/// How a [`TableJob`] ended.
pub enum TableOutcome {
    /// Of `Build`.
    Built(Result<BuiltTable, TableError>),
    /// Of `Write`.
    Written(Result<WrittenTable, TableError>),
    /// Of `Read`.
    Read(Result<Vec<PageEntry>, TableError>),
}

impl TableJob {
    /// Carries it out.
    pub fn run(self) -> TableOutcome {
        match self {
            TableJob::Build(build) => TableOutcome::Built(build.run()),
            TableJob::Write(write) => TableOutcome::Written(write.run()),
            TableJob::Read(part) => TableOutcome::Read(part.run()),
        }
    }
}

/// A database to read.
pub struct TableBuild {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    pub(super) shadows: PathBuf,
    /// What was copied before is read from the shadow; of earlier indexes everything is in the file.
    pub(super) copied: (Index, Offset),
    pub(super) database: DatabaseFile,
    pub(super) cancelled: Interruption,
}

/// A table without a header: its entries are those of the file as it was read, and of what was copied before.
pub struct BuiltTable {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) page_size: PageSize,
    pub(super) page_count: PageCount,
}

impl TableBuild {
    fn run(self) -> Result<BuiltTable, TableError> {
        // Changes of an earlier table must not be taken for those of this one.
        self.disk.open(&self.folder.join(PAGE_TABLE_CHANGES), true)?.sync()?;
        let file = self.disk.open(&self.folder.join(PAGE_TABLE), true)?;
        let mut header = [0; 18];
        self.database.read_exact_at(&mut header, 0).map_err(TableError::Database)?;
        let page_size =
            PageSize::from_database_header([header[16], header[17]]).ok_or(TableError::NotADatabase)?;
        // The application's pages stay in the cache, ours go first. That is only advice.
        let _ = rustix::fs::fadvise(&*self.database, 0, None, rustix::fs::Advice::NoReuse);
        let entries = Entries::of_size(page_size);
        // First, since reading the database may take longer than the shadow of that index is kept.
        let copied = self.copied_changes(&entries)?;
        let before = self.read_pages(&*file, &entries)?;
        let page_count = copied.page_count().unwrap_or(before);
        write_entries(&*file, &copied.writes(before, &entries), page_count)?;
        Ok(BuiltTable { file, page_size, page_count })
    }

    fn read_pages(&self, file: &dyn DiskFile, entries: &Entries) -> Result<PageCount, TableError> {
        let size = entries.page_size().get() as usize;
        let (mut buffer, mut bytes) = (vec![0; CHUNK], Vec::with_capacity(CHUNK / size * ENTRY_LENGTH));
        let mut pages: u32 = 0;
        loop {
            if self.cancelled.is_set() {
                return Err(TableError::Cancelled);
            }
            let at = u64::from(pages) * size as u64;
            let read = read_full(&self.database, &mut buffer, at).map_err(TableError::Database)?;
            bytes.clear();
            let first = pages + 1;
            // A part of a page at the end is one that is being written; it is in the WAL, too.
            for page in buffer.get(..read).unwrap_or_default().chunks_exact(size) {
                pages = pages.checked_add(1).ok_or(TableError::NotADatabase)?;
                let number = PageNumber::new(pages).ok_or(TableError::NotADatabase)?;
                bytes.extend_from_slice(&entries.of(number, page).get().to_le_bytes());
            }
            if bytes.is_empty() {
                return PageCount::new(pages).ok_or(TableError::NotADatabase);
            }
            file.write_at(&bytes, entry_offset(first))?;
        }
    }

    /// What was copied of the present index before the reading began, and may not be in the file yet.
    fn copied_changes(&self, entries: &Entries) -> Result<PageChanges, TableError> {
        let (index, end) = self.copied;
        let mut changes = PageChanges::default();
        if end == Offset::ZERO {
            return Ok(changes);
        }
        read_frames(&*self.disk, &self.shadows, (index, Offset::ZERO), end, |number, page, commit| {
            changes.push(number, entries.of(number, page));
            let no_state =
                commit.map(|count| changes.commit(count, entries, None, |_| Ok(PageEntry::default())));
            no_state.transpose().map(drop).map_err(|e: io::Error| e.into())
        })?;
        Ok(changes)
    }
}

/// Changes to write into a table.
pub struct TableWrite {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    pub(super) shadows: PathBuf,
    /// Where the table stands then.
    pub(super) position: Position,
    pub(super) entries: Entries,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) before: PageCount,
    /// Where it stands now, and the state after the changes; `None` for the first ones.
    pub(super) from: Option<((Index, Offset), DatabaseState)>,
    pub(super) changes: Arc<PageChanges>,
    /// The shadow is: then the table need not be durable either.
    pub(super) is_volatile: bool,
}

/// A table that stands.
pub struct WrittenTable {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) position: (Index, Offset),
    pub(super) state: DatabaseState,
}

impl TableWrite {
    /// Whether nothing is made durable.
    pub fn is_volatile(&self) -> bool {
        self.is_volatile
    }

    fn run(self) -> Result<WrittenTable, TableError> {
        let Position { generation, index, offset } = self.position;
        let earliest = self.from.map_or(index, |((index, _), _)| index);
        if !self.is_volatile {
            sync_indexes(&*self.disk, &self.shadows, earliest, index).map_err(TableError::ShadowSync)?;
        }
        let page_count = self.changes.page_count().unwrap_or(self.before);
        let writes = self.changes.writes(self.before, &self.entries);
        let (position, page_size) = (self.position, self.entries.page_size());
        let header = |state| TableHeader { position, page_size, state };
        let state = match self.from {
            Some(((from_index, from_offset), state)) => {
                let from = Position::new(generation, from_index, from_offset);
                let changes = TableChanges { from, to: header(state), writes };
                let file = self.disk.open(&self.folder.join(PAGE_TABLE_CHANGES), false)?;
                file.write_at(&changes.encode(), 0)?;
                self.sync(&*file)?;
                write_entries(&*self.file, &changes.writes, page_count)?;
                state
            }
            None => {
                write_entries(&*self.file, &writes, page_count)?;
                if !self.is_volatile {
                    self.disk.sync_folder(&self.folder)?;
                }
                DatabaseState { page_count, checksum: checksum_of(&*self.file, page_count)? }
            }
        };
        self.file.write_at(&header(state).encode(), 0)?;
        self.sync(&*self.file)?;
        Ok(WrittenTable { file: self.file, position: (index, offset), state })
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        if self.is_volatile { Ok(()) } else { file.sync() }
    }
}

/// The header of a table; what was left half done of `changes` is done first. `None` if there is no whole header.
pub(super) fn finish(file: &dyn DiskFile, changes: Option<TableChanges>) -> io::Result<Option<TableHeader>> {
    let mut bytes = [0; HEADER_LENGTH];
    let header = match file.read_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => None,
        other => other.map(|()| TableHeader::parse(&bytes))?,
    };
    let Some(changes) = changes else { return Ok(header) };
    if header.is_some_and(|header| header.position != changes.from) {
        return Ok(header);
    }
    write_entries(file, &changes.writes, changes.to.state.page_count)?;
    file.write_at(&changes.to.encode(), 0)?;
    file.sync()?;
    Ok(Some(changes.to))
}

fn write_entries(file: &dyn DiskFile, writes: &[(u32, PageEntry)], page_count: PageCount) -> io::Result<()> {
    let (mut at, mut run) = (0, Vec::with_capacity(CHUNK.min(writes.len() * ENTRY_LENGTH)));
    for (number, entry) in writes {
        let offset = entry_offset(*number);
        if offset != at + run.len() as u64 || run.len() >= CHUNK {
            file.write_at(&run, at)?;
            run.clear();
            at = offset;
        }
        run.extend_from_slice(&entry.get().to_le_bytes());
    }
    file.write_at(&run, at)?;
    file.set_length(table_length(page_count))
}

/// How a database differs from what its table says.
pub struct Difference {
    /// Its size.
    pub page_count: PageCount,
    /// The pages that differ, in order; with another size, one of them at the least.
    pub pages: Vec<PageNumber>,
    /// How to make the entries of pages.
    pub entries: Entries,
}

/// What a page holds that the database has grown by, and that nobody has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// What a replay of the history makes of it.
    Zeros,
    /// What it held before the database shrank: SQLite never reads it, and cuts the file only at a checkpoint's end.
    Anything,
}

/// Compares so many pages of the database; those behind the end of the file are zeros, as SQLite reads them. `counts`
/// are the pages in the table on disk, and with `changes` laid over it.
pub(super) fn compare(
    (database, page_count): (&File, PageCount),
    table: &dyn DiskFile,
    counts: (PageCount, PageCount),
    changes: &PageChanges,
    (entries, unwritten): (Entries, Unwritten),
    interruption: &Interruption,
) -> Result<Difference, TableError> {
    let size = entries.page_size().get() as usize;
    let (mut pages, mut known) = (Vec::new(), Vec::new());
    let (mut buffer, mut first) = (vec![0; CHUNK], 1);
    let (on_disk, before) = counts;
    while first <= page_count.get() {
        if interruption.is_set() {
            return Err(TableError::Cancelled);
        }
        let wanted = (CHUNK / size).min((page_count.get() - first) as usize + 1);
        let part = buffer.get_mut(..wanted * size).unwrap_or_default();
        let at = u64::from(first - 1) * size as u64;
        read_or_zeros(database, part, at).map_err(TableError::Database)?;
        read_entries(table, on_disk, (first, wanted), &mut known)?;
        for (page, number) in part.chunks_exact(size).zip(first..) {
            let at = (number - first) as usize;
            let in_table = || known.as_chunks::<ENTRY_LENGTH>().0.get(at).map(|e| u64::from_le_bytes(*e));
            let entry = match changes.get(number, &entries) {
                Some(entry) => entry,
                None => in_table().map_or(entries.blank(number), PageEntry::new),
            };
            if unwritten == Unwritten::Anything && entry == entries.blank(number) {
                continue;
            }
            let number = PageNumber::new(number).ok_or(TableError::NotADatabase)?;
            let is_new = number.get() > before.get();
            let now = entries.of(number, page);
            // The lock-byte page is in no WAL.
            if (is_new || now != entry) && now != PageEntry::default() {
                pages.push(number);
            }
        }
        first += wanted as u32;
    }
    Ok(Difference { page_count, pages, entries })
}

/// Reads the entries of so many pages from the first on, as far as there are any in a table of `on_disk` pages.
pub(super) fn read_entries(
    table: &dyn DiskFile,
    on_disk: PageCount,
    (first, wanted): (u32, usize),
    known: &mut Vec<u8>,
) -> io::Result<()> {
    let in_table = (on_disk.get() + 1).saturating_sub(first).min(wanted as u32) as usize;
    known.resize(in_table * ENTRY_LENGTH, 0);
    table.read_at(known, entry_offset(first))
}

pub(super) fn read_or_zeros(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match FileExt::read_at(file, rest, at + filled as u64) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The size of a database whose file is the whole of it: the header's, where that is valid (SQLite file format, 1.3.7),
/// or the file's.
pub(super) fn page_count_of(database: &File, page_size: PageSize) -> Result<PageCount, TableError> {
    let mut header = [0; 100];
    FileExt::read_exact_at(database, &mut header, 0).map_err(TableError::Database)?;
    if PageSize::from_database_header([header[16], header[17]]) != Some(page_size) {
        return Err(TableError::NotADatabase);
    }
    let in_file = file_page_count_of(database, page_size)?;
    let count = PageCount::from_database_header(&header).filter(|count| *count <= in_file);
    Ok(count.unwrap_or(in_file))
}

/// How many pages a file has by its length.
pub(super) fn file_page_count_of(database: &File, page_size: PageSize) -> Result<PageCount, TableError> {
    let length = database.metadata().map_err(TableError::Database)?.len();
    let count = u32::try_from(length / u64::from(page_size.get())).ok();
    count.and_then(PageCount::new).ok_or(TableError::NotADatabase)
}

/// The XOR of all entries.
pub(super) fn checksum_of(file: &dyn DiskFile, page_count: PageCount) -> io::Result<DatabaseChecksum> {
    let mut checksum = DatabaseChecksum::default();
    let (mut at, end) = (entry_offset(1), table_length(page_count));
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let length = buffer.len().min((end - at) as usize);
        let part = buffer.get_mut(..length).unwrap_or_default();
        file.read_at(part, at)?;
        for entry in part.as_chunks::<ENTRY_LENGTH>().0 {
            checksum.toggle(PageEntry::new(u64::from_le_bytes(*entry)));
        }
        at += length as u64;
    }
    Ok(checksum)
}

/// Hands out every frame of an index from `from`, where a commit ends, to `to`, where one ends, too.
pub(super) fn read_frames(
    disk: &dyn Disk,
    shadows: &Path,
    from: (Index, Offset),
    to: Offset,
    mut each: impl FnMut(PageNumber, &[u8], Option<PageCount>) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut reader = ShadowReader::open(disk, shadows, from.0, from.1)?;
    let mut buffer = Vec::new();
    loop {
        reader.read(&mut buffer, to, to, CHUNK)?;
        if buffer.is_empty() {
            return Ok(());
        }
        for (header, page) in reader.frames(&buffer) {
            if let Some(number) = header.page {
                each(number, page, header.commit)?;
            }
        }
    }
}
