//! A snapshot that is read while the application writes and checkpoints is exact from its `valid_from` on.

use crate::support::compare::{assert_holds, assert_same};
use crate::support::history::{Objects, Style, encode, scratch};
use crate::support::litestream;
use crate::support::memory::{Server, restore_from};
use crate::support::process::output;
use crate::support::scene::{Scene, files, state};
use crate::support::sqlite::Writer;
use std::collections::BTreeMap;
use std::fs;
use wal_agent::core::frame::FrameDecoder;
use wal_agent::core::names::parse_segment;
use wal_agent::core::position::{Index, Offset};
use wal_agent::core::scan::Chain;
use wal_agent::core::segment::{TRAILER_LENGTH, Trailer};
use wal_agent::core::wal::WalHeader;

/// Restores to so many commits.
const SAMPLE: usize = 8;

/// The content of every WAL of a replica.
fn wals(objects: &Objects) -> BTreeMap<Index, Vec<u8>> {
    let mut wals: BTreeMap<Index, Vec<u8>> = BTreeMap::new();
    for (path, bytes) in objects {
        let Some((index, start)) = path.rsplit('/').next().and_then(parse_segment) else { continue };
        let wal = wals.entry(index).or_default();
        assert_eq!(wal.len() as u64, start.get(), "{path} follows the one before");
        let (mut decoder, mut bytes) = (FrameDecoder::new(), &bytes[..]);
        while let Some(block) = decoder.next_block(&mut bytes).expect("a frame") {
            wal.extend_from_slice(block);
        }
    }
    wals
}

/// Where every commit ends.
fn commits(wals: &BTreeMap<Index, Vec<u8>>) -> Vec<(Index, Offset)> {
    let mut commits = Vec::new();
    for (index, wal) in wals {
        let header = WalHeader::parse(wal.first_chunk().expect("a header")).expect("a header");
        let mut end = Offset::FIRST_FRAME;
        let mut take = |is_commit: bool| {
            end = end.plus(header.page_size().frame_length());
            commits.extend(is_commit.then_some((*index, end)));
        };
        Chain::new(header).extend(&wal[32..], |frame, _| take(frame.commit.is_some())).expect("valid frames");
    }
    commits
}

#[test]
fn a_snapshot_read_while_pages_change_is_exact_at_every_commit_from_its_valid_from_on() {
    let scene = Scene::new();
    let large = ["--commits", "30", "--rows", "500", "--size", "3000"];
    Writer::start(&scene.database, &large).finish();
    let arguments = ["--rows", "1-3", "--size", "1-500", "--autocheckpoint", "20", "--seed", "1"];
    let mut writer = Writer::start(&scene.database, &arguments);
    writer.wait_for(10);
    let agent = scene.start_agent();
    agent.wait_for_status("it streams", |status| state(status) == "streaming");
    let count = writer.committed().len() + 20;
    writer.wait_for(count);
    let last = *writer.finish().last().expect("there are commits");
    scene.wait_until_restores(&agent);
    assert!(agent.stop().success());

    let replica = scene.replica();
    let theirs = scene.folder.path().join("theirs.db");
    let url = format!("file://{}", replica.display());
    output(litestream::command().arg("restore").arg("-o").arg(&theirs).arg(url));
    assert_same(&scene.database, &theirs);

    let path_in = |path: &std::path::Path| {
        path.strip_prefix(&replica).ok().and_then(|path| path.to_str()).expect("it is in there").to_owned()
    };
    let objects: Objects =
        files(&replica).iter().map(|path| (path_in(path), fs::read(path).expect("it is there"))).collect();
    let (snapshot_path, snapshot) =
        objects.iter().find(|(path, _)| path.contains("/snapshots/")).expect("there is a snapshot");
    let trailer = snapshot.len().checked_sub(TRAILER_LENGTH).map(|at| Trailer::parse(&snapshot[at..]));
    let Some(Some((Trailer::Snapshot(trailer), _))) = trailer else { panic!("the snapshot has no trailer") };
    let wals = wals(&objects);
    let commits = commits(&wals);
    let is_exact = |at: &(Index, Offset)| *at >= trailer.valid_from;
    let before = commits.iter().filter(|at| **at > (trailer.index, Offset::ZERO) && !is_exact(at)).count();
    assert!(before > 0, "nothing was committed while it was read: {trailer:?}");
    let exact: Vec<usize> = (0..commits.len()).filter(|n| is_exact(&commits[*n])).collect();
    assert!(exact.len() > SAMPLE, "{} commits after it", exact.len());
    for n in exact.iter().step_by(exact.len() / SAMPLE) {
        let (index, end) = commits[*n];
        let mut cut = Objects::from([(snapshot_path.clone(), snapshot.clone())]);
        for (of, wal) in wals.range(..=index) {
            let folder = snapshot_path.split("/snapshots/").next().expect("it has a folder");
            let length = if *of == index { end.get() as usize } else { wal.len() };
            let path = format!("{folder}/wal/{of}_00000000.wal.lz4");
            cut.insert(path, encode(Style::Ours, &wal[..length], None));
        }
        let folder = scratch();
        let restored = folder.path().join("restored.db");
        restore_from(&Server::new(cut), &restored).expect("it restores");
        // One writer, so the commits of the WAL are the last ones that it made.
        let expected = last - (commits.len() - 1 - n) as i64;
        assert_holds(&restored, 0, &(1..=expected).collect::<Vec<_>>());
        let connection = rusqlite::Connection::open(&restored).expect("a database");
        let newest: i64 =
            connection.query_row("SELECT max(batch) FROM rows", [], |row| row.get(0)).expect("a row");
        assert_eq!(newest, expected, "at {index}:{end}");
    }
}
