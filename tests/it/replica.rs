//! A replica's course: which job follows which, and what every failure leads back to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wal_agent::core::page::{PageCount, PageSize};
use wal_agent::core::page_table::{DatabaseChecksum, DatabaseState};
use wal_agent::core::position::{Generation, Index, Offset, Position};
use wal_agent::core::replica::{
    Activity, Failure, FailureCause, Finding, Job, LastSegment, Listing, Outcome, Replica, SEGMENT_AGE,
    SEGMENT_LENGTH, SegmentStart, SentSnapshot, Surveyed,
};
use wal_agent::core::segment::{SnapshotTrailer, TRAILER_LENGTH};
use wal_agent::core::shadow::ShadowExtent;
use wal_agent::core::survey::{SURVEY_PAUSE, Survey};
use wal_agent::worker::login_pause;

const INDEX: Index = Index::ZERO;
/// A last segment whose beginning was compared.
const SAME: LastSegment = LastSegment::Same { compared: Offset::FIRST_FRAME, end: None };

fn generation() -> Generation {
    Generation::from_random(1)
}

fn next(index: Index) -> Index {
    index.next().expect("there are more indexes")
}

fn shadow(end: u64) -> ShadowExtent {
    ShadowExtent {
        generation: generation(),
        complete: BTreeMap::new(),
        index: INDEX,
        end: Offset::new(end),
        states: BTreeMap::new(),
    }
}

fn sent(index: Index) -> SentSnapshot {
    let page_size = PageSize::new(4096).expect("4096 is a page size");
    let page_count = PageCount::new(2).expect("2 is a page count");
    let valid_from = (index, Offset::ZERO);
    SentSnapshot {
        attempt: 7,
        length: 100,
        trailer: SnapshotTrailer { index, valid_from, page_size, page_count, crc: 5, state: None },
    }
}

/// The segment of [`streaming`].
const FIRST: SegmentStart = SegmentStart { index: INDEX, start: Offset::ZERO };

/// A replica with a snapshot and a segment of so many bytes.
fn listing(segment: SegmentStart, length: u64, last: LastSegment) -> Listing {
    let segments = vec![(segment, length)];
    Listing {
        snapshots: vec![(INDEX, 100 + TRAILER_LENGTH as u64)],
        segments,
        last: Some(last),
        is_older: false,
    }
}

fn failure() -> Outcome {
    failure_by(FailureCause::Disconnected)
}

fn failure_by(cause: FailureCause) -> Outcome {
    Outcome::Failed(Failure { message: "the line is cut".to_owned(), cause })
}

/// The pauses of a replica that is never even looked at.
fn pauses_by(cause: FailureCause) -> Vec<Duration> {
    let (mut now, mut replica) = (Instant::now(), Replica::new(generation(), Duration::ZERO));
    let pauses = (0..12).map(|_| {
        assert_eq!(replica.next_job(&shadow(0), now), Some(Job::Look { written: None }));
        replica.on_outcome(failure_by(cause), &shadow(0), now, 0.0);
        let Activity::Failing { retry_at } = replica.activity() else { panic!("{:?}", replica.activity()) };
        retry_at - std::mem::replace(&mut now, retry_at)
    });
    pauses.collect()
}

/// A replica whose first snapshot is published and whose WAL is acked up to `end`.
fn streaming(end: u64, now: Instant) -> Replica {
    streaming_with(end, Duration::ZERO, now)
}

fn streaming_with(end: u64, sync_interval: Duration, now: Instant) -> Replica {
    let mut replica = Replica::new(generation(), sync_interval);
    let extent = shadow(end);
    let mut answer = |expected: fn(&Job) -> bool, outcome: Outcome| {
        let job = replica.next_job(&extent, now).expect("there is a job");
        assert!(expected(&job), "{job:?}");
        assert_eq!(replica.on_outcome(outcome, &extent, now, 0.0), Finding::Nothing);
    };
    answer(|j| matches!(j, Job::Look { .. }), Outcome::Found(Listing::default()));
    answer(|j| matches!(j, Job::SendSnapshot { index: INDEX }), Outcome::SnapshotSent(sent(INDEX)));
    let appended = Outcome::Appended { end: Offset::new(end), length: 50 };
    answer(|j| matches!(j, Job::Begin { replace: false, .. }), appended);
    answer(|j| matches!(j, Job::PublishSnapshot { .. }), Outcome::SnapshotPublished { is_older: false });
    assert_eq!(replica.next_job(&extent, now), None);
    assert!(replica.holds(extent.position()));
    replica
}

#[test]
fn an_empty_replica_gets_the_snapshot_then_its_wal_then_the_snapshots_name() {
    let replica = streaming(1000, Instant::now());
    assert_eq!(replica.activity(), Activity::Streaming);
    assert_eq!(replica.acked(), Some(Position::new(generation(), INDEX, Offset::new(1000))));
}

#[test]
fn a_snapshot_is_published_only_when_everything_up_to_the_end_of_its_reading_is_acked() {
    let (now, mut replica) = (Instant::now(), Replica::new(generation(), Duration::ZERO));
    replica.next_job(&shadow(1000), now);
    replica.on_outcome(Outcome::Found(Listing::default()), &shadow(1000), now, 0.0);
    replica.next_job(&shadow(1000), now);
    // While it was read, the application committed up to 3000.
    replica.on_outcome(Outcome::SnapshotSent(sent(INDEX)), &shadow(3000), now, 0.0);
    let job = replica.next_job(&shadow(9000), now);
    assert!(matches!(job, Some(Job::Begin { .. })), "{job:?}");
    let appended = Outcome::Appended { end: Offset::new(2000), length: 50 };
    replica.on_outcome(appended, &shadow(9000), now, 0.0);
    let job = replica.next_job(&shadow(9000), now);
    assert!(matches!(job, Some(Job::Extend { .. })), "{job:?}");
    replica.on_outcome(Outcome::Appended { end: Offset::new(3000), length: 60 }, &shadow(9000), now, 0.0);
    let valid_from = (INDEX, Offset::new(3000));
    assert_eq!(
        replica.next_job(&shadow(9000), now),
        Some(Job::PublishSnapshot { sent: sent(INDEX), valid_from, state: None })
    );
}

#[test]
fn a_commit_is_appended_to_the_open_segment() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    let (from, to) = (Offset::new(1000), Offset::new(5000));
    assert_eq!(
        replica.next_job(&shadow(5000), now),
        Some(Job::Extend { segment: FIRST, length: 50, from, to })
    );
    assert_eq!(replica.next_job(&shadow(6000), now), None, "one job at a time");
}

#[test]
fn a_segment_is_sealed_when_it_is_full_or_old_or_its_index_is_over() {
    let now = Instant::now();
    let is_seal = |job: Option<Job>, last: bool| match job {
        Some(Job::Seal { last_of_index, .. }) => assert_eq!(last_of_index, last),
        other => panic!("{other:?}"),
    };
    is_seal(streaming(SEGMENT_LENGTH, now).next_job(&shadow(SEGMENT_LENGTH + 5000), now), false);
    is_seal(streaming(1000, now).next_job(&shadow(5000), now + SEGMENT_AGE), false);
    let mut over = shadow(5000);
    over.complete.insert(INDEX, Offset::new(1000));
    over.index = next(INDEX);
    is_seal(streaming(1000, now).next_job(&over, now), true);
}

#[test]
fn an_idle_replica_asks_for_no_turn() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    assert_eq!(replica.next_job(&shadow(1000), now + 60 * SEGMENT_AGE), None);
    assert!(replica.next_timeout(&shadow(1000)).is_none());
}

/// A shadow whose page table knows what the database is at its end.
fn known(end: u64) -> ShadowExtent {
    let mut extent = shadow(end);
    extent.states.insert(INDEX, state(end));
    extent
}

fn state(bits: u64) -> DatabaseState {
    DatabaseState { page_count: PageCount::new(3).unwrap(), checksum: DatabaseChecksum::new(bits) }
}

/// What a job says of the end of the segment that it seals, and whether its index is over.
fn sealed(job: Option<Job>) -> (Option<DatabaseState>, bool) {
    match job {
        Some(Job::Seal { state, last_of_index, .. }) => (state, last_of_index),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_seal_says_what_the_database_was_exactly_there() {
    let now = Instant::now();
    let extend = |end: u64| {
        let mut replica = streaming(1000, now);
        assert!(matches!(replica.next_job(&known(5000), now), Some(Job::Extend { .. })));
        let appended = Outcome::Appended { end: Offset::new(end), length: 60 };
        replica.on_outcome(appended, &known(7000), now, 0.0);
        replica
    };
    let later = now + SEGMENT_AGE;
    assert_eq!(sealed(extend(5000).next_job(&known(7000), later)), (Some(state(5000)), false));
    // It was cut before what was handed out, and nobody knows what the database was there.
    assert_eq!(sealed(extend(4000).next_job(&known(7000), later)), (None, false));
    let mut over = known(5000);
    over.complete.insert(INDEX, Offset::new(5000));
    over.index = next(INDEX);
    assert_eq!(sealed(extend(5000).next_job(&over, now)), (Some(state(5000)), true));
}

#[test]
fn a_segment_that_can_be_proven_is_sealed_though_nothing_comes_and_again_if_its_index_ends_there() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    assert_eq!(replica.next_job(&known(1000), now), None);
    assert_eq!(replica.next_timeout(&known(1000)), Some(now + SEGMENT_AGE));
    assert_eq!(sealed(replica.next_job(&known(1000), now + SEGMENT_AGE)), (Some(state(1000)), false));
    replica.on_outcome(Outcome::Sealed, &known(1000), now, 0.0);
    assert_eq!(replica.next_job(&known(1000), now + SEGMENT_AGE), None);
    assert!(replica.next_timeout(&known(1000)).is_none());
    let mut over = known(1000);
    over.complete.insert(INDEX, Offset::new(1000));
    over.index = next(INDEX);
    let mut longer = replica.clone();
    assert_eq!(sealed(replica.next_job(&over, now)), (Some(state(1000)), true));
    replica.on_outcome(Outcome::Sealed, &over, now, 0.0);
    assert!(matches!(replica.next_job(&over, now), Some(Job::Begin { .. })), "the next index");
    // If more came, the next segment is the last one.
    let start = Offset::new(1000);
    let segment = SegmentStart { index: INDEX, start };
    let begin = Job::Begin { segment, to: Offset::new(3000), replace: false };
    assert_eq!(longer.next_job(&known(3000), now + SEGMENT_AGE), Some(begin));
}

#[test]
fn a_replica_that_finishes_seals_what_it_has_and_sends_nothing_behind_it() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    let end = shadow(1000).position();
    replica.finish_at(end);
    assert!(!replica.is_finished(end));
    assert_eq!(sealed(replica.next_job(&known(1000), now)), (Some(state(1000)), false));
    replica.on_outcome(Outcome::Sealed, &known(1000), now, 0.0);
    assert!(replica.is_finished(end));
    assert_eq!(replica.next_job(&known(9000), now), None);
    assert!(replica.next_timeout(&known(9000)).is_none(), "nothing is due, so nobody must wake");
}

#[test]
fn no_segment_begins_at_or_beyond_4_gib() {
    let now = Instant::now();
    let far = (1 << 32) + 5000;
    let mut replica = streaming(far, now);
    let job = replica.next_job(&shadow(far + 1000), now + SEGMENT_AGE);
    assert!(matches!(job, Some(Job::Extend { .. })), "{job:?}");
}

#[test]
fn after_a_failure_the_replica_is_looked_at_and_its_last_segment_written_anew() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    replica.next_job(&shadow(5000), now);
    assert_eq!(replica.on_outcome(failure(), &shadow(5000), now, 0.0), Finding::Nothing);
    let Activity::Failing { retry_at } = replica.activity() else { panic!("{:?}", replica.activity()) };
    assert_eq!(replica.next_job(&shadow(5000), now), None, "not before its time");
    assert_eq!(replica.next_timeout(&shadow(5000)), Some(retry_at), "without another commit");
    assert_eq!(replica.next_job(&shadow(5000), retry_at), Some(Job::Look { written: Some((FIRST, 50)) }));
    let listing = listing(FIRST, 50, SAME);
    assert_eq!(replica.on_outcome(Outcome::Found(listing), &shadow(5000), retry_at, 0.0), Finding::Nothing);
    let to = Offset::new(5000);
    assert_eq!(
        replica.next_job(&shadow(5000), retry_at),
        Some(Job::Begin { segment: FIRST, to, replace: true })
    );
}

#[test]
fn what_was_sent_is_in_doubt_until_it_was_answered_or_looked_at() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    assert!(!replica.is_in_doubt());
    assert!(matches!(replica.next_job(&shadow(2000), now), Some(Job::Extend { .. })));
    assert!(replica.is_in_doubt(), "it is on its way");
    replica.on_outcome(failure(), &shadow(2000), now, 0.0);
    assert!(replica.is_in_doubt());
    let Activity::Failing { retry_at } = replica.activity() else { panic!("{:?}", replica.activity()) };
    assert!(matches!(replica.next_job(&shadow(2000), retry_at), Some(Job::Look { .. })));
    assert!(replica.is_in_doubt(), "nothing is known yet");
    replica.on_outcome(Outcome::Found(listing(FIRST, 50, SAME)), &shadow(2000), retry_at, 0.0);
    assert!(!replica.is_in_doubt());
}

#[test]
fn pauses_between_failures_grow_and_end_at_half_a_minute() {
    let pauses = pauses_by(FailureCause::Other);
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(30)));
}

#[test]
fn a_server_that_cannot_be_reached_is_tried_again_within_seconds_however_long_it_is_away() {
    let pauses = pauses_by(FailureCause::Disconnected);
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(5)));
}

#[test]
fn a_replica_that_was_not_tried_waits_longer_and_is_told_when_the_server_answers() {
    let pauses = pauses_by(FailureCause::NotTried);
    assert_eq!(pauses.last(), Some(&Duration::from_secs(30)), "a thousand of them would keep us busy");
    let now = Instant::now();
    let after = |cause| {
        let mut replica = Replica::new(generation(), Duration::ZERO);
        replica.next_job(&shadow(0), now);
        replica.on_outcome(failure_by(cause), &shadow(0), now, 0.0);
        replica.on_server_answers();
        replica.next_job(&shadow(0), now)
    };
    assert_eq!(after(FailureCause::NotTried), Some(Job::Look { written: None }));
    assert_eq!(after(FailureCause::Disconnected), Some(Job::Look { written: None }));
    assert_eq!(after(FailureCause::Other), None, "what the server refused has nothing to do with its return");
}

#[test]
fn the_logins_of_all_databases_together_grow_rare_and_one_database_never_misses_its_turn() {
    let logins: Vec<_> = (1..12).map(login_pause).collect();
    assert!(logins.is_sorted() && logins.windows(2).any(|pair| pair[0] < pair[1]), "{logins:?}");
    // Chance makes a pause shorter by up to a half.
    let pauses = pauses_by(FailureCause::Disconnected);
    let last = (logins.last().expect("there are some"), pauses.last().expect("there are some"));
    assert!(*last.0 < *last.1 / 2, "{last:?}");
}

#[test]
fn a_replica_that_holds_less_than_it_acknowledged_is_rewound_and_that_is_said() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    replica.next_job(&shadow(5000), now);
    replica.on_outcome(failure(), &shadow(5000), now, 0.0);
    let later = now + Duration::from_secs(60);
    replica.next_job(&shadow(5000), later);
    let listing = listing(FIRST, 20, SAME);
    let finding = replica.on_outcome(Outcome::Found(listing), &shadow(5000), later, 0.0);
    let at = |offset| Position::new(generation(), INDEX, Offset::new(offset));
    assert_eq!(finding, Finding::Rewound { from: at(1000), to: at(0) });
}

#[test]
fn the_last_segment_of_an_acknowledged_index_is_written_anew_without_a_word() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    let mut over = shadow(500);
    over.complete.insert(INDEX, Offset::new(1000));
    over.index = next(INDEX);
    assert!(matches!(replica.next_job(&over, now), Some(Job::Seal { .. })));
    replica.on_outcome(Outcome::Sealed, &over, now, 0.0);
    let acked = Some(Position::new(generation(), over.index, Offset::ZERO));
    assert_eq!(replica.acked(), acked);
    assert!(matches!(replica.next_job(&over, now), Some(Job::Begin { replace: false, .. })));
    assert_eq!(replica.needs_from(), Some(INDEX), "should that fail");
    replica.on_outcome(failure(), &over, now, 0.0);
    assert_eq!(replica.needs_from(), Some(INDEX));
    let later = now + Duration::from_secs(60);
    assert_eq!(replica.next_job(&over, later), Some(Job::Look { written: Some((FIRST, 50)) }));
    let listing = listing(FIRST, 90, SAME);
    assert_eq!(replica.on_outcome(Outcome::Found(listing), &over, later, 0.0), Finding::Nothing);
    assert!(matches!(replica.next_job(&over, later), Some(Job::SendSealed { replace: true, .. })));
    let appended = Outcome::Appended { end: Offset::new(1000), length: 50 };
    assert_eq!(replica.on_outcome(appended, &over, later, 0.0), Finding::Nothing);
    assert_eq!(replica.acked(), acked);
    assert!(matches!(replica.next_job(&over, later), Some(Job::Begin { replace: false, .. })));
    let appended = Outcome::Appended { end: Offset::new(500), length: 50 };
    assert_eq!(replica.on_outcome(appended, &over, later, 0.0), Finding::Nothing);
    assert_eq!(replica.needs_from(), Some(over.index));
}

#[test]
fn a_last_segment_that_the_shadow_has_not_reached_is_waited_for_unless_that_shadow_is_gone() {
    let now = Instant::now();
    let mut over = shadow(5000);
    over.index = next(next(INDEX));
    let gone = (INDEX, 0, over, Finding::Diverged);
    let ahead = [(INDEX, 5000), (INDEX, 9000), (next(INDEX), 0)];
    let ahead = ahead.map(|(index, start)| (index, start, shadow(5000), Finding::Ahead));
    for (index, start, shadow, expected) in ahead.into_iter().chain([gone]) {
        let mut replica = Replica::new(generation(), Duration::ZERO);
        replica.next_job(&shadow, now);
        let name = SegmentStart { index, start: Offset::new(start) };
        let listing = listing(name, 20, LastSegment::Unreached);
        let finding = replica.on_outcome(Outcome::Found(listing), &shadow, now, 0.0);
        assert_eq!(finding, expected, "{index}:{start}");
    }
}

#[test]
fn an_index_that_is_over_before_anything_of_it_was_sent_is_one_sealed_segment() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    let (second, third) = (next(INDEX), next(next(INDEX)));
    let mut over = known(500);
    over.complete = BTreeMap::from([(INDEX, Offset::new(1000)), (second, Offset::new(2000))]);
    over.states.insert(second, state(2000));
    over.index = third;
    assert!(sealed(replica.next_job(&over, now)).1, "what has grown is sealed");
    replica.on_outcome(Outcome::Sealed, &over, now, 0.0);
    let mut long = replica.clone();
    let segment = SegmentStart { index: second, start: Offset::ZERO };
    let (end, state) = (Offset::new(2000), Some(state(2000)));
    let job = replica.next_job(&over, now);
    assert_eq!(job, Some(Job::SendSealed { segment, end, replace: false, state }));
    replica.on_outcome(Outcome::Appended { end, length: 90 }, &over, now, 0.0);
    assert_eq!(replica.acked(), Some(Position::new(generation(), third, Offset::ZERO)));
    assert_eq!(replica.needs_from(), Some(second), "should the next one fail");
    assert!(matches!(replica.next_job(&over, now), Some(Job::Begin { replace: false, .. })));

    over.complete.insert(second, Offset::new(SEGMENT_LENGTH + 1));
    assert!(matches!(long.next_job(&over, now), Some(Job::Begin { .. })), "more than one segment");
}

#[test]
fn what_there_was_at_a_push_follows_without_pauses_and_then_it_waits() {
    let (now, interval) = (Instant::now(), Duration::from_secs(10));
    let mut replica = streaming_with(1000, interval, now);
    let mut over = shadow(300);
    over.complete.insert(INDEX, Offset::new(1000));
    for _ in 0..5 {
        over.index = next(over.index);
        over.complete.insert(over.index, Offset::new(2000));
    }
    over.index = next(over.index);
    assert!(matches!(replica.next_job(&over, now), Some(Job::Seal { .. })), "which is no push");
    replica.on_outcome(Outcome::Sealed, &over, now, 0.0);
    assert_eq!(replica.next_job(&over, now), None, "something was just pushed");
    let due = now + interval;
    for _ in 0..5 {
        assert!(matches!(replica.next_job(&over, due), Some(Job::SendSealed { .. })));
        let appended = Outcome::Appended { end: Offset::new(2000), length: 50 };
        replica.on_outcome(appended, &over, due, 0.0);
    }
    assert!(matches!(replica.next_job(&over, due), Some(Job::Begin { .. })));
    replica.on_outcome(Outcome::Appended { end: Offset::new(300), length: 50 }, &over, due, 0.0);
    over.end = Offset::new(400);
    assert_eq!(replica.next_job(&over, due), None);
    assert_eq!(replica.next_timeout(&over), Some(due + interval));
}

#[test]
fn pushes_keep_the_least_time_between_them() {
    let (now, interval) = (Instant::now(), Duration::from_secs(1));
    let mut replica = streaming_with(1000, interval, now);
    assert_eq!(replica.next_job(&shadow(2000), now), None);
    assert_eq!(replica.next_timeout(&shadow(2000)), Some(now + interval));
    let job = replica.next_job(&shadow(2000), now + interval);
    assert!(matches!(job, Some(Job::Extend { .. })), "{job:?}");
}

#[test]
fn beside_writers_that_never_pause_an_index_is_pushed_in_larger_parts_until_it_is_over() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    replica.stand_beside_tireless(true);
    assert_eq!(replica.next_job(&shadow(5000), now), None, "it has just been pushed");
    let at = replica.next_timeout(&shadow(5000)).expect("there is something to push");
    assert!(at > now);
    let mut over = shadow(100);
    over.complete.insert(INDEX, Offset::new(5000));
    over.index = next(INDEX);
    for (extent, then) in [(&shadow(5000), at), (&over, now)] {
        let job = replica.clone().next_job(extent, then);
        assert!(matches!(job, Some(Job::Extend { .. })), "{job:?}");
    }
    replica.stand_beside_tireless(false);
    assert!(matches!(replica.next_job(&shadow(5000), now), Some(Job::Extend { .. })), "they pause");
}

#[test]
fn an_agent_that_stops_pushes_without_pauses() {
    let now = Instant::now();
    let mut replica = streaming_with(1000, Duration::from_secs(1), now);
    replica.hurry();
    let job = replica.next_job(&shadow(2000), now);
    assert!(matches!(job, Some(Job::Extend { .. })), "{job:?}");
}

#[test]
fn a_replica_whose_last_segment_is_of_another_history_calls_for_a_new_generation() {
    let now = Instant::now();
    let mut replica = Replica::new(generation(), Duration::ZERO);
    replica.next_job(&shadow(5000), now);
    let listing = listing(FIRST, 50, LastSegment::Other);
    assert_eq!(replica.on_outcome(Outcome::Found(listing), &shadow(5000), now, 0.0), Finding::Diverged);
}

#[test]
fn whoever_awaits_a_new_generation_looks_ever_more_rarely_and_begins_it_at_once() {
    let hole = SegmentStart { index: INDEX, start: Offset::new(1000) };
    let more = LastSegment::Same { compared: Offset::new(5000), end: Some(Offset::new(9000)) };
    let cases = [
        (Outcome::Found(listing(FIRST, 50, LastSegment::Other)), Finding::Diverged),
        (Outcome::Found(listing(hole, 50, SAME)), Finding::Incomplete),
        (Outcome::Found(listing(FIRST, 50, more)), Finding::Ahead),
        (failure_by(FailureCause::ShadowDamaged), Finding::ShadowDamaged),
    ];
    for (outcome, finding) in cases {
        let (mut now, mut replica) = (Instant::now(), Replica::new(generation(), Duration::ZERO));
        let mut pauses = Vec::new();
        for _ in 0..4 {
            assert_eq!(replica.next_job(&shadow(5000), now), Some(Job::Look { written: None }));
            assert_eq!(replica.on_outcome(outcome.clone(), &shadow(5000), now, 0.0), finding);
            assert_eq!(replica.next_job(&shadow(5000), now), None, "{finding:?}: it would be the same again");
            let at = replica.next_timeout(&shadow(5000)).expect("it may have changed by then");
            pauses.push(at - std::mem::replace(&mut now, at));
        }
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{finding:?}: {pauses:?}");
        now -= pauses[3];
        let another = Generation::from_random(2);
        replica.begin_generation(another);
        let extent = ShadowExtent { generation: another, ..shadow(0) };
        assert_eq!(replica.next_job(&extent, now), Some(Job::Look { written: None }), "{finding:?}");
    }
    let (mut now, mut replica) = (Instant::now(), Replica::new(generation(), Duration::ZERO));
    for outcome in [failure(), Outcome::Found(listing(FIRST, 50, LastSegment::Other))] {
        assert!(replica.next_job(&shadow(5000), now).is_some());
        replica.on_outcome(outcome, &shadow(5000), now, 0.0);
        now = replica.next_timeout(&shadow(5000)).expect("it looks again");
    }
    replica.on_server_answers();
    assert_eq!(replica.next_timeout(&shadow(5000)), Some(now), "it does not wait for the server");
    let (now, mut replica) = (Instant::now(), Replica::new(generation(), Duration::ZERO));
    replica.next_job(&shadow(0), now);
    replica.on_outcome(failure(), &shadow(0), now, 0.0);
    let another = Generation::from_random(2);
    replica.begin_generation(another);
    let extent = ShadowExtent { generation: another, ..shadow(0) };
    assert_eq!(replica.next_job(&extent, now), None, "for a server, every generation waits");
}

#[test]
fn a_shadow_that_cannot_be_read_again_and_again_is_damaged() {
    let mut now = Instant::now();
    let mut replica = streaming(1000, now);
    let mut fails = |cause| {
        replica.next_job(&shadow(5000), now).expect("it is tried again");
        let finding = replica.on_outcome(failure_by(cause), &shadow(5000), now, 0.0);
        now = replica.next_timeout(&shadow(5000)).unwrap_or(now);
        finding
    };
    // They say nothing of the shadow.
    (0..5).for_each(|_| assert_eq!(fails(FailureCause::Disconnected), Finding::Nothing));
    let expected = [Finding::Nothing, Finding::Nothing, Finding::ShadowDamaged];
    assert_eq!([FailureCause::ShadowUnreadable; 3].map(fails), expected);
}

#[test]
fn what_is_looked_at_because_a_part_seems_to_be_missing_stays_as_it_is_if_it_is_there() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    let look = Some(Job::Look { written: Some((FIRST, 50)) });
    replica.look_again();
    // Before anything else is sent.
    assert_eq!(replica.next_job(&shadow(2000), now), look);
    let found = Outcome::Found(listing(FIRST, 50, SAME));
    assert_eq!(replica.on_outcome(found, &shadow(2000), now, 0.0), Finding::Nothing);
    assert_eq!(replica.activity(), Activity::Streaming);
    let job = replica.clone().next_job(&shadow(2000), now);
    assert!(matches!(job, Some(Job::Extend { .. })), "it is the same segment still: {job:?}");
    assert_eq!(replica.next_job(&shadow(1000), now), None, "nothing is written anew");
    replica.look_again();
    // What somebody has removed is sent again.
    let without_snapshot = Listing { snapshots: Vec::new(), ..listing(FIRST, 50, SAME) };
    for found in [without_snapshot, Listing::default()] {
        let mut replica = replica.clone();
        assert_eq!(replica.next_job(&shadow(1000), now), look);
        replica.on_outcome(Outcome::Found(found), &shadow(1000), now, 0.0);
        assert_eq!(replica.activity(), Activity::SendingSnapshot);
    }
    let truncated = listing(FIRST, 20, SAME);
    assert_eq!(replica.next_job(&shadow(1000), now), look);
    replica.on_outcome(Outcome::Found(truncated), &shadow(1000), now, 0.0);
    assert!(matches!(replica.next_job(&shadow(1000), now), Some(Job::Begin { replace: true, .. })));
}

#[test]
fn a_listing_with_a_hole_calls_for_a_new_generation() {
    let index = |number| Index::new(number).expect("it is small");
    let found = |segments: &[(u32, u64, u64)]| {
        let named = segments.iter().map(|&(number, start, length)| {
            (SegmentStart { index: index(number), start: Offset::new(start) }, length)
        });
        let listing = Listing {
            snapshots: vec![(index(1), 100)],
            segments: named.collect(),
            ..listing(FIRST, 50, SAME)
        };
        let (now, shadow) = (Instant::now(), ShadowExtent { index: index(3), ..shadow(5000) });
        let mut replica = Replica::new(generation(), Duration::ZERO);
        replica.next_job(&shadow, now);
        replica.on_outcome(Outcome::Found(listing), &shadow, now, 0.0)
    };
    // What is before the snapshot is not needed, and the last segment is told by its content.
    let whole = [(0, 40, 0), (1, 0, 50), (1, 900, 50), (2, 0, 50), (3, 0, 0)];
    assert_eq!(found(&whole), Finding::Nothing);
    for at in [1, 3] {
        let mut segments = whole.to_vec();
        segments[at].2 = 11;
        assert_eq!(found(&segments), Finding::Incomplete, "{segments:?}");
        segments.remove(at);
        assert_eq!(found(&segments), Finding::Incomplete, "{segments:?}");
    }
}

#[test]
fn what_became_shorter_than_it_was_acknowledged_calls_for_a_new_generation() {
    let now = Instant::now();
    let mut replica = streaming(1000, now);
    // The first segment is sealed, and another one begun.
    let second = SegmentStart { index: INDEX, start: Offset::new(1000) };
    let later = now + SEGMENT_AGE;
    for outcome in [Outcome::Sealed, Outcome::Appended { end: Offset::new(5000), length: 70 }] {
        replica.next_job(&shadow(5000), later).expect("there is something to send");
        replica.on_outcome(outcome, &shadow(5000), later, 0.0);
    }
    let trailer = TRAILER_LENGTH as u64;
    let found = |snapshot, first, last| Listing {
        snapshots: vec![(INDEX, snapshot)],
        segments: vec![(FIRST, first), (second, last)],
        ..listing(FIRST, 50, SAME)
    };
    let look = |replica: &Replica, listing: Listing| {
        let mut replica = replica.clone();
        replica.look_again();
        assert!(matches!(replica.next_job(&shadow(5000), later), Some(Job::Look { .. })));
        replica.on_outcome(Outcome::Found(listing), &shadow(5000), later, 0.0)
    };
    let survey = |replica: &Replica, listing: Listing| {
        let mut survey = Survey::default();
        survey.plan(now, 0.0);
        assert!(survey.begin(replica.last_segment(), replica.lengths(), now + SURVEY_PAUSE));
        survey.end(Some(&Surveyed { listing, ours: None, others: None }))
    };
    let whole = found(100 + trailer, 50 + trailer, 70);
    assert_eq!((look(&replica, whole.clone()), survey(&replica, whole)), (Finding::Nothing, false));
    for cut in [found(99 + trailer, 50 + trailer, 70), found(100 + trailer, 49 + trailer, 70)] {
        assert!(survey(&replica, cut.clone()), "{cut:?}");
        assert_eq!(look(&replica, cut.clone()), Finding::Incomplete, "{cut:?}");
    }
    // As after a power cut of the server: the last one is told by its content.
    assert!(matches!(look(&replica, found(100 + trailer, 50 + trailer, 40)), Finding::Rewound { .. }));
    let lost = Listing { segments: vec![(FIRST, 40)], ..found(100 + trailer, 0, 0) };
    assert!(matches!(look(&replica, lost), Finding::Rewound { .. }));
    let without_snapshot = Listing { snapshots: Vec::new(), ..found(0, 20, 70) };
    assert_eq!(look(&replica, without_snapshot), Finding::Nothing, "it begins anew with another one");
}

#[test]
fn what_was_listed_first_must_not_become_shorter() {
    let now = Instant::now();
    let mut replica = Replica::new(generation(), Duration::ZERO);
    let second = SegmentStart { index: INDEX, start: Offset::new(1000) };
    let found = |snapshot, first| Listing {
        snapshots: vec![(INDEX, snapshot)],
        segments: vec![(FIRST, first), (second, 70)],
        ..listing(FIRST, 50, SAME)
    };
    let whole = Outcome::Found(found(100, 50));
    let appended = Outcome::Appended { end: Offset::new(5000), length: 70 };
    for outcome in [whole, appended] {
        replica.next_job(&shadow(5000), now);
        assert_eq!(replica.on_outcome(outcome, &shadow(5000), now, 0.0), Finding::Nothing);
    }
    for (listing, finding) in [
        (found(100, 50), Finding::Nothing),
        (found(50, 50), Finding::Incomplete),
        (found(100, 25), Finding::Incomplete),
    ] {
        let mut replica = replica.clone();
        replica.look_again();
        replica.next_job(&shadow(5000), now);
        assert_eq!(replica.on_outcome(Outcome::Found(listing), &shadow(5000), now, 0.0), finding);
    }
}

#[test]
fn a_replica_that_holds_more_than_the_shadow_is_left_alone_until_the_shadow_has_caught_up() {
    let now = Instant::now();
    let mut replica = Replica::new(generation(), Duration::ZERO);
    let found = |last| Outcome::Found(listing(FIRST, 50, last));
    let compared = |to| found(LastSegment::Same { compared: Offset::new(to), end: Some(Offset::new(5000)) });
    let mut retry_at = now;
    for outcome in [compared(4000), found(LastSegment::Unreached)] {
        assert_eq!(replica.next_job(&shadow(4000), retry_at), Some(Job::Look { written: None }));
        let short = if outcome == compared(4000) { shadow(4000) } else { shadow(0) };
        assert_eq!(replica.on_outcome(outcome, &short, retry_at, 0.0), Finding::Ahead);
        assert_eq!(replica.next_job(&shadow(5000), retry_at), None);
        let Activity::Failing { retry_at: at } = replica.activity() else {
            panic!("{:?}", replica.activity())
        };
        retry_at = at;
    }
    // What the shadow has got since the order was made was not compared.
    for outcome in [found(LastSegment::Unreached), compared(4000)] {
        assert_eq!(replica.next_job(&shadow(5000), retry_at), Some(Job::Look { written: None }));
        assert_eq!(replica.on_outcome(outcome, &shadow(5000), retry_at, 0.0), Finding::Nothing);
    }
    assert_eq!(replica.next_job(&shadow(5000), retry_at), Some(Job::Look { written: None }));
    assert_eq!(replica.on_outcome(compared(5000), &shadow(5000), retry_at, 0.0), Finding::Nothing);
    let mut shrunk = Replica::new(generation(), Duration::ZERO);
    let findings: Vec<Finding> = (0..4)
        .map(|_| {
            shrunk.next_job(&shadow(5000), now);
            shrunk.on_outcome(compared(4000), &shadow(5000), now, 0.0)
        })
        .collect();
    assert_eq!(findings.last(), Some(&Finding::Diverged), "not for ever: {findings:?}");
    assert!(matches!(replica.next_job(&shadow(5000), retry_at), Some(Job::Begin { replace: true, .. })));
}

#[test]
fn a_segment_that_was_written_anew_unheard_holds_what_was_acknowledged_though_it_is_shorter() {
    let mut now = Instant::now();
    let mut replica = streaming(5000, now);
    let acked = replica.acked();
    for (end, is_there) in [(5000, true), (4000, false)] {
        replica.next_job(&shadow(6000), now);
        replica.on_outcome(failure(), &shadow(6000), now, 0.0);
        now += Duration::from_secs(60);
        let last = LastSegment::Same { compared: Offset::new(end), end: Some(Offset::new(end)) };
        let listing = listing(FIRST, 40, last);
        assert!(matches!(replica.next_job(&shadow(6000), now), Some(Job::Look { .. })));
        let finding = replica.on_outcome(Outcome::Found(listing), &shadow(6000), now, 0.0);
        assert_eq!(
            (finding == Finding::Nothing, replica.acked() == acked),
            (is_there, is_there),
            "{finding:?}"
        );
    }
}

#[test]
fn a_server_that_answers_but_takes_nothing_is_asked_ever_more_rarely_and_stays_failing() {
    let mut now = Instant::now();
    let mut replica = streaming(1000, now);
    let listing = listing(FIRST, 50, SAME);
    let mut pauses = Vec::new();
    replica.next_job(&shadow(5000), now);
    for _ in 0..8 {
        replica.on_outcome(failure(), &shadow(5000), now, 0.0);
        let Activity::Failing { retry_at } = replica.activity() else { panic!("{:?}", replica.activity()) };
        pauses.push(retry_at - now);
        now = retry_at;
        assert_eq!(replica.next_job(&shadow(5000), now), Some(Job::Look { written: Some((FIRST, 50)) }));
        replica.on_outcome(Outcome::Found(listing.clone()), &shadow(5000), now, 0.0);
        assert!(matches!(replica.activity(), Activity::Failing { .. }), "an answer alone is nothing");
        assert!(matches!(replica.next_job(&shadow(5000), now), Some(Job::Begin { .. })));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    replica.on_outcome(Outcome::Appended { end: Offset::new(5000), length: 90 }, &shadow(5000), now, 0.0);
    assert_eq!(replica.activity(), Activity::Streaming);
}

#[test]
fn behind_4_gib_a_segment_is_never_cut() {
    use wal_agent::core::replica::cut_of;
    assert_eq!(cut_of(Offset::ZERO), Offset::new(SEGMENT_LENGTH));
    assert_eq!(cut_of(Offset::new((1 << 32) - SEGMENT_LENGTH)), Offset::new(u64::MAX));
}

#[test]
fn a_snapshot_that_is_older_than_another_generation_gets_a_later_time() {
    let now = Instant::now();
    for (is_newest, finding) in [(true, Finding::Nothing), (false, Finding::Superseded)] {
        let mut replica = Replica::new(generation(), Duration::ZERO);
        replica.next_job(&shadow(1000), now);
        let listing = Listing { is_older: true, ..listing(FIRST, 50, SAME) };
        replica.on_outcome(Outcome::Found(listing), &shadow(1000), now, 0.0);
        assert!(!replica.is_restorable(), "a restore takes the other one");
        // Until what it lacks is there, that one gives more.
        assert!(matches!(replica.next_job(&shadow(1000), now), Some(Job::Begin { .. })));
        let appended = Outcome::Appended { end: Offset::new(1000), length: 50 };
        replica.on_outcome(appended, &shadow(2000), now, 0.0);
        let job = replica.next_job(&shadow(2000), now);
        assert_eq!(job, Some(Job::RenewSnapshot { index: INDEX }));
        let renewed = Outcome::SnapshotRenewed { is_newest };
        assert_eq!(replica.on_outcome(renewed, &shadow(2000), now, 0.0), finding);
        assert!(matches!(replica.next_job(&shadow(2000), now), Some(Job::Extend { .. })), "it goes on");
    }
}

#[test]
fn a_server_that_takes_no_times_is_asked_again_and_a_restore_takes_another_generation_meanwhile() {
    let (now, whole) = (Instant::now(), shadow(1000));
    let mut replica = Replica::new(generation(), Duration::ZERO);
    let appended = |end| Outcome::Appended { end: Offset::new(end), length: 50 };
    let renewed = |is_newest| Outcome::SnapshotRenewed { is_newest };
    let renewal = Some(Job::RenewSnapshot { index: INDEX });
    let look = Listing { is_older: true, ..listing(FIRST, 50, SAME) };
    for outcome in [Outcome::Found(look), appended(1000)] {
        replica.next_job(&whole, now);
        replica.on_outcome(outcome, &whole, now, 0.0);
    }
    let mut at = now;
    for finding in [Finding::Superseded, Finding::Nothing] {
        assert_eq!(replica.next_job(&whole, at), renewal);
        assert_eq!(replica.on_outcome(renewed(false), &whole, at, 0.0), finding, "it is said once");
        assert!(replica.holds(whole.position()), "with the generation's name it can be restored");
        assert_eq!(replica.next_job(&whole, at), None, "not at once");
        let Activity::Superseded { retry_at } = replica.activity() else {
            panic!("{:?}", replica.activity())
        };
        assert!(replica.next_timeout(&whole).is_some_and(|next| next <= retry_at));
        at = retry_at;
    }
    assert_eq!(replica.next_job(&whole, at), renewal);
    assert_eq!(replica.on_outcome(renewed(true), &whole, at, 0.0), Finding::Nothing);
    assert_eq!(replica.activity(), Activity::Streaming);
}

#[test]
fn a_replica_that_a_restore_passes_over_is_failing_whatever_a_look_says_and_waits_for_what_is_next() {
    let interval = Duration::from_secs(10);
    let mut now = Instant::now();
    let mut replica = streaming_with(1000, interval, now);
    // A push is cut off, a look is answered, and the segment is written anew, up to `end`.
    let again = |replica: &mut Replica, is_older, end, whole, now: &mut Instant| {
        assert!(matches!(replica.next_job(&shadow(end), *now), Some(Job::Extend { .. } | Job::Begin { .. })));
        replica.on_outcome(failure(), &shadow(end), *now, 0.0);
        *now += Duration::from_secs(1);
        let found = Outcome::Found(Listing { is_older, ..listing(FIRST, 50, SAME) });
        for outcome in [found, Outcome::Appended { end: Offset::new(end), length: 60 }] {
            assert!(matches!(
                replica.next_job(&shadow(whole), *now),
                Some(Job::Look { .. } | Job::Begin { .. })
            ));
            replica.on_outcome(outcome, &shadow(whole), *now, 0.0);
        }
    };
    now += interval * 2;
    again(&mut replica, true, 2000, 2000, &mut now);
    assert_eq!(replica.next_job(&shadow(2000), now), Some(Job::RenewSnapshot { index: INDEX }));
    replica.on_outcome(Outcome::SnapshotRenewed { is_newest: false }, &shadow(2000), now, 0.0);
    now += interval * 2;
    again(&mut replica, false, 3000, 3000, &mut now);
    assert!(matches!(replica.activity(), Activity::Superseded { .. }), "a look does not see all of them");
    assert_eq!(
        replica.next_job(&shadow(3000), now),
        Some(Job::RenewSnapshot { index: INDEX }),
        "but asks anew"
    );
    replica.on_outcome(Outcome::SnapshotRenewed { is_newest: false }, &shadow(3000), now, 0.0);
    let Activity::Superseded { retry_at } = replica.activity() else { panic!("{:?}", replica.activity()) };
    now = retry_at;
    assert!(matches!(replica.next_job(&shadow(4000), now), Some(Job::Seal { .. })));
    replica.on_outcome(Outcome::Sealed, &shadow(4000), now, 0.0);
    again(&mut replica, true, 4000, 5000, &mut now);
    assert_eq!(replica.next_job(&shadow(5000), now), None, "the next push is not due");
    assert!(replica.next_timeout(&shadow(5000)).is_some_and(|at| at > now), "it does not spin until then");
}

#[test]
fn a_snapshot_that_never_gets_its_name_is_sent_again_ever_less_often() {
    let mut now = Instant::now();
    let mut replica = Replica::new(generation(), Duration::ZERO);
    let extent = shadow(1000);
    let pauses: Vec<Duration> = (0..12)
        .map(|_| {
            let mut outcomes = [
                Outcome::Found(Listing::default()),
                Outcome::SnapshotSent(sent(INDEX)),
                Outcome::Appended { end: Offset::new(1000), length: 50 },
                failure_by(FailureCause::Other),
            ]
            .into_iter();
            let mut jobs = Vec::new();
            while let Some(job) = replica.next_job(&extent, now) {
                jobs.push(job);
                replica.on_outcome(outcomes.next().expect("the last one fails"), &extent, now, 0.0);
            }
            assert!(matches!(jobs.last(), Some(Job::PublishSnapshot { .. })), "{jobs:?}");
            let Activity::Failing { retry_at } = replica.activity() else {
                panic!("{:?}", replica.activity())
            };
            retry_at - std::mem::replace(&mut now, retry_at)
        })
        .collect();
    assert!(pauses.is_sorted() && pauses[11] >= Duration::from_secs(10), "{pauses:?}");
}
