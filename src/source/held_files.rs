//! Which files are held of a database, and whether they are still those at their paths.
//!
//! SQLite's locks are on files, not on names. Whoever opens the database when its `-shm` was removed makes another one,
//! and neither sees what the other does: what we know of the WAL then is old, and a checkpoint would write old pages over
//! new ones.

use crate::core::names;
use crate::core::sync::Break;
use crate::database_file::{DatabaseFile, FileIdentity};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The files that are held.
#[derive(Debug, Clone)]
pub struct HeldFiles {
    database: PathBuf,
    file: FileIdentity,
    wal_index: FileIdentity,
}

impl HeldFiles {
    /// Of the files that are open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(database: &Path, file: &DatabaseFile, wal_index: &File) -> io::Result<HeldFiles> {
        let wal_index = FileIdentity::of_file(wal_index)?;
        Ok(HeldFiles { database: database.to_owned(), file: file.identity(), wal_index })
    }

    /// The database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// What was put in the place of another, or removed.
    pub fn replaced(&self) -> Option<Break> {
        let is_at = |path: &Path, file| FileIdentity::of_path(path) == Some(file);
        if !is_at(&self.database, self.file) {
            Some(Break::DatabaseReplaced)
        } else if !is_at(&names::beside(&self.database, "-shm"), self.wal_index) {
            Some(Break::WalIndexReplaced)
        } else {
            None
        }
    }
}
