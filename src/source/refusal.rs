//! Why the agent is not attached to a database.

use crate::core::rights::Rights;
use crate::core::space::Shortage;
use crate::core::sync::Break;
use crate::sqlite::SqliteError;
use std::fmt;
use std::path::PathBuf;

/// Why the agent is not attached to a database that is there. Each is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another process holds it exclusively.
    Locked,
    /// It could not be set to WAL mode.
    NotWal(String),
    /// It is not a database, or it is encrypted.
    NotADatabase,
    /// It cannot be opened or written.
    NoAccess(String),
    /// Its owner and group could not use the `-wal` and `-shm` that we make.
    ShutsOut {
        /// What our files have.
        ours: Rights,
        /// What the database has.
        database: Rights,
        /// Why ours cannot have the same.
        reason: String,
    },
    /// Another agent holds the meta folder.
    AnotherAgent(PathBuf),
    /// The meta folder cannot be used.
    Meta(String),
    /// The agent has it open already, and closing that would drop the locks of who attaches now: for a snapshot that is
    /// still being read, or because it was at the path of another database before.
    StillOpen,
    /// Its `-wal` does not hold what the wal-index says: something other than SQLite has changed it.
    WalDamaged(Break),
    /// A program has it open by another name.
    UsedApart,
    /// There was no room for the shadow; it was let go of, so that the application has the room.
    NoRoom(Shortage),
    /// Anything else SQLite said.
    Sqlite(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Locked => f.write_str("another process has it locked (locking_mode=EXCLUSIVE, perhaps)"),
            Refusal::NotWal(mode) => {
                write!(f, "it is in journal mode {mode} and could not be set to WAL")
            }
            Refusal::NotADatabase => f.write_str("it is not an SQLite database, or it is encrypted"),
            Refusal::NoAccess(reason) => write!(f, "it cannot be opened and written: {reason}"),
            Refusal::ShutsOut { ours, database, reason } => write!(
                f,
                "its application could not use the -wal and -shm that the agent makes ({ours}), for they cannot be given \
                 the rights of the database ({database}): {reason}; run the agent as the database's owner, or with \
                 CAP_CHOWN (a systemd service: `User=`, or `AmbientCapabilities=CAP_DAC_OVERRIDE CAP_CHOWN`: systemctl \
                 edit wal-agent); until then it is replicated only while its application has it open"
            ),
            Refusal::AnotherAgent(meta) => write!(f, "another agent is using {}", meta.display()),
            Refusal::Meta(reason) => write!(f, "the meta folder cannot be used: {reason}"),
            Refusal::StillOpen => f.write_str(
                "the agent still has this file open, for a snapshot of it or for the database that it was before",
            ),
            Refusal::WalDamaged(reason) => write!(
                f,
                "{reason}: something other than SQLite has changed its -wal; end the programs that have the database \
                 open, and start them again: the last one to close it brings into its file what it can"
            ),
            Refusal::UsedApart => f.write_str(
                "a program has this file open by another name (a hard link, or a mount of the file alone), and its \
                 commits are in a -wal beside that name, where they are not seen: let it use this path, or mount the \
                 folder instead of the file; or it wants the file for itself alone (locking_mode=EXCLUSIVE)",
            ),
            Refusal::NoRoom(shortage) => write!(
                f,
                "there is no room for the shadow WAL: {shortage}; so that the application has the room, it was given \
                 up, and the next generation begins with a new snapshot"
            ),
            Refusal::Sqlite(reason) => f.write_str(reason),
        }
    }
}

impl From<SqliteError> for Refusal {
    fn from(error: SqliteError) -> Self {
        match error {
            SqliteError::Busy => Refusal::Locked,
            SqliteError::NotADatabase => Refusal::NotADatabase,
            SqliteError::ReadOnly(reason) | SqliteError::CannotOpen(reason) => Refusal::NoAccess(reason),
            other => Refusal::Sqlite(other.to_string()),
        }
    }
}
