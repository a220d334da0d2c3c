//! A database, a server, an agent between them, and what a test asks about all three.

use super::agent::Agent;
use super::compare::assert_same;
use super::sshd::Sshd;
use super::temporary_folder;
use super::wait::wait_until;
use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use wal_agent::remote::location::SftpLocation;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server, and a folder with a database (made by whoever writes) and the agent's files.
pub struct Scene {
    pub server: Sshd,
    pub folder: TempDir,
    pub database: PathBuf,
}

impl Scene {
    /// Nothing runs yet but the server.
    pub fn new() -> Scene {
        let folder = temporary_folder();
        let database = folder.path().join("app.db");
        Scene { server: Sshd::start(), folder, database }
    }

    /// The folder of the replica on the server.
    pub fn replica(&self) -> PathBuf {
        self.server.storage().join("app")
    }

    /// A configuration of the one database with the one replica.
    pub fn configuration(&self) -> String {
        of_database(&self.database, &[&on_server(&self.server.location(), "app")])
    }

    /// Starts the agent with [`Scene::configuration`].
    pub fn start_agent(&self) -> Agent {
        Agent::start(self.folder.path(), &self.configuration())
    }

    /// Waits until a restore gives what the source has.
    #[track_caller]
    pub fn wait_until_restores(&self, agent: &Agent) {
        wait_until_restores(agent, &self.database, &[]);
    }
}

/// Runs `agent restore` of a database; what was there of an earlier one goes.
#[track_caller]
pub fn restore(agent: &Agent, database: &Path, output: &Path, options: &[&str]) {
    let _ = fs::remove_file(output);
    let paths = [output.to_str(), database.to_str()].map(|path| path.expect("a plain name"));
    let restored = agent.run("restore", &[&["-o"], &paths[..], options].concat());
    let said = String::from_utf8_lossy(&restored.stderr);
    assert_eq!(restored.status.code(), Some(0), "restore: {said}");
}

/// A configuration of one database.
pub fn of_database(database: &Path, replicas: &[&str]) -> String {
    of_databases([(database, replicas.iter().map(ToString::to_string).collect())])
}

/// A configuration of several databases, each with its replicas.
pub fn of_databases<'a>(databases: impl IntoIterator<Item = (&'a Path, Vec<String>)>) -> String {
    let entry = |(database, replicas): (&Path, Vec<String>)| {
        let replicas = replicas.iter().map(|replica| format!("      - {replica}\n")).collect::<String>();
        format!("  - path: {}\n    replicas:\n{replicas}", database.display())
    };
    format!("dbs:\n{}", databases.into_iter().map(entry).collect::<String>())
}

/// A replica below [`Sshd::storage`], with what is known of the server.
pub fn on_server(location: &SftpLocation, folder: &str) -> String {
    on_server_with(location, folder, &format!("host-key: {}", location.host_keys[0]))
}

/// The same, with other keys of the configuration in place of `host-key`.
pub fn on_server_with(location: &SftpLocation, folder: &str, keys: &str) -> String {
    let SftpLocation { host, port, user, path, .. } = location;
    let key = location.key_path.as_deref().expect("tests log in by key").display();
    let comma = if keys.is_empty() { "" } else { ", " };
    format!("{{url: 'sftp://{user}@{host}:{port}{path}/{folder}', key-path: {key}{comma}{keys}}}")
}

/// Whether everything is acknowledged by every replica of every database.
pub fn is_all_acknowledged(status: &Value) -> bool {
    let databases = status["databases"].as_array().expect("a status has databases");
    status["health"] == "healthy"
        && databases.iter().all(|database| {
            let replicas = database["replicas"].as_array().expect("a database has replicas");
            // What is seen, and not copied yet, is behind the position.
            let is_there =
                |replica: &Value| replica["position"] == database["position"] && replica["lag_bytes"] == 0;
            database["position"].is_string() && replicas.iter().all(is_there)
        })
}

/// The first replica's state.
pub fn state(status: &Value) -> &str {
    status["databases"][0]["replicas"][0]["state"].as_str().expect("a replica has a state")
}

/// Waits until everything is acknowledged, as far as the agent has seen.
#[track_caller]
pub fn wait_for_all(agent: &Agent) {
    agent.wait_for_status("everything is acknowledged", is_all_acknowledged);
}

/// Waits until everything is acknowledged, and a restore gives the writers' rows; then the two are compared. That
/// the agent has not seen the last commit yet is no fault.
#[track_caller]
pub fn wait_until_restores(agent: &Agent, database: &Path, options: &[&str]) {
    let output = database.with_extension("restored");
    wait_until("a restore gives all rows", DEADLINE, || {
        wait_for_all(agent);
        restore(agent, database, &output, options);
        count_rows(database) == count_rows(&output)
    });
    assert_same(database, &output);
}

fn count_rows(database: &Path) -> (i64, i64) {
    let connection = Connection::open(database).expect("a database");
    connection.busy_timeout(DEADLINE).expect("any timeout will do");
    let sql = "SELECT count(*), coalesce(max(id), 0) FROM rows";
    connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("the writer's table is there")
}

/// How often the log has a text.
pub fn count(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}
