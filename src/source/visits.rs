//! Whether others have come to a file and written it, while only those worked on it who had it open: the kernel tells of
//! every open, under whatever name.

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// Events without a name are small; so many are read at once.
const BUFFER: usize = 4096;

/// What has happened to a file since.
pub struct Visits {
    events: OwnedFd,
    seen: Seen,
}

/// What the events have said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Whoever wrote the file had it open before.
    Nobody,
    /// Somebody has opened it, and it has not been written since.
    Visitor,
    /// It was written after somebody had opened it; or events were lost.
    Writer,
}

impl Seen {
    fn after(self, events: ReadFlags) -> Seen {
        match self {
            // Nothing else is asked for: the queue was full, or the file system is gone.
            _ if !(ReadFlags::OPEN | ReadFlags::MODIFY).contains(events) => Seen::Writer,
            Seen::Nobody if events.contains(ReadFlags::OPEN) => Seen::Visitor,
            Seen::Visitor if events.contains(ReadFlags::MODIFY) => Seen::Writer,
            seen => seen,
        }
    }
}

impl Visits {
    /// From now on.
    ///
    /// # Errors
    /// The kernel's: it has no inotify instance left, for example.
    pub fn of(file: &File) -> io::Result<Visits> {
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // By the descriptor, wherever its name is by now.
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        add_watch(&events, open, WatchFlags::OPEN | WatchFlags::MODIFY)?;
        Ok(Visits { events, seen: Seen::Nobody })
    }

    /// Whether all that was written is by those who had the file open in the beginning.
    pub fn are_harmless(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = Reader::new(&self.events, &mut buffer);
        loop {
            self.seen = match events.next() {
                Ok(event) => self.seen.after(event.events()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return self.seen != Seen::Writer,
                Err(_) => Seen::Writer,
            };
            if self.seen == Seen::Writer {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_what_is_written_after_somebody_came_counts() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("file");
        let mut inside = File::create(&path).expect("the folder is ours");
        let mut visits = Visits::of(&inside).expect("there is an instance left");
        inside.write_all(b"by who was there").expect("there is room");
        assert!(visits.are_harmless());
        std::fs::rename(&path, folder.path().join("renamed")).expect("the folder is ours");
        std::fs::read(folder.path().join("renamed")).expect("it is there");
        assert!(visits.are_harmless(), "who only reads");
        inside.write_all(b"by whomever").expect("there is room");
        assert!(!visits.are_harmless());
        assert!(!visits.are_harmless(), "for good");
    }

    #[test]
    fn lost_events_count_as_a_writer() {
        assert_eq!(Seen::Nobody.after(ReadFlags::QUEUE_OVERFLOW), Seen::Writer);
        assert_eq!(Seen::Nobody.after(ReadFlags::UNMOUNT), Seen::Writer);
        assert_eq!(Seen::Nobody.after(ReadFlags::IGNORED), Seen::Writer);
        assert_eq!(Seen::Nobody.after(ReadFlags::MODIFY), Seen::Nobody);
        assert_eq!(Seen::Visitor.after(ReadFlags::OPEN), Seen::Visitor);
    }
}
