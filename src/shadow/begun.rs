//! Which generation was begun last, of which file, and on which machine.

use super::ShadowWal;
use crate::core::machine::Machine;
use crate::core::names;
use crate::core::position::Generation;
use crate::core::sync::Break;
use crate::disk::Disk;
use std::io;
use std::path::{Path, PathBuf};

/// Holds the present generation, the inode of its database, and the machine.
pub(super) const GENERATION_FILE: &str = "generation";

/// What the file says that holds the present generation, as far as it can be read.
pub(super) struct Begun {
    pub(super) generation: Option<Generation>,
    pub(super) inode: Option<u64>,
    machine: Option<Machine>,
}

/// Writes it durably.
pub(super) fn keep_begun(
    disk: &dyn Disk,
    meta: &Path,
    generation: Generation,
    inode: u64,
    machine: Machine,
) -> io::Result<()> {
    disk.replace(&meta.join(GENERATION_FILE), format!("{generation} {inode} {machine}\n").as_bytes())
}

/// `None` if there is no such file.
pub(super) fn begun(disk: &dyn Disk, meta: &Path) -> io::Result<Option<Begun>> {
    let Some(text) = disk.read(&meta.join(GENERATION_FILE))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_whitespace();
    Ok(Some(Begun {
        generation: words.next().and_then(|word| word.parse().ok()),
        inode: words.next().and_then(|word| word.parse().ok()),
        machine: words.next().and_then(|word| word.parse().ok()),
    }))
}

impl ShadowWal {
    /// The last generation that was begun, and the inode of its database file.
    ///
    /// # Errors
    /// The disk's; `None` if there is none, or it cannot be told.
    pub fn last_begun(disk: &dyn Disk, meta: &Path) -> io::Result<Option<(Generation, u64)>> {
        Ok(begun(disk, meta)?.and_then(|begun| begun.generation.zip(begun.inode)))
    }

    /// Keeps what is known of this machine with the last generation. `Err` if that was begun on another one, which may go on
    /// in it: on a replica, one would take the place of what the other one has acknowledged.
    ///
    /// # Errors
    /// The disk's.
    pub fn bind_to_machine(disk: &dyn Disk, meta: &Path) -> io::Result<Result<(), Break>> {
        let begun = begun(disk, meta)?;
        let Some(Begun { generation: Some(generation), inode: Some(inode), machine }) = begun else {
            return Ok(Ok(()));
        };
        let (kept, present) = (machine.unwrap_or_default(), disk.machine());
        if kept.is_not(present) {
            return Ok(Err(Break::AnotherMachine));
        }
        let known = present.or(kept);
        if machine != Some(known) {
            keep_begun(disk, meta, generation, inode, known)?;
        }
        Ok(Ok(()))
    }
}

/// The folders of all generations but `present`.
pub(super) fn other_generations(
    disk: &dyn Disk,
    meta: &Path,
    present: Generation,
) -> io::Result<Vec<PathBuf>> {
    let generations = meta.join(names::GENERATIONS);
    let present = present.to_string();
    let others = disk.list(&generations)?.into_iter().filter(|name| *name != present);
    Ok(others.map(|name| generations.join(name)).collect())
}
