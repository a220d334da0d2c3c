//! How often a database is looked at whose writers do not pause: a look for every commit would take the processor from
//! them.

use std::time::{Duration, Instant};

/// A look so soon after the last pause means that the writers did not pause.
const AT_ONCE: Duration = Duration::from_micros(300);
/// The first pause after which events are heard again; doubled while the writers go on.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_micros(500);
/// Writers that checkpoint pause for two fsyncs, and we copy nothing before an fsync of our own has ended.
const LONGEST_CHECKPOINT: Duration = Duration::from_millis(50);
/// It takes at most so many times as long as its writers went on before it; who pauses for longer rests.
const LONGEST_CHECKPOINT_IN_STREAKS: u32 = 4;
/// Writers that have not paused for so long are looked at by the clock only: to begin and to end that is work, too.
const TIRELESS: Duration = Duration::from_millis(100);

/// When events matter again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    pause: Duration,
    until: Option<Instant>,
    /// The same, because a checkpoint of ours is heard.
    after_writes: Option<Instant>,
    /// When they began to go on without a pause.
    streak: Option<Instant>,
    endless: Option<Endless>,
}

/// Writers that have not paused for long, but for a checkpoint of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Endless {
    since: Instant,
    /// If nothing more is heard of them.
    until: Instant,
}

impl Pace {
    /// Takes in a look that found something new. Whoever commits now and then is heard at once. `is_overtaken`: while it
    /// was copied, more was committed.
    pub fn on_news(&mut self, is_overtaken: bool, now: Instant) {
        // Looked at by the clock, they are not seen sooner, and may be checkpointing after each commit.
        let before = self.endless.filter(|_| self.is_endless(now));
        let soon = if before.is_some() { LONGEST_PAUSE + AT_ONCE } else { AT_ONCE };
        let is_busy = is_overtaken || self.until.is_some_and(|until| now < until + soon);
        self.pause =
            if is_busy { (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) } else { Duration::ZERO };
        self.streak = is_busy.then(|| self.streak.unwrap_or(now));
        self.until = Some(now + self.pause);
        if let Some(streak) = self.streak.filter(|_| self.pause == LONGEST_PAUSE) {
            let checkpoint = now.duration_since(streak) * LONGEST_CHECKPOINT_IN_STREAKS;
            let until = now + checkpoint.clamp(LONGEST_PAUSE + AT_ONCE, LONGEST_CHECKPOINT);
            let before = before.unwrap_or(Endless { since: now, until });
            self.endless = Some(Endless { since: before.since, until: until.max(before.until) });
        }
    }

    /// Takes in a look that found nothing new beside a checkpoint of ours: it is heard for each page that it writes.
    pub fn on_our_writes(&mut self, now: Instant) {
        self.after_writes = Some(now + LONGEST_PAUSE);
    }

    /// Whether writers have not paused for long, but for a checkpoint of their own.
    pub fn is_endless(&self, now: Instant) -> bool {
        self.endless.is_some_and(|endless| now < endless.until)
    }

    /// Whether they have done so for long. Then each event that the kernel makes costs them more than all our looks.
    pub fn is_tireless(&self, now: Instant) -> bool {
        self.tireless_until(now).is_some()
    }

    /// Until when they are tireless, if they pause from now on.
    pub fn tireless_until(&self, now: Instant) -> Option<Instant> {
        let is_tireless = |endless: &Endless| now < endless.until && now >= endless.since + TIRELESS;
        self.endless.filter(is_tireless).map(|endless| endless.until)
    }

    /// When to look though no event says so, as long as they are endless.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        self.is_endless(now).then(|| self.next_timeout(now).unwrap_or(now + LONGEST_PAUSE))
    }

    /// Whether events matter now.
    pub fn is_listening(&self, now: Instant) -> bool {
        self.next_timeout(now).is_none()
    }

    /// When they matter again, if they do not now.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        self.until.max(self.after_writes).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_PAUSE, Pace, TIRELESS};
    use std::time::{Duration, Instant};

    #[test]
    fn commits_with_a_pause_between_them_are_heard_at_once() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        for turn in 0..10 {
            let now = begin + turn * Duration::from_millis(1);
            assert!(pace.is_listening(now));
            pace.on_news(false, now);
            assert_eq!(pace.next_timeout(now), None);
        }
    }

    #[test]
    fn writers_that_do_not_pause_are_looked_at_ever_less_often_up_to_a_bound() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let pauses: Vec<Duration> = (0..10)
            .map(|_| {
                pace.on_news(false, now);
                let until = pace.next_timeout(now).unwrap_or(now);
                assert!(pace.is_listening(until));
                let pause = until.duration_since(now);
                now = until;
                pause
            })
            .collect();
        assert!(pauses.is_sorted() && pauses[0].is_zero() && pauses[9] == LONGEST_PAUSE, "{pauses:?}");
        assert!(pace.is_endless(now));
        pace.on_news(false, now + Duration::from_millis(5));
        assert_eq!(pace.next_timeout(now + Duration::from_millis(5)), None, "they paused");
    }

    #[test]
    fn what_a_checkpoint_of_ours_writes_is_heard_now_and_then() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.on_our_writes(now);
        let next = pace.next_timeout(now).expect("there is a pause");
        assert!(next > now && !pace.is_listening(now) && pace.is_listening(next));
        pace.on_news(false, next);
        assert!(pace.is_listening(next), "who commits beside it does not count as busy");
    }

    #[test]
    fn writers_that_commit_while_their_last_commits_are_copied_do_not_pause() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..10 {
            pace.on_news(true, now);
            // Copying takes longer than any pause.
            now += LONGEST_PAUSE * 10;
        }
        pace.on_news(true, now);
        assert!(pace.is_endless(now));
    }

    #[test]
    fn writers_whose_every_commit_checkpoints_are_still_looked_at_by_the_clock() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let begin = now;
        while !pace.is_tireless(now) {
            pace.on_news(true, now);
            now += LONGEST_PAUSE;
        }
        let mut last_commit = now;
        while now < begin + TIRELESS * 10 {
            assert!(pace.is_tireless(now), "after {:?}", now - begin);
            if now >= last_commit + LONGEST_PAUSE * 3 / 5 {
                // The next one is in its checkpoint.
                pace.on_news(false, now);
                last_commit = now;
            }
            now = pace.next_look(now).expect("they are looked at by the clock") + Duration::from_micros(20);
        }
        let paused = now + LONGEST_PAUSE * 4;
        pace.on_news(false, paused);
        assert_eq!(pace.next_timeout(paused), None, "they are heard at once again");
    }

    #[test]
    fn bursts_with_rests_between_them_do_not_keep_writers_tireless() {
        for (commits, gap, period) in [(3, 450, 40), (10, 300, 40), (5, 600, 45)] {
            let (mut pace, mut now) = (Pace::default(), Instant::now());
            while !pace.is_tireless(now) {
                pace.on_news(true, now);
                now += LONGEST_PAUSE;
            }
            for burst in 0..4 {
                let begin = now + burst * Duration::from_millis(period);
                for commit in 0..commits {
                    // It is looked at by the clock at the latest.
                    pace.on_news(false, begin + commit * Duration::from_micros(gap).max(LONGEST_PAUSE));
                }
            }
            let end = now + 4 * Duration::from_millis(period);
            assert!(!pace.is_endless(end), "{commits} commits, each {gap} us, each {period} ms");
        }
    }

    #[test]
    fn writers_that_have_not_paused_for_long_are_looked_at_by_the_clock_until_they_do() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut now = begin;
        while !pace.is_tireless(now) {
            assert!(now < begin + TIRELESS * 2);
            pace.on_news(true, now);
            now += LONGEST_PAUSE;
        }
        assert!(now >= begin + TIRELESS);
        let until = pace.tireless_until(now).expect("they are tireless");
        let mut looks = 0;
        while let Some(next) = pace.next_look(now) {
            assert!(next > now && next <= now + LONGEST_PAUSE && pace.tireless_until(now) == Some(until));
            (now, looks) = (next, looks + 1);
        }
        assert!(now >= until && looks > 10 && !pace.is_tireless(now) && !pace.is_endless(now));
        pace.on_news(true, now);
        assert!(!pace.is_tireless(now), "they have to prove it anew");
    }
}
