//! A machine that was set back to an earlier image of itself: its history leaves the one that the replica has.

use crate::support::faulty::{Fault, FaultyServer};
use crate::support::history::{generation, scratch};
use crate::support::order::order;
use rusqlite::Connection;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use wal_agent::carry::Carrier;
use wal_agent::core::names::Object;
use wal_agent::core::position::{Generation, Index, Offset};
use wal_agent::core::replica::{Failure, FailureCause, Finding, Job, Outcome, Replica, SegmentStart};
use wal_agent::core::wal::WalHeader;
use wal_agent::disk::{OsDisk, WalMap};
use wal_agent::remote::FailureKind;
use wal_agent::remote::dir::DirRemote;
use wal_agent::shadow::ShadowWal;

/// A database whose WAL is never checkpointed, and a connection to it.
fn application(folder: &Path) -> Connection {
    let connection = Connection::open(folder.join("app.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    connection
}

/// A new one with an empty table, which is in the file.
fn new_application(folder: &Path) -> Connection {
    let connection = application(folder);
    connection.execute_batch("CREATE TABLE t (data BLOB); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
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

/// A shadow of the WAL in a folder, which is copied in steps.
struct Copying {
    shadow: ShadowWal,
    map: WalMap,
    end: Offset,
    _meta: TempDir,
}

impl Copying {
    fn of(folder: &Path) -> Copying {
        let path = folder.join("app.db-wal");
        let (meta, wal) = (scratch(), fs::read(&path).unwrap());
        let mut shadow = ShadowWal::begin(Arc::new(OsDisk), meta.path(), generation(), 1).unwrap();
        shadow.begin_index(WalHeader::parse(wal.first_chunk().unwrap()).unwrap()).unwrap().unwrap();
        let map = WalMap::new(&File::open(&path).unwrap(), wal.len() as u64).unwrap();
        Copying { shadow, map, end: Offset::new(wal.len() as u64), _meta: meta }
    }

    /// Copies up to the commit that ends at or behind `to`.
    fn copy(&mut self, to: u64) {
        while self.shadow.extent().end.get() < to.min(self.end.get()) {
            self.shadow.absorb(&self.map, self.end, |_, _| {}).unwrap();
        }
    }
}

/// What a run of the agent knows of its replica.
struct Run {
    replica: Replica,
    carrier: Carrier,
    now: Instant,
}

impl Run {
    fn new() -> Run {
        let replica = Replica::new(generation(), Duration::ZERO);
        Run { replica, carrier: Carrier::default(), now: Instant::now() }
    }

    /// Replicates what is in `folder`, until nothing is left to do; what it found. `copied` bytes are in the shadow when
    /// the first look is ordered, and all of them when it is answered. In the end everything is sealed if it `stops`.
    fn replicate(&mut self, server: &FaultyServer, folder: &Path, copied: u64, stops: bool) -> Finding {
        let mut copying = Copying::of(folder);
        copying.copy(copied);
        let (mut remote, now) = (server.connect(), self.now);
        while let Some(job) = self.replica.next_job(copying.shadow.extent(), now) {
            let order = order(job, 1, &copying.shadow, folder);
            copying.copy(u64::MAX);
            let outcome = self.carrier.carry(&mut *remote, &order).unwrap();
            let extent = copying.shadow.extent();
            let finding = self.replica.on_outcome(outcome, extent, now, 0.0);
            if finding != Finding::Nothing {
                return finding;
            }
            if stops && self.replica.holds(extent.position()) {
                self.replica.finish_at(extent.position());
            }
        }
        assert!(self.replica.holds(copying.shadow.extent().position()));
        Finding::Nothing
    }

    /// The connection is lost while the next commit, which is in `folder`, is sent.
    fn lose_connection(&mut self, folder: &Path) {
        let mut copying = Copying::of(folder);
        copying.copy(u64::MAX);
        self.replica.next_job(copying.shadow.extent(), self.now).expect("there is something to send");
        let lost =
            Failure { cause: FailureCause::Disconnected, message: "the connection is lost".to_owned() };
        self.replica.on_outcome(Outcome::Failed(lost), copying.shadow.extent(), self.now, 0.0);
        self.now += Duration::from_secs(60);
    }
}

/// The same, in a run of its own.
fn replicate(server: &FaultyServer, folder: &Path, copied: u64, stops: bool) -> Finding {
    Run::new().replicate(server, folder, copied, stops)
}

/// A replica that has commits of so many bytes each, and an image of the machine as it was after the first.
fn set_back(commits: &[u32], stops: bool) -> (FaultyServer, TempDir) {
    let (folder, server) = (scratch(), FaultyServer::reliable());
    let connection = new_application(folder.path());
    insert(&connection, commits[0]);
    let image = image_of(folder.path());
    commits[1..].iter().for_each(|bytes| insert(&connection, *bytes));
    assert_eq!(replicate(&server, folder.path(), u64::MAX, stops), Finding::Nothing);
    (server, image)
}

/// In the first block, behind it, behind what is read in one go, behind several of that, and behind a segment.
const LENGTHS: [u32; 5] = [100, 300_000, 3_000_000, 6_000_000, 9_000_000];

#[test]
fn a_history_that_leaves_the_replicas_anywhere_is_another_generation() {
    for before in LENGTHS {
        for (after, stops) in [(100, false), (300_000, true), (6_000_000, false), (6_000_000, true)] {
            let (server, image) = set_back(&[before, after], stops);
            let connection = application(image.path());
            let image_length = fs::metadata(image.path().join("app.db-wal")).unwrap().len();
            insert(&connection, after + 100_000);
            // Also where it was not copied yet when the look was ordered.
            for copied in [u64::MAX, image_length, 100] {
                let finding = replicate(&server, image.path(), copied, false);
                assert_eq!(
                    finding,
                    Finding::Diverged,
                    "{before}, then {after}, {copied} copied, sealed: {stops}"
                );
            }
        }
    }
}

#[test]
fn a_machine_that_is_set_back_together_with_its_memory_is_another_generation() {
    for before in LENGTHS {
        for (after, stops) in [(100, false), (300_000, true), (6_000_000, false)] {
            let (folder, server, mut run) = (scratch(), FaultyServer::reliable(), Run::new());
            let connection = new_application(folder.path());
            insert(&connection, before);
            let image = image_of(folder.path());
            assert_eq!(run.replicate(&server, folder.path(), u64::MAX, false), Finding::Nothing);
            // What it does now, it will not remember.
            insert(&connection, after);
            assert_eq!(replicate(&server, folder.path(), u64::MAX, stops), Finding::Nothing);
            let set_back = application(image.path());
            insert(&set_back, after + 100_000);
            run.lose_connection(image.path());
            let finding = run.replicate(&server, image.path(), u64::MAX, false);
            assert_eq!(finding, Finding::Diverged, "{before}, then {after}, sealed: {stops}");
        }
    }
}

#[test]
fn a_history_that_has_not_gone_on_waits_for_what_the_replica_has() {
    for before in LENGTHS {
        for after in [100, 300_000, 6_000_000] {
            let (server, image) = set_back(&[before, after], false);
            let finding = replicate(&server, image.path(), u64::MAX, false);
            assert_eq!(finding, Finding::Ahead, "{before}, then {after}");
        }
    }
}

#[test]
fn an_end_that_the_server_has_lost_or_damaged_is_written_anew() {
    for (commits, damaged) in
        [([100, 300_000], 1000), ([300_000, 300_000], 8192), ([100, 6_000_000], 100_000)]
    {
        let folder = scratch();
        let connection = new_application(folder.path());
        commits.iter().for_each(|bytes| insert(&connection, *bytes));
        let server = FaultyServer::reliable();
        assert_eq!(replicate(&server, folder.path(), u64::MAX, false), Finding::Nothing);
        let whole = server.objects();
        for zeroed in [false, true] {
            let mut objects = whole.clone();
            let segment = objects.iter_mut().find(|(path, _)| path.ends_with(".wal.lz4")).unwrap().1;
            let from = segment.len() - damaged;
            segment.truncate(from);
            if zeroed {
                segment.resize(from + damaged, 0);
            }
            let server = FaultyServer::holding(objects);
            assert_eq!(
                replicate(&server, folder.path(), u64::MAX, false),
                Finding::Nothing,
                "{commits:?}, {zeroed}"
            );
            assert_eq!(server.objects().len(), whole.len());
        }
    }
}

#[test]
fn a_shadow_that_is_gone_is_another_generation_and_not_asked_for_again_and_again() {
    let (server, image) = set_back(&[100, 100], false);
    let mut copying = Copying::of(image.path());
    copying.copy(u64::MAX);
    fs::remove_dir_all(copying.shadow.folder()).unwrap();
    let mut replica = Replica::new(generation(), Duration::ZERO);
    let job = replica.next_job(copying.shadow.extent(), Instant::now()).unwrap();
    let order = order(job, 1, &copying.shadow, image.path());
    let outcome = Carrier::default().carry(&mut *server.connect(), &order).unwrap();
    let finding = replica.on_outcome(outcome, copying.shadow.extent(), Instant::now(), 0.0);
    assert_eq!(finding, Finding::Diverged);
}

/// Objects of a generation, and when each was written.
type Objects<'a> = &'a [(&'a str, u64)];

/// Objects of a generation in a replica's folder, with the time at which each was written.
fn put(replica: &Path, generation: &str, objects: Objects) {
    for (object, written) in objects {
        let path = replica.join("generations").join(generation).join(object);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*written);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn a_look_tells_when_another_generation_was_written_to_if_that_was_not_before() {
    const SNAPSHOT: &str = "snapshots/00000000.snapshot.lz4";
    const SEGMENT: &str = "wal/00000000_00000000.wal.lz4";
    const OTHER: &str = "00000000000000aa";
    const EARLY: &str = "00000000000000ee";
    let folder = scratch();
    let connection = new_application(folder.path());
    insert(&connection, 100);
    let mut copying = Copying::of(folder.path());
    copying.copy(u64::MAX);
    let look = |written, others: &[(&str, Objects)]| {
        let replica = scratch();
        put(replica.path(), &generation().to_string(), &[(SNAPSHOT, 100), (SEGMENT, 200)]);
        others.iter().for_each(|(name, objects)| put(replica.path(), name, objects));
        if let Ok(folder) = File::open(replica.path().join("generations").join(EARLY)) {
            folder.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        fs::write(replica.path().join("generations/00000000000000cc"), "no folder").unwrap();
        let mut order = order(Job::Look { written }, 1, &copying.shadow, folder.path());
        order.root = replica.path().to_str().unwrap().to_owned();
        match Carrier::default().carry(&mut DirRemote::new(), &order).unwrap() {
            Outcome::Found(listing) => listing.is_older,
            outcome => panic!("{outcome:?}"),
        }
    };
    let is_older = |others: &[(&str, Objects)]| look(None, others);
    let newer: (&str, Objects) = (OTHER, &[(SNAPSHOT, 100), (SEGMENT, 300)]);
    assert!(is_older(&[newer]));
    assert!(is_older(&[("00000000000000bb", &[(SNAPSHOT, 201)]), newer]));
    assert!(is_older(&[(OTHER, &[(SNAPSHOT, 100), (SEGMENT, 200)])]), "nothing tells");
    assert!(!is_older(&[]));
    assert!(!is_older(&[(OTHER, &[(SNAPSHOT, 100), (SEGMENT, 199)])]), "it was given up");
    assert!(!is_older(&[(OTHER, &[(SEGMENT, 300)])]), "it cannot be restored");
    let unpublished = format!("{SNAPSHOT}.0123456789abcdef.tmp");
    assert!(!is_older(&[(OTHER, &[(&unpublished, 300)])]), "nor that");
    assert!(!is_older(&[(OTHER, &[(SNAPSHOT, 100), ("wal/README", 300)])]), "that is no object");
    assert!(is_older(&[(EARLY, &[(SNAPSHOT, 300)])]), "the clock was ahead while it was written");
    let ours = Some((SegmentStart { index: Index::ZERO, start: Offset::ZERO }, 0));
    assert!(!look(ours, &[(EARLY, &[(SNAPSHOT, 300)])]), "the first look of this run has looked into it");
    assert!(look(ours, &[newer]), "it began since");
    assert!(!is_older(&[("lost+found", &[(SNAPSHOT, 300)])]), "that is no generation");
}

#[test]
fn generations_that_may_not_be_listed_keep_nothing_from_being_replicated() {
    const OTHER: &str = "00000000000000aa";
    let folder = scratch();
    let connection = new_application(folder.path());
    insert(&connection, 100);
    let copying = Copying::of(folder.path());
    let snapshot = |generation: &str| format!("generations/{generation}/snapshots/00000000.snapshot.lz4");
    let objects = [generation().to_string().as_str(), OTHER].map(|name| (snapshot(name), vec![1; 100]));
    // All generations, the other one's snapshots, its segments.
    for (denied, is_older) in [(2, false), (3, false), (4, true)] {
        let server = FaultyServer::holding(objects.clone().into());
        server.plan(denied, Fault::Refused(FailureKind::Denied));
        let order = order(Job::Look { written: None }, 1, &copying.shadow, folder.path());
        let outcome = Carrier::default().carry(&mut *server.connect(), &order).unwrap();
        assert!(
            matches!(&outcome, Outcome::Found(listing) if listing.is_older == is_older),
            "{denied}: {outcome:?}"
        );
        assert_eq!(server.injected().len(), 1, "{denied}: it was refused");
    }
}

#[test]
fn a_snapshot_is_not_taken_for_the_newest_because_of_what_was_left_beside_it_while_the_clock_was_ahead() {
    let folder = scratch();
    let connection = new_application(folder.path());
    insert(&connection, 100);
    let mut copying = Copying::of(folder.path());
    copying.copy(u64::MAX);
    let other = Object::Snapshot { generation: Generation::from_random(0xaa), index: Index::ZERO };
    let ours = Object::Snapshot { generation: generation(), index: Index::ZERO };
    let server = FaultyServer::holding(Default::default());
    server.set_clock(10_000);
    let mut remote = server.connect();
    for path in [other.path(), ours.temporary_path(1)] {
        remote.create(&path).unwrap();
        remote.write_at(&path, 0, b"snapshot").unwrap();
    }
    server.set_clock(-10_000);
    let mut carry = |job| {
        let order = order(job, 2, &copying.shadow, folder.path());
        Carrier::default().carry(&mut *remote, &order).unwrap()
    };
    let Outcome::SnapshotSent(sent) = carry(Job::SendSnapshot { index: Index::ZERO }) else {
        panic!("not sent")
    };
    let publish = Job::PublishSnapshot { sent, valid_from: (Index::ZERO, Offset::ZERO), state: None };
    assert_eq!(carry(publish), Outcome::SnapshotPublished { is_older: true });
    let renewal = Job::RenewSnapshot { index: Index::ZERO };
    for _ in 0..2 {
        assert_eq!(carry(renewal.clone()), Outcome::SnapshotRenewed { is_newest: true });
    }
}
