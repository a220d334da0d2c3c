//! Replicas as they are found: several of them, after a restart, with parts missing, and on servers that refuse.

use crate::support::agent::Agent;
use crate::support::compare::{assert_same, difference};
use crate::support::hung::Hung;
use crate::support::place::Place;
use crate::support::scene::{
    Scene, count, files, is_all_acknowledged, of_databases, on_server, on_server_with, state, wait_for_all,
    wait_until_restores,
};
use crate::support::sqlite::{Shell, Writer};
use crate::support::temporary_folder;
use crate::support::wait::wait_until;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use wal_agent::core::restore::Check;
use wal_agent::remote::dir::DirRemote;
use wal_agent::restore::{RestoreOptions, restore};

const DEADLINE: Duration = Duration::from_secs(60);

/// Restores a replica in a folder of this machine, which the server's storage is, too.
fn restore_folder(replica: &Path, output: &Path) {
    let report = restore(RestoreOptions {
        remotes: &|| Ok(Box::new(DirRemote::new())),
        root: replica.to_str().expect("temporary folders have plain names"),
        output: output.to_owned(),
        check: Check::Quick,
        progress: &mut |_| {},
    });
    report.unwrap_or_else(|error| panic!("{}: {error}", replica.display()));
}

/// The segments of a replica, in order; there is one generation.
fn segments(scene: &Scene) -> Vec<PathBuf> {
    files(&scene.replica()).into_iter().filter(|path| path.to_string_lossy().ends_with(".wal.lz4")).collect()
}

/// A scene with one replica that has `commits`, and its writer.
fn streaming(commits: usize) -> (Scene, Writer, Agent) {
    let scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--step", "--size", "1-3000"]);
    (0..commits).for_each(|_| writer.step());
    let agent = scene.start_agent();
    scene.wait_until_restores(&agent);
    (scene, writer, agent)
}

#[test]
fn many_databases_with_three_replicas_each_share_two_logins() {
    let scene = Scene::new();
    let location = scene.server.location();
    let folder = scene.folder.path();
    let name = |number: usize| format!("db{number}");
    let databases: Vec<PathBuf> = (0..20).map(|number| folder.join(name(number))).collect();
    let configuration = of_databases(databases.iter().enumerate().map(|(number, database)| {
        let name = name(number);
        Writer::start(database, &["--commits", "4", "--size", "1-9000"]).finish();
        let replicas = vec![
            on_server(&location, &format!("one/{name}")),
            on_server_with(
                &location,
                &format!("two/{name}"),
                &format!(
                    "name: two, durability: write, sync-interval: 10ms, host-key: {}",
                    location.host_keys[0]
                ),
            ),
            format!("{{path: {}/three/{name}}}", folder.display()),
        ];
        (database.as_path(), replicas)
    }));
    let agent = Agent::start(folder, &configuration);
    wait_for_all(&agent);
    assert_eq!(count(&scene.server.log(), "Accepted publickey"), 2, "logins");
    Writer::start(&folder.join(name(7)), &["--commits", "3", "--size", "1-90000"]).finish();
    wait_until_restores(&agent, &folder.join(name(7)), &["--replica", "two"]);
    let status = agent.status().expect("the agent answers");
    let durable = |number: usize| status["databases"][0]["replicas"][number]["durable"].clone();
    assert_eq!([durable(0), durable(1), durable(2)], [true, false, true]);
    for number in 0..20 {
        let storage = scene.server.storage();
        let replicas = [storage.join("one"), storage.join("two"), folder.join("three")];
        for (which, replica) in replicas.iter().enumerate() {
            let output = folder.join(format!("restored-{number}-{which}"));
            restore_folder(&replica.join(name(number)), &output);
            assert_same(&folder.join(name(number)), &output);
        }
    }
}

#[test]
fn a_folder_that_hangs_keeps_no_other_one_waiting() {
    let folder = temporary_folder();
    let databases = ["one.db", "two.db"].map(|name| folder.path().join(name));
    let mut writers = databases.each_ref().map(|database| Writer::start(database, &["--step"]));
    writers.iter_mut().for_each(Writer::step);
    let replicas = ["near/one", "far/two"].map(|name| folder.path().join(name));
    let generations = replicas[0].join("generations");
    fs::create_dir_all(&generations).expect("the folder is ours");
    let hung = Hung::folder(&generations);
    let replica_of = |replica: &PathBuf| vec![format!("{{path: {}}}", replica.display())];
    let configuration =
        of_databases(databases.iter().map(PathBuf::as_path).zip(replicas.iter().map(replica_of)));
    let agent = Agent::start(folder.path(), &configuration);
    let is_copied_and_sent = |status: &Value, database: usize| {
        let database = &status["databases"][database];
        (database["position"].is_string(), database["replicas"][0]["position"] == database["position"])
    };
    let status = agent.wait_for_status("the other one is replicated", |status| {
        is_copied_and_sent(status, 1) == (true, true)
    });
    assert_eq!(is_copied_and_sent(&status, 0), (true, false), "{status}");
    drop(hung);
    databases.iter().for_each(|database| wait_until_restores(&agent, database, &[]));
}

#[test]
fn databases_that_grow_alike_on_one_server_are_sealed_each_with_its_own_checksum() {
    let scene = Scene::new();
    let location = scene.server.location();
    let databases = ["one.db", "two.db"].map(|name| scene.folder.path().join(name));
    let configuration = of_databases(databases.iter().map(|database| {
        let name = database.file_name().expect("it has one").to_string_lossy();
        (database.as_path(), vec![on_server(&location, &name)])
    }));
    let mut writers =
        databases.each_ref().map(|database| Writer::start(database, &["--step", "--size", "500"]));
    writers.iter_mut().for_each(Writer::step);
    let agent = Agent::start(scene.folder.path(), &configuration);
    databases.iter().for_each(|database| wait_until_restores(&agent, database, &[]));
    // One thread sends both, and what it sent last ends where this one goes on.
    writers[0].step();
    wait_until_restores(&agent, &databases[0], &[]);
    agent.stop();
    for database in &databases {
        let output = database.with_extension("stopped");
        let replica = scene.server.storage().join(database.file_name().expect("it has one"));
        restore_folder(&replica, &output);
        assert_same(database, &output);
    }
}

#[test]
fn a_restart_writes_the_last_segment_anew_and_touches_nothing_of_others() {
    let (scene, mut writer, agent) = streaming(5);
    let last = segments(&scene).pop().expect("there is a segment");
    let inode = |path: &Path| fs::metadata(path).expect("it is there").ino();
    let (old, wal) = (inode(&last), last.parent().expect("it is in a folder").to_owned());
    let configuration = agent.configuration().to_owned();
    agent.kill();
    let other = scene.replica().join("generations/0123456789abcdef/wal");
    fs::create_dir_all(&other).expect("the folder is ours");
    let own = ["00000000_00000020.wal.lz4.tmp", "00000009_00000000.wal.lz4.0123456789abcdef.tmp"];
    let foreign = [wal.join("notes.txt"), wal.join("00000000_0000002.wal.lz4"), other.join(own[0])];
    own.iter().for_each(|name| fs::write(wal.join(name), "half").expect("the folder is ours"));
    foreign.iter().for_each(|path| fs::write(path, "theirs").expect("the folder is ours"));
    writer.step();
    let agent = Agent::start_again(&configuration);
    scene.wait_until_restores(&agent);
    assert_ne!(inode(&last), old, "the old file may still be written by a stopped process");
    own.iter().for_each(|name| assert!(!wal.join(name).exists(), "{name} is left over"));
    for path in foreign {
        assert_eq!(fs::read(&path).ok().as_deref(), Some(&b"theirs"[..]), "{}", path.display());
    }
    writer.step();
    scene.wait_until_restores(&agent);
}

#[test]
fn a_replica_that_lost_its_last_segment_is_filled_again_loudly() {
    let (mut scene, mut writer, agent) = streaming(5);
    scene.server.stop();
    fs::remove_file(segments(&scene).pop().expect("there is a segment")).expect("the folder is ours");
    scene.server.start_again(&["ed25519"]);
    writer.step();
    agent.wait_for_log("holds less than it had acknowledged");
    scene.wait_until_restores(&agent);
}

/// What a server that loses power may keep of a file, or nothing of it.
const LOSSES: [fn(&Path) -> std::io::Result<()>; 2] =
    [|path| fs::write(path, []), |path| fs::remove_file(path)];

#[test]
fn a_replica_that_lost_a_part_of_what_it_held_gets_a_new_generation_with_a_reason() {
    for lose in LOSSES {
        let (scene, mut writer, agent) = streaming(5);
        let configuration = agent.configuration().to_owned();
        for _ in 0..3 {
            Shell::open(&scene.database).run("PRAGMA wal_checkpoint(TRUNCATE)");
            writer.step();
            scene.wait_until_restores(&agent);
        }
        agent.kill();
        let segments = segments(&scene);
        assert!(segments.len() > 3, "{segments:?}");
        lose(&segments[segments.len() / 2]).expect("the folder is ours");
        let agent = Agent::start_again(&configuration);
        agent.wait_for_log("a replica has lost a part of what it held");
        writer.step();
        scene.wait_until_restores(&agent);
    }
}

#[test]
fn a_replica_whose_snapshot_is_empty_gets_another_one() {
    let (scene, mut writer, agent) = streaming(5);
    let configuration = agent.configuration().to_owned();
    agent.kill();
    let snapshot =
        files(&scene.replica()).into_iter().find(|path| path.to_string_lossy().contains(".snapshot"));
    fs::write(snapshot.expect("there is one"), []).expect("the folder is ours");
    let agent = Agent::start_again(&configuration);
    writer.step();
    scene.wait_until_restores(&agent);
}

#[test]
fn a_replica_that_was_removed_as_a_whole_gets_a_new_snapshot_loudly() {
    let (mut scene, mut writer, agent) = streaming(5);
    scene.server.stop();
    fs::remove_dir_all(scene.replica()).expect("the folder is ours");
    scene.server.start_again(&["ed25519"]);
    writer.step();
    agent.wait_for_log("holds less than it had acknowledged");
    scene.wait_until_restores(&agent);
}

#[test]
fn a_replica_that_is_removed_beside_the_agent_gets_a_new_snapshot_while_commits_come() {
    let (scene, mut writer, agent) = streaming(5);
    fs::remove_dir_all(scene.replica()).expect("the folder is ours");
    wait_until("a commit misses it", Duration::from_secs(60), || {
        writer.step();
        agent.log().contains("no such file")
    });
    scene.wait_until_restores(&agent);
}

#[test]
fn folders_of_many_databases_share_a_few_threads() {
    let folder = temporary_folder();
    let databases: Vec<PathBuf> = (0..40).map(|n| folder.path().join(format!("app{n}.db"))).collect();
    for database in &databases {
        let mut application = Shell::open(database);
        application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY)");
        application.close();
    }
    let replica = |n: usize| vec![format!("path: {}/place{n}/replica", folder.path().display())];
    let entries = databases.iter().enumerate().map(|(n, database)| (database.as_path(), replica(n)));
    let agent = Agent::start(folder.path(), &of_databases(entries));
    agent.wait_for_status("all are there", is_all_acknowledged);
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs").count();
    assert!(threads < 50, "{threads} threads");
    agent.stop();
}

#[test]
fn an_older_state_of_a_segment_that_is_copied_over_it_is_noticed_with_the_next_commit() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let agent = place.streaming_agent(&[]);
    let mut commit = || {
        application.run("INSERT INTO t (data) VALUES (randomblob(9000))");
        place.wait_until_replicated(&agent);
    };
    commit();
    let objects = files(&place.replica());
    let is_segment = |path: &&PathBuf| path.to_string_lossy().ends_with(".wal.lz4");
    let segment = objects.iter().rfind(is_segment).expect("there is one");
    let older = fs::read(segment).expect("it can be read");
    commit();
    fs::write(segment, older).expect("it can be written");
    commit();
    commit();
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_folder_that_is_another_one_is_noticed_with_what_is_appended_next() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
    let agent = place.streaming_agent(&[]);
    for round in 0..3 {
        // The second one leaves the segment open.
        for _ in 0..2 {
            application.run("INSERT INTO t VALUES (randomblob(3000))");
            place.wait_until_replicated(&agent);
        }
        // As when what is mounted there goes away. What is open there would take writes all the same, and tell nothing.
        let aside = place.path(&format!("moved-{round}"));
        fs::rename(place.replica(), &aside).expect("both folders are ours");
        if round == 2 {
            // It comes back, without what was sent in between.
            fs::rename(place.path("moved-1"), place.replica()).expect("both folders are ours");
        }
        for _ in 0..2 {
            application.run("INSERT INTO t VALUES (randomblob(3000)); PRAGMA wal_checkpoint(TRUNCATE)");
        }
        let (restored, database) = (place.path("restored.db"), place.database());
        let paths = [&restored, &database].map(|path| path.to_str().expect("a plain name"));
        wait_until("a restore gives everything", DEADLINE, || {
            let _ = fs::remove_file(&restored);
            let is_restored = agent.run("restore", &["-o", paths[0], paths[1]]).status.success();
            is_restored && difference(&database, &restored).is_none()
        });
        assert!(agent.log().contains("holds less than it had acknowledged"), "{}", agent.log());
    }
    application.close();
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_replica_with_more_than_the_shadow_gets_a_new_generation_with_a_reason() {
    let (scene, mut writer, agent) = streaming(5);
    let configuration = agent.configuration().to_owned();
    agent.kill();
    let last = segments(&scene).pop().expect("there is a segment");
    let beyond = last.with_file_name("00000005_00000000.wal.lz4");
    fs::copy(&last, &beyond).expect("the folder is ours");
    let agent = Agent::start_again(&configuration);
    writer.step();
    let status = agent.wait_for_status("a new generation begins", |status| {
        status["databases"][0]["breaks"]["last_reason"].is_string() && state(status) == "streaming"
    });
    let reason = status["databases"][0]["breaks"]["last_reason"].as_str().expect("a reason").to_owned();
    assert!(agent.log().contains(&reason), "{reason}: {}", agent.log());
    assert!(beyond.exists(), "the old generation stays as it is");
    scene.wait_until_restores(&agent);
}

/// A server that comes back with another command for sftp-server, then as it was.
fn refuses_for_a_while(sftp_server: &str, why: &str) {
    let (mut scene, writer, agent) = streaming(3);
    drop(writer);
    scene.server.stop();
    scene.server.start_again_with(sftp_server);
    Writer::start(&scene.database, &["--commits", "3", "--size", "150000"]).finish();
    let status = agent.wait_for_status(&format!("it fails by {why}"), |status| {
        let error = status["databases"][0]["replicas"][0]["failing"]["error"].as_str();
        error.is_some_and(|error| error.contains(why) && error.contains("/app/generations/"))
    });
    assert_eq!(status["health"], "failing");
    scene.server.stop();
    scene.server.start_again(&["ed25519"]);
    wait_until("it streams again", DEADLINE, || {
        agent.status().is_some_and(|status| state(&status) == "streaming")
    });
    scene.wait_until_restores(&agent);
}

#[test]
fn a_server_that_became_read_only_is_named_and_gets_everything_later() {
    refuses_for_a_while("{} -R", "permission denied");
}

#[test]
fn a_server_that_takes_no_more_bytes_is_named_and_gets_everything_later() {
    refuses_for_a_while("trap '' XFSZ; ulimit -f 100; exec {}", "failure");
}

#[test]
fn a_server_that_was_ahead_and_takes_no_times_is_failing_as_long_as_a_restore_takes_another_generation() {
    let (mut scene, writer, agent) = streaming(2);
    let configuration = agent.configuration().to_owned();
    drop(writer.finish());
    agent.stop();
    let a_year = Duration::from_secs(365 * 24 * 60 * 60);
    for path in files(&scene.replica()) {
        let file = fs::File::options().write(true).open(path).expect("the server's storage is here");
        file.set_modified(SystemTime::now() + a_year).expect("it is ours");
    }
    fs::remove_dir_all(scene.folder.path().join(".app.db-agent")).expect("another generation begins");
    scene.server.stop();
    scene.server.start_again_with("{} -P setstat,fsetstat");
    let mut application = Shell::open(&scene.database);
    application.run("CREATE TABLE later (id INTEGER)");
    let agent = Agent::start_again(&configuration);
    let is_told = |status: &Value| {
        let replica = &status["databases"][0]["replicas"][0];
        state(status) == "failing"
            && replica["failing"]["error"].as_str().is_some_and(|error| error.contains("dated"))
    };
    let replica = |status: &Value| status["databases"][0]["replicas"][0]["position"].clone();
    let before = replica(&agent.wait_for_status("it is told", is_told));
    application.run("INSERT INTO later VALUES (1)");
    agent.wait_for_status("the WAL follows all the same", |status| {
        is_told(status) && replica(status) != before
    });
    scene.server.stop();
    scene.server.start_again(&["ed25519"]);
    application.run("INSERT INTO later VALUES (2)");
    agent.wait_for_status("the server takes times again", is_all_acknowledged);
    scene.wait_until_restores(&agent);
    assert_eq!(count(&agent.log(), "remove what is dated in the future"), 1);
    assert!(agent.stop().success());
}
