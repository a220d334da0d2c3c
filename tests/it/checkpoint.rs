//! When our reader stands in the way, and when a checkpoint is due.

use std::time::{Duration, Instant};
use wal_agent::core::checkpoint::{CheckpointPolicy, CheckpointState, Extent, Mark, Round, is_in_place};
use wal_agent::core::position::Index;

const POLICY: CheckpointPolicy =
    CheckpointPolicy { min_pages: 1000, max_pages: Some(10_000), interval: Some(Duration::from_secs(60)) };

fn extent(frames: u32, backfilled: u32) -> Extent {
    Extent { index: Index::ZERO, frames, backfilled }
}

#[test]
fn a_reader_is_in_place_on_the_newest_mark_or_on_lock_zero_of_a_copied_wal() {
    let next = Index::ZERO.next().expect("there is a next index");
    let mark = |frames, on_lock_zero| Mark { index: Index::ZERO, frames, on_lock_zero };
    for (mark, now, expected, why) in [
        (mark(5, false), extent(5, 0), true, "newest, nothing backfilled"),
        (mark(5, false), extent(5, 4), true, "newest, a part backfilled"),
        (mark(5, false), extent(5, 5), false, "keeps a copied WAL from restarting"),
        (mark(5, true), extent(5, 5), true, "on lock zero of a copied WAL"),
        (mark(4, false), extent(5, 0), false, "on an old mark"),
        (mark(4, true), extent(5, 4), false, "on lock zero, with new frames"),
        (mark(5, true), Extent { index: next, ..extent(5, 0) }, false, "of the index before"),
        (mark(5, true), extent(0, 0), true, "an empty WAL needs no mark"),
    ] {
        assert_eq!(is_in_place(mark, now), expected, "{why}");
    }
}

#[test]
fn rounds_are_due_by_size_and_by_age() {
    let begun = Instant::now();
    let due = |frames, later| {
        let mut state = CheckpointState::new();
        state.due(&POLICY, extent(1, 0), false, begun);
        state.due(&POLICY, extent(frames, 0), false, begun + later)
    };
    assert_eq!(due(999, Duration::ZERO), None);
    assert_eq!(due(1000, Duration::ZERO), Some(Round::Cooperative));
    assert_eq!(due(9999, Duration::ZERO), Some(Round::Cooperative));
    assert_eq!(due(10_000, Duration::ZERO), Some(Round::Urgent));
    assert_eq!(due(1, Duration::from_secs(59)), None);
    assert_eq!(due(1, Duration::from_secs(60)), Some(Round::Cooperative));
}

#[test]
fn a_copied_wal_asks_for_nothing() {
    let (mut state, now) = (CheckpointState::new(), Instant::now());
    assert_eq!(state.due(&POLICY, extent(20_000, 20_000), false, now), None);
    assert_eq!(state.next_timeout(&POLICY, extent(20_000, 20_000)), None);
}

#[test]
fn a_round_that_cannot_finish_is_tried_ever_more_rarely() {
    let (mut state, mut now) = (CheckpointState::new(), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(state.due(&POLICY, extent(1000, 0), false, now), Some(Round::Cooperative));
        state.on_round(Round::Cooperative, false, now);
        assert_eq!(state.due(&POLICY, extent(1000, 0), false, now), None, "never at once again");
        let at = state.next_timeout(&POLICY, extent(1000, 0)).expect("it is tried again");
        pauses.push(at - now);
        now = at;
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(1)));
}

#[test]
fn a_round_that_cannot_finish_but_gets_on_is_tried_again_soon() {
    let (mut state, mut now) = (CheckpointState::new(), Instant::now());
    for turn in 0..10 {
        let overtaken = extent(20_000 + turn * 1000, 10_000 + turn * 1000);
        assert_eq!(state.due(&POLICY, overtaken, true, now), Some(Round::Urgent));
        state.on_round(Round::Urgent, false, now);
        let at = state.next_timeout(&POLICY, overtaken).expect("it is tried again");
        assert_eq!(at - now, Duration::from_millis(20), "turn {turn}");
        now = at;
    }
}
