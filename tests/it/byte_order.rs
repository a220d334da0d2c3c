//! WALs whose checksums read big-endian words, as a machine of that kind writes them. SQLite goes on in the byte order that
//! it finds, until it restarts the WAL.

use crate::support::agent::Agent;
use crate::support::history::{History, Rows, committed_end, index, rows, scratch};
use crate::support::place::Place;
use crate::support::sqlite::Shell;
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use lz4_flex::frame::FrameDecoder;
use std::fs::{self, File};
use std::io::Read;
use wal_agent::core::names::Object;
use wal_agent::core::position::Offset;
use wal_agent::core::scan::Chain;
use wal_agent::core::wal::{ByteOrder, Checksum, HeaderError, WalHeader};

const INSERT: &str = "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 10)";
/// What a header says of the byte order: the lowest bit of the magic number.
const ORDER: usize = 3;

fn header(wal: &[u8]) -> WalHeader {
    WalHeader::parse(wal.first_chunk().expect("a header")).expect("a valid one")
}

/// The same WAL, of a big-endian machine. What is not valid is left out.
fn big_endian(wal: &[u8]) -> Vec<u8> {
    let frame_length = header(wal).page_size().frame_length() as usize;
    let mut wal = wal[..committed_end(wal)].to_vec();
    wal[ORDER] |= 1;
    let (head, frames) = wal.split_at_mut(32);
    let mut checksum = Checksum::default().extend(ByteOrder::Big, &head[..24]);
    put(checksum, &mut head[24..]);
    for frame in frames.chunks_exact_mut(frame_length) {
        checksum = checksum.extend(ByteOrder::Big, &frame[..8]).extend(ByteOrder::Big, &frame[24..]);
        put(checksum, &mut frame[16..24]);
    }
    wal
}

/// Checksums are stored big-endian in every WAL.
fn put(checksum: Checksum, to: &mut [u8]) {
    to[..4].copy_from_slice(&checksum.0.to_be_bytes());
    to[4..].copy_from_slice(&checksum.1.to_be_bytes());
}

/// What SQLite reads of a database beside a WAL.
fn read_by_sqlite(database: &[u8], wal: &[u8]) -> Rows {
    let folder = scratch();
    let path = folder.path().join("app.db");
    fs::write(&path, database).expect("the folder is ours");
    fs::write(folder.path().join("app.db-wal"), wal).expect("the folder is ours");
    rows(&path)
}

#[test]
fn a_big_endian_wal_is_as_valid_for_us_as_it_is_for_sqlite() {
    for page_size in [512, 4096, 65536] {
        let history = History::new(page_size, &[5], 3000);
        let (database, little) = (&history.databases[0], &history.wals[0]);
        let big = big_endian(little);
        assert_eq!(header(little).order(), ByteOrder::Little);
        assert_eq!(header(&big).order(), ByteOrder::Big);
        assert_eq!(read_by_sqlite(database, &big), *history.newest());
        let mut chain = Chain::new(header(&big));
        assert_eq!(chain.extend(&big[32..], |_, _| {}), Ok(big.len() - 32));
        assert_eq!(chain.commit().map(|commit| commit.end.get()), Some(little.len() as u64));
    }
}

#[test]
fn checksums_of_the_other_byte_order_are_wrong_for_us_as_they_are_for_sqlite() {
    let history = History::new(4096, &[5], 3000);
    let (database, mut mixed) = (&history.databases[0], history.wals[0].clone());
    mixed[ORDER] |= 1;
    assert_eq!(WalHeader::parse(mixed.first_chunk().expect("a header")), Err(HeaderError::Checksum));
    assert_eq!(read_by_sqlite(database, &mixed), [], "nothing of that WAL");
    // A right header, and frames that go on from it in the other order.
    mixed[..32].copy_from_slice(&big_endian(&history.wals[0])[..32]);
    let mut chain = Chain::new(header(&mixed));
    chain.extend(&mixed[32..], |_, _| {}).expect_err("not one frame is valid");
    assert_eq!((chain.commit(), read_by_sqlite(database, &mixed)), (None, Vec::new()));
}

/// A database that a big-endian machine has left, with a part of it only in the WAL, in the hands of an application.
fn moved_here(place: &Place) -> Shell {
    let mut before = Shell::open(&place.database());
    before.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    before.run(INSERT);
    before.kill();
    fs::remove_file(place.path("app.db-shm")).expect("it was left");
    let wal = fs::read(place.wal()).expect("it was left");
    fs::write(place.wal(), big_endian(&wal)).expect("the folder is ours");
    let mut application = Shell::open(&place.database());
    assert_eq!(application.value("SELECT count(*) FROM t"), "10", "rows that SQLite finds");
    application
}

/// The byte order of the WAL.
fn live_order(place: &Place) -> ByteOrder {
    header(&fs::read(place.wal()).expect("the WAL is there")).order()
}

/// The byte order of an index on the replica.
fn replicated_order(place: &Place, generation: &str, number: usize) -> ByteOrder {
    let generation = generation.parse().expect("it has a name");
    let first = Object::Segment { generation, index: index(number), start: Offset::ZERO };
    let file = File::open(place.replica().join(first.path())).expect("it begins with a segment");
    let mut bytes = [0; 32];
    FrameDecoder::new(file).read_exact(&mut bytes).expect("it begins with a header");
    header(&bytes).order()
}

/// Lets the next commit begin a new WAL.
fn checkpoint(application: &mut Shell) {
    application.run(".timeout 50");
    wait_until("everything is in the database", BEFORE_THE_SLOW_LOOK, || {
        application.value("PRAGMA wal_checkpoint(RESTART)").starts_with("0|")
    });
}

#[test]
fn a_big_endian_wal_that_sqlite_goes_on_with_is_followed_into_the_next_one() {
    let place = Place::new();
    let mut application = moved_here(&place);
    let settings = ["min-checkpoint-page-count: 100000", "checkpoint-interval: 1h"];
    let agent = place.streaming_agent(&settings);
    application.run(INSERT);
    assert_eq!(live_order(&place), ByteOrder::Big, "SQLite goes on in it");
    place.wait_until_replicated(&agent);
    let (generation, configuration) = (agent.generation(), agent.configuration().to_owned());
    // What was copied is verified again.
    agent.kill();
    application.run(INSERT);
    let agent = Agent::start_again(&configuration);
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), generation);
    checkpoint(&mut application);
    application.run(INSERT);
    assert_eq!(live_order(&place), ByteOrder::Little, "SQLite begins in its own");
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), generation);
    place.stop(agent);
    let orders = [0, 1].map(|index| replicated_order(&place, &generation, index));
    assert_eq!(orders, [ByteOrder::Big, ByteOrder::Little]);
    place.assert_restores();
}
