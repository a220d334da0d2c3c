//! A folder with a database in it, an agent that replicates it to another folder, and what a restore of that gives.

use super::agent::Agent;
use super::compare::{assert_same, difference};
use super::process::output;
use super::wait::wait_until;
use super::{litestream, temporary_folder};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use wal_agent::core::restore::Check;
use wal_agent::remote::dir::DirRemote;
use wal_agent::restore::{self, RestoreOptions, RestoreReport};

/// Tells how the name of an open file ends.
const IS_NAMED: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_named(int fd, const char *end)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path), wanted = strlen(end);
    return length >= wanted && memcmp(path + length - wanted, end, wanted) == 0;
}
"#;

const FSYNCS: &str = r#"
int fsync(int fd)
{
    return before_fsync(fd) ? -1 : ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd)
{
    return before_fsync(fd) ? -1 : ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"#;

/// How long the agent may take to catch up.
const DEADLINE: Duration = Duration::from_secs(60);

/// Everything of one test.
pub struct Place {
    folder: TempDir,
    restores: Cell<u32>,
}

impl Place {
    /// An empty place: there is no database yet.
    pub fn new() -> Place {
        Place { folder: temporary_folder(), restores: Cell::new(0) }
    }

    /// A file or folder of the place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.path("app.db")
    }

    /// Its WAL.
    pub fn wal(&self) -> PathBuf {
        self.path("app.db-wal")
    }

    /// The folder that it is replicated to.
    pub fn replica(&self) -> PathBuf {
        self.path("replica")
    }

    /// Starts an agent; `settings` are keys of the database, as `checkpoint-interval: 1s`.
    pub fn agent(&self, settings: &[&str]) -> Agent {
        self.agent_with(settings, &[])
    }

    /// The same, with these variables in its environment.
    pub fn agent_with(&self, settings: &[&str], environment: &[(&str, &str)]) -> Agent {
        Agent::start_with(self.folder.path(), &self.configuration(settings), environment)
    }

    /// The same, as somebody else or with other powers: what `setpriv` is to do.
    pub fn agent_as(&self, settings: &[&str], privileges: &[&str]) -> Agent {
        Agent::start_as(self.folder.path(), &self.configuration(settings), privileges)
    }

    fn configuration(&self, settings: &[&str]) -> String {
        let settings = settings.iter().map(|line| format!("    {line}\n")).collect::<String>();
        let (database, replica) = (self.database(), self.replica());
        let (database, replica) = (database.display(), replica.display());
        let replicas = format!("    replicas: [{{type: file, path: '{replica}'}}]\n");
        format!("dbs:\n  - path: {database}\n{settings}{replicas}")
    }

    /// The same, once its first snapshot is there and everything committed is replicated.
    #[track_caller]
    pub fn streaming_agent(&self, settings: &[&str]) -> Agent {
        let agent = self.agent(settings);
        agent.wait_for_status("streams", is_streaming);
        agent
    }

    /// Restores the replica with our program; the file.
    #[track_caller]
    pub fn restore(&self) -> PathBuf {
        let path = self.new_output();
        restore(&self.replica(), &path);
        path
    }

    /// Restores the replica; the file, and what is said of it.
    #[track_caller]
    pub fn restore_with_report(&self) -> (PathBuf, RestoreReport) {
        let path = self.new_output();
        let report = restore::restore(RestoreOptions {
            remotes: &|| Ok(Box::new(DirRemote::new())),
            root: self.replica().to_str().expect("a plain name"),
            output: path.clone(),
            check: Check::Full,
            progress: &mut |_| {},
        });
        (path, report.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Restores the replica with Litestream; the file.
    #[track_caller]
    pub fn restore_by_litestream(&self) -> PathBuf {
        let path = self.new_output();
        let mut command = Command::new(litestream::program());
        output(command.arg("restore").arg("-o").arg(&path).arg(url(&self.replica())));
        path
    }

    fn new_output(&self) -> PathBuf {
        self.restores.set(self.restores.get() + 1);
        self.path(&format!("restored-{}.db", self.restores.get()))
    }

    /// Waits until a restore holds what the database holds. Nobody may write meanwhile.
    #[track_caller]
    pub fn wait_until_replicated(&self, agent: &Agent) {
        let last = RefCell::new("the replica is not streaming".to_owned());
        let is_replicated = || {
            let Some(status) = agent.status().filter(is_streaming) else { return false };
            let restored = self.restore();
            match difference(&self.database(), &restored) {
                None => return true,
                Some(difference) => *last.borrow_mut() = format!("{difference}; {status}"),
            }
            std::fs::remove_file(restored).expect("the folder is ours");
            false
        };
        let guarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("a restore holds what the database holds", DEADLINE, is_replicated);
        }));
        if let Err(panic) = guarded {
            eprintln!("{}\n{}", last.borrow(), agent.log());
            std::panic::resume_unwind(panic);
        }
    }

    /// A restore, by us and by Litestream, holds what the database holds, now.
    #[track_caller]
    pub fn assert_restores(&self) {
        assert_same(&self.database(), &self.restore());
        assert_same(&self.database(), &self.restore_by_litestream());
    }

    /// Stops the agent, which has sent everything then.
    #[track_caller]
    pub fn stop(&self, agent: Agent) {
        let log = agent.configuration().with_file_name("agent.log");
        let status = agent.stop();
        assert!(status.success(), "{status}: {}", std::fs::read_to_string(log).unwrap_or_default());
    }

    /// The page table of the present generation.
    pub fn page_table(&self) -> PathBuf {
        let generations = self.path(".app.db-agent").join("generations");
        let mut tables = std::fs::read_dir(generations)
            .expect("there is a generation")
            .map(|generation| generation.expect("readable").path().join("page-table"))
            .filter(|path| path.exists());
        tables.next().expect("there is a page table")
    }

    /// A library for `LD_PRELOAD` that calls `before_fsync` before each fsync, and lets it fail if that is not 0.
    pub fn preload(&self, before_fsync: &str) -> PathBuf {
        self.library(&[before_fsync, FSYNCS].concat())
    }

    /// A library for `LD_PRELOAD` with these functions, which may call `is_named`.
    pub fn library(&self, functions: &str) -> PathBuf {
        let (path, library) = (self.path("preload.c"), self.path("preload.so"));
        std::fs::write(&path, [IS_NAMED, functions].concat()).expect("the folder is ours");
        output(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&path).arg("-ldl"));
        library
    }

    /// The names of all objects of the replica of one kind: "snapshots" or "wal".
    pub fn objects(&self, kind: &str) -> Vec<String> {
        objects(&self.replica(), kind)
    }

    /// The lengths in bytes of all objects of the replica of one kind.
    pub fn object_lengths(&self, kind: &str) -> Vec<u64> {
        let files = object_files(&self.replica(), kind).into_iter();
        files.map(|file| file.metadata().expect("readable").len()).collect()
    }
}

/// The names of all objects of a replica of one kind: "snapshots" or "wal".
pub fn objects(replica: &Path, kind: &str) -> Vec<String> {
    let files = object_files(replica, kind).into_iter();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

fn object_files(replica: &Path, kind: &str) -> Vec<DirEntry> {
    let generations = std::fs::read_dir(replica.join("generations")).into_iter().flatten();
    let folders = generations.map(|generation| generation.expect("readable").path().join(kind));
    let objects = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let files = objects.map(|object| object.expect("readable"));
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == "lz4")).collect()
}

/// Restores the replica in a folder with our program.
#[track_caller]
pub fn restore(replica: &Path, path: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    output(command.args(["restore", "-o"]).arg(path).arg(url(replica)));
}

/// The URL of a replica in a folder.
pub fn url(replica: &Path) -> String {
    format!("file://{}", replica.display())
}

/// The first database of a status.
pub fn first(status: &Value) -> &Value {
    &status["databases"][0]
}

/// Waits until the page table knows what the database is where the shadow ends.
#[track_caller]
pub fn wait_for_page_table(agent: &Agent) {
    agent.wait_for_status("there is a page table", |status| {
        first(status)["proof"].is_string() && first(status)["proof"] == first(status)["position"]
    });
}

/// The first database is attached, and its first replica has everything that is copied.
pub fn is_streaming(status: &Value) -> bool {
    let database = first(status);
    let replica = &database["replicas"][0];
    let is_followed = database["state"] == "attached" || database["state"] == "detached";
    is_followed && replica["state"] == "streaming" && replica["lag_bytes"] == 0
}

/// Whether the agent has let go of the database, and everything is replicated.
pub fn is_resting(status: &Value) -> bool {
    first(status)["state"] == "detached" && is_streaming(status)
}

/// How many rows the table `t` has.
pub fn rows(database: &Path) -> i64 {
    let connection = Connection::open(database).expect("a database");
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("the table")
}

/// How many commits a database that one plain `writer` wrote holds: they are the first ones, and whole.
#[track_caller]
pub fn whole_commits(database: &Path) -> i64 {
    let connection =
        Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("a database");
    super::compare::assert_whole(&connection);
    let sql = "SELECT count(*), coalesce(max(batch), 0), coalesce(sum(rows <> of), 0)
               FROM (SELECT batch, of, count(*) AS rows FROM rows GROUP BY batch)";
    let row = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let (count, last, torn): (i64, i64, i64) = row.expect("the writer's table");
    assert_eq!((count, torn), (last, 0), "{}: last commit {last}", database.display());
    count
}
