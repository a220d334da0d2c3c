//! What a worker is asked to do for a database, and what it brings back.

use super::attach::{AttachOutcome, AttachRequest, Attached, FileIdentity};
use super::round::UrgentReport;
use crate::core::position::{Generation, Index, Offset};
use crate::disk::{Disk, DiskFile};
use crate::sqlite::{Handle, SqliteError, WalExtent};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Work that takes time, for a worker. It brings back what it was lent.
pub enum LocalJob {
    /// Attach to a database.
    Attach(AttachRequest),
    /// Make the shadow durable.
    Sync(ShadowSync),
    /// Make the shadow durable and checkpoint, beside the writers.
    Checkpoint {
        /// Lent.
        checkpointer: Handle,
        /// What must be durable before the checkpoint.
        sync: Option<ShadowSync>,
        /// Checked before the checkpoint: never into a file that was put in the database's place.
        database: PathBuf,
        /// The file we hold.
        identity: FileIdentity,
    },
    /// An urgent round.
    Urgent {
        /// Lent.
        attached: Box<Attached>,
        /// As in `Checkpoint`.
        database: PathBuf,
        /// How long the write lock may be held.
        budget: Duration,
    },
    /// Remove the shadows of earlier generations.
    RemoveGenerations {
        /// Our state.
        meta: PathBuf,
        /// The present one.
        keep: Generation,
        /// Where they are.
        disk: Arc<dyn Disk>,
    },
}

/// A part of the shadow to make durable.
pub struct ShadowSync {
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Which index it holds.
    pub index: Index,
    /// Durable up to here, once it is done.
    pub end: Offset,
}

/// How a [`LocalJob`] ended.
pub enum LocalOutcome {
    /// Of `Attach`.
    Attach(AttachOutcome),
    /// Of `Sync`: whether it is durable.
    Synced(Index, Offset, std::io::Result<()>),
    /// Of `Checkpoint`.
    Checkpointed {
        /// Brought back.
        checkpointer: Handle,
        /// What was made durable.
        synced: Option<(Index, Offset)>,
        /// What the wal-index said then.
        result: Result<WalExtent, CheckpointFailure>,
    },
    /// Of `Urgent`.
    Urgent(Box<Attached>, UrgentReport),
    /// Of `RemoveGenerations`.
    Removed(std::io::Result<()>),
}

/// Why a checkpoint was not carried out.
#[derive(Debug)]
pub enum CheckpointFailure {
    /// The shadow could not be made durable.
    Sync(std::io::Error),
    /// Another file is at the database's path.
    Replaced,
    /// SQLite's answer.
    Sqlite(SqliteError),
}
