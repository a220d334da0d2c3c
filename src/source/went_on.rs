//! Whether a WAL that we had left with its file, both of which were written since, still continues it. Its program may have
//! gone on and been killed: then SQLite recovers from it, and its commits are nowhere else. Or others have worked on the
//! file by another name: then, laid over that, it would make it malformed.

use crate::core::page::PageNumber;
use crate::core::position::Offset;
use crate::core::scan::Chain;
use crate::core::sync::ShadowFacts;
use crate::core::wal::WalHeader;
use crate::disk::read_full;
use crate::page_table::{SourceTable, TableError};
use crate::shadow::ShadowWal;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Read at once, in bytes.
const WINDOW: u64 = 1 << 20;

/// Whether the WAL has commits that were made after we had left, and continues the file. In doubt it does not.
///
/// # Errors
/// What could not be read, or that there is no page table to compare with.
pub(super) fn went_on(shadow: &mut ShadowWal, database: &File, wal: &File) -> Result<bool, TableError> {
    let Some(copied) = shadow.facts() else { return Ok(false) };
    let mut header = [0; 32];
    let read = wal.read_exact_at(&mut header, 0).ok().and_then(|()| WalHeader::parse(&header).ok());
    let Some(header) = read else { return Ok(false) };
    let pages = Committed::read(wal, header)?;
    if !pages.is_behind(&copied, header) {
        return Ok(false);
    }
    if is_last_writer(wal, database)? {
        return Ok(true);
    }
    let difference = SourceTable::of(shadow).compare_file(database)?;
    // A page of the WAL is not read from the file, whatever is there.
    Ok(difference.pages.iter().all(|number| pages.numbers.contains(number)))
}

/// Whether the WAL was written after anything had happened to the file.
fn is_last_writer(wal: &File, database: &File) -> io::Result<bool> {
    let (wal, database) = (wal.metadata()?, database.metadata()?);
    Ok((wal.mtime(), wal.mtime_nsec()) > (database.ctime(), database.ctime_nsec()))
}

/// What is committed in a WAL: which pages, and where the last commit ends.
struct Committed {
    numbers: HashSet<PageNumber>,
    end: Offset,
}

impl Committed {
    fn read(wal: &File, header: WalHeader) -> io::Result<Committed> {
        let mut committed = Committed { numbers: HashSet::new(), end: Offset::ZERO };
        let (mut chain, mut open) = (Chain::new(header), Vec::new());
        let frame = header.page_size().frame_length();
        let mut bytes = vec![0; (WINDOW / frame * frame) as usize];
        loop {
            let read = read_full(wal, &mut bytes, chain.end().get())?;
            let taken = chain.extend(&bytes[..read], |frame, _| {
                open.extend(frame.page);
                if frame.commit.is_some() {
                    committed.numbers.extend(open.drain(..));
                }
            });
            if !taken.is_ok_and(|taken| taken > 0) {
                committed.end = chain.commit().map_or(Offset::ZERO, |commit| commit.end);
                return Ok(committed);
            }
        }
    }

    /// Whether some of it is not what was copied.
    fn is_behind(&self, copied: &ShadowFacts, header: WalHeader) -> bool {
        let from = if header == copied.header { copied.end } else { Offset::ZERO };
        self.end > from
    }
}
