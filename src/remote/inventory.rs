//! Listing what is on a replica.

use super::{Entry, Remote, RemoteError, join};
use crate::core::inventory::{GenerationObjects, Inventory, Listed};
use crate::core::names::{GENERATIONS, snapshots_folder, wal_folder};
use crate::core::position::Generation;

/// Lists all objects of the replica at `root`.
///
/// # Errors
/// The first listing that fails; a replica without a folder is empty, and no error.
pub fn read_inventory(remote: &mut dyn Remote, root: &str) -> Result<Inventory, RemoteError> {
    let mut generations = Vec::new();
    for folder in remote.list(&join(root, GENERATIONS))? {
        let Ok(generation) = folder.name.parse() else { continue };
        if folder.is_folder {
            generations.push(read_generation(remote, root, generation)?);
        }
    }
    generations.sort_by_cached_key(|objects| objects.generation().to_string());
    Ok(Inventory { generations })
}

/// Lists the objects of one generation. Snapshots come before segments, so that a snapshot that is there has its WAL
/// there.
///
/// # Errors
/// The first listing that fails.
pub fn read_generation(
    remote: &mut dyn Remote,
    root: &str,
    generation: Generation,
) -> Result<GenerationObjects, RemoteError> {
    let snapshots = remote.list(&join(root, &snapshots_folder(generation)))?;
    let segments = remote.list(&join(root, &wal_folder(generation)))?;
    Ok(GenerationObjects::new(generation, files(&snapshots), files(&segments)))
}

fn files(entries: &[Entry]) -> impl Iterator<Item = Listed<'_>> {
    let files = entries.iter().filter(|entry| !entry.is_folder);
    files.map(|entry| Listed { name: &entry.name, size: entry.size, modified: entry.modified })
}
