//! Orders for a worker, without an agent.

use super::history::generation;
use std::path::Path;
use std::sync::Arc;
use wal_agent::carry::{Order, Progress};
use wal_agent::core::replica::Job;
use wal_agent::database_file::DatabaseFile;
use wal_agent::shadow::ShadowWal;

/// An order about `app.db` in a folder, as its shadow is now, for a replica at the root of its server.
pub fn order(job: Job, attempt: u64, shadow: &ShadowWal, folder: &Path) -> Order {
    let extent = shadow.extent();
    Order {
        job,
        attempt,
        generation: generation(),
        root: String::new(),
        shadow: shadow.folder().to_owned(),
        shadow_end: (extent.index, extent.end),
        disk: Arc::clone(shadow.disk()),
        database: DatabaseFile::open(&folder.join("app.db")).unwrap(),
        fsync: true,
        left: Vec::new(),
        has_written: false,
        progress: Arc::new(Progress::default()),
    }
}
