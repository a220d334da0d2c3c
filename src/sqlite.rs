//! SQLite, as the agent uses it: reads that hold a mark, looks at the wal-index, passive checkpoints.
//!
//! Every handle keeps the WAL when it closes, never checkpoints by itself, and never waits for a lock.

mod heap;
mod owner;

use crate::core::restore::Check;
use crate::core::wal_index::{Checkpointed, WalExtent};
use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, FileControl, MAIN_DB, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// What SQLite answered when it did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqliteError {
    /// Somebody else holds a lock; asking again may help.
    #[error("the database is locked")]
    Busy,
    /// The checkpoint was stopped by us.
    #[error("interrupted")]
    Interrupted,
    /// The file is not a database, or is encrypted.
    #[error("it is not a database, or it is encrypted")]
    NotADatabase,
    /// The file or its folder cannot be written.
    #[error("it cannot be written: {0}")]
    ReadOnly(String),
    /// The file cannot be opened.
    #[error("it cannot be opened: {0}")]
    CannotOpen(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        let message = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => SqliteError::Busy,
            Some(ErrorCode::OperationInterrupted) => SqliteError::Interrupted,
            Some(ErrorCode::NotADatabase) => SqliteError::NotADatabase,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => SqliteError::ReadOnly(message),
            Some(ErrorCode::CannotOpen) => SqliteError::CannotOpen(message),
            _ => SqliteError::Other(message),
        }
    }
}

/// The version of SQLite built into this program.
pub fn version() -> &'static str {
    rusqlite::version()
}

/// One connection of the agent.
#[derive(Debug)]
pub struct Handle(Connection);

impl Handle {
    /// Opens a database that exists.
    ///
    /// # Errors
    /// Why SQLite could not.
    pub fn open(path: &Path) -> Result<Self, SqliteError> {
        heap::take_no_memory_in_advance();
        owner::give_files_to_owner();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1))?;
        // The cache is never used for more than page 1: a few pages do.
        connection
            .execute_batch("PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-16; PRAGMA mmap_size=0;")?;
        Ok(Handle(connection))
    }

    /// The journal mode, as SQLite spells it.
    ///
    /// # Errors
    /// Busy while another process has the database locked, among others.
    pub fn journal_mode(&self) -> Result<String, SqliteError> {
        Ok(self.0.query_row("PRAGMA journal_mode", [], |row| row.get(0))?)
    }

    /// Switches the database to WAL mode; returns the mode it is in then.
    ///
    /// # Errors
    /// Busy while anybody else uses the database, among others.
    pub fn set_wal_mode(&self) -> Result<String, SqliteError> {
        Ok(self.0.query_row("PRAGMA journal_mode=wal", [], |row| row.get(0))?)
    }

    /// Begins a read transaction, which holds a mark in the WAL until [`Handle::end_read`].
    ///
    /// # Errors
    /// Busy, among others; then no transaction is open.
    pub fn begin_read(&self) -> Result<(), SqliteError> {
        self.0.prepare_cached("BEGIN")?.execute([])?;
        // Reading page 1 takes the mark, and loads no schema.
        let read = self
            .0
            .prepare_cached("PRAGMA user_version")
            .and_then(|mut s| s.query_row([], |row| row.get::<_, i64>(0)));
        read.map(drop).map_err(|error| {
            let error = SqliteError::from(error);
            self.end();
            error
        })
    }

    /// Ends the transaction that was begun with [`Handle::begin_read`].
    pub fn end_read(&self) {
        self.end();
    }

    /// Takes the write lock without writing.
    ///
    /// # Errors
    /// Busy while a writer has it.
    pub fn begin_immediate(&self) -> Result<(), SqliteError> {
        self.0.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    /// Gives the write lock back.
    pub fn rollback(&self) {
        self.end();
    }

    /// A transaction that has written nothing always ends; if SQLite says it cannot, it has none.
    fn end(&self) {
        let ended = self.0.prepare_cached("ROLLBACK").and_then(|mut s| s.execute([]));
        debug_assert!(ended.is_ok() || self.0.is_autocommit(), "BUG: a read transaction did not end");
    }

    /// Asks the wal-index, without I/O. Not inside a transaction.
    ///
    /// # Errors
    /// Busy while the wal-index is being rebuilt, among others.
    pub fn wal_extent(&self) -> Result<WalExtent, SqliteError> {
        self.checkpoint_in(CheckpointMode::NOOP).map(Checkpointed::extent)
    }

    /// Copies what it can from the WAL to the database file, waiting for nobody.
    ///
    /// # Errors
    /// Busy while another checkpoint runs, among others.
    pub fn checkpoint(&self) -> Result<Checkpointed, SqliteError> {
        self.checkpoint_in(CheckpointMode::PASSIVE)
    }

    /// Copies everything, and empties the WAL. No other connection may be reading.
    ///
    /// # Errors
    /// Busy while anybody else reads or writes, among others.
    pub fn empty_wal(&self) -> Result<Checkpointed, SqliteError> {
        self.checkpoint_in(CheckpointMode::TRUNCATE)
    }

    /// The same as [`Handle::checkpoint`], and makes nothing durable: the caller does, before and after.
    ///
    /// # Errors
    /// As [`Handle::checkpoint`].
    pub fn checkpoint_without_sync(&self) -> Result<Checkpointed, SqliteError> {
        self.0.execute_batch("PRAGMA synchronous=OFF")?;
        let checkpointed = self.checkpoint();
        self.0.execute_batch("PRAGMA synchronous=FULL")?;
        checkpointed
    }

    fn checkpoint_in(&self, mode: CheckpointMode) -> Result<Checkpointed, SqliteError> {
        let (frames, backfilled) = self.0.wal_checkpoint_v2(Some(MAIN_DB), mode)?;
        match (u32::try_from(frames), u32::try_from(backfilled)) {
            (Ok(frames), Ok(backfilled)) => Ok(Checkpointed { frames, backfilled }),
            _ => Err(SqliteError::Other("it is not in WAL mode".to_owned())),
        }
    }

    /// Closes the last connection to a database, as any application does: SQLite removes `-wal` and `-shm`, unless
    /// another process has the database open. Everything must be in the database file.
    ///
    /// # Errors
    /// SQLite's; `-wal` and `-shm` stay then.
    pub fn close_last(self) -> Result<(), SqliteError> {
        self.0.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 0))?;
        self.0.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        self.0.close().map_err(|(_, error)| error.into())
    }

    /// Stops what this handle is doing, from another thread.
    pub fn interrupt_handle(&self) -> rusqlite::InterruptHandle {
        self.0.get_interrupt_handle()
    }
}

/// A connection of an application, as the demo plays one.
pub type Application = Connection;

/// Opens a database as an application would, in WAL mode; makes it if it is not there. For the demo.
///
/// # Errors
/// Why SQLite could not.
pub fn open_application(path: &Path) -> Result<Application, SqliteError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    Ok(connection)
}

/// Asks SQLite whether a database file that nobody else has open is sound. Leaves no -wal or -shm behind.
///
/// # Errors
/// What SQLite found, in its own words.
pub fn check(path: &Path, check: Check) -> Result<(), String> {
    let pragma = match check {
        Check::Quick => "quick_check",
        Check::Full => "integrity_check",
        Check::None => return Ok(()),
    };
    let escaped: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        })
        .collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let ask = || {
        let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
        let mut statement = connection.prepare(&format!("PRAGMA {pragma}"))?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect::<Result<Vec<_>, _>>()
    };
    match ask() {
        Ok(rows) if rows == ["ok"] => Ok(()),
        Ok(rows) => Err(rows.join("; ")),
        Err(error) => Err(error.to_string()),
    }
}
