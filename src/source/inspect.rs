//! Who has written a file that was written while nobody had it open: a checkpoint that was killed, or something that is
//! not SQLite.
//!
//! Its times cannot tell, nor can its header: a program may come, and be killed in its checkpoint, between two looks of
//! ours; and a backup may have the header that the database has. Its pages can. A checkpoint writes what is in the WAL,
//! and nothing behind our reader's mark, so nothing that is not copied. So each page either is in the copied WAL, and then
//! whatever stands in the file counts for nothing, or must be what the page table says. To take a killed checkpoint for
//! another file would lose the commits in its WAL.

use super::attach::Attached;
use super::proof;
use crate::core::page::PageNumber;
use crate::locks;
use crate::page_table::TableError;
use std::io;
use std::thread;
use std::time::Duration;

/// How often it is tried while the file is being written, and the pause between two tries.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// What the pages of a file say.
#[derive(Debug)]
pub enum Inspection {
    /// With its WAL, it is the database.
    Checkpointed,
    /// It is not.
    Overwritten,
    /// Somebody has it open now.
    Used,
    /// It is still being written.
    Unsettled,
    /// They could not be compared.
    Unknown(InspectionError),
}

/// Why the pages of a file could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    /// There is no table, or it or the file could not be read.
    #[error("page table: {0}")]
    Table(#[from] TableError),
    /// The shadow, or the file's times, could not be read.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Compares a file that nobody else has open with the page table and the WAL.
pub fn inspect(attached: &Attached) -> Inspection {
    (0..TRIES)
        .find_map(|_| try_inspect(attached).unwrap_or_else(|e| Some(Inspection::Unknown(e))))
        .unwrap_or(Inspection::Unsettled)
}

/// `None` if the file was written meanwhile.
fn try_inspect(attached: &Attached) -> Result<Option<Inspection>, InspectionError> {
    let before = proof::stamp_of(&attached.descriptor)?;
    if locks::is_shared(&attached.descriptor)? {
        return Ok(Some(Inspection::Used));
    }
    let is_whole = is_whole(attached)?;
    if proof::stamp_of(&attached.descriptor)? != before {
        thread::sleep(PAUSE);
        return Ok(None);
    }
    Ok(Some(if is_whole { Inspection::Checkpointed } else { Inspection::Overwritten }))
}

/// Whether the file, with the copied WAL laid over it, is what was committed last.
fn is_whole(attached: &Attached) -> Result<bool, InspectionError> {
    let capture = &attached.capture;
    let difference = capture.table.compare(&attached.descriptor)?;
    let in_wal = capture.shadow.pages()?;
    let count = capture.table.state().map_or(0, |state| state.page_count.get());
    let counts_for_nothing = |number: &PageNumber| number.get() > count || in_wal.contains(number);
    let mut missing = (difference.page_count.get() + 1..=count).filter_map(PageNumber::new);
    Ok(difference.pages.iter().all(counts_for_nothing) && missing.all(|number| counts_for_nothing(&number)))
}
