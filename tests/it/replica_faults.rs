//! Every operation on a replica fails once, in every way: what was acknowledged is there at every instant, and the
//! replica becomes whole by itself.

use crate::support::faulty::{Fault, FaultyServer};
use crate::support::history::{History, Objects, generation, index, rows, scratch};
use crate::support::memory::{Server, restore_from};
use crate::support::order::order;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wal_agent::carry::Carrier;
use wal_agent::core::checksum::Crc64;
use wal_agent::core::names::{parse_segment, parse_snapshot};
use wal_agent::core::position::{Index, Offset};
use wal_agent::core::replica::{Finding, Outcome, Replica};
use wal_agent::core::segment::{FRAME_HEADER, SegmentTrailer, TRAILER_LENGTH, Trailer};
use wal_agent::core::wal::WalHeader;
use wal_agent::disk::{OsDisk, WalMap};
use wal_agent::remote::{FailureKind, Remote};
use wal_agent::shadow::ShadowWal;

/// One turn of the agent after each commit is all; this is how many jobs and failures it may take.
const MOST_JOBS: usize = 100;
/// In the length of an LZ4 block: it is not compressed.
const STORED: u32 = 1 << 31;

/// What the replica has acknowledged, for the server's check.
#[derive(Default)]
struct Acked {
    position: Option<(Index, Offset)>,
    snapshot: bool,
}

/// The agent's side: a shadow WAL of a history, and a replica's course.
struct Driver {
    history: Arc<History>,
    folder: TempDir,
    shadow: ShadowWal,
    replica: Replica,
    server: FaultyServer,
    remote: Option<Box<dyn Remote>>,
    carrier: Carrier,
    acked: Arc<Mutex<Acked>>,
    now: Instant,
    rewound: usize,
    attempt: u64,
    /// Begin anew after the first failure, as an agent that was killed.
    restarts: bool,
    /// After each job it is asked what of the server would survive a power cut.
    loses_power: bool,
}

impl Driver {
    fn new(history: &Arc<History>, fault: Option<(usize, Fault)>, restarts: bool) -> Driver {
        let folder = scratch();
        let shadow = ShadowWal::begin(Arc::new(OsDisk), folder.path(), generation(), 1).unwrap();
        let acked = Arc::new(Mutex::new(Acked::default()));
        let check = checker(history, &acked);
        Driver {
            history: Arc::clone(history),
            folder,
            shadow,
            replica: Replica::new(generation(), Duration::ZERO),
            server: FaultyServer::new(fault, check),
            remote: None,
            carrier: Carrier::default(),
            acked,
            now: Instant::now(),
            rewound: 0,
            attempt: 0,
            restarts,
            loses_power: false,
        }
    }

    /// The whole history, a commit at a time.
    fn run(mut self) -> Driver {
        let history = Arc::clone(&self.history);
        let mut commit = 0;
        for (k, wal) in history.wals.iter().enumerate() {
            let path = self.folder.path().join("app.db-wal");
            std::fs::write(&path, wal).unwrap();
            std::fs::write(self.folder.path().join("app.db"), &history.databases[k]).unwrap();
            let map = WalMap::new(&File::open(&path).unwrap(), wal.len() as u64).unwrap();
            let header = WalHeader::parse(wal.first_chunk().unwrap()).unwrap();
            self.shadow.begin_index(header).unwrap().unwrap();
            for end in history.ends(k) {
                self.shadow.absorb(&map, Offset::new(end), |_, _| {}).unwrap();
                assert_eq!(self.shadow.extent().end.get(), end);
                if k != UNSENT {
                    self.pump();
                }
                match commit {
                    SURVEYED => self.replica.look_again(),
                    YOUNG => self.now += Duration::from_secs(20),
                    AGED => self.now += Duration::from_secs(61),
                    RESTARTED => self.restart(),
                    _ => {}
                }
                commit += 1;
            }
        }
        self
    }

    /// As an agent that was killed: nothing is known any more but the shadow.
    fn restart(&mut self) {
        self.replica = Replica::new(generation(), Duration::ZERO);
        self.remote = None;
    }

    /// Jobs until there is none left.
    fn pump(&mut self) {
        for _ in 0..MOST_JOBS {
            let extent = self.shadow.extent().clone();
            let Some(job) = self.replica.next_job(&extent, self.now) else {
                match self.replica.next_timeout(&extent) {
                    Some(at) => self.now = at,
                    None => return,
                }
                continue;
            };
            self.attempt += 1;
            let order = order(job, self.attempt, &self.shadow, self.folder.path());
            let server = &self.server;
            let remote = self.remote.get_or_insert_with(|| server.connect());
            let outcome = self.carrier.carry(&mut **remote, &order).unwrap_or_else(|error| {
                if error.is_disconnected() {
                    self.remote = None;
                }
                Outcome::Failed(error.into_failure())
            });
            let failed = matches!(outcome, Outcome::Failed(_));
            let published = matches!(outcome, Outcome::SnapshotPublished { .. });
            let finding = self.replica.on_outcome(outcome, &extent, self.now, 0.5);
            match finding {
                Finding::Nothing => {}
                Finding::Rewound { .. } => self.rewound += 1,
                other => panic!("{other:?}:\n{}", self.server.log()),
            }
            let mut acked = self.acked.lock().unwrap();
            acked.snapshot |= published;
            let position = self.replica.acked().map(|at| (at.index, at.offset));
            let is_rewound = matches!(finding, Finding::Rewound { .. });
            acked.position = if is_rewound { position } else { acked.position.max(position) };
            drop(acked);
            if self.loses_power {
                checker(&self.history, &self.acked)(&self.server.copy(true).objects());
            }
            if failed && std::mem::take(&mut self.restarts) {
                self.restart();
            }
        }
        panic!("no end of jobs:\n{}", self.server.log());
    }

    /// The server holds exactly the content of every WAL, and nothing half done.
    fn assert_whole(&self) {
        let objects = self.server.objects();
        let temporary = objects.keys().find(|path| path.ends_with(".tmp"));
        assert_eq!(temporary, None, "{}", self.server.log());
        for (k, wal) in self.history.wals.iter().enumerate() {
            let segments: Vec<u8> = segments(&objects, index(k)).into_values().flatten().collect();
            assert!(segments == *wal, "WAL {k}:\n{}", self.server.log());
            let last = sealed(&objects, index(k)).last().is_some_and(|trailer| trailer.last_of_index);
            assert_eq!(last, k + 1 < self.history.wals.len(), "WAL {k}:\n{}", self.server.log());
        }
    }

    /// A restore gives everything.
    fn assert_restores(&self) {
        let objects = self.server.objects();
        let folder = scratch();
        let output = folder.path().join("out.db");
        let report = restore_from(&Server::new(objects), &output);
        let report = report.unwrap_or_else(|error| panic!("{error}:\n{}", self.server.log()));
        assert_eq!(report.cut, None, "{}", self.server.log());
        assert!(rows(&output) == *self.history.newest(), "{}", self.server.log());
    }
}

/// The content of a whole object; an error for anything else. (Quicker than the real decoder without optimisation,
/// which every operation of every run needs.)
fn decode(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut rest = bytes.strip_prefix(&FRAME_HEADER).ok_or("no frame")?;
    let (mut content, mut block) = (Vec::new(), vec![0; 300_000]);
    loop {
        let (size, behind) = rest.split_first_chunk().ok_or("no EndMark")?;
        let size = u32::from_le_bytes(*size);
        if size == 0 && content.is_empty() {
            return Err("no content".to_owned());
        }
        if size == 0 {
            return Ok(content);
        }
        let (data, behind) = behind.split_at_checked((size & !STORED) as usize).ok_or("a torn block")?;
        rest = behind;
        if size & STORED != 0 {
            content.extend_from_slice(data);
        } else {
            let length = lz4_flex::block::decompress_into(data, &mut block).map_err(|e| e.to_string())?;
            content.extend_from_slice(&block[..length]);
        }
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The content of the segments of an index by offset, under their final names.
fn segments(objects: &Objects, index: Index) -> BTreeMap<u64, Vec<u8>> {
    let segment = |(path, bytes): (&String, &Vec<u8>)| {
        let (_, start) = parse_segment(name(path)).filter(|(of, _)| *of == index)?;
        Some((start.get(), decode(bytes).unwrap_or_else(|why| panic!("{path}: {why}"))))
    };
    objects.iter().filter_map(segment).collect()
}

/// The trailers of the sealed segments of an index, in their order, each of which says what is in its segment.
fn sealed(objects: &Objects, index: Index) -> Vec<SegmentTrailer> {
    let trailer = |(path, bytes): (&String, &Vec<u8>)| {
        parse_segment(name(path)).filter(|(of, _)| *of == index)?;
        let (trailer, _) = Trailer::parse(bytes.get(bytes.len().checked_sub(TRAILER_LENGTH)?..)?)?;
        let Trailer::Segment(trailer) = trailer else { panic!("{path} has another trailer: {trailer:?}") };
        assert_eq!(trailer.crc, Crc64::of(&decode(bytes).unwrap()), "{path}");
        Some(trailer)
    };
    objects.iter().filter_map(trailer).collect()
}

/// What must hold after every operation.
fn checker(history: &Arc<History>, acked: &Arc<Mutex<Acked>>) -> impl FnMut(&Objects) + Send + 'static {
    let (history, acked) = (Arc::clone(history), Arc::clone(acked));
    let mut seen = BTreeMap::<String, (Vec<u8>, u64)>::new();
    move |objects| {
        seen.retain(|path, _| objects.contains_key(path));
        for (path, bytes) in objects {
            if seen.get(path).is_none_or(|(seen, _)| seen != bytes) {
                seen.insert(path.clone(), (bytes.clone(), check_object(path, bytes, &history)));
            }
        }
        let acked = acked.lock().unwrap();
        let is_snapshot = |path: &String| parse_snapshot(name(path)).is_some();
        assert!(!acked.snapshot || objects.keys().any(is_snapshot), "the snapshot is gone");
        let lengths: BTreeMap<&str, u64> =
            seen.iter().map(|(path, (_, length))| (name(path), *length)).collect();
        for (k, wal) in history.wals.iter().enumerate() {
            let index = index(k);
            let wanted = match acked.position {
                Some((at, _)) if index < at => wal.len() as u64,
                Some((at, offset)) if index == at => offset.get(),
                _ => 0,
            };
            assert_covers(&lengths, index, wanted);
        }
    }
}

/// The length of an object's content. Under a final name it is whole, and what the application committed.
fn check_object(path: &str, bytes: &[u8], history: &History) -> u64 {
    let content = decode(bytes);
    let length = content.as_ref().map_or(0, |content| content.len() as u64);
    if let Some((index, start)) = parse_segment(name(path)) {
        let content = content.unwrap_or_else(|why| panic!("{path}: {why}"));
        let (k, start) = (index.get() as usize, start.get());
        assert!(history.ends(k).contains(&(start + length)), "{path} ends within a transaction");
        let wal = &history.wals[k][start as usize..(start + length) as usize];
        assert!(content == wal, "{path} has other bytes");
    } else if parse_snapshot(name(path)).is_some() {
        content.unwrap_or_else(|why| panic!("{path}: {why}"));
    }
    length
}

/// The segments of an index follow one another without a gap or an overlap, up to what is acknowledged. While the
/// last one is replaced, it may be there under a temporary name, but it is there.
fn assert_covers(lengths: &BTreeMap<&str, u64>, index: Index, wanted: u64) {
    let mut end = 0;
    for (name, length) in lengths {
        if let Some((_, start)) = parse_segment(name).filter(|(of, _)| *of == index) {
            assert_eq!(start.get(), end, "a gap or an overlap before {name}");
            end += length;
        }
    }
    if end < wanted {
        let name = format!("{index}_{}.wal.lz4", Offset::new(end));
        let is_there =
            lengths.iter().any(|(other, length)| other.starts_with(&name) && end + length >= wanted);
        assert!(is_there, "{index} is acknowledged to {wanted}, and ends at {end}");
    }
}

/// Small commits and some of several packets; four WALs, one of which is over before anything of it is sent; a segment
/// that grows old; about 60 operations.
fn life() -> Arc<History> {
    static LIFE: OnceLock<Arc<History>> = OnceLock::new();
    let wals: [&[usize]; 4] =
        [&[100, 3000, 40_000, 200, 300], &[100, 20_000, 10], &[400, 40_000, 30], &[50, 60]];
    Arc::clone(LIFE.get_or_init(|| Arc::new(History::of_sizes(1024, &wals))))
}

/// Fewer runs than this would mean that the scenario has become another one.
const MANY: usize = 40;
/// Of this WAL nothing is sent before it is over.
const UNSENT: usize = 2;
/// After this commit a part of the replica seems to be missing, and the open segment goes on.
const SURVEYED: usize = 0;
/// After this one some time passes, and the open segment is still young.
const YOUNG: usize = 1;
/// After this commit the open segment grows old.
const AGED: usize = 3;
/// After this one the agent restarts, so that the open segment is replaced.
const RESTARTED: usize = 5;
/// Restoring takes longer than a run: it is done for one in so many, and the content is compared for all.
const RESTORED: usize = 20;

/// Fails every operation once with each fault; the number of runs.
fn with_every(faults: &[Fault], restarts: bool) -> usize {
    let history = life();
    let count = Driver::new(&history, None, false).run().server.operations();
    for at in 0..count {
        for &fault in faults {
            let driver = Driver::new(&history, Some((at, fault)), restarts);
            let mut driver = run_and_tell(driver, &format!("{fault:?} at {at}, restarts {restarts}"));
            assert!(driver.server.operations() > at, "the fault was met");
            if matches!(fault, Fault::Late(_)) {
                // What a stopped server process has moved away, the next look moves back.
                driver.server.wake();
                driver.restart();
                driver.pump();
            }
            driver.assert_whole();
            if at % RESTORED == 0 {
                driver.assert_restores();
            }
        }
    }
    count * faults.len()
}

/// A panic within says nothing of the operations before it.
fn run_and_tell(driver: Driver, what: &str) -> Driver {
    let server = driver.server.clone();
    let run = std::panic::AssertUnwindSafe(|| driver.run());
    std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("{what}:\n{}", server.log()))
}

#[test]
fn a_course_without_faults_holds_everything_after_each_commit() {
    let driver = Driver::new(&life(), None, false).run();
    driver.assert_whole();
    driver.assert_restores();
    assert_eq!(driver.rewound, 0);
    let objects = driver.server.objects();
    let count = |k: usize| segments(&objects, index(k)).len();
    assert_eq!((count(0), count(1), count(2)), (2, 1, 1), "{}", driver.server.log());
    let looks = driver.server.log().matches("list generations/feedbeef00000001/wal").count();
    assert_eq!(looks, 3, "two at a start, and one between: {}", driver.server.log());
}

#[test]
fn what_is_acknowledged_survives_a_power_cut_of_the_server_with_its_name() {
    let mut driver = Driver::new(&life(), None, false);
    driver.loses_power = true;
    driver.run().assert_whole();
}

#[test]
fn an_operation_that_never_reached_the_server_costs_nothing_acknowledged() {
    assert!(with_every(&[Fault::Lost], false) > MANY);
}

#[test]
fn an_operation_whose_answer_was_lost_costs_nothing_acknowledged() {
    assert!(with_every(&[Fault::Unanswered], false) > MANY);
}

#[test]
fn a_write_of_which_only_the_first_packets_arrived_costs_nothing_acknowledged() {
    assert!(with_every(&[Fault::Torn(1), Fault::Torn(2)], false) > MANY);
}

#[test]
fn an_agent_killed_at_any_operation_goes_on_where_it_was() {
    assert!(with_every(&[Fault::Lost, Fault::Unanswered, Fault::Torn(1)], true) > MANY);
}

#[test]
fn a_server_that_refuses_any_operation_once_gets_everything() {
    assert!(
        with_every(&[Fault::Refused(FailureKind::Full), Fault::Refused(FailureKind::Denied)], false) > 100
    );
}

#[test]
fn an_operation_that_a_stopped_server_process_carries_out_later_costs_nothing_acknowledged() {
    let faults = [1, 2, 4, 8, 1000].map(Fault::Late);
    assert!(with_every(&faults, false) > MANY);
}
