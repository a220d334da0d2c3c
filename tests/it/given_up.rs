//! A snapshot that is given up, or cannot be read to its end, leaves nothing on the server.

use crate::support::faulty::FaultyServer;
use crate::support::history::{generation, scratch};
use crate::support::order::order;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wal_agent::carry::{Carrier, CarryError, Order};
use wal_agent::core::names::Object;
use wal_agent::core::position::{Generation, Index};
use wal_agent::core::replica::Job;
use wal_agent::disk::OsDisk;
use wal_agent::shadow::ShadowWal;

const SNAPSHOT: Job = Job::SendSnapshot { index: Index::ZERO };

fn shadow(folder: &Path) -> ShadowWal {
    ShadowWal::begin(Arc::new(OsDisk), folder, generation(), 1).expect("the folder is ours")
}

/// A file with a database's header, of several blocks.
fn put_database(folder: &Path) {
    let mut content = vec![7; 5 << 20];
    content[..18].copy_from_slice(b"SQLite format 3\0\x10\0");
    fs::write(folder.join("app.db"), content).expect("the folder is ours");
}

#[test]
fn a_snapshot_that_is_given_up_at_any_operation_leaves_nothing_on_the_server() {
    let folder = scratch();
    put_database(folder.path());
    let shadow = shadow(folder.path());
    let mut given_up = 0;
    // The last operation is the sync.
    for last in 0.. {
        let order = order(SNAPSHOT, 7, &shadow, folder.path());
        let (mut operations, progress) = (0, Arc::clone(&order.progress));
        let server = FaultyServer::new(None, move |_| {
            progress.cancelled.fetch_or(operations == last, Ordering::Relaxed);
            operations += 1;
        });
        match Carrier::default().carry(&mut *server.connect(), &order) {
            Err(CarryError::Cancelled) => given_up += 1,
            outcome => {
                outcome.expect("it is not given up before its end");
                break;
            }
        }
        assert_eq!(server.objects().len(), 0, "{}", server.log());
    }
    assert!(given_up > 5, "{given_up}");
}

#[test]
fn a_snapshot_of_what_is_no_database_leaves_nothing_on_the_server() {
    let folder = scratch();
    fs::write(folder.path().join("app.db"), [0; 4096]).expect("the folder is ours");
    let shadow = shadow(folder.path());
    let server = FaultyServer::reliable();
    let order = order(SNAPSHOT, 7, &shadow, folder.path());
    Carrier::default().carry(&mut *server.connect(), &order).expect_err("it is no database");
    assert_eq!(server.objects().len(), 0, "{}", server.log());
}

/// The connection was cut, or another generation began between the last byte and the name.
#[test]
fn what_an_earlier_generation_has_left_of_a_snapshot_is_removed_by_the_next_look() {
    let folder = scratch();
    put_database(folder.path());
    let shadow = shadow(folder.path());
    let left = Generation::from_random(0xaa);
    let snapshot = Object::Snapshot { generation: left, index: Index::ZERO };
    let unfinished = snapshot.temporary_path(1);
    let others = [snapshot.path(), snapshot.set_aside_path(1)];
    let objects = others.iter().chain([&unfinished]).map(|name| (name.clone(), vec![1; 100]));
    let server = FaultyServer::holding(objects.collect());
    let order = Order { left: vec![left], ..order(Job::Look { written: None }, 7, &shadow, folder.path()) };
    Carrier::default().carry(&mut *server.connect(), &order).expect("the server is there");
    assert_eq!(server.objects().into_keys().collect::<Vec<_>>(), others, "{}", server.log());
}
