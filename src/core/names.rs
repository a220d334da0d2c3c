//! Names of objects on a replica and of files in the meta folder, both ways, in one place.
//!
//! The layout is Litestream 0.3's; a name it does not know is skipped by its listings, so temporary names are safe.

use super::position::{Generation, Index, Offset};
use std::path::{Path, PathBuf};

/// The folder of all generations, below a replica's path and below the meta folder.
pub const GENERATIONS: &str = "generations";

/// What the `-wal` of a database is called that another was put in the place of.
const REPLACED_WAL: &str = "replaced-wal-";

/// What an object is called until it is whole. Litestream's patterns do not match it.
const TEMPORARY: &str = ".tmp";
/// What the object is called that another is about to replace.
const SET_ASIDE: &str = ".old.tmp";

/// What lies beside a file, under its name and a suffix, as `-wal` beside a database.
pub fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// An object of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Object {
    /// The database file at the start of an index.
    Snapshot {
        /// Its history.
        generation: Generation,
        /// The WAL to replay on it, from offset 0.
        index: Index,
    },
    /// A range of a WAL.
    Segment {
        /// Its history.
        generation: Generation,
        /// The WAL it is a part of.
        index: Index,
        /// Where in that WAL it begins; below 4 GiB.
        start: Offset,
    },
}

impl Object {
    /// The path below the replica's, without a leading slash.
    pub fn path(self) -> String {
        match self {
            Object::Snapshot { generation, index } => {
                format!("{}/{index}.snapshot.lz4", snapshots_folder(generation))
            }
            Object::Segment { generation, index, start } => {
                format!("{}/{index}_{start}.wal.lz4", wal_folder(generation))
            }
        }
    }

    /// The path while the object is not whole. Another attempt has another one: what a stopped server process still
    /// does to an earlier attempt's later meets nothing.
    pub fn temporary_path(self, attempt: u64) -> String {
        format!("{}.{attempt:016x}{TEMPORARY}", self.path())
    }

    /// The path of what is there while this attempt replaces it.
    pub fn set_aside_path(self, attempt: u64) -> String {
        format!("{}.{attempt:016x}{SET_ASIDE}", self.path())
    }
}

/// The folder of a generation's snapshots.
pub fn snapshots_folder(generation: Generation) -> String {
    format!("{GENERATIONS}/{generation}/snapshots")
}

/// The folder of a generation's WAL: segments on a replica, shadow files in the meta folder.
pub fn wal_folder(generation: Generation) -> String {
    format!("{GENERATIONS}/{generation}/wal")
}

/// What the `-wal` of a generation is called after another file was put in the place of its database.
pub fn replaced_wal(generation: Generation) -> String {
    format!("{REPLACED_WAL}{generation}")
}

/// What stands before such a name, and whose it is; `None` for any other name. Another one of the generation has a number.
pub fn parse_replaced_wal(name: &str) -> Option<(&str, Generation)> {
    let (stem, generation) = name.rsplit_once(REPLACED_WAL)?;
    let generation = match generation.split_once('-') {
        Some((generation, number)) if number.parse::<u32>().is_ok() => generation,
        _ => generation,
    };
    Some((stem, generation.parse().ok()?))
}

/// The index of a snapshot's file name; `None` for any other name.
pub fn parse_snapshot(name: &str) -> Option<Index> {
    name.strip_suffix(".snapshot.lz4")?.parse().ok()
}

/// The index and offset of a segment's file name; `None` for any other name.
pub fn parse_segment(name: &str) -> Option<(Index, Offset)> {
    let (index, start) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
    Some((index.parse().ok()?, start.parse().ok()?))
}

/// Whether a name is that of an object which was never finished.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// The final name of an object that was set aside and whose successor may not have come, and by which attempt; `None`
/// for other names.
pub fn parse_set_aside(name: &str) -> Option<(&str, u64)> {
    let (object, attempt) = name.strip_suffix(SET_ASIDE)?.rsplit_once('.')?;
    Some((object, parse_attempt(attempt)?))
}

fn parse_attempt(text: &str) -> Option<u64> {
    let attempt = u64::from_str_radix(text, 16).ok()?;
    (format!("{attempt:016x}") == text).then_some(attempt)
}

/// The name of the page table, in the folder of its generation in the meta folder.
pub const PAGE_TABLE: &str = "page-table";
/// The name of the changes that are about to be written into it.
pub const PAGE_TABLE_CHANGES: &str = "page-table.changes";

/// The name of a shadow WAL's file.
pub fn shadow_file(index: Index) -> String {
    format!("{index}.wal")
}

/// The index of a shadow WAL's file name; `None` for any other name.
pub fn parse_shadow(name: &str) -> Option<Index> {
    name.strip_suffix(".wal")?.parse().ok()
}
