//! Whose a replica's place is: two agents that want the same one, as a machine and its clone.

use crate::support::agent::Agent;
use crate::support::faulty::{Fault, FaultyServer};
use crate::support::history::{generation, scratch};
use crate::support::order::order;
use crate::support::scene::{Scene, is_all_acknowledged, of_database, on_server, restore, state};
use crate::support::sqlite::{Shell, Writer};
use crate::support::wait::wait_until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wal_agent::carry::Carrier;
use wal_agent::core::names::OWNER;
use wal_agent::core::owner::{Home, Owner, Party};
use wal_agent::core::ownership::{Ownership, PATIENCE};
use wal_agent::core::replica::{Job, Outcome};
use wal_agent::disk::OsDisk;
use wal_agent::remote::Remote;
use wal_agent::shadow::ShadowWal;

const DEADLINE: Duration = Duration::from_secs(120);

/// A copy of everything that is in the scene's folder, as a clone of its machine has it.
fn cloned(scene: &Scene) -> PathBuf {
    let clone = scene.folder.path().join("clone");
    fs::create_dir(&clone).expect("the folder is ours");
    for name in ["app.db", "app.db-wal", ".app.db-agent"] {
        let copied = Command::new("cp").arg("-a").arg(scene.folder.path().join(name)).arg(&clone).status();
        assert!(copied.expect("cp can be run").success() || name == "app.db-wal", "{name}");
    }
    clone
}

/// The agent of the clone, with the same place.
fn start_in(clone: &Path, scene: &Scene) -> Agent {
    let replica = on_server(&scene.server.location(), "app");
    Agent::start(clone, &of_database(&clone.join("app.db"), &[&replica]))
}

/// Whether the clone's own table is in a database.
fn has_clone(database: &Path) -> String {
    Shell::open(database).value("SELECT count(*) FROM sqlite_schema WHERE name = 'clone'")
}

fn error(status: &Value) -> &str {
    status["databases"][0]["replicas"][0]["failing"]["error"].as_str().unwrap_or_default()
}

#[test]
fn a_clone_is_kept_from_the_place_of_its_origin_and_both_say_so() {
    let scene = Scene::new();
    let mut writer = Writer::start(&scene.database, &["--step"]);
    writer.step();
    let origin = scene.start_agent();
    scene.wait_until_restores(&origin);
    let clone = cloned(&scene);
    Shell::open(&clone.join("app.db")).run("CREATE TABLE clone (id INTEGER)");
    let other = start_in(&clone, &scene);
    let is_kept_off = |status: &Value| state(status) == "failing" && error(status).contains("app.db");
    let status = other.wait_for_status("it asks", is_kept_off);
    assert!(error(&status).contains("asked whether it still runs"), "{status}");
    writer.step();
    scene.wait_until_restores(&origin);
    origin.wait_for_log("is kept from replicating to the same place");
    assert!(origin.log().contains(clone.to_str().expect("a plain name")), "{}", origin.log());
    other.wait_for_status("it has the answer", |status| error(status).contains("a place of its own"));
    writer.step();
    scene.wait_until_restores(&origin);
    let output = scene.folder.path().join("output.db");
    restore(&origin, &scene.database, &output, &[]);
    assert_eq!(has_clone(&output), "0");
    assert!(origin.stop().success());
}

#[test]
fn a_machine_goes_on_at_once_where_another_one_has_stopped() {
    let scene = Scene::new();
    Writer::start(&scene.database, &["--commits", "5"]).finish();
    let origin = scene.start_agent();
    scene.wait_until_restores(&origin);
    assert!(origin.stop().success());
    let clone = cloned(&scene);
    let other = start_in(&clone, &scene);
    Shell::open(&clone.join("app.db")).run("CREATE TABLE clone (id INTEGER)");
    other.wait_for_status("it goes on there", is_all_acknowledged);
    let output = clone.join("output.db");
    restore(&other, &clone.join("app.db"), &output, &[]);
    assert_eq!(has_clone(&output), "1");
    // It is the first one's turn to be kept off.
    let origin = scene.start_agent();
    origin.wait_for_status("it asks", |status| error(status).contains("asked whether it still runs"));
}

#[test]
fn an_owner_whose_object_is_lost_writes_it_again() {
    let scene = Scene::new();
    Writer::start(&scene.database, &["--commits", "2"]).finish();
    let agent = scene.start_agent();
    scene.wait_until_restores(&agent);
    let object = scene.replica().join(OWNER);
    let has_owner = || Owner::parse(&fs::read(&object).unwrap_or_default()).owner.is_some();
    assert!(has_owner());
    for lose in [|path: &Path| fs::write(path, []), |path: &Path| fs::remove_file(path)] {
        lose(&object).expect("the server's storage is here");
        wait_until("it is there again", DEADLINE, has_owner);
    }
    assert!(agent.status().is_some_and(|status| is_all_acknowledged(&status)));
}

/// An agent on a machine, as far as its place is concerned.
struct Machine {
    me: Party,
    ownership: Ownership,
    remote: Option<Box<dyn Remote>>,
    /// Suspended, or cut off.
    sleeps: bool,
}

impl Machine {
    fn new(number: u64, run: u64) -> Machine {
        let home = Home::new(&number.to_string(), "folder", "place");
        let me = Party { home, run, who: format!("machine {number}") };
        Machine { me, ownership: Ownership::new(), remote: None, sleeps: false }
    }

    /// What the agent does in a turn.
    fn turn(&mut self, server: &FaultyServer, shadow: &ShadowWal, folder: &Path, now: Instant, chance: f64) {
        let Some(claim) = self.ownership.next_claim(now) else { return };
        let (me, had) = (self.me.clone(), self.ownership.had());
        let order = order(Job::Own { me, had, claim, is_beside_wal: false }, 1, shadow, folder);
        let remote = self.remote.get_or_insert_with(|| server.connect());
        match Carrier::default().carry(&mut **remote, &order) {
            Ok(Outcome::Owner(Ok(standing))) => drop(self.ownership.on_standing(standing, now, chance)),
            Ok(outcome) => panic!("{outcome:?}"),
            Err(_) => {
                self.remote = None;
                self.ownership.on_failure(now);
            }
        }
    }
}

#[test]
fn whatever_happens_no_two_machines_have_one_place_and_one_that_is_left_gets_it() {
    let folder = scratch();
    fs::write(folder.path().join("app.db"), "unused").expect("the folder is ours");
    let shadow = ShadowWal::begin(Arc::new(OsDisk), folder.path(), generation(), 1).expect("it is ours");
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let (server, mut now) = (FaultyServer::reliable(), Instant::now());
        // A stopped server process may carry out later what made somebody the owner: the next check sees that.
        let (is_late, mut several_since) = (seed % 2 == 1, None);
        let mut machines: Vec<Machine> = (0..3).map(|number| Machine::new(number, random.random())).collect();
        for _ in 0..400 {
            now += Duration::from_millis(random.random_range(0..15_000));
            let (at, chance) = (random.random_range(0..machines.len()), random.random());
            match random.random_range(0..100) {
                0 => machines[at] = Machine::new(at as u64, random.random()),
                1..4 => machines[at].sleeps = !machines[at].sleeps,
                4 => machines[at].ownership.leave(),
                5..10 => {
                    let kinds = if is_late { 3 } else { 2 };
                    let fault =
                        [Fault::Lost, Fault::Unanswered, Fault::Late(3)][random.random_range(0..kinds)];
                    server.plan(random.random_range(0..6), fault);
                }
                _ => {}
            }
            for machine in machines.iter_mut().filter(|machine| !machine.sleeps) {
                machine.turn(&server, &shadow, folder.path(), now, chance);
            }
            let owners: Vec<_> =
                machines.iter().filter(|machine| machine.ownership.is_ours(now)).map(|m| &m.me.who).collect();
            several_since = (owners.len() > 1).then(|| several_since.unwrap_or(now));
            let is_over = several_since.is_none_or(|since| is_late && now < since + PATIENCE);
            assert!(is_over, "seed {seed}: {owners:?}\n{}", server.log());
        }
        server.heal();
        let mut last = Machine::new(7, random.random());
        let until = now + 6 * PATIENCE;
        while !last.ownership.is_ours(now) {
            assert!(now < until, "seed {seed}: nobody has the place\n{}", server.log());
            last.turn(&server, &shadow, folder.path(), now, random.random());
            now += Duration::from_secs(1);
        }
    }
}

#[test]
fn of_two_machines_that_ask_for_a_place_without_an_owner_one_gets_it() {
    let folder = scratch();
    fs::write(folder.path().join("app.db"), "unused").expect("the folder is ours");
    let shadow = ShadowWal::begin(Arc::new(OsDisk), folder.path(), generation(), 1).expect("it is ours");
    for seed in 0..50 {
        let mut random = StdRng::seed_from_u64(seed);
        let (server, began) = (FaultyServer::reliable(), Instant::now());
        let mut dead = Machine::new(9, random.random());
        dead.turn(&server, &shadow, folder.path(), began, 0.0);
        let mut machines: Vec<Machine> = (0..2).map(|number| Machine::new(number, random.random())).collect();
        let (mut now, until) = (began, began + 20 * PATIENCE);
        while machines.iter().all(|machine| !machine.ownership.is_ours(now)) {
            assert!(now < until, "seed {seed}: each keeps the other from it\n{}", server.log());
            for machine in &mut machines {
                now += Duration::from_millis(random.random_range(0..3000));
                machine.turn(&server, &shadow, folder.path(), now, random.random());
            }
        }
        assert!(matches!(machines.iter().filter(|m| m.ownership.is_ours(now)).count(), 1), "seed {seed}");
    }
}
