//! A server that was away is back: one replica finds it, and all others of that server hear of it at once.

use crate::support::history::scratch;
use rusqlite::Connection;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use wal_agent::agent::{Agent, Now};
use wal_agent::carry::Order;
use wal_agent::config::{Config, DatabaseConfig, Durability, ReplicaConfig};
use wal_agent::core::position::Generation;
use wal_agent::core::replica::{Failure, FailureCause, Job, Listing, Outcome};
use wal_agent::core::sync::Dirty;
use wal_agent::disk::OsDisk;
use wal_agent::remote::Location;
use wal_agent::source::LocalJob;
use wal_agent::worker::{Completed, Workers, do_local};

/// Local jobs are done at once; of the replicas' jobs, it is only told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Parts>>);

#[derive(Default)]
struct Parts {
    handed: Vec<(usize, Generation, Job)>,
    ended: Vec<Completed>,
}

impl Told {
    fn with<T>(&self, what: impl FnOnce(&mut Parts) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The replicas that look, taken away.
    fn looks(&self) -> Vec<(usize, Generation)> {
        let handed = self.with(|parts| std::mem::take(&mut parts.handed));
        handed
            .into_iter()
            .filter(|(_, _, job)| matches!(job, Job::Look { .. }))
            .map(|(at, g, _)| (at, g))
            .collect()
    }

    fn answer(&self, (replica, generation): (usize, Generation), outcome: Outcome) {
        self.with(|parts| {
            parts.ended.push(Completed::Remote { database: 0, replica, generation, outcome });
        });
    }
}

impl Workers for Told {
    fn send_local(&mut self, database: usize, job: LocalJob) {
        let outcome = do_local(job);
        self.with(|parts| parts.ended.push(Completed::Local { database, outcome }));
    }
    fn send_remote(&mut self, _database: usize, replica: usize, _location: &Location, order: Order) {
        self.with(|parts| parts.handed.push((replica, order.generation, order.job)));
    }
    fn completed(&mut self) -> Option<Completed> {
        self.with(|parts| (!parts.ended.is_empty()).then(|| parts.ended.remove(0)))
    }
}

fn failed(cause: FailureCause) -> Outcome {
    Outcome::Failed(Failure { message: "nobody is there".to_owned(), cause })
}

#[test]
fn whoever_was_not_tried_looks_as_soon_as_another_replica_has_been_answered() {
    let folder = scratch();
    let database = folder.path().join("app.db");
    let sqlite = Connection::open(&database).expect("the folder is ours");
    sqlite.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n)").expect("a table can be made");
    // The agent, which is in this process, attaches to no file that this process has open.
    drop(sqlite);
    let replica = |name: &str| ReplicaConfig {
        name: name.to_owned(),
        location: Location::Folder(folder.path().join(name)),
        sync_interval: None,
        durability: Durability::Fsync,
    };
    let config = Config {
        socket: folder.path().join("socket"),
        log_level: None,
        include: None,
        databases: vec![DatabaseConfig::new(database, vec![replica("one"), replica("other")])],
        notices: Vec::new(),
    };
    let (workers, began, mut elapsed) = (Told::default(), Instant::now(), Duration::ZERO);
    let now = |elapsed: Duration| Now { mono: began + elapsed, wall: SystemTime::UNIX_EPOCH + elapsed };
    let mut agent = Agent::new(&config, Box::new(workers.clone()), Arc::new(OsDisk), 1, now(elapsed));
    let looks_within = |agent: &mut Agent, elapsed: &mut Duration, time: Duration| {
        let (mut looks, until) = (Vec::new(), *elapsed + time);
        while looks.is_empty() && *elapsed <= until {
            *elapsed += Duration::from_millis(1);
            agent.step(now(*elapsed), &mut |_| Dirty::ALL);
            looks = workers.looks();
        }
        looks
    };
    // Whoever tries cannot reach the server; the other, for as long, is never tried.
    for _ in 0..40 {
        for look in looks_within(&mut agent, &mut elapsed, Duration::from_secs(40)) {
            let cause = if look.0 == 0 { FailureCause::Disconnected } else { FailureCause::NotTried };
            workers.answer(look, failed(cause));
        }
    }
    // The server is back, and the one replica's turn comes, within its pause of seconds.
    let looks = looks_within(&mut agent, &mut elapsed, Duration::from_secs(6));
    let first = *looks.iter().find(|(replica, _)| *replica == 0).expect("the one tries every few seconds");
    workers.answer(first, Outcome::Found(Listing::default()));
    let looks = looks_within(&mut agent, &mut elapsed, Duration::from_millis(1));
    let others: Vec<_> = looks.iter().map(|(replica, _)| *replica).collect();
    assert_eq!(others, [1], "the other has heard of it");
}
