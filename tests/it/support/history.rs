//! Support: real WALs made by SQLite, every committed state remembered, and the objects a replica would hold of them.

use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;
use wal_agent::core::checksum::Crc64;
use wal_agent::core::names::Object;
use wal_agent::core::page::{PageCount, PageNumber, PageSize};
use wal_agent::core::page_table::{DatabaseChecksum, DatabaseState, Entries};
use wal_agent::core::position::{Generation, Index, Offset};
use wal_agent::core::scan::{Chain, Commit};
use wal_agent::core::segment::{
    END_MARK, FRAME_HEADER, MAX_BLOCK, SegmentTrailer, SnapshotTrailer, Trailer, push_block,
};
use wal_agent::core::wal::{Checksum, FrameHeader, Salt, WalHeader};

/// Everything in the test table.
pub type Rows = Vec<(i64, Vec<u8>)>;
/// A replica's objects by path.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// A committed state, and where its commit ends.
#[derive(Debug, Clone)]
pub struct State {
    pub index: usize,
    pub end: u64,
    pub rows: Rows,
}

/// A database's life: the file as it was at the start of each WAL, the WALs, and every committed state.
pub struct History {
    pub page_size: u32,
    pub databases: Vec<Vec<u8>>,
    pub wals: Vec<Vec<u8>>,
    pub first: Rows,
    pub states: Vec<State>,
}

/// Who writes the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Ours,
    Litestream,
}

/// A folder that is removed again; in memory where the system has such a place, so that fsync costs nothing.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn generation() -> Generation {
    Generation::from_random(0xfeed_beef_0000_0001)
}

pub fn index(number: usize) -> Index {
    Index::new(number as u32).unwrap()
}

pub fn rows(database: &Path) -> Rows {
    let connection = Connection::open(database).unwrap();
    select(&connection)
}

fn select(connection: &Connection) -> Rows {
    let mut statement = connection.prepare("SELECT id, data FROM t ORDER BY id").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

impl History {
    /// A life with `commits[k]` transactions in the k-th WAL; each changes old rows and adds one of `size` bytes.
    pub fn new(page_size: u32, commits: &[usize], size: usize) -> Self {
        let wals: Vec<Vec<usize>> = commits.iter().map(|count| vec![size; *count]).collect();
        History::of_sizes(page_size, &wals.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// A life with a transaction in the k-th WAL for each of `wals[k]`, with rows of that many bytes.
    pub fn of_sizes(page_size: u32, wals: &[&[usize]]) -> Self {
        let folder = scratch();
        let path = folder.path().join("app.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)").unwrap();
        let mut history = History {
            page_size,
            databases: Vec::new(),
            wals: Vec::new(),
            first: Vec::new(),
            states: Vec::new(),
        };
        for (k, sizes) in wals.iter().enumerate() {
            checkpoint(&connection);
            history.databases.push(std::fs::read(&path).unwrap());
            for (n, &size) in sizes.iter().enumerate() {
                let id = history.states.len() as i64;
                transaction(&connection, id, size);
                let wal = std::fs::read(path.with_extension("db-wal")).unwrap();
                let end = committed_end(&wal);
                history.states.push(State { index: k, end: end as u64, rows: select(&connection) });
                if n + 1 == sizes.len() {
                    history.wals.push(wal[..end].to_vec());
                }
            }
        }
        history
    }

    pub fn newest(&self) -> &Rows {
        &self.states.last().unwrap().rows
    }

    pub fn knows(&self, rows: &Rows) -> bool {
        *rows == self.first || self.states.iter().any(|state| state.rows == *rows)
    }

    /// Where the commits of one WAL end.
    pub fn ends(&self, index: usize) -> Vec<u64> {
        self.states.iter().filter(|state| state.index == index).map(|state| state.end).collect()
    }

    /// The snapshot of index 0 and every WAL, cut into segments of `commits` transactions.
    pub fn objects(&self, style: Style, commits: usize) -> Objects {
        let mut objects = Objects::new();
        self.add_snapshot(&mut objects, style, 0);
        for k in 0..self.wals.len() {
            let ends = self.ends(k);
            let cuts: Vec<u64> = ends.chunks(commits).map(|chunk| *chunk.last().unwrap()).collect();
            self.add_wal(&mut objects, style, k, &cuts);
        }
        objects
    }

    /// The database as it was when index `k` began.
    pub fn add_snapshot(&self, objects: &mut Objects, style: Style, k: usize) {
        let content = &self.databases[k];
        let trailer = self.snapshot_trailer(k, (k, 0));
        let object = Object::Snapshot { generation: generation(), index: index(k) };
        objects.insert(object.path(), encode(style, content, Some(trailer)));
    }

    pub fn snapshot_trailer(&self, k: usize, valid_from: (usize, u64)) -> Trailer {
        let content = &self.databases[k];
        let count = content.len() as u32 / self.page_size;
        Trailer::Snapshot(SnapshotTrailer {
            index: index(k),
            valid_from: (index(valid_from.0), Offset::new(valid_from.1)),
            page_size: PageSize::new(self.page_size).unwrap(),
            page_count: PageCount::new(count).unwrap(),
            crc: Crc64::of(content),
            state: None,
        })
    }

    /// The `k`-th WAL, cut at `ends`. All but the very last segment are sealed.
    pub fn add_wal(&self, objects: &mut Objects, style: Style, k: usize, ends: &[u64]) {
        let mut start = 0;
        for (n, &end) in ends.iter().enumerate() {
            let content = &self.wals[k][start as usize..end as usize];
            let last_of_index = n + 1 == ends.len();
            let trailer = Trailer::Segment(SegmentTrailer {
                index: index(k),
                start: Offset::new(start),
                end: Offset::new(end),
                last_of_index,
                crc: Crc64::of(content),
                state: None,
            });
            let open = last_of_index && k + 1 == self.wals.len();
            let encoded = encode(style, content, (!open).then_some(trailer));
            objects.insert(segment(k, start).path(), encoded);
            start = end;
        }
    }
}

pub fn segment(k: usize, start: u64) -> Object {
    Object::Segment { generation: generation(), index: index(k), start: Offset::new(start) }
}

pub fn encode(style: Style, content: &[u8], trailer: Option<Trailer>) -> Vec<u8> {
    match style {
        Style::Ours => {
            let mut bytes = FRAME_HEADER.to_vec();
            content.chunks(MAX_BLOCK).for_each(|block| push_block(&mut bytes, block));
            bytes.extend_from_slice(&END_MARK);
            bytes.extend(trailer.iter().flat_map(Trailer::encode));
            bytes
        }
        Style::Litestream => lz4(content, |info| info.content_checksum(true)),
    }
}

/// A frame by `lz4_flex`, 4 MiB blocks unless told otherwise.
pub fn lz4(
    content: &[u8],
    options: impl Fn(lz4_flex::frame::FrameInfo) -> lz4_flex::frame::FrameInfo,
) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max4MB);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(options(info), Vec::new());
    std::io::Write::write_all(&mut encoder, content).unwrap();
    encoder.finish().unwrap()
}

/// Some bytes that compress a little, different for every seed.
pub fn noise(seed: i64, size: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        bytes.extend_from_slice(&(state & 0x1F3F_0F3F_1F0F_3F7F).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn transaction(connection: &Connection, id: i64, size: usize) {
    let transaction = connection.unchecked_transaction().unwrap();
    transaction
        .execute("UPDATE t SET data = ?1 WHERE id = ?2 / 2", (noise(id + 1_000_000, size), id))
        .unwrap();
    transaction.execute("INSERT INTO t VALUES (?1, ?2)", (id, noise(id, size))).unwrap();
    transaction.commit().unwrap();
}

fn checkpoint(connection: &Connection) {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
}

/// The last commit in a WAL file that may hold older frames behind it, if there is one.
pub fn last_commit(wal: &[u8]) -> Option<Commit> {
    let (header, frames) = wal.split_first_chunk()?;
    let mut chain = Chain::new(WalHeader::parse(header).ok()?);
    let _stale_frames_behind = chain.extend(frames, |_, _| {});
    chain.commit()
}

/// Its end.
pub fn committed_end(wal: &[u8]) -> usize {
    last_commit(wal).unwrap().end.get() as usize
}

/// The same WAL under other salts.
pub fn with_salt(wal: &[u8], salt: Salt) -> Vec<u8> {
    let header = WalHeader::parse(wal.first_chunk().unwrap()).unwrap();
    let (order, page_size) = (header.order(), header.page_size());
    let salt = [salt.0.to_be_bytes(), salt.1.to_be_bytes()].concat();
    let mut wal = wal.to_vec();
    wal[16..24].copy_from_slice(&salt);
    let mut checksum = Checksum::default().extend(order, &wal[..24]);
    let write = |to: &mut [u8], Checksum(first, second): Checksum| {
        to.copy_from_slice(&[first.to_be_bytes(), second.to_be_bytes()].concat());
    };
    write(&mut wal[24..32], checksum);
    for frame in wal[32..].chunks_exact_mut(page_size.frame_length() as usize) {
        frame[8..16].copy_from_slice(&salt);
        checksum = checksum.extend(order, &frame[..8]).extend(order, &frame[24..]);
        write(&mut frame[16..24], checksum);
    }
    wal
}

/// A database after a WAL, or a part of it that ends behind a frame, was replayed on it.
pub fn replayed(database: &[u8], wal: &[u8], page_size: u32) -> Vec<u8> {
    let (mut database, size) = (database.to_vec(), page_size as usize);
    for frame in wal.get(32..).unwrap_or_default().chunks_exact(24 + size) {
        let header = FrameHeader::parse(frame.first_chunk().unwrap());
        let at = header.page.unwrap().file_offset(PageSize::new(page_size).unwrap()) as usize;
        database.resize(database.len().max(at + size), 0);
        database[at..at + size].copy_from_slice(&frame[24..]);
        if let Some(count) = header.commit {
            database.truncate(count.get() as usize * size);
        }
    }
    database
}

/// The state of a whole file, computed anew.
pub fn state_of(database: &[u8], page_size: u32) -> DatabaseState {
    let entries = Entries::of_size(PageSize::new(page_size).unwrap());
    let mut checksum = DatabaseChecksum::default();
    for (page, number) in database.chunks_exact(page_size as usize).zip(1..) {
        checksum.toggle(entries.of(PageNumber::new(number).unwrap(), page));
    }
    let page_count = PageCount::new(database.len() as u32 / page_size).unwrap();
    DatabaseState { page_count, checksum }
}
