//! Who goes first where the processors do not suffice for all.
//!
//! A round beside writers that never pause waits for a moment of some microseconds ([`source`](crate::source)). While
//! sending has its processor, that moment passes, and the writers pay two fsyncs for the next one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest that anybody is let go first in one go.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Shared by those who may go first and those who let them.
#[derive(Debug, Clone, Default)]
pub struct Precedence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many go first now.
    going: Mutex<u32>,
    ended: Condvar,
}

/// Somebody goes first until this is dropped.
#[derive(Debug)]
pub struct Going(Precedence);

impl Precedence {
    /// Goes first.
    pub fn take(&self) -> Going {
        *self.going() += 1;
        Going(self.clone())
    }

    // A number is whole whoever panicked meanwhile.
    fn going(&self) -> MutexGuard<'_, u32> {
        self.0.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let Going(precedence) = self;
        *precedence.going() -= 1;
        precedence.0.ended.notify_all();
    }
}

/// One who lets others go first, and comes to its turn all the same: it never waits for longer than it did not.
#[derive(Debug, Default)]
pub struct Deference {
    precedence: Precedence,
    waited: Option<Instant>,
}

impl Deference {
    /// One who lets those go first that take `precedence`.
    pub fn to(precedence: &Precedence) -> Self {
        Deference { precedence: precedence.clone(), waited: None }
    }

    /// Waits while others go first, for a bounded time.
    pub fn let_go_first(&mut self) {
        let patience = self.waited.map_or(LONGEST_WAIT, |at| at.elapsed().min(LONGEST_WAIT));
        let going = self.precedence.going();
        if *going == 0 {
            return;
        }
        // Whether they have ended or the time is up, it goes on.
        drop(self.precedence.0.ended.wait_timeout_while(going, patience, |going| *going > 0));
        self.waited = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::{Deference, Precedence};

    #[test]
    fn whoever_goes_first_is_waited_for_until_it_ends_and_never_without_bound() {
        let precedence = Precedence::default();
        let mut deference = Deference::to(&precedence);
        deference.let_go_first();
        assert!(deference.waited.is_none(), "nobody went first");

        let going = precedence.take();
        let other = precedence.take();
        drop(other);
        deference.let_go_first();
        assert!(deference.waited.is_some(), "one of two still goes first");
        drop(going);

        let waited = deference.waited;
        deference.let_go_first();
        assert_eq!(deference.waited, waited, "both have ended");
    }

    #[test]
    fn it_is_awaited_by_a_thread_of_its_own() {
        let precedence = Precedence::default();
        let mut deference = Deference::to(&precedence);
        let going = precedence.take();
        let waiting = std::thread::spawn(move || deference.let_go_first());
        drop(going);
        waiting.join().unwrap();
    }
}
