//! What SQLite promises an application, whoever else is attached: what was committed stays, and nothing fails that was
//! not made to fail.

use super::{Application, Slot};

/// What an application is told without an agent, too: it meets others, or asks for what is not there.
const EXPECTED: [&str; 5] = [
    "database is locked",
    "no transaction is active",
    "not open: ",
    "its process waits",
    // Nothing can be serialized of a database without a page.
    "out of memory",
];
/// What it is told as long as nothing was committed.
const OF_NOTHING: &str = "no such table: ";
/// What it is told where another connection stands still with locks that nobody has for long.
const OF_STANDING_STILL: &str = "locking protocol";
/// What it is told where an fsync of its own was made to fail.
const OF_FAILED_SYNC: &str = "disk I/O error";

impl Application {
    /// What is committed now must have everything that was committed before.
    ///
    /// # Panics
    /// If it has not.
    pub(super) fn check_nothing_is_lost(&mut self, counter: i64) {
        assert!(
            counter >= self.promised,
            "of {} commits the application finds {counter}\n{}",
            self.promised,
            self.log()
        );
        self.promised = counter;
        if self.has_acknowledged {
            self.durably_promised = counter;
        }
    }

    /// What was committed may be gone: somebody has put another file in its place, or its machine has lost what was not
    /// synced.
    pub fn release_promise(&mut self) {
        (self.promised, self.durably_promised) = (0, 0);
    }

    /// The machine loses power. What nobody was told to be committed may be gone: frames whose fsync failed, or whose
    /// writer died before it, are a commit for whoever recovers the WAL, and durable for nobody.
    pub fn promise_only_what_is_durable(&mut self) {
        // SQLite makes each commit durable only then.
        match self.habits.synchronous {
            "FULL" => self.promised = self.durably_promised,
            _ => self.release_promise(),
        }
    }

    /// A statement that may have committed something ends.
    pub(super) fn note_commit(&mut self, connection: usize, sql: &str, is_ok: bool) {
        let is_alone = self.slots[connection] == Slot::Idle && sql.starts_with("UPDATE");
        if is_alone || sql.ends_with("COMMIT") {
            self.has_acknowledged = is_ok;
        }
    }

    /// # Panics
    /// If an application without an agent would not be told that.
    pub(super) fn check_is_expected(&mut self, line: &str, message: &str) {
        let is_made = self.fails_a_sync && message == OF_FAILED_SYNC;
        let is_empty = self.promised == 0 && message.starts_with(OF_NOTHING);
        let is_kept_out = message == OF_STANDING_STILL && self.slots.iter().any(|slot| slot.waits());
        assert!(
            is_made || is_empty || is_kept_out || EXPECTED.iter().any(|expected| message.contains(expected)),
            "the application is told {message:?} for {line:?}\n{}",
            self.log()
        );
    }
}
