//! When it is asked whose a replica's place is ([`owner`](super::owner)), and what follows from the answer.

use super::owner::{Claim, Other, Standing};
use std::time::{Duration, Instant};

/// The pause between two checks by the owner, which also answer whoever asks.
pub const CHECK_PAUSE: Duration = Duration::from_secs(40);
/// So long an owner is waited for. One that could not check for so long sends nothing before it has.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The same for one that has said that it stopped: it may only be started anew.
pub const PATIENCE_WITH_STOPPED: Duration = Duration::from_secs(5);
/// The pause between two looks whether the owner has answered.
const ANSWER_PAUSE: Duration = Duration::from_secs(30);
/// The pause after a check that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// The shortest pause before an owner that has answered is asked again; twice as long at the most. Of several who ask,
/// whoever asked last is to be left alone for [`PATIENCE`] at some time.
const ASK_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nobody knows.
    Unknown,
    Ours {
        checked: Instant,
        check_at: Instant,
    },
    Asked {
        other: Other,
        until: Instant,
        next: Instant,
    },
    Theirs {
        other: Other,
        ask_at: Instant,
    },
    /// We have stopped.
    Left,
}

/// Whose one replica's place is, as far as this run knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    state: State,
    /// When it was asked what has not been answered yet.
    asked: Option<Instant>,
    /// Whether it was ours in this run.
    had: bool,
    is_to_leave: bool,
}

/// What is in the way of an agent that may not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle<'a> {
    /// Who may.
    pub other: &'a Other,
    /// Whether it runs: it has answered.
    pub has_answered: bool,
    /// When something is done about it.
    pub retry_at: Instant,
}

impl Obstacle<'_> {
    /// Whether it has stopped, so that nobody needs to do anything.
    pub fn is_over_soon(&self) -> bool {
        self.other.is_stopped && !self.has_answered
    }
}

impl Ownership {
    /// Of a place of which nothing is known.
    pub fn new() -> Self {
        Ownership { state: State::Unknown, asked: None, had: false, is_to_leave: false }
    }

    /// Whether it was ours in this run.
    pub fn had(&self) -> bool {
        self.had
    }

    /// Whether anything may be written there.
    pub fn is_ours(&self, now: Instant) -> bool {
        matches!(self.state, State::Ours { checked, .. } if now < checked + PATIENCE)
    }

    /// What is to be asked now; answered by [`Ownership::on_standing`] or [`Ownership::on_failure`].
    pub fn next_claim(&mut self, now: Instant) -> Option<Claim> {
        if self.asked.is_some() {
            return None;
        }
        let claim = match &self.state {
            State::Ours { .. } if self.is_to_leave => Some(Claim::Leave),
            State::Unknown => Some(Claim::Ask),
            State::Ours { check_at, .. } => (now >= *check_at).then_some(Claim::Ask),
            State::Theirs { ask_at, .. } => (now >= *ask_at).then_some(Claim::Ask),
            State::Asked { until, .. } if now >= *until => Some(Claim::Take),
            State::Asked { next, .. } => (now >= *next).then_some(Claim::Wait),
            State::Left => None,
        };
        self.asked = claim.map(|_| now);
        claim
    }

    /// When [`Ownership::next_claim`] may answer differently. Asked after it answered `None`.
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.state {
            _ if self.asked.is_some() => None,
            State::Ours { check_at, .. } => Some(*check_at),
            State::Asked { next, until, .. } => Some(*next.min(until)),
            State::Theirs { ask_at, .. } => Some(*ask_at),
            State::Unknown | State::Left => None,
        }
    }

    /// Takes in what was found. `chance` is a random number from 0 to 1. Returns whether the place has just become ours, so
    /// that nobody knows what is there.
    pub fn on_standing(&mut self, standing: Standing, now: Instant, chance: f64) -> bool {
        // What was read may be as old as our question; whoever asked behind that counts from there.
        let asked = self.asked.take().unwrap_or(now);
        let was_ours = matches!(self.state, State::Ours { .. });
        let since = match &self.state {
            State::Asked { until, .. } => Some(*until),
            _ => None,
        };
        self.state = match standing {
            _ if was_ours && self.is_to_leave => State::Left,
            Standing::Ours { .. } => {
                self.had = true;
                State::Ours { checked: asked, check_at: now + CHECK_PAUSE }
            }
            Standing::Asked(other) => {
                let patience = if other.is_stopped { PATIENCE_WITH_STOPPED } else { PATIENCE };
                let until = since.map_or(now + patience, |until| until.min(now + patience));
                State::Asked { other, until, next: now + ANSWER_PAUSE }
            }
            Standing::Theirs(other) => {
                let ask_at = now + ASK_PAUSE.mul_f64(1.0 + chance.clamp(0.0, 1.0));
                State::Theirs { other, ask_at }
            }
        };
        !was_ours && matches!(self.state, State::Ours { .. })
    }

    /// It could not be asked. An owner that we have asked may not have been able to answer either.
    pub fn on_failure(&mut self, now: Instant) {
        self.asked = None;
        self.state = match self.state {
            // The next run is at home there, and so takes it at once.
            State::Left => State::Left,
            State::Ours { .. } if self.is_to_leave => State::Left,
            State::Ours { checked, .. } => State::Ours { checked, check_at: now + RETRY_PAUSE },
            State::Unknown | State::Asked { .. } | State::Theirs { .. } => State::Unknown,
        };
    }

    /// Says that we stop, once nothing is to be sent any more.
    pub fn leave(&mut self) {
        self.is_to_leave = true;
    }

    /// Whether it is only to be said that we stop.
    pub fn is_leaving(&self) -> bool {
        self.is_to_leave
    }

    /// Whether there is nothing left to say.
    pub fn has_left(&self) -> bool {
        !matches!(self.state, State::Ours { .. })
    }

    /// Who keeps us from writing.
    pub fn obstacle(&self) -> Option<Obstacle<'_>> {
        match &self.state {
            State::Asked { other, until, .. } => {
                Some(Obstacle { other, has_answered: false, retry_at: *until })
            }
            State::Theirs { other, ask_at } => {
                Some(Obstacle { other, has_answered: true, retry_at: *ask_at })
            }
            State::Unknown | State::Ours { .. } | State::Left => None,
        }
    }
}

impl Default for Ownership {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Standing = Standing::Ours { asked_by: None };

    fn other(is_stopped: bool) -> Other {
        Other { who: "other (/app.db)".to_owned(), is_stopped }
    }

    /// Asks, and takes the answer in.
    fn asked(ownership: &mut Ownership, standing: Standing, now: Instant) -> (Option<Claim>, bool) {
        let claim = ownership.next_claim(now);
        (claim, claim.is_some() && ownership.on_standing(standing, now, 0.5))
    }

    #[test]
    fn a_place_that_is_ours_is_checked_now_and_then_and_nothing_is_sent_when_that_is_too_long_ago() {
        let (now, mut ownership) = (Instant::now(), Ownership::new());
        assert!(!ownership.is_ours(now) && !ownership.had());
        assert_eq!(asked(&mut ownership, OURS, now), (Some(Claim::Ask), true));
        assert!(ownership.is_ours(now) && ownership.had());
        assert_eq!(ownership.next_claim(now), None);
        let check_at = ownership.next_timeout().expect("it is checked");
        assert_eq!(ownership.next_claim(check_at - Duration::from_millis(1)), None);
        assert_eq!(asked(&mut ownership, OURS, check_at), (Some(Claim::Ask), false));
        assert!(ownership.is_ours(check_at + PATIENCE - Duration::from_millis(1)));
        assert!(!ownership.is_ours(check_at + PATIENCE), "another one may have taken it over");
        // The server is away for a while, and then for too long.
        ownership.next_claim(check_at + CHECK_PAUSE);
        ownership.on_failure(check_at + CHECK_PAUSE);
        assert!(ownership.is_ours(check_at + CHECK_PAUSE));
        assert_eq!(ownership.next_timeout(), Some(check_at + CHECK_PAUSE + RETRY_PAUSE));
        assert_eq!(asked(&mut ownership, OURS, check_at + 2 * PATIENCE), (Some(Claim::Ask), false));
        assert!(ownership.is_ours(check_at + 2 * PATIENCE));
    }

    #[test]
    fn another_owner_is_waited_for_and_taken_over_if_it_does_not_answer() {
        for (is_stopped, patience) in [(false, PATIENCE), (true, PATIENCE_WITH_STOPPED)] {
            let (began, mut ownership) = (Instant::now(), Ownership::new());
            let standing = || Standing::Asked(other(is_stopped));
            assert_eq!(asked(&mut ownership, standing(), began), (Some(Claim::Ask), false));
            let mut now = began;
            let claim = loop {
                assert!(!ownership.is_ours(now));
                now = ownership.next_timeout().expect("it is waited for");
                match ownership.next_claim(now).expect("its time has come") {
                    Claim::Wait => assert!(!ownership.on_standing(standing(), now, 0.5)),
                    claim => break claim,
                }
            };
            assert_eq!((claim, now - began), (Claim::Take, patience));
            assert!(ownership.on_standing(OURS, now, 0.5) && ownership.is_ours(now));
        }
    }

    #[test]
    fn an_owner_that_answers_is_asked_again_later() {
        let (began, mut ownership) = (Instant::now(), Ownership::new());
        asked(&mut ownership, Standing::Asked(other(false)), began);
        let now = ownership.next_timeout().expect("it is looked for an answer");
        assert_eq!(asked(&mut ownership, Standing::Theirs(other(false)), now), (Some(Claim::Wait), false));
        let obstacle = ownership.obstacle().expect("the other one");
        assert!(obstacle.has_answered && obstacle.retry_at >= now + ASK_PAUSE);
        let again = obstacle.retry_at;
        // It has stopped in the meantime.
        assert_eq!(asked(&mut ownership, Standing::Asked(other(true)), again), (Some(Claim::Ask), false));
        assert_eq!(ownership.next_timeout(), Some(again + PATIENCE_WITH_STOPPED));
    }

    #[test]
    fn an_owner_that_stops_while_it_is_asked_is_not_waited_for_any_longer() {
        let (now, mut ownership) = (Instant::now(), Ownership::new());
        asked(&mut ownership, Standing::Asked(other(false)), now);
        let next = ownership.next_timeout().expect("it is looked for an answer");
        asked(&mut ownership, Standing::Asked(other(true)), next);
        assert_eq!(ownership.next_timeout(), Some(next + PATIENCE_WITH_STOPPED));
    }

    #[test]
    fn a_server_that_was_away_lets_nobody_take_over() {
        let (now, mut ownership) = (Instant::now(), Ownership::new());
        asked(&mut ownership, Standing::Asked(other(false)), now);
        ownership.on_failure(now);
        let back = now + 2 * PATIENCE;
        // The owner could not answer either.
        assert_eq!(asked(&mut ownership, Standing::Asked(other(false)), back), (Some(Claim::Ask), false));
        assert_eq!(ownership.obstacle().expect("it").retry_at, back + PATIENCE);
    }

    #[test]
    fn a_place_that_another_one_has_taken_is_not_ours_and_is_asked_for() {
        let (now, mut ownership) = (Instant::now(), Ownership::new());
        asked(&mut ownership, OURS, now);
        let check_at = now + CHECK_PAUSE;
        asked(&mut ownership, Standing::Asked(other(false)), check_at);
        assert!(!ownership.is_ours(check_at) && ownership.had());
    }

    #[test]
    fn an_owner_that_stops_says_so_once() {
        let (now, mut ownership) = (Instant::now(), Ownership::new());
        assert!(ownership.has_left(), "it was never ours");
        asked(&mut ownership, OURS, now);
        ownership.leave();
        assert!(!ownership.has_left());
        assert_eq!(asked(&mut ownership, OURS, now), (Some(Claim::Leave), false));
        assert!(ownership.has_left() && !ownership.is_ours(now));
        assert_eq!((ownership.next_claim(now + PATIENCE), ownership.next_timeout()), (None, None));
        let mut failed = Ownership::new();
        asked(&mut failed, OURS, now);
        failed.leave();
        failed.next_claim(now);
        failed.on_failure(now);
        assert!(failed.has_left(), "the server is not waited for");
    }
}
