//! When a checkpoint is due.

use std::time::{Duration, Instant};
use wal_agent::core::checkpoint::{CheckpointPolicy, CheckpointState, Round};
use wal_agent::core::wal_index::WalExtent;

const POLICY: CheckpointPolicy =
    CheckpointPolicy { min_pages: 1000, max_pages: Some(10_000), interval: Some(Duration::from_secs(60)) };

fn extent(frames: u32, backfilled: u32) -> WalExtent {
    WalExtent { frames, backfilled, salt: None }
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

#[test]
fn beside_writers_that_never_pause_a_long_wal_is_followed_at_once_as_long_as_it_gets_on() {
    let (mut state, mut now) = (CheckpointState::new(), Instant::now());
    let pause = |state: &mut CheckpointState, wal: WalExtent, now: &mut Instant| {
        assert_eq!(state.due(&POLICY, wal, true, *now), Some(Round::Following));
        state.on_round(Round::Following, false, *now);
        let at = state.next_timeout(&POLICY, wal).expect("it is tried again");
        at - std::mem::replace(now, at)
    };
    assert_eq!(
        state.due(&POLICY, extent(874, 0), true, now),
        None,
        "the application does not checkpoint yet"
    );
    assert_eq!(state.due(&POLICY, extent(875, 0), true, now), Some(Round::Following), "it soon will");
    for backfilled in (1000..9000).step_by(1000) {
        assert_eq!(
            pause(&mut state, extent(backfilled + 500, backfilled), &mut now),
            Duration::from_millis(1)
        );
    }
    let pauses: Vec<_> = (0..12).map(|_| pause(&mut state, extent(9000, 8500), &mut now)).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(1)), "another reader stays");
    assert_eq!(state.due(&POLICY, extent(10_000, 8500), true, now), Some(Round::Urgent));
}
