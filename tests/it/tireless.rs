//! Writers that never pause: the agent looks by the clock then, and the kernel makes no events of what they write.

use crate::support::agent::Agent;
use crate::support::place::{Place, first};
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Where others take the processors, the writer pauses, and the agent listens to it for longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// A writer that does not wait for any fsync.
const TIRELESS: [&str; 4] = ["--size", "1-100", "--synchronous", "OFF"];

/// An agent that has stopped to listen to a writer, and has a backup of its database.
fn dozing(place: &Place) -> (Writer, Agent) {
    let database = place.database();
    let mut writer = Writer::start(&database, &TIRELESS);
    writer.wait_for(1);
    let agent = place.agent(&[]);
    wait_until("it dozes", DEADLINE, || {
        !is_watched(&agent, &place.path("")) && !place.objects("snapshots").is_empty()
    });
    (writer, agent)
}

/// Whether a folder is watched by inotify, as the kernel says.
fn is_watched(agent: &Agent, path: &Path) -> bool {
    let inode = fs::metadata(path).map(|metadata| format!("ino:{:x} ", metadata.ino()));
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).expect("the agent runs");
    let texts = infos.flatten().filter_map(|info| fs::read_to_string(info.path()).ok());
    let mut watches = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    inode.is_ok_and(|inode| watches.any(|line| line.starts_with("inotify ") && line.contains(&inode)))
}

/// The processors that each thread of the agent may run on, as the kernel says.
fn allowed_processors(agent: &Agent) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("the agent runs");
    let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let list =
        |text: String| Some(text.split_once("Cpus_allowed_list:")?.1.lines().next()?.trim().to_owned());
    texts.filter_map(list).collect()
}

#[test]
fn whoever_waits_for_their_checkpoint_keeps_off_their_processor_and_only_then() {
    let place = Place::new();
    let (writer, agent) = dozing(&place);
    let is_one = |list: &String| list.parse::<u32>().is_ok();
    wait_until("a thread keeps to one processor", BEFORE_THE_SLOW_LOOK, || {
        allowed_processors(&agent).iter().any(is_one)
    });
    drop(writer.finish());
    place.wait_until_replicated(&agent);
    // A round may still be under way.
    wait_until("all threads may run everywhere", BEFORE_THE_SLOW_LOOK, || {
        let mut lists = allowed_processors(&agent);
        lists.dedup();
        lists.len() == 1
    });
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn their_last_commit_is_replicated_and_what_comes_later_is_heard() {
    let place = Place::new();
    let (writer, agent) = dozing(&place);
    let mut application = Shell::open(&place.database());
    drop(writer.finish());
    place.wait_until_replicated(&agent);
    wait_until("it listens again", BEFORE_THE_SLOW_LOOK, || is_watched(&agent, &place.path("")));
    application.run("CREATE TABLE later (id INTEGER)");
    let count = |restored: &Path| {
        Shell::open(restored).value("SELECT count(*) FROM sqlite_master WHERE name = 'later'")
    };
    wait_until("the commit is heard", BEFORE_THE_SLOW_LOOK, || count(&place.restore()) == "1");
    place.stop(agent);
    place.assert_restores();
    application.close();
}

#[test]
fn that_their_file_is_renamed_or_removed_is_noticed() {
    let renamed = |place: &Place| fs::rename(place.database(), place.path("elsewhere.db"));
    let removed = |place: &Place| fs::remove_file(place.database());
    for away in [&renamed as &dyn Fn(&Place) -> _, &removed] {
        let place = Place::new();
        let (writer, agent) = dozing(&place);
        away(&place).expect("the folder is ours");
        agent.wait_for_status("notices it", |status| first(status)["state"] == "absent");
        wait_until("it listens again", BEFORE_THE_SLOW_LOOK, || is_watched(&agent, &place.path("")));
        writer.kill();
        agent.stop();
    }
}

#[test]
fn that_another_file_takes_the_place_of_theirs_is_noticed() {
    let place = Place::new();
    let other = place.path("other.db");
    Shell::open(&other).run("CREATE TABLE other (id INTEGER); INSERT INTO other VALUES (17)");
    let (writer, agent) = dozing(&place);
    fs::rename(&other, place.database()).expect("the folder is ours");
    agent.wait_for_log("another file was put in the database's place");
    writer.kill();
    let mut application = Shell::open(&place.database());
    application.run("INSERT INTO other VALUES (18)");
    let both = |restored: &Path| Shell::open(restored).try_run("SELECT id FROM other ORDER BY id");
    wait_until("the other file is replicated", BEFORE_THE_SLOW_LOOK, || {
        both(&place.restore()).is_ok_and(|rows| rows == ["17", "18"])
    });
    application.close();
    agent.stop();
}
