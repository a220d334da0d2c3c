//! The states that a database was in, as its application sees them.

use super::{Answer, Application, CONNECTIONS, Slot};

/// A committed state, as SQLite gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Of all pages.
    pub crc: u64,
    pub page_size: u64,
    /// The header of the WAL that holds its last commit.
    pub header: Option<String>,
    /// Committed frames in it.
    pub frames: u64,
}

impl State {
    /// Where its last commit ends in the WAL.
    pub fn end(&self) -> u64 {
        if self.frames == 0 { 0 } else { 32 + self.frames * (24 + self.page_size) }
    }
}

impl Application {
    /// Remembers the committed state, if a connection can be asked for it.
    pub fn remember(&mut self) {
        let idle = (0..CONNECTIONS).find(|c| self.slots[*c] == Slot::Idle && !self.is_blocked(*c));
        self.is_certain = idle.is_some();
        let Some(connection) = idle else { return };
        match self.tell(connection, &format!("state {connection}")) {
            Answer::Ok(values) => self.take_state(&values),
            _ => self.is_certain = false,
        }
    }

    pub(super) fn take_state(&mut self, values: &str) {
        let values: Vec<&str> = values.split(' ').collect();
        let [crc, pages, page_size, header, frames, _backfilled, counter] = values[..] else {
            panic!("not a state: {values:?}\n{}", self.log())
        };
        let frames = frames.parse::<i64>().expect("a number").max(0) as u64;
        // A connection that has not read the header since a VACUUM says what the size was before (file format 4.1).
        let of_wal =
            header.get(16..24).map(|hex| u64::from_str_radix(hex, 16).expect("the size of its pages"));
        let state = State {
            crc: u64::from_str_radix(crc, 16).expect("a CRC"),
            page_size: of_wal.unwrap_or_else(|| page_size.parse().expect("a number")),
            header: (header != "-" && frames > 0).then(|| header.to_owned()),
            frames,
        };
        self.pages = pages.parse().expect("a number");
        self.check_nothing_is_lost(counter.parse().expect("a number"));
        if self.states.last() != Some(&state) {
            self.log.push(format!("  state {}", self.states.len()));
            self.states.push(state);
        }
    }

    /// Whether the last state is the present one.
    pub fn is_certain(&self) -> bool {
        self.is_certain
    }

    /// Whether there may be commits that are in no state: nobody could be asked before others followed.
    pub fn has_missed(&self) -> bool {
        self.has_missed
    }

    /// The same as [`Application::remember`], by a connection of nobody's. While somebody else holds the database
    /// only: the last connection's closing would do more.
    pub fn look_on(&mut self) {
        if self.is_between {
            return;
        }
        let open = format!("open onlooker {}", self.database.display());
        if !matches!(self.onlooker.tell(&open), Answer::Ok(_)) {
            return;
        }
        let answer = self.onlooker.tell("state onlooker");
        self.onlooker.tell("close onlooker");
        self.log.push(format!("  onlooker: {answer:?}"));
        match answer {
            Answer::Ok(values) => {
                self.take_state(&values);
                self.is_certain = true;
            }
            _ => {
                self.has_missed = true;
                self.count("nobody can be asked");
            }
        }
        self.observe();
    }

    /// The same, and if no connection can be asked, one is opened for it.
    pub fn remember_certainly(&mut self) {
        self.remember();
        if !self.is_certain {
            (0..CONNECTIONS).for_each(|connection| self.close(connection));
            self.ensure_open(0);
            self.remember();
        }
    }
}
