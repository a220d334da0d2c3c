//! A machine that was set back to an earlier image of itself: its history leaves the one that the replica has.

use crate::support::faulty::FaultyServer;
use crate::support::history::{generation, scratch};
use rusqlite::Connection;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wal_agent::carry::{Carrier, Order, Progress};
use wal_agent::core::position::Offset;
use wal_agent::core::replica::{Finding, Replica};
use wal_agent::core::wal::WalHeader;
use wal_agent::database_file::DatabaseFile;
use wal_agent::disk::{Disk, OsDisk, WalMap};
use wal_agent::shadow::ShadowWal;

/// A database whose WAL is never checkpointed, and a connection to it.
fn application(folder: &Path) -> Connection {
    let connection = Connection::open(folder.join("app.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    connection
}

fn insert(connection: &Connection, bytes: u32) {
    connection.execute("INSERT INTO t VALUES (randomblob(?1))", [bytes]).unwrap();
}

fn image_of(folder: &Path) -> TempDir {
    let image = scratch();
    for name in ["app.db", "app.db-wal"] {
        fs::copy(folder.join(name), image.path().join(name)).unwrap();
    }
    image
}

/// Lets a new run of the agent replicate what is in `folder`, until nothing is left to do; what it found.
fn replicate(server: &FaultyServer, folder: &Path) -> Finding {
    let (meta, disk): (_, Arc<dyn Disk>) = (scratch(), Arc::new(OsDisk));
    let wal = fs::read(folder.join("app.db-wal")).unwrap();
    let mut shadow = ShadowWal::begin(Arc::clone(&disk), meta.path(), generation(), 1).unwrap();
    shadow.begin_index(WalHeader::parse(wal.first_chunk().unwrap()).unwrap()).unwrap().unwrap();
    let map = WalMap::new(&File::open(folder.join("app.db-wal")).unwrap(), wal.len() as u64).unwrap();
    let end = Offset::new(wal.len() as u64);
    while shadow.extent().end < end {
        shadow.absorb(&map, end, |_, _| {}).unwrap();
    }
    let (mut replica, mut carrier) = (Replica::new(generation(), Duration::ZERO), Carrier::default());
    let (mut remote, now) = (server.connect(), Instant::now());
    while let Some(job) = replica.next_job(shadow.extent(), now) {
        let order = Order {
            job,
            attempt: 1,
            generation: generation(),
            root: String::new(),
            shadow: shadow.folder().to_owned(),
            shadow_end: (shadow.extent().index, shadow.extent().end),
            disk: Arc::clone(&disk),
            database: DatabaseFile::open(&folder.join("app.db")).unwrap(),
            fsync: true,
            progress: Arc::new(Progress::default()),
        };
        let outcome = carrier.carry(&mut *remote, &order).unwrap();
        let finding = replica.on_outcome(outcome, shadow.extent(), now, 0.0);
        if finding != Finding::Nothing {
            return finding;
        }
    }
    Finding::Nothing
}

/// The replica has a commit of `before` bytes and one of `after`; the machine is set back to between the two.
fn set_back(before: u32, after: u32, goes_on: impl FnOnce(&Connection)) -> Finding {
    let (folder, server) = (scratch(), FaultyServer::reliable());
    let connection = application(folder.path());
    connection.execute_batch("CREATE TABLE t (data BLOB); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    insert(&connection, before);
    let image = image_of(folder.path());
    insert(&connection, after);
    assert_eq!(replicate(&server, folder.path()), Finding::Nothing);
    let connection = application(image.path());
    goes_on(&connection);
    replicate(&server, image.path())
}

#[test]
fn a_history_that_leaves_the_replicas_behind_whatever_length_is_another_generation() {
    // In the first block, behind it, behind what is read in one go, and behind several of that.
    for before in [100, 300_000, 3_000_000, 6_000_000] {
        for after in [100, 300_000, 6_000_000] {
            let finding = set_back(before, after, |connection| insert(connection, after + 100_000));
            assert_eq!(finding, Finding::Diverged, "{before} bytes, then {after}");
        }
    }
}

#[test]
fn a_history_that_has_not_gone_on_waits_for_what_the_replica_has() {
    for (before, after) in [(100, 100), (300_000, 300_000), (6_000_000, 6_000_000)] {
        assert_eq!(set_back(before, after, |_| {}), Finding::Ahead, "{before} bytes, then {after}");
    }
}
