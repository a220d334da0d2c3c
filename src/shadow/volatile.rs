//! A shadow WAL that is not durable for a while. Beside writers that never pause, each fsync of ours delays theirs, for the
//! sake of copies that every replica has a few milliseconds later.
//!
//! Invariant: before an index begins though the copy of the one before is not durable, a durable mark in the meta folder
//! says so, with the boot. It goes only when everything is durable again. In another boot it means that a power cut may
//! have left anything of the generation's files: then nothing of them is used.

use super::{GENERATION_FILE, ShadowWal, begun};
use crate::core::names;
use crate::core::position::{Generation, Index};
use crate::disk::Disk;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Holds the generation and the boot, and ends with a line feed.
const MARK: &str = "volatile";

/// What a power cut would leave of a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// All but the present index, and of that a valid part.
    Durable,
    /// The same, but the mark may be there. It is being written or removed, or that has failed.
    Marked,
    /// Of this index and what follows, anything.
    Volatile(Index),
}

/// What the mark says of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing: a power cut leaves all of its shadow but the present index, and of that a valid part.
    None,
    /// A power cut leaves anything.
    OfThisBoot,
    /// There may have been one.
    OfAnotherBoot,
}

impl Mark {
    pub(super) fn of(disk: &dyn Disk, meta: &Path, generation: Generation) -> io::Result<Mark> {
        let Some(text) = disk.read(&meta.join(MARK))? else { return Ok(Mark::None) };
        let text = String::from_utf8_lossy(&text);
        let mut words = text.split_whitespace();
        Ok(match words.next().map(str::parse) {
            // Writing it was not finished, so that nothing relied on it; or another generation has begun since.
            _ if !text.ends_with('\n') => Mark::None,
            Some(Ok(marked)) if generation != marked => Mark::None,
            Some(Ok(_)) if disk.boot().is_some_and(|boot| words.next() == Some(&boot)) => Mark::OfThisBoot,
            _ => Mark::OfAnotherBoot,
        })
    }
}

/// How durable a shadow is to be, for a worker to bring about.
pub struct DurabilityChange {
    disk: Arc<dyn Disk>,
    meta: PathBuf,
    generation: Generation,
    to: Target,
}

enum Target {
    Volatile { boot: String },
    Durable { shadows: PathBuf, indexes: (Index, Index), others: Vec<PathBuf> },
}

impl DurabilityChange {
    /// Whether the shadow becomes volatile by it.
    pub fn is_to_volatile(&self) -> bool {
        matches!(self.to, Target::Volatile { .. })
    }

    /// Carries it out.
    ///
    /// # Errors
    /// The disk's. The mark may be there then, and what was to be made durable is in doubt.
    pub fn run(&self) -> io::Result<()> {
        let DurabilityChange { disk, meta, generation, to } = self;
        let mark = meta.join(MARK);
        match to {
            Target::Volatile { boot } => {
                // An earlier generation's name must not come back with the mark of this one.
                disk.open(&meta.join(GENERATION_FILE), false)?.sync()?;
                disk.sync_folder(meta)?;
                let file = disk.open(&mark, true)?;
                file.write_at(format!("{generation} {boot}\n").as_bytes(), 0)?;
                file.sync()?;
            }
            Target::Durable { shadows, indexes: (first, last), others } => {
                sync_indexes(&**disk, shadows, *first, *last)?;
                others.iter().try_for_each(|path| sync_if_there(&**disk, path))?;
                if let Some(folder) = shadows.parent() {
                    disk.sync_folder(folder)?;
                }
                disk.remove(&mark)?;
            }
        }
        disk.sync_folder(meta)
    }
}

impl ShadowWal {
    /// Whether the last generation that was begun was volatile when the machine lost power: nothing of it may be used then.
    ///
    /// # Errors
    /// The disk's.
    pub fn is_lost(disk: &dyn Disk, meta: &Path) -> io::Result<bool> {
        let Some(generation) = begun(disk, meta)?.and_then(|begun| begun.generation) else {
            return Ok(false);
        };
        Ok(Mark::of(disk, meta, generation)? == Mark::OfAnotherBoot)
    }

    /// What a power cut would leave of it.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Whether a power cut may leave anything of it.
    pub fn is_volatile(&self) -> bool {
        matches!(self.durability, Durability::Volatile(_))
    }

    /// Says that it is volatile, before it is. `None` where the kernel does not tell the boot: nobody would know of a power
    /// cut.
    pub fn to_mark(&mut self, meta: &Path) -> Option<DurabilityChange> {
        let boot = self.disk.boot()?;
        self.durability = Durability::Marked;
        Some(self.change(meta, Target::Volatile { boot }))
    }

    /// Makes everything durable, and `others` that follow it; then the mark goes. From now on no index begins before the one
    /// before is durable.
    pub fn settle(&mut self, meta: &Path, others: Vec<PathBuf>) -> DurabilityChange {
        let first = match std::mem::replace(&mut self.durability, Durability::Marked) {
            Durability::Volatile(first) => first,
            Durability::Durable | Durability::Marked => self.extent.index,
        };
        // Most of what was written since is on the replicas, and gone.
        let kept = self.extent.complete.first_key_value().map_or(self.extent.index, |(index, _)| *index);
        let indexes = (first.max(kept), self.extent.index);
        self.change(meta, Target::Durable { shadows: self.folder.clone(), indexes, others })
    }

    /// Whether it is a change of this generation.
    pub fn is_its(&self, change: &DurabilityChange) -> bool {
        change.generation == self.extent.generation
    }

    /// Takes in that a change is done, if it is one of this generation.
    pub fn on_changed(&mut self, change: &DurabilityChange) {
        if self.is_its(change) {
            self.durability = match change.to {
                Target::Volatile { .. } => Durability::Volatile(self.extent.index),
                Target::Durable { .. } => Durability::Durable,
            };
        }
    }

    fn change(&self, meta: &Path, to: Target) -> DurabilityChange {
        let (disk, meta) = (Arc::clone(&self.disk), meta.to_owned());
        DurabilityChange { disk, meta, generation: self.extent.generation, to }
    }
}

/// Makes the shadow files of the indexes from `first` to `last`, and their names, durable.
///
/// # Errors
/// The disk's.
pub fn sync_indexes(disk: &dyn Disk, folder: &Path, first: Index, last: Index) -> io::Result<()> {
    let mut index = Some(first);
    while let Some(present) = index.filter(|index| *index <= last) {
        // An index without a commit has no file.
        sync_if_there(disk, &folder.join(names::shadow_file(present)))?;
        index = present.next();
    }
    disk.sync_folder(folder)
}

/// Makes the content of a file durable, if there is one.
fn sync_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        file => file?.sync(),
    }
}
