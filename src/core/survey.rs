//! Whether what is on a replica is still there, though nothing is in doubt: somebody may have removed a part of it, as a job
//! does that cleans up by age. And whether another agent replicates to the same place. Only names, lengths and times are
//! asked for, beside the WAL, which does not wait for a long listing.

use super::job::{SegmentStart, Surveyed};
use super::replica::Lengths;
use std::time::{Duration, Instant};

/// The longest pause before the first survey of a generation, with which the others are compared; shortened by up to a half
/// at random, as each.
pub const FIRST_PAUSE: Duration = Duration::from_secs(120);
/// The longest pause between two.
pub const SURVEY_PAUSE: Duration = Duration::from_secs(3600);
/// For so long the pauses stay short after a generation was left while nobody knew what the server still does in it: a server
/// process whose disk hangs may carry out a write at any time, and then a restore would take that generation.
pub const DOUBT: Duration = Duration::from_secs(3600);

/// The surveys of one generation on one replica.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    at: Option<Instant>,
    is_under_way: bool,
    /// The segment that was written last when it began, with its length.
    written: Option<(SegmentStart, u64)>,
    /// How long everything must be that was complete then.
    lengths: Option<Lengths>,
    /// When other generations were last written by the server's clock, as far as surveys have seen.
    others: Option<Option<i64>>,
    is_shared: bool,
    is_failing: bool,
    /// Until then, something may still be written to the generation before.
    doubt_until: Option<Instant>,
}

impl Survey {
    /// Turns to a new generation, which begins while the one before `is_in_doubt`, or is not.
    pub fn begin_generation(&mut self, is_in_doubt: bool, now: Instant) {
        let doubt_until = if is_in_doubt { Some(now + DOUBT) } else { self.doubt_until };
        *self = Survey { doubt_until, ..Survey::default() };
    }

    /// Plans the next one, if none is. `chance` is a random number from 0 to 1.
    pub fn plan(&mut self, now: Instant, chance: f64) {
        let is_soon = self.others.is_none() || self.doubt_until.is_some_and(|until| now < until);
        let longest = if is_soon { FIRST_PAUSE } else { SURVEY_PAUSE };
        self.at.get_or_insert(now + longest.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0));
    }

    /// When it is time; `None` if none is planned, or one is under way.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.at.filter(|_| !self.is_under_way)
    }

    /// Begins one, if it is time.
    pub fn begin(
        &mut self,
        written: Option<(SegmentStart, u64)>,
        lengths: Option<Lengths>,
        now: Instant,
    ) -> bool {
        let is_time = self.next_timeout().is_some_and(|at| now >= at);
        if is_time {
            (self.is_under_way, self.written, self.lengths) = (true, written, lengths);
        }
        is_time
    }

    /// Ends it with what was found, if it was; whether a part of what was there is missing.
    pub fn end(&mut self, found: Option<&Surveyed>) -> bool {
        (self.is_under_way, self.at, self.is_failing) = (false, None, found.is_none());
        let Some(found) = found else { return false };
        let before = self.others;
        self.is_shared = before.is_some_and(|before| found.others > before);
        self.others = Some(found.others.max(before.flatten()));
        !self.is_there(found)
    }

    /// Whether somebody else has written other generations since the survey before.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Whether the last one has found nothing: then nobody knows whether everything is there.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Whether everything is there up to what was written last. Behind that, it may grow meanwhile.
    fn is_there(&self, Surveyed { listing, .. }: &Surveyed) -> bool {
        let last_is_there = self.written.is_none_or(|(written, least)| {
            listing.segments.iter().any(|&(name, length)| name == written && length >= least)
        });
        let are_kept = self.lengths.is_none_or(|lengths| lengths.are_kept_in(listing));
        last_is_there && are_kept && listing.is_whole()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::Listing;
    use crate::core::position::{Index, Offset};

    const FIRST: SegmentStart = SegmentStart { index: Index::ZERO, start: Offset::ZERO };

    fn listing(starts: &[(u64, u64)]) -> Listing {
        let segment =
            |&(start, length)| (SegmentStart { index: Index::ZERO, start: Offset::new(start) }, length);
        let segments = starts.iter().map(segment).collect();
        Listing { snapshots: vec![(Index::ZERO, 100)], segments, last: None, is_older: false }
    }

    fn surveyed(listing: Listing, others: Option<i64>) -> Surveyed {
        Surveyed { listing, ours: None, others }
    }

    #[test]
    fn a_replica_is_surveyed_once_an_hour_or_more_often() {
        let (now, mut survey) = (Instant::now(), Survey::default());
        assert_eq!((survey.next_timeout(), survey.begin(None, None, now)), (None, false));
        survey.plan(now, 1.0);
        survey.plan(now, 0.0);
        let at = now + FIRST_PAUSE / 2;
        assert_eq!(survey.next_timeout(), Some(at), "it was planned already");
        assert!(!survey.begin(None, None, at - Duration::from_millis(1)));
        assert!(survey.begin(None, None, at));
        assert!(!survey.begin(None, None, at) && survey.next_timeout().is_none(), "one at a time");
        assert!(!survey.is_failing());
        assert!(!survey.end(None), "nobody knows");
        assert!(survey.is_failing());
        survey.plan(at, 0.0);
        assert_eq!(survey.next_timeout(), Some(at + FIRST_PAUSE));
        assert!(survey.begin(None, None, at + FIRST_PAUSE));
        assert!(survey.is_failing(), "until one has found something");
        survey.end(Some(&surveyed(listing(&[]), None)));
        assert!(!survey.is_failing());
        survey.plan(at, 0.0);
        assert_eq!(survey.next_timeout(), Some(at + SURVEY_PAUSE));
    }

    #[test]
    fn beside_a_generation_in_doubt_the_pauses_stay_short_for_a_while() {
        let began = Instant::now();
        let (mut now, mut survey) = (began, Survey::default());
        survey.begin_generation(true, began);
        survey.begin_generation(false, began);
        while now < began + DOUBT {
            survey.plan(now, 0.0);
            assert_eq!(survey.next_timeout(), Some(now + FIRST_PAUSE));
            now += FIRST_PAUSE;
            assert!(survey.begin(None, None, now));
            survey.end(Some(&surveyed(listing(&[]), None)));
        }
        survey.plan(now, 0.0);
        assert_eq!(survey.next_timeout(), Some(now + SURVEY_PAUSE));
    }

    #[test]
    fn what_was_there_is_missed_and_what_comes_meanwhile_is_not() {
        let is_missed = |listing: Listing| {
            let mut survey = Survey::default();
            survey.plan(Instant::now(), 0.0);
            let second = SegmentStart { start: Offset::new(1000), ..FIRST };
            assert!(survey.begin(Some((second, 80)), None, Instant::now() + SURVEY_PAUSE));
            survey.end(Some(&surveyed(listing, None)))
        };
        assert!(!is_missed(listing(&[(0, 100), (1000, 80)])));
        assert!(!is_missed(listing(&[(0, 100), (1000, 90), (2000, 100)])), "more was written");
        assert!(is_missed(listing(&[(0, 100), (1000, 70)])), "it was cut short");
        assert!(is_missed(listing(&[(0, 100)])));
        assert!(is_missed(listing(&[(1000, 80)])), "the first one is gone");
        assert!(is_missed(listing(&[(0, 0), (1000, 80)])), "only its name is left");
        assert!(is_missed(Listing { snapshots: Vec::new(), ..listing(&[(0, 100), (1000, 80)]) }));
        assert!(is_missed(Listing::default()));
    }

    #[test]
    fn whoever_writes_other_generations_between_two_surveys_shares_the_place() {
        let (now, mut survey) = (Instant::now(), Survey::default());
        let mut is_shared_after = |others| {
            survey.plan(now, 0.0);
            assert!(survey.begin(None, None, now + SURVEY_PAUSE));
            survey.end(Some(&surveyed(listing(&[(0, 100)]), others)));
            survey.is_shared()
        };
        assert!(!is_shared_after(Some(70)), "that may be our own last one");
        assert!(!is_shared_after(Some(70)));
        assert!(!is_shared_after(None), "it was removed");
        assert!(!is_shared_after(Some(70)), "or could not be listed");
        assert!(is_shared_after(Some(71)));
        assert!(!is_shared_after(Some(71)), "it has ended");
    }
}
