//! Who has written a file that was written while nobody had it open: a checkpoint that was killed, or something that is
//! not SQLite.
//!
//! Its times cannot tell, nor can its header: a program may come, and be killed in its checkpoint, between two looks of
//! ours; and a backup may have the header that the database has. Its pages can. A checkpoint writes the newest frame of
//! a page, or leaves the page alone; once it says that a frame is backfilled, SQLite reads that page from the file. So
//! of a page whose newest frame is behind that point, nobody reads what stands in the file; every other page must be
//! what the page table says. Beside users, too: while the file is read, they are kept from backfilling.
//!
//! To take a killed checkpoint for another file would lose the commits in its WAL.

use super::attach::Attached;
use super::capture::{Look, LookError};
use super::proof;
use super::round::sync_shadow;
use crate::core::page::{PageCount, PageNumber};
use crate::core::sync::Break;
use crate::core::wal_index::WalExtent;
use crate::page_table::TableError;
use std::io;
use std::thread;
use std::time::Duration;

/// How often it is tried to have everything copied, and the pause while SQLite is in the way.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Why the pages of a file are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It was written while we held it, and nobody else had it open.
    Written,
    /// It was written beside those who have it open, and none of them has checkpointed.
    Beside,
    /// It has the WAL that was copied, but nobody of us saw what was done to it since: `cp` over a database leaves its WAL.
    Unseen,
}

/// What the pages of a file say.
#[derive(Debug)]
pub enum Inspection {
    /// With its WAL, it is the database.
    Whole,
    /// It is not.
    Overwritten,
    /// Too much is written just now; it is inspected again.
    Unsettled,
    /// A look on the way found this.
    Broken(Break),
    /// They could not be compared.
    Unknown(InspectionError),
}

/// Why the pages of a file could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    /// There is none to compare with.
    #[error("there is no page table to compare with")]
    NoTable,
    /// It was recovered after everything in it was compared: its frames are in no index.
    #[error("its WAL was recovered")]
    Recovered,
    /// The table or the file could not be read.
    #[error("page table: {0}")]
    Table(#[from] TableError),
    /// It could not be kept as it is.
    #[error("cannot lock its wal-index: {0}")]
    Lock(io::Error),
    /// Not everything could be copied.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The shadow could not be read.
    #[error("cannot read the shadow WAL: {0}")]
    Shadow(#[from] io::Error),
}

/// Compares a file with the page table and the WAL.
pub fn inspect(attached: &mut Attached) -> Inspection {
    let inspection = freeze(attached).and_then(|is_frozen| match is_frozen {
        true => try_inspect(attached),
        false => Ok(Inspection::Unsettled),
    });
    let thawed = attached.guard.thaw();
    let inspection = thawed.map_err(InspectionError::Lock).and(inspection);
    inspection.unwrap_or_else(Inspection::Unknown)
}

/// Keeps everybody from writing into the file, once nobody is just at it.
fn freeze(attached: &mut Attached) -> Result<bool, InspectionError> {
    for _ in 0..TRIES {
        if attached.guard.freeze().map_err(InspectionError::Lock)? {
            return Ok(true);
        }
        thread::sleep(PAUSE);
    }
    Ok(false)
}

fn try_inspect(attached: &mut Attached) -> Result<Inspection, InspectionError> {
    for _ in 0..TRIES {
        let extent = match attached.look()? {
            // What was committed since cannot be in the file.
            Look::UpToDate { extent, .. } | Look::Copied { extent } => extent,
            Look::Broken(reason) => return Ok(Inspection::Broken(reason)),
            Look::More { .. } => continue,
            Look::Unsynced { .. } => match sync_shadow(attached) {
                Ok(()) => continue,
                Err(_) => return Ok(Inspection::Broken(Break::ShadowSyncFailed)),
            },
            Look::Again => {
                thread::sleep(PAUSE);
                continue;
            }
        };
        let is_whole = is_whole(attached, extent)?;
        return Ok(if is_whole { Inspection::Whole } else { Inspection::Overwritten });
    }
    Ok(Inspection::Unsettled)
}

/// Whether the file, with the WAL behind what is backfilled laid over it, is what was committed last.
fn is_whole(attached: &Attached, extent: WalExtent) -> Result<bool, InspectionError> {
    let capture = &attached.capture;
    let Some(state) = capture.table.state() else { return Err(InspectionError::NoTable) };
    let is_backfilled = extent.is_backfilled();
    if capture.settled.is_some() && !is_backfilled {
        return Err(InspectionError::Recovered);
    }
    let read_from = if is_backfilled { u32::MAX } else { extent.backfilled };
    let in_wal = capture.shadow.pages_behind(read_from)?;
    // A copy that is on its way may have been shorter when the table was made, and then the rest comes behind its end.
    let reads_first = PageNumber::new(1).is_some_and(|first| !in_wal.contains(&first));
    let in_header = || PageCount::from_database_header(&proof::header_of(&attached.descriptor));
    if reads_first && in_header().is_some_and(|in_header| in_header > state.page_count) {
        return Ok(false);
    }
    let difference = match capture.table.compare_file(&attached.descriptor) {
        // Not one page.
        Err(TableError::NotADatabase) => return Ok(false),
        difference => difference?,
    };
    let counts_for_nothing =
        |number: &PageNumber| number.get() > state.page_count.get() || in_wal.contains(number);
    Ok(difference.pages.iter().all(counts_for_nothing))
}
