//! File systems that a test mounts.

use super::process::output;
use std::path::Path;
use std::process::Command;

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
        as_root(Command::new("umount").arg(self.0));
    }
}

/// Runs a command by sudo, if we are not root already.
fn as_root(command: &mut Command) {
    if rustix::process::getuid().is_root() {
        output(command);
        return;
    }
    output(Command::new("sudo").arg(command.get_program()).args(command.get_args()));
}
