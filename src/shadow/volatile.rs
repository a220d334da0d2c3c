//! A shadow WAL that is not durable for a while. Beside writers that never pause, each fsync of ours delays theirs, for the
//! sake of copies that every replica has a few milliseconds later.
//!
//! Invariant: before an index begins though the copy of the one before is not durable, a durable mark in the meta folder
//! says so, with the boot. It goes only when everything is durable again. In another boot it means that a power cut may
//! have left anything of the generation's files: then nothing of them is used.

use super::{ShadowWal, begun, sync_indexes};
use crate::core::position::{Generation, Index};
use crate::disk::Disk;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Holds the generation and the boot.
const MARK: &str = "volatile";

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
        match words.next().map(str::parse) {
            // Another generation has begun since.
            Some(Ok(marked)) if generation != marked => Ok(Mark::None),
            Some(Ok(_)) if words.next().map(str::to_owned) == disk.boot() => Ok(Mark::OfThisBoot),
            _ => Ok(Mark::OfAnotherBoot),
        }
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
    Volatile,
    Durable { shadows: PathBuf, indexes: (Index, Index), others: Vec<PathBuf> },
}

impl DurabilityChange {
    /// Whether the shadow becomes volatile by it.
    pub fn is_to_volatile(&self) -> bool {
        matches!(self.to, Target::Volatile)
    }

    /// # Errors
    /// The disk's. What was to be made durable is in doubt then.
    pub fn run(&self) -> io::Result<()> {
        let DurabilityChange { disk, meta, generation, to } = self;
        let mark = meta.join(MARK);
        match to {
            Target::Volatile => {
                let boot = disk.boot().unwrap_or_default();
                disk.replace(&mark, format!("{generation} {boot}\n").as_bytes())?;
                disk.open(&mark, false)?.sync()?;
            }
            Target::Durable { shadows, indexes: (first, last), others } => {
                sync_indexes(&**disk, shadows, *first, *last)?;
                for path in others {
                    match disk.open(path, false) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        file => file?.sync()?,
                    }
                }
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
        let Some((Some(generation), _)) = begun(disk, meta)? else { return Ok(false) };
        Ok(Mark::of(disk, meta, generation)? == Mark::OfAnotherBoot)
    }

    /// Whether a power cut may leave anything of it.
    pub fn is_volatile(&self) -> bool {
        self.volatile_from.is_some()
    }

    /// Says that it is volatile, before it is; [`ShadowWal::on_marked`] once that is done.
    pub fn to_mark(&self, meta: &Path) -> DurabilityChange {
        self.change(meta, Target::Volatile)
    }

    /// Takes in that the mark is durable, if it is that of this generation.
    pub fn on_marked(&mut self, change: &DurabilityChange) {
        if change.generation == self.extent.generation {
            self.volatile_from = Some(self.extent.index);
        }
    }

    /// Makes everything durable, and `others` that follow it. From now on no index begins before the one before is
    /// durable.
    pub fn settle(&mut self, meta: &Path, others: Vec<PathBuf>) -> DurabilityChange {
        let first = self.volatile_from.take().unwrap_or(self.extent.index);
        let indexes = (first, self.extent.index);
        self.change(meta, Target::Durable { shadows: self.folder.clone(), indexes, others })
    }

    fn change(&self, meta: &Path, to: Target) -> DurabilityChange {
        let (disk, meta) = (Arc::clone(&self.disk), meta.to_owned());
        DurabilityChange { disk, meta, generation: self.extent.generation, to }
    }
}
