//! A folder of which every opening hangs, as one of a server that does not answer does.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// As long as it lives, whoever opens the folder, or what is in it, waits (fanotify(7)); needs root.
pub struct Hung(#[expect(dead_code, reason = "the kernel waits for an answer until it is closed")] OwnedFd);

impl Hung {
    /// From now on.
    pub fn folder(path: &Path) -> Hung {
        // SAFETY: takes two numbers.
        let group = unsafe { libc::fanotify_init(libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC, 0) };
        assert!(group >= 0, "fanotify: {}", std::io::Error::last_os_error());
        // SAFETY: it was just opened, and is nobody's yet.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("a plain name");
        let events = libc::FAN_OPEN_PERM | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
        // SAFETY: the name ends with a zero, and lives until the call returns.
        let marked = unsafe {
            libc::fanotify_mark(group.as_raw_fd(), libc::FAN_MARK_ADD, events, libc::AT_FDCWD, path.as_ptr())
        };
        assert_eq!(marked, 0, "fanotify: {}", std::io::Error::last_os_error());
        Hung(group)
    }
}
