//! Support: an agent in the test's process, whose jobs on this machine are done at once, and no others.

use super::place::Place;
use std::collections::VecDeque;
use std::sync::Arc;
use wal_agent::agent::{Agent, Now};
use wal_agent::carry::Order;
use wal_agent::config::{Config, DatabaseConfig, Durability, ReplicaConfig};
use wal_agent::disk::OsDisk;
use wal_agent::remote::Location;
use wal_agent::source::LocalJob;
use wal_agent::worker::{Completed, Workers, do_local};

#[derive(Default)]
struct AtOnce(VecDeque<Completed>);

impl Workers for AtOnce {
    fn send_local(&mut self, database: usize, job: LocalJob) {
        self.0.push_back(Completed::Local { database, outcome: do_local(job) });
    }
    fn send_remote(&mut self, _: usize, _: usize, _: &Location, _: Order) {}
    fn completed(&mut self) -> Option<Completed> {
        self.0.pop_front()
    }
}

/// The agent of a place. It attaches to no file that this process has open.
pub fn agent_of(place: &Place, now: Now) -> Agent {
    let replica = ReplicaConfig {
        name: "unused".to_owned(),
        location: Location::Folder(place.replica()),
        sync_interval: None,
        durability: Durability::Fsync,
    };
    let config = Config {
        socket: place.path("socket"),
        log_level: None,
        include: None,
        databases: vec![DatabaseConfig::new(place.database(), vec![replica])],
        notices: Vec::new(),
    };
    Agent::new(&config, Box::new(AtOnce::default()), Arc::new(OsDisk), 7, now)
}
