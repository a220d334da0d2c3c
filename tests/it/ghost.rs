//! Ghost commits: a commit frame is in the WAL, and SQLite never counted it, because its writer died or could not
//! make it durable. The next writer puts its own frames there, under the same salts.

use crate::support::compare::{assert_holds, assert_same};
use crate::support::place::{Place, first};
use crate::support::sqlite::{Shell, Writer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fs;

#[test]
fn commits_of_killed_writers_are_replicated_if_and_only_if_sqlite_counts_them() {
    let place = Place::new();
    let database = place.database();
    let mut application = Shell::open(&database);
    application.run("PRAGMA journal_mode=wal");
    // From here on it has the WAL open: else whoever opens it after the agent recovers what a killed writer left.
    application.run("SELECT count(*) FROM sqlite_master");
    Writer::start(&database, &["--commits", "1"]).finish();
    let agent = place.streaming_agent(&["min-checkpoint-page-count: 200"]);
    let mut random = StdRng::seed_from_u64(3);
    let mut acknowledged = Vec::new();
    for round in 0..40 {
        let seed = round.to_string();
        let arguments = ["--rows", "1-10", "--size", "1-5000", "--writer", "1", "--seed", &seed];
        let mut writer = Writer::start(&database, &arguments);
        writer.wait_for(random.random_range(1..10));
        acknowledged.extend(writer.kill());
        if round % 4 == 0 {
            // Before the next writer: what this one left behind is not there for anybody.
            place.wait_until_replicated(&agent);
        }
    }
    place.wait_until_replicated(&agent);
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
    assert_holds(&place.restore(), 1, &acknowledged);
}

/// Makes `fsync` and `fdatasync` of a `-wal` fail as long as a file is there.
const FAILING_FSYNC: &str = r#"
static int before_fsync(int fd)
{
    if (!is_named(fd, "-wal") || access(getenv("FAIL_WHILE_THERE"), F_OK) != 0)
        return 0;
    errno = EIO;
    return -1;
}
"#;

#[test]
fn a_commit_whose_fsync_failed_is_never_replicated() {
    let place = Place::new();
    let switch = place.path("fail");
    let environment = [("LD_PRELOAD", &*place.preload(FAILING_FSYNC)), ("FAIL_WHILE_THERE", &*switch)];
    let mut application = Shell::with_environment(&place.database(), &environment);
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, kind TEXT, data BLOB)");
    let agent = place.streaming_agent(&[]);
    for round in 0..6 {
        application.run("INSERT INTO t (kind, data) VALUES ('counted', randomblob(3000))");
        place.wait_until_replicated(&agent);
        fs::write(&switch, "").expect("the folder is ours");
        let large = "INSERT INTO t (kind, data) SELECT 'ghost', randomblob(9000) FROM generate_series(1, 20)";
        let error = application.try_run(large).expect_err("its fsync fails");
        assert!(error.contains("disk I/O error"), "{error}");
        fs::remove_file(&switch).expect("the switch is there");
        for _ in 0..4 {
            assert_same(&place.database(), &place.restore());
        }
        // What SQLite took back is overwritten, in a part or as a whole, by another transaction.
        let count = 1 + 12 * (round % 3);
        application.run(&format!(
            "INSERT INTO t (kind, data) SELECT 'counted', randomblob(9000) FROM generate_series(1, {count})"
        ));
        place.wait_until_replicated(&agent);
    }
    assert_eq!(application.value("SELECT DISTINCT kind FROM t"), "counted");
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "{status}");
    place.stop(agent);
    place.assert_restores();
}
