//! The agent stops, or is killed, and starts again: what was begun goes on, or a new generation says why it does not.

use crate::support;
use crate::support::agent::Agent;
use crate::support::compare::assert_holds;
use crate::support::place::{Place, first, is_streaming, wait_for_page_table};
use crate::support::process::output;
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::wait_until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A database with some rows.
fn application(place: &Place, rows: &str) -> Shell {
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run(rows);
    application
}

/// The same, and an agent that has replicated it.
fn replicated(place: &Place) -> (Shell, Agent) {
    let application = application(place, INSERT);
    let agent = place.streaming_agent(&[]);
    (application, agent)
}

/// The same with more rows, and a page table.
fn with_page_table(place: &Place) -> (Shell, Agent) {
    let application = application(place, MANY);
    let agent = place.streaming_agent(&[]);
    wait_for_page_table(&agent);
    (application, agent)
}

/// Kills the agent, or stops it.
fn end(place: &Place, agent: Agent, is_killed: bool) {
    if is_killed { agent.kill() } else { place.stop(agent) }
}

const MANY: &str = "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 100)";
const INSERT: &str = "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 10)";

#[test]
fn a_restart_while_nothing_is_written_goes_on_without_a_snapshot() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (_application, agent) = replicated(&place);
        let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
        let snapshots = place.objects("snapshots");
        assert_eq!(snapshots, ["00000000.snapshot.lz4"]);
        end(&place, agent, is_killed);
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        assert_eq!(agent.generation(), generation_before);
        assert_eq!(place.objects("snapshots"), snapshots);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn a_restart_after_writes_into_the_same_wal_goes_on() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (mut application, agent) = replicated(&place);
        let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
        end(&place, agent, is_killed);
        application.run(INSERT);
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        application.run(INSERT);
        place.wait_until_replicated(&agent);
        assert_eq!(agent.generation(), generation_before);
        assert_eq!(place.objects("snapshots").len(), 1);
        place.stop(agent);
        place.assert_restores();
    }
}

/// Bytes of all segments of the replica.
fn segment_bytes(place: &Place) -> u64 {
    let files = super::support::scene::files(&place.replica());
    let segments = files.iter().filter(|path| path.to_string_lossy().ends_with(".wal.lz4"));
    segments.map(|path| std::fs::metadata(path).expect("it is there").len()).sum()
}

/// What becomes of a database and its WAL while the agent is down.
const WHILE_STOPPED: [&str; 8] = [
    "PRAGMA wal_checkpoint(RESTART); UPDATE t SET data = randomblob(3000) WHERE id = 7",
    "PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET data = randomblob(3000) WHERE id = 7",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 30); PRAGMA wal_checkpoint(TRUNCATE)",
    "DELETE FROM t WHERE id > 60; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA journal_mode=delete; UPDATE t SET data = randomblob(2000) WHERE id % 10 = 0; PRAGMA journal_mode=wal",
    "PRAGMA journal_mode=delete; CREATE TABLE u (x); INSERT INTO u VALUES (1)",
    "PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM t WHERE id = 3; PRAGMA wal_checkpoint(TRUNCATE); \
     DELETE FROM t WHERE id = 4; PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET data = x'00' WHERE id = 5",
];

#[test]
fn what_was_changed_while_the_agent_was_down_is_all_that_is_sent() {
    for (at, sql) in WHILE_STOPPED.into_iter().enumerate() {
        for (is_killed, closes) in [(false, true), (true, false)] {
            let place = Place::new();
            let (mut application, agent) = with_page_table(&place);
            let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
            end(&place, agent, is_killed);
            application.run(sql);
            if closes {
                application.close();
                assert!(!place.wal().exists(), "the last close removes the WAL");
            }
            let agent = Agent::start_again(&configuration);
            place.wait_until_replicated(&agent);
            assert_eq!(agent.generation(), generation_before, "{at}: {}", agent.log());
            assert_eq!(place.objects("snapshots").len(), 1);
            let mut application = Shell::open(&place.database());
            application.run("INSERT INTO t (data) VALUES (randomblob(2500))");
            place.wait_until_replicated(&agent);
            wait_for_page_table(&agent);
            assert_eq!(agent.generation(), generation_before, "{at}: {}", agent.log());
            place.stop(agent);
            place.assert_restores();
            let (_, report) = place.restore_with_report();
            assert_eq!(report.proven, Some(report.position), "{report}");
        }
    }
}

#[test]
fn a_database_that_was_idle_before_the_agent_was_down_is_compared_too() {
    let place = Place::new();
    let application = application(&place, MANY);
    application.close();
    let agent = place.streaming_agent(&["let-go-after: never"]);
    wait_for_page_table(&agent);
    let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
    agent.kill();
    let mut application = Shell::open(&place.database());
    application.run("UPDATE t SET data = x'00' WHERE id = 3; PRAGMA wal_checkpoint(TRUNCATE)");
    let agent = Agent::start_again(&configuration);
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), generation_before, "{}", agent.log());
    application.run("UPDATE t SET data = x'00' WHERE id = 4");
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

/// Its WAL has a header by then, and nothing else of it counts.
#[test]
fn a_transaction_in_flight_while_the_database_is_compared_is_the_beginning_of_the_next_index() {
    let place = Place::new();
    let (mut application, agent) = with_page_table(&place);
    let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
    place.stop(agent);
    application.run("UPDATE t SET data = x'00' WHERE id = 3");
    application.close();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA cache_size = 5; BEGIN");
    application.run(MANY);
    assert!(place.wal().metadata().is_ok_and(|wal| wal.len() > 4096), "it is in the WAL, for the most part");
    let agent = Agent::start_again(&configuration);
    agent.wait_for_log("compared with the page table");
    application.run("COMMIT");
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), generation_before, "{}", agent.log());
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn little_is_sent_of_a_database_that_changed_little() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    application.run("INSERT INTO t (data) SELECT randomblob(4000) FROM generate_series(1, 4000)");
    let agent = place.streaming_agent(&[]);
    wait_for_page_table(&agent);
    let configuration = agent.configuration().to_owned();
    place.stop(agent);
    // One page in a hundred.
    application
        .run("UPDATE t SET data = randomblob(4000) WHERE id % 100 = 0; PRAGMA wal_checkpoint(TRUNCATE)");
    application.close();
    let before = segment_bytes(&place);
    let agent = Agent::start_again(&configuration);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    let (sent, size) = (segment_bytes(&place) - before, std::fs::metadata(place.database()).unwrap().len());
    assert!(sent * 1000 <= size * 12, "{sent} bytes for a database of {size}");
    assert_eq!(place.objects("snapshots").len(), 1);
    place.assert_restores();
}

/// What becomes of the page table while the agent is down.
#[derive(Clone, Copy)]
enum Spoil {
    Nothing,
    Remove,
    Damage,
}

impl Spoil {
    fn apply(self, path: &Path) {
        match self {
            Spoil::Nothing => {}
            Spoil::Remove => std::fs::remove_file(path).expect("it is ours"),
            Spoil::Damage => {
                let mut bytes = std::fs::read(path).expect("it is ours");
                bytes[64] ^= 1;
                std::fs::write(path, bytes).expect("it is ours");
            }
        }
    }
}

#[test]
fn without_a_page_table_that_can_tell_a_new_generation_begins_and_says_why() {
    let no_table = "there is no page table to compare with";
    let cases = [
        (Spoil::Remove, "UPDATE t SET data = x'00' WHERE id = 3", no_table),
        (Spoil::Damage, "UPDATE t SET data = x'00' WHERE id = 3", no_table),
        (Spoil::Nothing, "UPDATE t SET data = randomblob(3000)", "most pages have changed"),
    ];
    for (spoil, sql, why) in cases {
        let place = Place::new();
        let (mut application, agent) = with_page_table(&place);
        let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
        place.stop(agent);
        spoil.apply(&place.page_table());
        application.run(&format!("{sql}; PRAGMA wal_checkpoint(TRUNCATE)"));
        let agent = Agent::start_again(&configuration);
        agent.wait_for_log("the WAL was restarted while the agent did not hold it");
        agent.wait_for_log(why);
        place.wait_until_replicated(&agent);
        assert_ne!(agent.generation(), generation_before);
        place.stop(agent);
        place.assert_restores();
    }
}

/// Whoever trusted it would take pages for copied that were changed, copied, and changed back.
#[test]
fn a_page_table_that_is_older_than_the_shadow_is_never_trusted() {
    let files = ["page-table", "page-table.changes"];
    // The table alone, which what is beside it may still bring up to date; and both.
    for put_back in [&files[..1], &files] {
        let place = Place::new();
        let mut application = application(&place, MANY);
        application.run("UPDATE t SET data = zeroblob(3000) WHERE id <= 30");
        let agent = place.streaming_agent(&[]);
        wait_for_page_table(&agent);
        let configuration = agent.configuration().to_owned();
        place.stop(agent);
        let paths: Vec<_> = put_back.iter().map(|name| place.page_table().with_file_name(name)).collect();
        let read = |path: &PathBuf| std::fs::read(path).expect("it is ours");
        let older: Vec<_> = paths.iter().map(read).collect();
        let agent = Agent::start_again(&configuration);
        agent.wait_for_status("streams", is_streaming);
        application
            .run("UPDATE t SET data = randomblob(3000) WHERE id <= 30; PRAGMA wal_checkpoint(TRUNCATE)");
        application.run("INSERT INTO t (data) VALUES (randomblob(2500))");
        place.wait_until_replicated(&agent);
        wait_until("the table is written", Duration::from_secs(60), || read(&paths[0]) != older[0]);
        place.stop(agent);
        for (path, older) in paths.iter().zip(older) {
            std::fs::write(path, older).expect("it is ours");
        }
        application.run("UPDATE t SET data = zeroblob(3000) WHERE id <= 30; PRAGMA wal_checkpoint(TRUNCATE)");
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        application.run("INSERT INTO t (data) VALUES (randomblob(2500))");
        place.wait_until_replicated(&agent);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn a_database_that_was_restored_to_its_own_place_is_replicated_as_it_goes_on() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (mut application, agent) = with_page_table(&place);
        application.run(INSERT);
        place.wait_until_replicated(&agent);
        let configuration = agent.configuration().to_owned();
        end(&place, agent, is_killed);
        application.kill();
        for suffix in ["", "-wal", "-shm"] {
            let file = place.path(&format!("app.db{suffix}"));
            std::fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        output(support::agent::agent("restore", &configuration, None).arg(place.database()));
        let mut application = Shell::open(&place.database());
        assert_eq!(application.value("SELECT count(*) FROM t"), "110");
        application.run(INSERT);
        let agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        application.run(INSERT);
        place.wait_until_replicated(&agent);
        place.stop(agent);
        assert_eq!(application.value("SELECT count(*) FROM t"), "130");
        place.assert_restores();
    }
}

#[test]
fn a_page_that_was_changed_without_sqlite_while_nobody_was_there_is_found_and_copied() {
    let place = Place::new();
    let (application, agent) = with_page_table(&place);
    let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
    place.stop(agent);
    application.close();
    let mut bytes = std::fs::read(place.database()).expect("it is there");
    let at = bytes.len() - 100;
    bytes[at] ^= 0x55;
    std::fs::write(place.database(), bytes).expect("the folder is ours");
    let agent = Agent::start_again(&configuration);
    agent.wait_for_log("compared with the page table: 1 pages have changed and are copied");
    place.wait_until_replicated(&agent);
    assert_eq!(agent.generation(), generation_before);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_backup_that_is_copied_over_the_database_beside_its_wal_is_noticed() {
    for is_killed in [false, true] {
        let place = Place::new();
        let (mut application, agent) = with_page_table(&place);
        let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
        application.run("PRAGMA wal_checkpoint(TRUNCATE)");
        // The same layout, so that SQLite finds nothing wrong with the WAL of the other one.
        let backup = place.database().with_file_name("backup.db");
        std::fs::copy(place.database(), &backup).expect("the folder is ours");
        let mut other = Shell::open(&backup);
        other.run("UPDATE t SET data = zeroblob(3000) WHERE id <= 50; PRAGMA wal_checkpoint(TRUNCATE)");
        other.close();
        application.run("UPDATE t SET data = randomblob(3000) WHERE id = 99; PRAGMA wal_checkpoint");
        application.run("UPDATE t SET data = randomblob(3000) WHERE id = 100");
        place.wait_until_replicated(&agent);
        end(&place, agent, is_killed);
        application.kill();
        std::fs::copy(&backup, place.database()).expect("the folder is ours");
        let agent = Agent::start_again(&configuration);
        agent.wait_for_log("something other than SQLite has written over it while the agent was not there");
        let mut application = Shell::open(&place.database());
        assert_eq!(application.value("SELECT count(*) FROM t WHERE data = zeroblob(3000)"), "50");
        application.run("INSERT INTO t (data) VALUES (randomblob(2500))");
        place.wait_until_replicated(&agent);
        assert_ne!(agent.generation(), generation_before);
        place.stop(agent);
        place.assert_restores();
    }
}

#[test]
fn an_agent_killed_while_the_database_goes_on_without_it_begins_no_generation() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE filling (data BLOB)");
    application.run("INSERT INTO filling SELECT randomblob(3000) FROM generate_series(1, 3000)");
    application.close();
    let arguments = ["--mode", "churn", "--rows", "1-3", "--size", "1-3000", "--autocheckpoint", "30"];
    let mut agent = place.agent(&["min-checkpoint-page-count: 20"]);
    wait_for_page_table(&agent);
    let (generation_before, configuration) = (agent.generation(), agent.configuration().to_owned());
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..8 {
        let mut writer = Writer::start(&place.database(), &arguments);
        writer.wait_for(random.random_range(1..40));
        agent.kill();
        let more = writer.committed().len() + random.random_range(1..40);
        writer.wait_for(more);
        writer.finish();
        agent = Agent::start_again(&configuration);
        place.wait_until_replicated(&agent);
        assert_eq!(agent.generation(), generation_before, "round {round}: {}", agent.log());
    }
    wait_for_page_table(&agent);
    place.stop(agent);
    place.assert_restores();
    let (_, report) = place.restore_with_report();
    assert_eq!(report.proven, Some(report.position), "{report}");
}

#[test]
fn an_agent_killed_again_and_again_under_load_loses_nothing() {
    let place = Place::new();
    let database = place.database();
    let arguments = ["--rows", "1-5", "--size", "1-4000", "--synchronous", "NORMAL"];
    let mut writer = Writer::start(&database, &arguments);
    writer.wait_for(1);
    let mut random = StdRng::seed_from_u64(6);
    let mut agent = place.agent(&["min-checkpoint-page-count: 50"]);
    let configuration = agent.configuration().to_owned();
    for _ in 0..15 {
        // At any moment: between its start and some commits later.
        let commits = writer.committed().len() + random.random_range(0..150);
        writer.wait_for(commits);
        agent.kill();
        agent = Agent::start_again(&configuration);
    }
    let position = || first(&agent.status()?)["replicas"][0]["position"].as_str().map(str::to_owned);
    wait_until("the replica is followed again", Duration::from_secs(60), || position().is_some());
    let committed = writer.finish();
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
    assert_holds(&place.restore(), 0, &committed);
}
