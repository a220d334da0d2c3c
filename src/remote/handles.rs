//! Open files of a destination, kept between calls so that an append is one round trip.

/// How many files stay open. sshd commonly lets a login have 1,024; a server may have many logins of ours.
pub const MAX_OPEN: usize = 64;

/// What a file was opened for. Reading and writing are apart, because an account may be allowed only one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

struct Open<F> {
    path: String,
    access: Access,
    file: F,
}

/// At most [`MAX_OPEN`] open files, the most recently used last. Dropping an `F` closes it.
pub(super) struct Handles<F> {
    open: Vec<Open<F>>,
}

impl<F> Handles<F> {
    pub(super) fn new() -> Self {
        Handles { open: Vec::with_capacity(MAX_OPEN) }
    }

    /// The open file, or else what `open` gives; then the least recently used one is closed if there are too many.
    pub(super) fn get_or_open<E>(
        &mut self,
        path: &str,
        access: Access,
        open: impl FnOnce() -> Result<F, E>,
    ) -> Result<&mut F, E> {
        let entry = match self.open.iter().position(|o| o.path == path && o.access == access) {
            Some(at) => self.open.remove(at),
            None => Open { path: path.to_owned(), access, file: open()? },
        };
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(entry);
        Ok(&mut self.open.last_mut().expect("BUG: one was pushed").file)
    }

    /// Closes a file; fine if it is not open.
    pub(super) fn close(&mut self, path: &str) {
        self.open.retain(|open| open.path != path);
    }

    /// Closes a file as far as it was opened for reading.
    pub(super) fn close_reading(&mut self, path: &str) {
        self.open.retain(|open| open.path != path || open.access != Access::Read);
    }

    /// The file got a new name: what is open under the old one is open under the new one.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.close(to);
        self.open.iter_mut().filter(|open| open.path == from).for_each(|open| to.clone_into(&mut open.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(handles: &mut Handles<u32>, path: &str, access: Access, file: u32) -> u32 {
        *handles.get_or_open(path, access, || Ok::<_, ()>(file)).expect("opening cannot fail here")
    }

    #[test]
    fn a_file_is_opened_once_for_each_access() {
        let mut handles = Handles::new();
        assert_eq!(open(&mut handles, "a", Access::Write, 1), 1);
        assert_eq!(open(&mut handles, "a", Access::Read, 2), 2);
        assert_eq!(open(&mut handles, "a", Access::Write, 3), 1);
        handles.close_reading("a");
        assert_eq!(open(&mut handles, "a", Access::Read, 4), 4);
        assert_eq!(open(&mut handles, "a", Access::Write, 5), 1);
        handles.close("a");
        assert_eq!(open(&mut handles, "a", Access::Write, 6), 6);
    }

    #[test]
    fn the_least_recently_used_is_closed_when_there_are_too_many() {
        let mut handles = Handles::new();
        for n in 0..MAX_OPEN as u32 {
            open(&mut handles, &n.to_string(), Access::Write, n);
        }
        open(&mut handles, "0", Access::Write, 1000);
        open(&mut handles, "one more", Access::Write, 2000);
        assert_eq!(handles.open.len(), MAX_OPEN);
        assert_eq!(open(&mut handles, "0", Access::Write, 3000), 0);
        assert_eq!(open(&mut handles, "1", Access::Write, 3000), 3000);
    }

    #[test]
    fn an_open_file_follows_its_new_name() {
        let mut handles = Handles::new();
        open(&mut handles, "old", Access::Write, 1);
        open(&mut handles, "new", Access::Read, 2);
        handles.rename("old", "new");
        assert_eq!(open(&mut handles, "new", Access::Write, 3), 1);
        assert_eq!(open(&mut handles, "new", Access::Read, 4), 4);
        assert_eq!(open(&mut handles, "old", Access::Write, 5), 5);
    }
}
