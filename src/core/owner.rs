//! Whose a replica's place is: one agent writes there. The object that says so has two lines of fixed length: the owner,
//! and whoever asks whether that one still runs. An owner that runs answers by taking the question away; where nobody
//! answers for long enough, the place changes hands.
//!
//! Nobody's clock is in it, for no two need agree; and each line is written with one write, which lands whole or not at all.

use super::checksum::Crc64;

/// Bytes of a line, its end included.
pub const LINE: usize = 256;
/// Bytes of the object.
pub const LENGTH: usize = 2 * LINE;

/// Where an agent is at home: the same one after a restart, and another one in a clone of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home(u64);

impl Home {
    /// That of an agent that keeps its own files in a folder of a machine, and writes to a place.
    pub fn new(machine: &str, folder: &str, place: &str) -> Self {
        let mut crc = Crc64::new();
        crc.update([machine, folder, place].join("\0").as_bytes());
        Home(crc.value())
    }
}

/// One run of an agent, for one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Where it is at home.
    pub home: Home,
    /// A random number: two runs never have the same.
    pub run: u64,
    /// For people: machine and database.
    pub who: String,
}

/// The object, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// Who writes there, and whether it has said that it stopped.
    pub owner: Option<(Party, bool)>,
    /// Who asks.
    pub asking: Option<Party>,
}

const RUNNING: &str = "running";
const STOPPED: &str = "stopped";
const ASKING: &str = "asking";

impl Owner {
    /// Reads the object. A line that is none of ours says nothing.
    pub fn parse(bytes: &[u8]) -> Owner {
        let line = |at: usize| parse_line(bytes.get(at * LINE..(at + 1) * LINE)?);
        let owner = line(0).and_then(|(party, word)| match word {
            RUNNING => Some((party, false)),
            STOPPED => Some((party, true)),
            _ => None,
        });
        Owner { owner, asking: line(1).and_then(|(party, word)| (word == ASKING).then_some(party)) }
    }
}

/// The object of an owner that nobody asks.
pub fn owned_by(party: &Party, is_stopped: bool) -> Vec<u8> {
    let mut bytes = line(party, if is_stopped { STOPPED } else { RUNNING });
    bytes.extend(no_question());
    bytes
}

/// The second line of one who asks.
pub fn question_of(party: &Party) -> Vec<u8> {
    line(party, ASKING)
}

/// The second line where nobody asks.
pub fn no_question() -> Vec<u8> {
    padded(String::new())
}

fn line(party: &Party, word: &str) -> Vec<u8> {
    padded(format!("{:016x} {:016x} {word} {}", party.home.0, party.run, party.who))
}

/// A line of its length; what does not fit is cut off.
fn padded(mut text: String) -> Vec<u8> {
    text.retain(|letter| !letter.is_control());
    text.truncate(text.floor_char_boundary(LINE - 1));
    let mut bytes = text.into_bytes();
    bytes.resize(LINE - 1, b' ');
    bytes.push(b'\n');
    bytes
}

fn parse_line(bytes: &[u8]) -> Option<(Party, &str)> {
    let text = str::from_utf8(bytes).ok()?.trim_end();
    let mut words = text.splitn(4, ' ');
    let mut number = || {
        let word = words.next()?;
        u64::from_str_radix(word, 16).ok().filter(|number| format!("{number:016x}") == word)
    };
    let (home, run) = (Home(number()?), number()?);
    let word = words.next()?;
    let who: String = words.next()?.chars().filter(|letter| !letter.is_control()).collect();
    Some((Party { home, run, who }, word))
}

/// What an agent wants of the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// To write there, and to ask if it belongs to another one.
    Ask,
    /// To know whether its question still stands.
    Wait,
    /// To take it over, if its question still stands.
    Take,
    /// To say that it stops.
    Leave,
}

/// What is to be done about the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write the object, if nobody else does so first.
    Create,
    /// Nothing: it is ours.
    Keep,
    /// Take the question away that another one has asked.
    Answer,
    /// Write the whole object, as ours.
    Own,
    /// Write that we have stopped.
    Stop,
    /// Ask.
    Ask,
    /// Nothing: our question stands.
    Wait,
    /// Nothing: another one has it.
    Yield,
}

/// What `me` is to do, who `had` the place in this run or not.
pub fn next_step(object: Option<&Owner>, me: &Party, had: bool, claim: Claim) -> Step {
    let Some(object) = object else {
        return if claim == Claim::Leave { Step::Keep } else { Step::Create };
    };
    let is_mine = match &object.owner {
        Some((owner, _)) => owner.run == me.run || (!had && owner.home == me.home),
        // A server that lost power may have kept nothing but the name.
        None => had,
    };
    let my_question_stands = object.asking.as_ref().is_some_and(|asking| asking.run == me.run);
    match (is_mine, claim) {
        (true, Claim::Leave) => Step::Stop,
        (true, _) if object.owner.as_ref().is_none_or(|(owner, stopped)| *stopped || owner.run != me.run) => {
            Step::Own
        }
        (true, _) if object.asking.is_some() => Step::Answer,
        (true, _) => Step::Keep,
        (false, Claim::Ask) if !my_question_stands => Step::Ask,
        (false, Claim::Take) if my_question_stands => Step::Own,
        (false, Claim::Ask | Claim::Wait) if my_question_stands => Step::Wait,
        (false, _) => Step::Yield,
    }
}

/// What an agent has found about a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may write there.
    Ours {
        /// Who wanted to, and was told that we run.
        asked_by: Option<String>,
    },
    /// Another one may, and is asked.
    Asked(Other),
    /// Another one may.
    Theirs(Other),
}

/// The other one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// For people; empty if nobody can tell.
    pub who: String,
    /// Whether it has said that it stopped.
    pub is_stopped: bool,
}

impl Other {
    /// The one that an object names.
    pub fn of(object: &Owner) -> Other {
        let (who, is_stopped) = object.owner.as_ref().map_or(("", false), |(owner, s)| (&owner.who, *s));
        Other { who: who.to_owned(), is_stopped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(run: u64, machine: &str) -> Party {
        let home = Home::new(machine, "/var/lib/app/.app.db-agent", "sftp://backup/app");
        Party { home, run, who: format!("{machine} (/var/lib/app/app.db)") }
    }

    fn object(lines: [Vec<u8>; 2]) -> Owner {
        Owner::parse(&lines.concat())
    }

    #[test]
    fn an_object_is_read_as_it_was_written() {
        let (one, other) = (party(1, "one"), party(u64::MAX, "other"));
        let bytes = owned_by(&one, false);
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(Owner::parse(&bytes), Owner { owner: Some((one.clone(), false)), asking: None });
        let asked = object([bytes[..LINE].to_vec(), question_of(&other)]);
        assert_eq!(asked, Owner { owner: Some((one.clone(), false)), asking: Some(other) });
        assert_eq!(Owner::parse(&owned_by(&one, true)).owner, Some((one, true)));
    }

    #[test]
    fn what_is_no_object_says_nothing_and_who_is_too_long_is_cut() {
        for bytes in [&b""[..], &[0; LENGTH], &[0xFF; LENGTH], &[b'\n'; 3 * LENGTH]] {
            assert_eq!(Owner::parse(bytes), Owner::default());
        }
        let long = Party { who: "\u{1F980}\n\u{1b}[31m".repeat(300), ..party(7, "one") };
        let bytes = owned_by(&long, false);
        let (read, _) = Owner::parse(&bytes).owner.expect("it is one");
        assert_eq!((bytes.len(), read.run, read.home), (LENGTH, long.run, long.home));
        assert!(read.who.starts_with('\u{1F980}') && !read.who.contains(char::is_control), "{}", read.who);
    }

    #[test]
    fn a_home_is_another_one_on_another_machine() {
        assert_ne!(party(1, "one").home, party(1, "other").home);
        assert_eq!(party(1, "one").home, party(2, "one").home);
    }

    #[test]
    fn a_place_is_taken_at_once_only_if_it_is_free_or_our_own() {
        let (me, again, other) = (party(1, "one"), party(2, "one"), party(3, "other"));
        let owned = |party: &Party| Owner { owner: Some((party.clone(), false)), asking: None };
        let step = |object: &Owner, had| next_step(Some(object), &me, had, Claim::Ask);
        assert_eq!(next_step(None, &me, false, Claim::Ask), Step::Create);
        assert_eq!(step(&owned(&me), true), Step::Keep);
        assert_eq!(step(&owned(&again), false), Step::Own, "the last run was ours");
        assert_eq!(step(&owned(&again), true), Step::Ask, "a clone runs beside us");
        assert_eq!(step(&owned(&other), false), Step::Ask);
        assert_eq!(step(&Owner { owner: Some((other, true)), asking: None }, false), Step::Ask);
        assert_eq!(step(&Owner::default(), false), Step::Ask, "nobody can tell");
        assert_eq!(step(&Owner::default(), true), Step::Own, "its content was lost while we had it");
    }

    #[test]
    fn an_owner_answers_and_whoever_asked_goes_on_only_if_it_does_not() {
        let (me, other) = (party(1, "one"), party(3, "other"));
        let asked = Owner { owner: Some((me.clone(), false)), asking: Some(other.clone()) };
        let answered = Owner { asking: None, ..asked.clone() };
        assert_eq!(next_step(Some(&asked), &me, true, Claim::Ask), Step::Answer);
        for claim in [Claim::Ask, Claim::Wait] {
            assert_eq!(next_step(Some(&asked), &other, false, claim), Step::Wait);
        }
        assert_eq!(next_step(Some(&asked), &other, false, Claim::Take), Step::Own);
        for claim in [Claim::Wait, Claim::Take] {
            assert_eq!(next_step(Some(&answered), &other, false, claim), Step::Yield);
        }
        assert_eq!(next_step(Some(&answered), &other, false, Claim::Ask), Step::Ask);
        // A third one has asked meanwhile, and will have the place.
        assert_eq!(next_step(Some(&asked), &party(4, "third"), false, Claim::Take), Step::Yield);
    }

    #[test]
    fn whoever_stops_says_so_only_where_it_is_the_owner() {
        let (me, other) = (party(1, "one"), party(3, "other"));
        let owned = |party: &Party| Owner { owner: Some((party.clone(), false)), asking: None };
        assert_eq!(next_step(Some(&owned(&me)), &me, true, Claim::Leave), Step::Stop);
        assert_eq!(next_step(Some(&owned(&other)), &me, true, Claim::Leave), Step::Yield);
        assert_eq!(next_step(None, &me, true, Claim::Leave), Step::Keep);
    }
}
