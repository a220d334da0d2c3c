//! For how long a replica has lacked something, without remembering when each commit was made.

use super::position::Position;
use std::time::{Duration, Instant};

/// A replica that takes what comes has taken it by then, or what comes is more than it takes.
const PROMPT: Duration = Duration::from_millis(50);

/// Since when a replica lacks something of what is shadowed.
///
/// Invariant: everything shadowed before [`Lag::since`] is acked, as far as was told. A writer that never pauses leaves
/// no moment at which nothing is behind, and makes no old lag of that: what was behind is reached, one goal after the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    since: Option<Instant>,
    /// The shadow's end at some moment after `since`. Once it is acked, all that is behind is newer than that moment.
    goal: Option<(Position, Instant)>,
}

impl Lag {
    /// Takes in how it stands now: `bytes` that are shadowed and not acked.
    pub fn observe(&mut self, bytes: u64, shadowed: Position, acked: Option<Position>, now: Instant) {
        if bytes == 0 {
            *self = Lag::default();
            return;
        }
        self.since.get_or_insert(now);
        match self.goal {
            Some((end, seen)) if acked.is_some_and(|acked| acked >= end) => {
                (self.since, self.goal) = (Some(seen), Some((shadowed, now)));
            }
            // Of another generation: it is not reached any more.
            Some((end, _)) if end.generation != shadowed.generation => self.goal = Some((shadowed, now)),
            Some(_) => {}
            None => self.goal = Some((shadowed, now)),
        }
    }

    /// Whether commits come faster than they are acked, or none is acked at all. One large commit is not that.
    pub fn is_outrun(&self, shadowed: Position, now: Instant) -> bool {
        let outruns = |(end, seen): (Position, Instant)| shadowed > end && now >= seen + PROMPT;
        self.goal.is_some_and(outruns)
    }

    /// Nothing is behind that was shadowed before this; `None` if nothing is behind at all.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::{Generation, Index, Offset};
    use std::time::Duration;

    fn at(generation: u64, offset: u64) -> Position {
        Position::new(Generation::from_random(generation), Index::ZERO, Offset::new(offset))
    }

    #[test]
    fn a_writer_that_never_pauses_makes_no_old_lag_of_a_replica_that_follows() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        let second = |n: u64| start + Duration::from_secs(n);
        for n in 1..100 {
            // It always lacks what was written in the last second.
            lag.observe(100, at(1, n * 100), Some(at(1, (n - 1) * 100)), second(n));
            assert!(second(n) - lag.since().expect("it is behind") <= Duration::from_secs(1));
        }
    }

    #[test]
    fn a_replica_that_stands_still_is_behind_since_it_stood_still() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        let second = |n: u64| start + Duration::from_secs(n);
        for n in 1..100 {
            lag.observe(n * 100, at(1, n * 100), Some(at(1, 0)), second(n));
            assert_eq!(lag.since(), Some(second(1)));
        }
        lag.observe(5_000, at(1, 10_000), Some(at(1, 50)), second(100));
        assert_eq!(lag.since(), Some(second(1)), "not even the first goal is reached");
    }

    #[test]
    fn a_replica_is_outrun_if_commits_come_and_the_first_is_not_acked_soon() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        let later = start + PROMPT;
        lag.observe(100, at(1, 100), None, start);
        assert!(!lag.is_outrun(at(1, 100), later), "one large commit");
        assert!(!lag.is_outrun(at(1, 200), later - Duration::from_millis(1)), "not soon enough to tell");
        assert!(lag.is_outrun(at(1, 200), later));
        lag.observe(100, at(1, 200), Some(at(1, 100)), later);
        assert!(!lag.is_outrun(at(1, 200), later), "it follows");
        lag.observe(0, at(1, 200), Some(at(1, 200)), later);
        assert!(!lag.is_outrun(at(1, 300), later + PROMPT));
    }

    #[test]
    fn a_new_generation_is_behind_since_the_old_one_was_until_its_own_goal_is_reached() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        let second = |n: u64| start + Duration::from_secs(n);
        lag.observe(100, at(1, 100), Some(at(1, 0)), second(1));
        lag.observe(100, at(2, 100), None, second(2));
        assert_eq!(lag.since(), Some(second(1)));
        lag.observe(100, at(2, 200), Some(at(2, 100)), second(3));
        assert_eq!(lag.since(), Some(second(2)));
    }

    #[test]
    fn what_is_written_after_everything_was_acked_is_behind_since_then() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        let second = |n: u64| start + Duration::from_secs(n);
        lag.observe(100, at(1, 100), Some(at(1, 0)), second(1));
        // An index that ended without a commit: no byte is behind though the positions differ.
        let index = Index::ZERO.next().expect("there are more indexes");
        let next = Position { index, ..at(1, 0) };
        lag.observe(0, next, Some(at(1, 100)), second(2));
        assert_eq!(lag.since(), None);
        lag.observe(100, Position { offset: Offset::new(100), ..next }, Some(at(1, 100)), second(50));
        assert_eq!(lag.since(), Some(second(50)));
    }
}
