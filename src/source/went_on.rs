//! Whether a WAL that we had left with its file, which was written since, still continues it. Its program may have gone on and
//! been killed: then SQLite recovers from it, and its commits may be nowhere else. Or others have worked on the file by
//! another name: then, laid over that, it could make it malformed.

use super::held::Held;
use super::proof;
use crate::core::page::PageNumber;
use crate::core::page_table::{Entries, PageEntry};
use crate::core::position::Offset;
use crate::core::scan::Chain;
use crate::core::wal::WalHeader;
use crate::database_file::DatabaseFile;
use crate::disk::read_full;
use crate::page_table::{SourceTable, TableError};
use crate::shadow::ShadowWal;
use log::{info, warn};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Read at once, in bytes.
const WINDOW: u64 = 1 << 20;

/// Whether that of the database at `path` does. Only a program that had both open when we left, or has committed since, can
/// have been killed with it. Reads all of both.
///
/// # Errors
/// What could not be read.
pub(super) fn continues(
    shadow: &mut ShadowWal,
    held: Held,
    path: &Path,
    database: &DatabaseFile,
    wal: &File,
) -> io::Result<bool> {
    let (Some(away), Some(copied), Some(header)) = (held.away(), shadow.facts(), proof::wal_header_of(wal))
    else {
        return Ok(false);
    };
    let committed = Committed::read(wal, header)?;
    let is_restarted = header != copied.header;
    let went_on = committed.end > if is_restarted { Offset::ZERO } else { copied.end };
    if !went_on && !away.is_used {
        return Ok(false);
    }
    if went_on && is_written_last(wal, database, away.modified)? {
        info!("{}: its -wal was written last, and stays with it", path.display());
        return Ok(true);
    }
    let table = SourceTable::of(shadow);
    let difference = match table.compare_file(database) {
        Ok(difference) => difference,
        Err(TableError::Cancelled | TableError::NotADatabase) => return Ok(false),
        Err(error) => return Err(io::Error::other(error)),
    };
    // A page of the WAL is not read from the file, whatever is there.
    let is_laid_over = |number: &PageNumber| committed.has(*number);
    let continues = difference.pages.iter().all(is_laid_over)
        // Other WALs may have come and gone; this one was being checkpointed.
        || is_restarted && committed.is_any_in(database)?;
    if continues {
        warn!(
            "{}: was written after the agent had left it with its -wal, which stays there, as the program has left it that \
             had both: should others have worked on the file meanwhile, check it with PRAGMA integrity_check",
            path.display()
        );
    }
    Ok(continues)
}

/// Whether a WAL was written after its file, and that after `since`.
pub(super) fn is_written_last(wal: &File, database: &File, since: Duration) -> io::Result<bool> {
    let written = proof::stamp_of(database)?.modified;
    // In the same tick of the clock, a commit behind a checkpoint is likelier than anything else. What was copied over the
    // file with its old time was not written by its program.
    Ok(proof::stamp_of(wal)?.modified >= written && written >= since)
}

/// What the commits of a WAL have made of its pages, and where the last one ends.
struct Committed {
    entries: Entries,
    /// Sorted; a page as often as it has other content.
    pages: Vec<(PageNumber, PageEntry)>,
    end: Offset,
}

impl Committed {
    fn read(wal: &File, header: WalHeader) -> io::Result<Committed> {
        let entries = Entries::of_size(header.page_size());
        let mut committed = Committed { entries, pages: Vec::new(), end: Offset::ZERO };
        let (mut chain, mut open) = (Chain::new(header), Vec::new());
        let frame = header.page_size().frame_length();
        let mut bytes = vec![0; (WINDOW / frame * frame) as usize];
        loop {
            let read = read_full(wal, &mut bytes, chain.end().get())?;
            let taken = chain.extend(&bytes[..read], |frame, page| {
                open.extend(frame.page.map(|number| (number, entries.of(number, page))));
                if frame.commit.is_some() {
                    committed.pages.append(&mut open);
                }
            });
            if !taken.is_ok_and(|taken| taken > 0) {
                committed.end = chain.commit().map_or(Offset::ZERO, |commit| commit.end);
                committed.pages.sort_unstable();
                committed.pages.dedup();
                return Ok(committed);
            }
        }
    }

    fn has(&self, page: PageNumber) -> bool {
        self.pages.binary_search_by_key(&page, |(number, _)| *number).is_ok()
    }

    /// Whether a page of it is in the file.
    fn is_any_in(&self, database: &File) -> io::Result<bool> {
        let size = u64::from(self.entries.page_size().get());
        let mut page = vec![0; size as usize];
        for versions in self.pages.chunk_by(|(one, _), (next, _)| one == next) {
            let &[(number, _), ..] = versions else { continue };
            let read = read_full(database, &mut page, u64::from(number.get() - 1) * size)?;
            if read == page.len() && versions.contains(&(number, self.entries.of(number, &page))) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
