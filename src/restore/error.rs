//! Why a restore failed, in words that say which object, what it means and what to do.

use crate::core::frame::FrameError;
use crate::core::names::Object;
use crate::core::page_table::DatabaseState;
use crate::core::position::{Index, Offset};
use crate::core::replay::ReplayFault;
use crate::core::restore::RestoreGap;
use crate::remote::RemoteError;
use std::io;
use std::path::PathBuf;

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its LZ4 frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The WAL in it.
    #[error(transparent)]
    Wal(#[from] ReplayFault),
    /// It ends too early, and more comes behind it.
    #[error("it is cut short")]
    CutShort,
    /// A snapshot whose content is not a database.
    #[error("its content is not an SQLite database")]
    NotADatabase,
    /// A snapshot that neither Litestream nor we would write.
    #[error("it has neither a content checksum nor a trailer, so a changed byte would not be noticed")]
    Unverifiable,
    /// What we wrote behind its content says something else.
    #[error("its trailer does not agree with its {0}")]
    Trailer(&'static str),
    /// It begins before the end of the one before it.
    #[error("it begins before offset {0}, where the segment before it ends")]
    Overlap(Offset),
    /// A WAL that is followed by another one must end with a commit.
    #[error("it ends inside a transaction, and yet another index follows")]
    NoCommit,
    /// A trailer says what the source was at a position, and what is restored is something else there.
    #[error(
        "at {}:{} the source had {expected}, and what is restored has {restored}. Every checksum of the objects is right, \
         so they are not all of this history. Another replica may be sound; `--integrity none` restores this one as it is",
        at.0, at.1
    )]
    NotTheSource {
        /// The position, of the plan's generation.
        at: (Index, Offset),
        /// What the source was there.
        expected: DatabaseState,
        /// What came out of the replica.
        restored: DatabaseState,
    },
    /// Its salts were in use before those of the index before it.
    #[error("its WAL is not newer than that of the index before it: objects were exchanged or copied")]
    OutOfOrder,
}

/// Why a restore failed. Nothing exists under the output's name.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The output, or a file that SQLite would take for a part of it, exists.
    #[error(
        "{} exists. A restore never touches a database that is there, nor writes beside the -wal, -shm or -journal \
         of another one; move it away or restore to another path",
        path.display()
    )]
    Exists {
        /// The file that is in the way.
        path: PathBuf,
    },
    /// The local disk.
    #[error("cannot {action} {}: {source}", path.display())]
    Local {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The replica could not be reached or read.
    #[error("the replica cannot be read: {0}")]
    Remote(#[from] RemoteError),
    /// The replica was read, and what is there cannot be restored.
    #[error("{0}")]
    Gap(#[from] RestoreGap),
    /// An object was listed and then was not there.
    #[error("{} was listed, but is not there any more; is something else deleting on this replica?", object.path())]
    Vanished {
        /// The object.
        object: Object,
    },
    /// An object cannot be used.
    #[error(
        "{} cannot be restored: {damage}. What lies behind it cannot be trusted; try another replica",
        object.path()
    )]
    Damaged {
        /// The object.
        object: Object,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A snapshot was read while the database went on, and the WAL that makes it whole is not there.
    #[error(
        "{} is whole only together with the WAL up to {}:{}, but the replica's WAL ends at {}:{}",
        object.path(), valid_from.0, valid_from.1, reached.0, reached.1
    )]
    SnapshotTooNew {
        /// The snapshot.
        object: Object,
        /// Replaying to here or further is exact.
        valid_from: (Index, Offset),
        /// The end of the WAL on the replica.
        reached: (Index, Offset),
    },
    /// SQLite does not accept the result.
    #[error("the restored database did not pass SQLite's check and was removed: {0}")]
    Check(String),
}

impl RestoreError {
    /// Whether a listing that has changed meanwhile could be the reason.
    pub(super) fn may_be_stale(&self) -> bool {
        match self {
            RestoreError::Gap(_)
            | RestoreError::Vanished { .. }
            | RestoreError::Damaged { .. }
            | RestoreError::SnapshotTooNew { .. } => true,
            RestoreError::Exists { .. }
            | RestoreError::Local { .. }
            | RestoreError::Remote(_)
            | RestoreError::Check(_) => false,
        }
    }
}
