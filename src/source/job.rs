//! What a worker is asked to do for a database, and what it brings back.

use super::attach::{AttachOutcome, AttachRequest, Attached};
use super::checkpointer::Checkpointer;
use super::compare::{Compared, Doubt};
use super::held_files::HeldFiles;
use super::inspect::Inspection;
use super::leave::{LeaveOutcome, LeaveRequest};
use super::let_go::{LetGoOutcome, LetGoRequest};
use super::round::{RoundPlan, RoundReport};
use crate::core::evidence::Stamp;
use crate::core::position::Generation;
use crate::core::sync::Break;
use crate::core::wal_index::Checkpointed;
use crate::disk::Disk;
use crate::page_table::{TableJob, TableOutcome};
use crate::shadow::{DurabilityChange, ShadowSync};
use crate::sqlite::SqliteError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Work that takes time, for a worker. It brings back what it was lent.
pub enum LocalJob {
    /// Attach to a database.
    Attach(AttachRequest),
    /// Make the shadow durable.
    Sync(ShadowSync),
    /// Make all of the shadow durable, or say that it will not be.
    Durability(DurabilityChange),
    /// Make the shadow durable and checkpoint, beside the writers.
    Checkpoint {
        /// Lent.
        checkpointer: Box<Checkpointer>,
        /// What must be durable before the checkpoint.
        sync: Option<ShadowSync>,
        /// Checked before the checkpoint: never into a file that was put in the database's place, nor by a wal-index that
        /// was removed.
        files: HeldFiles,
        /// How the file must be, if nobody else is there: whoever writes it then does not use SQLite.
        stamp: Option<Stamp>,
        /// How long it tries while somebody else checkpoints.
        patience: Duration,
    },
    /// A round beside writers that never pause.
    Round {
        /// Lent.
        attached: Box<Attached>,
        /// Compared with what is held, as in `Checkpoint`.
        database: PathBuf,
        /// Whether the write lock is taken.
        plan: RoundPlan,
    },
    /// Prove by the page table what became of the database while nobody of us held it.
    Compare {
        /// Lent.
        attached: Box<Attached>,
        /// Compared with what is held, as in `Checkpoint`.
        database: PathBuf,
        /// Its WAL.
        wal: PathBuf,
        /// What begins otherwise.
        next_generation: Generation,
    },
    /// Find out who has written the file while nobody had it open.
    Inspect(Box<Attached>),
    /// Let go of a database that nobody else has open.
    LetGo(LetGoRequest),
    /// Leave a database whose file is not at its path any more.
    Leave(LeaveRequest),
    /// Work on the page table; beside the others.
    Table(TableJob),
    /// Remove the shadows of earlier generations. They are named: a generation that begins meanwhile is not among them.
    Remove {
        /// Folders.
        paths: Vec<PathBuf>,
        /// Where they are.
        disk: Arc<dyn Disk>,
    },
}

impl LocalJob {
    /// Whether it waits for a moment of a few microseconds, which passes while others have the processor.
    pub fn awaits_a_moment(&self) -> bool {
        matches!(self, LocalJob::Round { plan: RoundPlan::Following { .. }, .. })
    }
}

/// How a [`LocalJob`] ended.
pub enum LocalOutcome {
    /// Of `Attach`.
    Attach(AttachOutcome),
    /// Of `Sync`: whether it is durable.
    Synced(ShadowSync, io::Result<()>),
    /// Of `Durability`.
    Durability(DurabilityChange, io::Result<()>),
    /// Of `Checkpoint`.
    Checkpointed {
        /// Brought back.
        checkpointer: Box<Checkpointer>,
        /// What was to be made durable first, and whether it is.
        synced: Option<(ShadowSync, io::Result<()>)>,
        /// What came of it; `None` if it did not come to that.
        result: Option<Result<Checkpointed, CheckpointFailure>>,
        /// The file directly after it; `None` if the checkpoint did not begin.
        stamp: Option<Stamp>,
    },
    /// Of `Round`.
    Round(Box<Attached>, RoundReport),
    /// Of `Compare`.
    Compared(Box<Attached>, Result<Compared, Doubt>),
    /// Of `Inspect`.
    Inspected(Box<Attached>, Inspection),
    /// Of `LetGo`.
    LetGo(LetGoOutcome),
    /// Of `Leave`.
    Left(LeaveOutcome),
    /// Of `Table`.
    Table(TableOutcome),
    /// Of `Remove`.
    Removed(io::Result<()>),
}

/// Why a checkpoint was not carried out.
#[derive(Debug)]
pub enum CheckpointFailure {
    /// What is held is not what is at its path any more.
    Replaced(Break),
    /// The file was written by something other than SQLite.
    Overwritten,
    /// SQLite's answer when it was to begin.
    NotBegun(SqliteError),
    /// SQLite's answer.
    Sqlite(SqliteError),
}
