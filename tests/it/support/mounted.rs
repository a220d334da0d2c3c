//! File systems that a test mounts.

use super::process::output;
use super::wait::wait_until;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A file system in memory at a folder; needs root.
pub struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    /// Mounts one of so many bytes.
    pub fn new(folder: &Path, size: u64) -> Mounted<'_> {
        let options = format!("mode=777,size={size}");
        as_root(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(folder));
        Mounted(folder)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // A process that another test starts just now holds a copy of what this one had open there.
        let umount = || {
            let status = command_as_root(Command::new("umount").arg(self.0)).status();
            status.expect("umount can be run").success()
        };
        if std::thread::panicking() {
            umount();
        } else {
            wait_until("it is unmounted", Duration::from_secs(10), umount);
        }
    }
}

/// Runs a command by sudo, if we are not root already.
fn as_root(command: &Command) {
    output(&mut command_as_root(command));
}

fn command_as_root(command: &Command) -> Command {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    if !rustix::process::getuid().is_root() {
        words.insert(0, "sudo".as_ref());
    }
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
