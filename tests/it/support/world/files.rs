//! What the agent keeps on its disk.

use super::World;
use crate::support::scene;
use std::path::{Path, PathBuf};
use wal_agent::core::names;
use wal_agent::core::position::{Generation, Index};

impl World {
    /// Files of the shadow, of all generations.
    pub fn shadow_files(&self) -> usize {
        let files = scene::files(&self.meta().join(names::GENERATIONS));
        files.len()
    }

    /// Removes a file of the present generation's shadow.
    pub fn remove_shadow(&self, index: u32) {
        std::fs::remove_file(self.shadow_file(index)).expect("it is kept for the replica");
    }

    /// Takes the end of a file of the present generation's shadow away, as a power cut may.
    pub fn cut_shadow(&self, index: u32, length: u64) {
        let file = std::fs::File::options().write(true).open(self.shadow_file(index));
        file.and_then(|file| file.set_len(length)).expect("it is there");
    }

    /// The agent's own folder.
    pub fn meta(&self) -> &Path {
        &self.config.databases[0].meta_path
    }

    /// The file that says that the present generation's shadow is not durable, if it does.
    pub(super) fn volatile_mark(&self) -> Option<PathBuf> {
        let marked = self.generation_in("volatile")?;
        (Some(marked) == self.generation_in("generation")).then(|| self.meta().join("volatile"))
    }

    /// The generation that a file of the agent's own names first.
    pub(super) fn generation_in(&self, file: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.meta().join(file)).ok()?;
        text.split_whitespace().next().map(str::to_owned)
    }

    /// Whether a power cut may leave anything of the shadow.
    pub fn is_volatile(&self) -> bool {
        self.volatile_mark().is_some()
    }

    pub(super) fn shadow_file(&self, index: u32) -> PathBuf {
        let generation = self.generation_in("generation").expect("there is a generation");
        let generation = generation.parse().expect("it has a name");
        self.shadow_of(generation, Index::new(index).expect("a small number"))
    }

    /// Where the copy of an index's WAL is.
    pub(super) fn shadow_of(&self, generation: Generation, index: Index) -> PathBuf {
        self.meta().join(names::wal_folder(generation)).join(names::shadow_file(index))
    }
}
