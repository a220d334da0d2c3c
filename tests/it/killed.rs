//! An agent that is killed in the middle of what SQLite does for it: at each of its writes into the database file, of which
//! a half is made. These are its checkpoints, and what it does when it lets go.

use crate::support::agent::Agent;
use crate::support::place::{Place, first, is_resting, is_streaming};
use crate::support::sqlite::Shell;
use crate::support::wait::wait_until;
use std::fs;
use std::path::Path;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;

/// Kills its process in the middle of its `KILL_AT`th write into the database file.
const KILLING_WRITE: &str = r#"
#include <signal.h>

typedef ssize_t write_at(int, const void *, size_t, off_t);

static ssize_t write_or_die(write_at *write, int fd, const void *from, size_t length, off_t at)
{
    static int writes;
    if (is_named(fd, "/app.db") && __sync_add_and_fetch(&writes, 1) == atoi(getenv("KILL_AT"))) {
        write(fd, from, length / 2, at);
        kill(getpid(), SIGKILL);
    }
    return write(fd, from, length, at);
}

ssize_t pwrite(int fd, const void *from, size_t length, off_t at)
{
    return write_or_die((write_at *) dlsym(RTLD_NEXT, "pwrite"), fd, from, length, at);
}

ssize_t pwrite64(int fd, const void *from, size_t length, off_t at)
{
    return write_or_die((write_at *) dlsym(RTLD_NEXT, "pwrite64"), fd, from, length, at);
}
"#;

/// The agent checkpoints when there are so many pages in the WAL, which each statement of [`live`] but the last one writes.
const SETTINGS: [&str; 2] = ["min-checkpoint-page-count: 4", "let-go-after: 100ms"];

/// Where the agent was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Nowhere,
    InCheckpoint,
    WhileLettingGo,
}

/// Waits until everything is in the database file, or the agent has ended. Whether it has.
fn is_killed_in_checkpoint(agent: &mut Agent, database: &Path, application: &mut Shell) -> bool {
    let pages: u64 = application.value("PRAGMA page_count").parse().expect("a number");
    let mut has_ended = false;
    wait_until("the agent has checkpointed, or was killed", DEADLINE, || {
        has_ended = agent.has_ended();
        has_ended || fs::metadata(database).is_ok_and(|file| file.len() == pages * PAGE)
    });
    has_ended
}

/// Commits, checkpoints, and the end of the application, beside an agent that may be killed. If it is while the application
/// is there, that is open still.
fn live(mut application: Shell, database: &Path, agent: &mut Agent) -> (Killed, Option<Shell>) {
    for _ in 0..2 {
        application.run("INSERT INTO t (data) SELECT randomblob(3000) FROM generate_series(1, 5)");
        if is_killed_in_checkpoint(agent, database, &mut application) {
            return (Killed::InCheckpoint, Some(application));
        }
    }
    // Too little for a checkpoint.
    application.run("UPDATE t SET data = randomblob(3000) WHERE id IN (2, 7)");
    application.close();
    let mut has_ended = false;
    wait_until("the agent has let go, or was killed", DEADLINE, || {
        has_ended = agent.has_ended();
        has_ended || agent.status().is_some_and(|status| is_resting(&status))
    });
    (if has_ended { Killed::WhileLettingGo } else { Killed::Nowhere }, None)
}

/// A life in which the agent is killed at its `at`th write into the file, and what comes after.
fn killed_at(at: usize, library: &Path) -> Killed {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    application.run("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)");
    let at = at.to_string();
    let environment = [("LD_PRELOAD", library.to_str().expect("a plain name")), ("KILL_AT", &at)];
    let mut agent = place.agent_with(&SETTINGS, &environment);
    agent.wait_for_status("streams", is_streaming);
    let (killed, application) = live(application, &place.database(), &mut agent);
    let configuration = agent.configuration().to_owned();
    // It lives if it never came so far.
    drop(agent);
    let agent = Agent::start_again(&configuration);
    go_on(&place, agent, application, &at);
    killed
}

/// The next agent: everything is there, and what is committed from now on is replicated, too.
fn go_on(place: &Place, agent: Agent, application: Option<Shell>, at: &str) {
    let mut application = application.unwrap_or_else(|| Shell::open(&place.database()));
    let rows = "SELECT count(*) || ' ' || sum(length(data)) FROM t";
    assert_eq!(application.value("PRAGMA integrity_check"), "ok", "killed at {at}");
    let before = application.value(rows);
    assert!(["5 15000", "10 30000"].contains(&&*before), "killed at {at}: {before}");
    place.wait_until_replicated(&agent);
    application.run("INSERT INTO t (data) VALUES (randomblob(2500))");
    place.wait_until_replicated(&agent);
    let status = agent.status().expect("the agent runs");
    assert_eq!(first(&status)["breaks"]["count"], 0, "killed at {at}: {status}");
    place.stop(agent);
    let restored = Shell::open(&place.restore()).value(rows);
    assert_eq!(restored, application.value(rows), "killed at {at}");
}

#[test]
fn an_agent_killed_at_any_of_its_writes_into_the_database_leaves_it_whole_and_goes_on() {
    let place = Place::new();
    let library = place.library(KILLING_WRITE);
    let killed: Vec<Killed> =
        (1..).map(|at| killed_at(at, &library)).take_while(|killed| *killed != Killed::Nowhere).collect();
    for kind in [Killed::InCheckpoint, Killed::WhileLettingGo] {
        assert!(killed.iter().filter(|killed| **killed == kind).count() >= 2, "{killed:?}");
    }
}
