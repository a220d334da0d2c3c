//! Which WAL belongs to which database file, kept in the meta folder: after a restart of the agent, an old WAL may lie
//! beside another file. Files are told by number and time of birth: numbers are given again.

use super::left_behind::Paths;
use super::proof;
use crate::core::evidence::Stamp;
use crate::disk::Disk;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

const HELD_FILE: &str = "held";

/// A file of this file system, also after its number was given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Birth {
    inode: u64,
    /// Since 1970; zero where the file system does not tell.
    at: Duration,
}

impl Birth {
    fn of(metadata: &Metadata) -> Birth {
        let at = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Birth { inode: metadata.ino(), at: at.unwrap_or_default() }
    }
}

/// How a WAL goes with the database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It continues it.
    Whole,
    /// Somebody has opened the file with the WAL of the one that was there before.
    Mixed,
    /// The file was not at its path any more when its WAL was left there, or others used it by another name. As long as
    /// size and mtime stay, the WAL continues it.
    Away(Away),
    /// The same, and it was removed, or written by others: the WAL continues nothing that could come back.
    Lost,
}

/// A database file when it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// Its size, in bytes.
    pub size: u64,
    /// Its mtime.
    pub modified: Duration,
    /// Whether a program had it open, with the WAL: what becomes of both from then on is that program's.
    pub is_used: bool,
}

/// A database file and its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    database: Birth,
    wal: Birth,
    fit: Fit,
}

/// Whose a WAL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belonging {
    /// The database's beside which it lies, as far as anybody knows.
    Ours,
    /// The database went away and came back, and has been written meanwhile.
    Doubtful,
    /// Another file's.
    Foreign,
}

impl Held {
    /// Of two files.
    pub fn of(database: &Metadata, wal: &Metadata) -> Held {
        let (database, wal) = (Birth::of(database), Birth::of(wal));
        Held { database, wal, fit: Fit::Whole }
    }

    /// The same, with the database file as it was when it went away; `None` if the WAL does not continue it. `is_used` as in
    /// [`Away`].
    pub fn left(self, stamp: Option<Stamp>, is_used: bool) -> Held {
        let away = stamp.map(|Stamp { size, modified, .. }| Away { size, modified, is_used });
        Held { fit: away.map_or(Fit::Lost, Fit::Away), ..self }
    }

    /// The database file when it was left, if the WAL continued it then.
    pub fn away(&self) -> Option<Away> {
        match self.fit {
            Fit::Away(away) => Some(away),
            _ => None,
        }
    }

    /// The same, where the WAL is that of another file.
    pub fn mixed(self) -> Held {
        Held { fit: Fit::Mixed, ..self }
    }

    /// Whether that was kept of a file, by this run or an earlier one.
    pub fn is_mixed(at: Paths, database: io::Result<Metadata>) -> bool {
        let held = Held::kept(at.disk, at.meta).filter(|held| held.fit == Fit::Mixed);
        held.is_some_and(|held| database.is_ok_and(|database| held.database == Birth::of(&database)))
    }

    /// Whose the WAL at a path is. `is_kept` is asked where births are not known: whether the WAL has a second name,
    /// so that its number cannot have been given again.
    pub fn judge(
        &self,
        database: &File,
        wal: &File,
        is_kept: impl FnOnce() -> bool,
    ) -> io::Result<Belonging> {
        let now = Held::of(&database.metadata()?, &wal.metadata()?);
        if now.wal != self.wal || self.wal.at.is_zero() && !is_kept() {
            return Ok(Belonging::Ours);
        }
        let stamp = proof::stamp_of(database)?;
        Ok(match self.fit {
            _ if now.database != self.database => Belonging::Foreign,
            Fit::Lost => Belonging::Doubtful,
            Fit::Away(away) if (away.size, away.modified) != (stamp.size, stamp.modified) => {
                Belonging::Doubtful
            }
            _ => Belonging::Ours,
        })
    }

    /// Keeps it for the next run.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, disk: &dyn Disk, meta: &Path) -> io::Result<()> {
        disk.replace(&meta.join(HELD_FILE), self.to_line().as_bytes())
    }

    /// What an earlier run kept, if it can be read.
    pub fn kept(disk: &dyn Disk, meta: &Path) -> Option<Held> {
        let text = disk.read(&meta.join(HELD_FILE)).ok().flatten()?;
        Held::parse(&String::from_utf8(text).ok()?)
    }

    /// Forgets it: there is no such WAL any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(disk: &dyn Disk, meta: &Path) -> io::Result<()> {
        disk.remove(&meta.join(HELD_FILE))
    }

    fn to_line(self) -> String {
        let birth = |birth: Birth| format!("{} {}", birth.inode, birth.at.as_nanos());
        let fit = match self.fit {
            Fit::Whole => "here".to_owned(),
            Fit::Mixed => "mixed".to_owned(),
            Fit::Lost => "lost".to_owned(),
            Fit::Away(Away { size, modified, is_used }) => {
                format!("{} {size} {}", if is_used { "used" } else { "away" }, modified.as_nanos())
            }
        };
        format!("{} {} {fit}\n", birth(self.database), birth(self.wal))
    }

    fn parse(line: &str) -> Option<Held> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let time = |word: &str| word.parse().ok().map(Duration::from_nanos);
        let mut birth = || Some(Birth { inode: words.next()?.parse().ok()?, at: time(words.next()?)? });
        let (database, wal) = (birth()?, birth()?);
        let fit = match words.next()? {
            "here" => Fit::Whole,
            "mixed" => Fit::Mixed,
            "lost" => Fit::Lost,
            word @ ("away" | "used") => {
                let (size, modified) = (words.next()?.parse().ok()?, time(words.next()?)?);
                Fit::Away(Away { size, modified, is_used: word == "used" })
            }
            _ => return None,
        };
        words.next().is_none().then_some(Held { database, wal, fit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_and_no_other_line_does() {
        let birth = |inode| Birth { inode, at: Duration::new(1_795_000_000, 17) };
        let here = Held { database: birth(7), wal: birth(8), fit: Fit::Whole };
        let modified = Duration::new(1_795_000_001, 0);
        let away = |is_used| Held { fit: Fit::Away(Away { size: 4096, modified, is_used }), ..here };
        for held in [here, here.mixed(), away(false), away(true), here.left(None, true)] {
            let line = held.to_line();
            assert_eq!(Held::parse(&line), Some(held));
            for end in 0..line.len() {
                assert_eq!(Held::parse(&line[..end]), None, "{}", &line[..end]);
            }
        }
    }
}
