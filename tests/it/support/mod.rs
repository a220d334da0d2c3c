//! The outside world, for tests: servers, databases, programs.

pub mod agent;
pub mod at_once;
pub mod compare;
pub mod earlier;
pub mod faulty;
pub mod file_clock;
pub mod gate;
pub mod history;
pub mod hung;
pub mod life;
pub mod litestream;
pub mod memory;
pub mod mounted;
pub mod oracle;
pub mod order;
pub mod place;
pub mod power;
pub mod process;
pub mod scene;
pub mod sim_disk;
pub mod sqlite;
pub mod sshd;
pub mod wait;
pub mod world;

use std::path::PathBuf;

/// A folder for one test, removed at its end. Set `WAL_AGENT_KEEP` to keep it and see what was there.
pub fn temporary_folder() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    let keep = std::env::var_os("WAL_AGENT_KEEP").is_some();
    builder.prefix("wal-agent-test-").disable_cleanup(keep).tempdir().expect("a temporary folder can be made")
}

/// The folder that cargo builds into: of this profile, as `target/debug`.
pub fn build_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    test.ancestors().nth(2).expect("tests are in target/<profile>/deps").to_owned()
}
