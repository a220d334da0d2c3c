//! Processes of a test, found through /proc, and signals to them.

use super::wait::wait_until;
use rustix::fs::{major, minor};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Longer than any process takes to start.
const A_WHILE: Duration = Duration::from_secs(60);

/// A program that is killed when the test is done with it.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // fails only if it has ended
        let _ = self.0.wait();
    }
}

/// A process (`sleep`) that has a file open, and no lock on it, as one that was forked has.
pub fn process_with(file: File) -> Killed {
    Killed(Command::new("sleep").arg("1000").stdin(file).spawn().expect("every system has it"))
}

/// Waits until the locks of an agent of this process that was dropped are free: a process that another test starts just then
/// holds a copy of each of our descriptors for a moment, and has their locks.
pub fn wait_for_locks(lock: &Path, wal_index: &Path) {
    if let Ok(lock) = File::open(lock) {
        wait_until("the lock is free", A_WHILE, || lock.try_lock().is_ok());
        // Closed only, it would stay in such a copy of this descriptor.
        lock.unlock().expect("our own lock is given back");
    }
    wait_until("the wal-index is free", A_WHILE, || !is_locked_for_an_open_file(wal_index));
}

/// Whether there is a lock that is not a process's, but an open file's.
fn is_locked_for_an_open_file(file: &Path) -> bool {
    let Ok(metadata) = fs::metadata(file) else { return false };
    let (device, inode) = (metadata.dev(), metadata.ino());
    let file = format!(" {:02x}:{:02x}:{inode} ", major(device), minor(device));
    let locks = fs::read_to_string("/proc/locks").expect("/proc is there");
    locks.lines().any(|lock| lock.contains(" OFDLCK ") && lock.contains(&file))
}

/// All processes below `parent`, children first.
pub fn descendants(parent: u32) -> Vec<u32> {
    let children = fs::read_dir("/proc").expect("/proc is there").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        (parent_of(pid)? == parent).then_some(pid)
    });
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// Those of `processes` that run a program whose name begins with `name`.
pub fn named(processes: Vec<u32>, name: &str) -> Vec<u32> {
    let is_named =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(name));
    processes.into_iter().filter(is_named).collect()
}

/// Sends a signal; fine if the process has ended.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    let _ = kill_process(pid, signal);
}

/// What a command prints.
///
/// # Panics
/// If it cannot be run or fails, with what it says.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}", output.status);
    said.into_owned()
}

/// The fields of /proc/PID/stat after the name, which is in parentheses and may hold anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
