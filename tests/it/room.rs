//! The local disk: what we keep while a server is away must not take the room that the application needs.

use crate::support::agent::Agent;
use crate::support::compare::difference;
use crate::support::mounted::Mounted;
use crate::support::oracle::{Application, Habits};
use crate::support::place::first;
use crate::support::process::{output, signal};
use crate::support::scene::{Scene, files, is_all_acknowledged, of_database, on_server, restore};
use crate::support::sim_disk::DiskFault;
use crate::support::sqlite::Shell;
use crate::support::sshd::Sshd;
use crate::support::wait::wait_until;
use crate::support::world::{Settings, World};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;
use wal_agent::config::CheckpointSettings;
use wal_agent::core::space::DiskSpace;

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// A database whose size stays the same, however often [`write`] is called.
fn application(database: &Path) -> Shell {
    let mut application = Shell::open(database);
    application.run(
        "PRAGMA journal_mode=wal; PRAGMA synchronous=off; CREATE TABLE t (id INTEGER PRIMARY KEY, data)",
    );
    application.run("INSERT INTO t VALUES (1, randomblob(1000000))");
    application
}

/// A commit of a megabyte.
const WRITE: &str = "UPDATE t SET data = randomblob(1000000);";

/// It must succeed.
fn write(application: &mut Shell) {
    application.run(WRITE);
}

fn start(folder: &Path, database: &Path, server: &Sshd, setting: &str) -> Agent {
    start_with(folder, database, &[&on_server(&server.location(), "app")], setting)
}

fn start_with(folder: &Path, database: &Path, replicas: &[&str], setting: &str) -> Agent {
    let text =
        of_database(database, replicas).replace("    replicas:", &format!("    {setting}\n    replicas:"));
    let agent = Agent::start(folder, &text);
    agent.wait_for_status("streams", is_all_acknowledged);
    agent
}

/// Nobody may write meanwhile.
fn assert_restores(agent: &Agent, database: &Path, folder: &Path) {
    let restored = folder.join("restored.db");
    restore(agent, database, &restored, &[]);
    assert_eq!(difference(database, &restored), None);
}

fn bytes_in(folder: &Path) -> u64 {
    files(folder).iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
}

#[test]
fn a_shadow_that_reaches_its_limit_is_given_up_and_a_server_that_comes_back_gets_a_new_generation() {
    let Scene { mut server, folder, database } = Scene::new();
    let mut application = application(&database);
    let agent = start(folder.path(), &database, &server, "max-local-bytes: 5000000");
    let generation = agent.generation();
    server.stop();
    let meta = folder.path().join(".app.db-agent");
    for _ in 0..30 {
        write(&mut application);
        // An agent that comes late has copied more at once, and gives that up.
        wait_until("no more is kept", DEADLINE, || bytes_in(&meta) < 5_000_000 + 3 * MIB);
    }
    agent.wait_for_log("there is no room for the shadow WAL");
    server.start_again(&["ed25519"]);
    agent.wait_for_status("streams again", is_all_acknowledged);
    assert_ne!(agent.generation(), generation);
    let status = agent.status().expect("it runs");
    let reason = first(&status)["breaks"]["last_reason"].to_string();
    assert!(reason.contains("there was no room for it"), "{reason}");
    assert_restores(&agent, &database, folder.path());
    application.close();
}

#[test]
fn status_says_that_room_is_scarce_then_that_there_is_none_and_then_nothing() {
    let Scene { mut server, folder, database } = Scene::new();
    let mut application = application(&database);
    let replicas = [on_server(&server.location(), "app"), format!("path: {}/near", folder.path().display())];
    let replicas = replicas.each_ref().map(String::as_str);
    let agent = start_with(folder.path(), &database, &replicas, "max-local-bytes: 40000000");
    let room = |status: &Value| first(status)["room_is_scarce"].clone();
    assert!(room(&agent.status().expect("it runs")).is_null());
    server.stop();
    (0..25).for_each(|_| write(&mut application));
    let status = agent.wait_for_status("room is scarce", |status| room(status).is_string());
    assert_eq!(first(&status)["state"], "attached", "{status}");
    (0..30).for_each(|_| write(&mut application));
    let status = agent.wait_for_status("is given up", |status| first(status)["state"] == "refused");
    assert!(room(&status).is_null(), "{status}");
    // It is there, and has nothing to send.
    assert_eq!(first(&status)["replicas"][1]["state"], "waiting", "{status}");
    server.start_again(&["ed25519"]);
    let status = agent.wait_for_status("streams again", is_all_acknowledged);
    assert!(room(&status).is_null(), "{status}");
    for replica in ["sftp", "file"] {
        let restored = folder.path().join(replica);
        restore(&agent, &database, &restored, &["--replica", replica]);
        assert_eq!(difference(&database, &restored), None);
    }
    application.close();
}

#[test]
fn an_application_on_a_small_disk_never_meets_a_full_one_because_a_server_is_away() {
    let back = |server: &mut Sshd| server.start_again(&["ed25519"]);
    assert_never_full("min-free-bytes: 16000000", Sshd::stop, 1, back);
}

/// Whatever is sent to it waits for an answer, and fails only later.
#[test]
fn an_application_on_a_small_disk_never_meets_a_full_one_because_a_server_does_not_answer() {
    let signal_all = |server: &mut Sshd, what| {
        server.sftp_servers().into_iter().for_each(|pid| signal(pid, what));
    };
    let (stop, go_on) = (
        |server: &mut Sshd| signal_all(server, Signal::STOP),
        |server: &mut Sshd| signal_all(server, Signal::CONT),
    );
    assert_never_full("let-go-after: 1s", stop, 4, go_on);
}

/// While its server is gone, an application commits four times as much as its disk has, so many commits at once.
fn assert_never_full(setting: &str, gone: impl Fn(&mut Sshd), at_once: usize, back: impl Fn(&mut Sshd)) {
    let Scene { mut server, folder, .. } = Scene::new();
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("the folder is ours");
    let _mounted = Mounted::new(&small, 40 * MIB);
    let database = small.join("app.db");
    let mut application = application(&database);
    let agent = start(folder.path(), &database, &server, setting);
    gone(&mut server);
    for _ in 0..160 / at_once {
        application.run(&WRITE.repeat(at_once));
    }
    agent.wait_for_log("there is no room for the shadow WAL");
    back(&mut server);
    agent.wait_for_status("streams again", is_all_acknowledged);
    assert_restores(&agent, &database, folder.path());
    application.close();
    agent.wait_for_status("lets go", |status| first(status)["state"] == "detached");
    drop(agent);
    output(std::process::Command::new("sync").arg("-f").arg(&small));
}

/// Commits large transactions until the disk is full; how long the WAL is then. `noticed` is asked after each commit, with
/// that length, until it says so.
fn fill(application: &mut Shell, wal: &Path, noticed: impl Fn(u64) -> bool) -> u64 {
    let length = || fs::metadata(wal).expect("it is held").len();
    loop {
        if let Err(error) = application.try_run("UPDATE t SET data = randomblob(24000000)") {
            assert!(error.contains("full"), "{error}");
            return length();
        }
        wait_until("the agent has seen the commit", DEADLINE, || noticed(length()));
    }
}

#[test]
fn a_wal_that_is_never_restarted_fills_a_small_disk_no_sooner_than_without_an_agent() {
    let Scene { mut server, folder, .. } = Scene::new();
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("the folder is ours");
    let (database, wal, meta) = (small.join("app.db"), small.join("app.db-wal"), small.join(".app.db-agent"));
    let other = small.join("other");
    let with_reader = || {
        fs::write(&other, vec![0; 48_000_000]).expect("there is room");
        let (application, mut reader) = (application(&database), Shell::open(&database));
        reader.run("BEGIN; SELECT count(*) FROM t");
        (application, reader)
    };
    let alone = {
        let _mounted = Mounted::new(&small, 300 * MIB);
        let (mut application, reader) = with_reader();
        let alone = fill(&mut application, &wal, |_| true);
        drop((application, reader));
        alone
    };
    let _mounted = Mounted::new(&small, 300 * MIB);
    let (mut application, mut reader) = with_reader();
    let agent = start(folder.path(), &database, &server, "let-go-after: 1s");
    server.stop();
    application.run("UPDATE t SET id = id");
    agent.wait_for_status("the replica fails", |status| status["health"] == "failing");
    let has_given_up = || first(&agent.status().expect("it runs"))["state"] == "refused";
    let beside = fill(&mut application, &wal, |length| bytes_in(&meta) >= length || has_given_up());
    // What the agent writes of itself is less than one commit.
    assert!(beside + 25_000_000 > alone, "full with a WAL of {beside} bytes, without an agent of {alone}");
    agent.wait_for_log("there is no room for the shadow WAL");
    reader.run("COMMIT");
    fs::remove_file(&other).expect("it is there");
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    server.start_again(&["ed25519"]);
    agent.wait_for_status("streams again", is_all_acknowledged);
    assert_restores(&agent, &database, folder.path());
    [application, reader].into_iter().for_each(Shell::close);
    agent.wait_for_status("lets go", |status| first(status)["state"] == "detached");
}

#[test]
fn a_large_transaction_is_copied_though_little_is_free_where_the_replicas_take_it() {
    let Scene { server, folder, .. } = Scene::new();
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("the folder is ours");
    let _mounted = Mounted::new(&small, 300 * MIB);
    let database = small.join("app.db");
    let mut application = application(&database);
    application.run("PRAGMA wal_autocheckpoint=0");
    // A checkpoint would need as much once more.
    let setting =
        "min-checkpoint-page-count: 1000000\n    max-checkpoint-page-count: 0\n    checkpoint-interval: 0";
    let agent = start(folder.path(), &database, &server, setting);
    let generation = agent.generation();
    application.run("UPDATE t SET data = randomblob(100000000)");
    agent.wait_for_status("is there", is_all_acknowledged);
    assert_eq!(agent.generation(), generation, "{}", agent.log());
    assert_restores(&agent, &database, folder.path());
    agent.kill();
    application.close();
}

/// Less than twice of what it must keep.
const SCARCE: DiskSpace = DiskSpace { total: 100 << 30, free: 300 * MIB };

/// How often a page table was begun.
fn built(world: &World) -> usize {
    let is_begun = |line: &&str| line.contains(": create ") && line.trim_end().ends_with("/page-table");
    world.disk.log().lines().filter(is_begun).count()
}

/// The next change of the page table fails, which costs the table.
fn fail_change_of_table(world: &World) {
    let (disk, mut has_failed) = (world.disk.clone(), false);
    world.disk.interrupt(Some(Box::new(move |_| {
        if !has_failed && disk.log().trim_end().ends_with("/page-table.changes") {
            has_failed = true;
            disk.plan(0, DiskFault::Failed);
        }
    })));
}

fn write_megabytes(world: &mut World, count: usize) {
    for _ in 0..count {
        world.application().run(0, "INSERT INTO t (n, data) VALUES (1, zeroblob(1000000))");
        world.rest_for(Duration::from_secs(1));
    }
}

#[test]
fn while_room_is_scarce_no_page_table_is_built_and_afterwards_everything_is_made_up_for() {
    for is_scarce in [false, true] {
        let application = |database: &Path| Application::new(database, Habits::PLAIN, Vec::new(), 1);
        // The agent checkpoints, and so a change of the table is due, when room has been scarce for a while.
        let checkpoint = CheckpointSettings { min_pages: 2000, max_pages: 0, interval: None };
        let mut world = World::new(Settings { checkpoint, ..Settings::PLAIN }, 1, application);
        world.application().create();
        world.start_agent();
        world.settle();
        world.servers[0].refuse_all(true);
        world.disk.set_space(Some(SCARCE).filter(|_| is_scarce));
        write_megabytes(&mut world, 6);
        assert_eq!((world.status().scarcity.is_some(), built(&world)), (is_scarce, 1));
        fail_change_of_table(&world);
        write_megabytes(&mut world, 4);
        world.rest_for(Duration::from_secs(60));
        assert!(world.disk.log().contains("page-table.changes Failed"), "{}", world.disk.log());
        assert_eq!(built(&world), if is_scarce { 1 } else { 2 }, "{}", world.disk.log());
        world.disk.set_space(None);
        world.heal();
        world.settle();
        world.application().run(0, "UPDATE c SET n = n + 1");
        world.settle();
        assert!(world.status().scarcity.is_none());
        assert_eq!((built(&world), world.status().breaks.count), (2, 0));
        world.check_restore(0, true);
        world.check_all_is_replicated();
        world.end();
    }
}
