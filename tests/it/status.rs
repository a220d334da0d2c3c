//! The status: how healthy it is, and how it reads.

use crate::support::oracle::{Application, Habits};
use crate::support::world::{Settings, World};
use std::path::Path;
use std::time::Duration;
use wal_agent::core::status::{
    AgentStatus, Breaks, Bytes, DatabaseStatus, Health, Moment, PastError, ReplicaState, ReplicaStatus,
    SourceState, Span, WriteLockHolds,
};

/// A replica in `state` that has been behind for `lag_time`.
fn replica(state: ReplicaState, lag_bytes: u64, lag_time: Duration) -> ReplicaStatus {
    ReplicaStatus {
        name: "sftp".into(),
        location: "sftp://ada@backup/app".into(),
        state,
        position: None,
        lag_bytes,
        lag_time,
        allowed_lag: Duration::ZERO,
        last_acked: None,
        durable: true,
        last_error: None,
    }
}

fn database(state: SourceState, replicas: Vec<ReplicaStatus>) -> DatabaseStatus {
    DatabaseStatus {
        path: "/srv/app.db".into(),
        state,
        generation: None,
        position: None,
        replicas,
        breaks: Breaks::default(),
        is_provable: false,
        wal_pages: 12,
        scarcity: None,
        elsewhere: None,
        mixed: None,
        write_lock_holds: WriteLockHolds::default(),
    }
}

fn agent(databases: Vec<DatabaseStatus>) -> AgentStatus {
    let started = Moment { unix_millis: 0, age: Duration::from_secs(600) };
    AgentStatus { version: "0.1.0".into(), sqlite_version: "3.54.1".into(), pid: 7, started, databases }
}

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_millis(10_001);
const TOLERATED: Duration = Duration::from_secs(10);

fn failing() -> ReplicaState {
    ReplicaState::Failing { error: "no route".into(), retry_in: Duration::from_secs(4) }
}

#[test]
fn health_follows_the_rules() {
    use Health::{Failing, Healthy, Lagging};
    use ReplicaState::{Connecting, SendingSnapshot, Streaming, Waiting};
    use SourceState::{Absent, Attached, Attaching, Detached};
    let refused = || SourceState::Refused("journal_mode is DELETE".into());
    let snapshot = || SendingSnapshot { done: 1, total: 2 };
    let cases = [
        (Attached, Streaming, 0, NOW, Healthy),
        (Attached, Streaming, 1, NOW, Healthy),
        (Attached, Streaming, 1, TOLERATED, Healthy),
        (Attached, Streaming, 1, LONG, Lagging),
        (Attached, Streaming, 0, LONG, Healthy),
        (Attached, Connecting, 0, NOW, Lagging),
        (Attached, snapshot(), 0, NOW, Lagging),
        (Attached, failing(), 0, NOW, Failing),
        (Attaching, Streaming, 0, NOW, Lagging),
        (Attaching, failing(), 0, NOW, Failing),
        (Detached, Streaming, 0, NOW, Healthy),
        (Detached, Streaming, 1, LONG, Lagging),
        (Detached, Connecting, 0, NOW, Lagging),
        (Detached, failing(), 0, NOW, Failing),
        (Absent, Connecting, 0, NOW, Healthy),
        (Absent, Streaming, 1, LONG, Healthy),
        (Absent, failing(), 0, NOW, Failing),
        (refused(), Streaming, 0, NOW, Failing),
        (refused(), Connecting, 0, NOW, Failing),
        (refused(), Waiting, 0, NOW, Failing),
        (Detached, Waiting, 0, NOW, Lagging),
    ];
    for (state, doing, lag_bytes, lag_time, expected) in cases {
        let database = database(state, vec![replica(doing, lag_bytes, lag_time)]);
        assert_eq!(database.health(), expected, "{database:#?}");
    }
}

#[test]
fn a_replica_that_is_to_wait_for_more_is_not_lagging_meanwhile() {
    let settings = Settings { sync_interval: Some(Duration::from_secs(30)), ..Settings::PLAIN };
    let application = |database: &Path| Application::new(database, Habits::PLAIN, Vec::new(), 1);
    let mut world = World::new(settings, 1, application);
    world.application().create();
    world.start_agent();
    world.drive(100);
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        world.application().run(0, "UPDATE c SET n = n + 1");
        world.rest_for(Duration::from_secs(1));
        longest = longest.max(world.replica().lag_time);
        assert_eq!(world.status().health(), Health::Healthy, "{:?}", world.replica());
    }
    assert!(longest > TOLERATED, "{longest:?}");
}

#[test]
fn the_worst_replica_and_the_worst_database_count() {
    let streaming = || replica(ReplicaState::Streaming, 0, NOW);
    let behind = || replica(ReplicaState::Streaming, 1, LONG);
    let broken = || replica(failing(), 0, NOW);
    let attached = |replicas| database(SourceState::Attached, replicas);
    assert_eq!(agent(vec![]).health(), Health::Healthy);
    assert_eq!(agent(vec![attached(vec![streaming(), behind()])]).health(), Health::Lagging);
    assert_eq!(agent(vec![attached(vec![behind(), broken(), streaming()])]).health(), Health::Failing);
    let both = vec![attached(vec![broken()]), attached(vec![streaming()])];
    assert_eq!(agent(both).health(), Health::Failing);
}

#[test]
fn people_read_aligned_plain_english() {
    let generation = "0123456789abcdef".parse().expect("a generation");
    let position = "0123456789abcdef/00000002:00001038".parse().expect("a position");
    let mut offsite = replica(ReplicaState::Streaming, 0, NOW);
    offsite.name = "offsite".into();
    offsite.last_acked = Some(Moment { unix_millis: 1, age: Duration::from_millis(1500) });
    let at = Moment { unix_millis: 1, age: Duration::from_secs(360) };
    offsite.last_error = Some(PastError { message: "the connection broke".into(), at });
    let mut app =
        database(SourceState::Attached, vec![offsite, replica(failing(), 2048, Duration::from_secs(30))]);
    app.generation = Some(generation);
    app.position = Some(position);
    app.breaks = Breaks { count: 1, last_reason: Some("first run".into()) };
    app.write_lock_holds.record(Duration::from_micros(90));
    app.write_lock_holds.record(Duration::from_micros(100));
    app.write_lock_holds.record(Duration::from_secs(2));
    let status = agent(vec![app, database(SourceState::Absent, vec![])]);
    let expected = "\
failing; agent 0.1.0, SQLite 3.54.1, process 7, up for 10 min

/srv/app.db
  state      attached
  position   0123456789abcdef/00000002:00001038
  WAL        12 pages
  breaks     1, the last: first run
  write lock held 3 times, at most 2.0 s (2 up to 100 us, 1 longer)
  replica    offsite  streaming; nothing behind; last acknowledged 1.5 s ago (on disk); sftp://ada@backup/app
             last error 6 min ago: the connection broke
  replica    sftp     failing: no route; next try in 4.0 s; 2.0 KiB behind for 30.0 s; sftp://ada@backup/app

/srv/app.db
  state      absent: waiting for the file
";
    assert_eq!(status.to_string(), expected);
}

#[test]
fn amounts_are_shown_in_the_unit_that_suits_them() {
    let span = |millis: u64| Span(Duration::from_millis(millis)).to_string();
    assert_eq!(Span(Duration::from_micros(999)).to_string(), "999 us");
    assert_eq!(
        [1, 999, 119_900, 120_000, 7_200_000, 172_800_000].map(span),
        ["1.0 ms", "999.0 ms", "119.9 s", "2 min", "2 h", "2 d"]
    );
    let bytes = |count: u64| Bytes(count).to_string();
    assert_eq!(
        [0, 1023, 1024, (1 << 20) - 1, 1 << 20, 1 << 40].map(bytes),
        ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "1.0 TiB"]
    );
}
