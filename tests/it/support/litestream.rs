//! The real Litestream 0.3.13, as another implementation of the same layout.

use super::process::{Killed, output, signal};
use super::wait::wait_for;
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wal_agent::remote::location::SftpLocation;

/// The program: what `WAL_AGENT_LITESTREAM` says, or where tests/run puts it.
///
/// # Panics
/// If it is not there.
pub fn program() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/litestream");
    let program = std::env::var_os("WAL_AGENT_LITESTREAM").map_or(unpacked, PathBuf::from);
    assert!(program.exists(), "no Litestream at {}: run tests/run", program.display());
    program
}

/// A configuration of one database and one replica, written to `folder`; its path.
pub fn configuration(folder: &Path, database: &Path, replica: &str) -> PathBuf {
    let path = folder.join("litestream.yml");
    let text = format!("dbs:\n  - path: {}\n    replicas:\n      - {}\n", database.display(), replica.trim());
    fs::write(&path, text).expect("the folder is ours");
    path
}

/// A replica in a folder, for [`configuration`].
pub fn in_folder(path: &Path) -> String {
    format!("{{type: file, path: {}, sync-interval: 50ms}}", path.display())
}

/// A replica on an SFTP server, for [`configuration`].
pub fn on_server(location: &SftpLocation) -> String {
    let SftpLocation { host, port, user, path, .. } = location;
    let key = location.key_path.as_deref().expect("tests log in by key").display();
    format!(
        "{{type: sftp, host: '{host}:{port}', user: {user}, path: {path}, key-path: {key}, sync-interval: 50ms}}"
    )
}

/// Litestream, ended after a minute: seen once to go round and round in a restore whose files were taken away.
pub fn command() -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program());
    command
}

/// Starts `litestream replicate`; what it says goes to litestream.log beside the configuration.
pub fn replicate(configuration: &Path) -> Killed {
    let log = File::create(configuration.with_file_name("litestream.log")).expect("the folder is ours");
    let mut command = Command::new(program());
    command.args(["replicate", "-config"]).arg(configuration);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("there are descriptors left")).stderr(log);
    Killed(command.spawn().expect("litestream can be run"))
}

/// Ends `litestream replicate` in order; whether it did. Now and then it hangs, and a killed one leaves half written
/// files on SFTP servers.
#[track_caller]
pub fn stop(mut process: Killed) -> bool {
    signal(process.0.id(), Signal::INT);
    let end = Instant::now() + PATIENCE;
    wait_for("litestream ends, or hangs", PATIENCE * 2, || {
        let has_ended = process.0.try_wait().is_ok_and(|end| end.is_some());
        (has_ended || Instant::now() > end).then_some(has_ended)
    })
}

/// How long a Litestream may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `litestream restore` of a configured database into `output_path`.
///
/// # Panics
/// If it fails, with what it says.
#[track_caller]
pub fn restore(configuration: &Path, database: &Path, output_path: &Path, options: &[&str]) {
    let mut command = command();
    command.args(["restore", "-config"]).arg(configuration).args(options);
    output(command.arg("-o").arg(output_path).arg(database));
}
