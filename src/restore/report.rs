//! What a restore says while it works and when it is done.

use crate::core::names::Object;
use crate::core::page::PageSize;
use crate::core::position::{Index, Position};
use crate::core::restore::{Check, Note};
use std::fmt;

/// What a restore is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Fetching, verifying and writing at the same time; counted in bytes of the replica.
    Fetch,
    /// Making it durable and asking SQLite; not counted.
    Check,
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes done in this phase.
    pub done: u64,
    /// All bytes of this phase by the listing; a live replica can turn out to have a little more. 0 if not counted.
    pub total: u64,
}

/// The end of the replica's WAL that could not be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The last segment.
    pub object: Object,
    /// Whether bytes of it are missing: its upload was cut off, or the server lost them.
    pub torn: bool,
    /// Bytes of WAL behind the last whole commit that were there and were left out.
    pub bytes: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.object.path();
        match self.torn {
            true => {
                write!(f, "{path} is cut short: its upload did not finish, or the server lost its end. ")?
            }
            false => write!(f, "{path} ends inside a transaction. ")?,
        }
        write!(f, "Restored to the last whole commit; {} bytes of WAL behind it left out", self.bytes)
    }
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// The end of the last commit that is in the restored database.
    pub position: Position,
    /// Where the restored pages were compared with the checksum of the source's, and equal; the last such position.
    pub proven: Option<Position>,
    /// The snapshot it began with.
    pub snapshot: Index,
    /// WALs replayed on it.
    pub indexes: usize,
    /// Bytes fetched from the replica.
    pub fetched: u64,
    /// Pages of the restored database.
    pub pages: u64,
    /// Their size.
    pub page_size: PageSize,
    /// What could not be restored at the end, if anything.
    pub cut: Option<Cut>,
    /// What else is worth knowing.
    pub notes: Vec<Note>,
    /// What SQLite was asked.
    pub check: Check,
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RestoreReport { position, snapshot, indexes, fetched, pages, page_size, .. } = self;
        writeln!(f, "restored to {position}")?;
        writeln!(f, "from snapshot {snapshot} and {indexes} WAL indexes, {fetched} bytes fetched")?;
        write!(f, "{pages} pages of {page_size} bytes; ")?;
        f.write_str(match self.check {
            Check::Quick => "every checksum is right and SQLite's quick_check found nothing wrong",
            Check::Full => "every checksum is right and SQLite's integrity_check found nothing wrong",
            Check::None => "every checksum of an object is right; SQLite was not asked",
        })?;
        match self.proven {
            Some(proven) if proven == *position => {
                f.write_str("\nproven equal to the source at that position")?
            }
            Some(proven) => write!(f, "\nproven equal to the source at {proven}")?,
            None => {}
        }
        self.cut.iter().try_for_each(|cut| write!(f, "\nwarning: {cut}"))?;
        self.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
    }
}
