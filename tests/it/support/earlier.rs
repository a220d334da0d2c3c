//! Support: every commit that a replica holds, and the replica as it would be had nothing come after that commit.

use super::history::{Objects, Style, encode};
use std::collections::BTreeMap;
use wal_agent::core::frame::FrameDecoder;
use wal_agent::core::inventory::{GenerationObjects, Segment};
use wal_agent::core::position::{Generation, Index};
use wal_agent::remote::{Remote, join};
use wal_agent::restore::read_inventory;

/// Bytes of a WAL's header, and of a frame's.
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A position that ends a commit; at `end` 0, what the snapshot alone gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierCommit {
    pub generation: Generation,
    pub index: Index,
    pub end: u64,
    /// The header of the WAL that it is in.
    pub header: Option<String>,
}

/// One generation with a snapshot, read whole.
struct Replicated {
    objects: GenerationObjects,
    /// The WAL of each index from the snapshot on.
    wals: BTreeMap<Index, Vec<u8>>,
}

/// What a replica holds.
pub struct Earlier {
    root: String,
    objects: Objects,
    generations: Vec<Replicated>,
}

impl Earlier {
    /// Of a replica below `root`, with its objects by path. Generations that cannot be restored, since they have no
    /// snapshot yet, are left out. `began` tells their order: the server's clock need not.
    pub fn of<T: Ord>(
        remote: &mut dyn Remote,
        root: &str,
        objects: Objects,
        began: impl Fn(Generation) -> T,
    ) -> Earlier {
        let mut inventory = read_inventory(remote, root).expect("a server without faults");
        inventory.generations.sort_by_cached_key(|objects| began(objects.generation()));
        let mut earlier = Earlier { root: root.to_owned(), objects, generations: Vec::new() };
        for generation in inventory.generations {
            let Some(snapshot) = generation.snapshots().first() else { continue };
            let mut wals = BTreeMap::<Index, Vec<u8>>::new();
            for segment in generation.segments().iter().filter(|segment| segment.index >= snapshot.index) {
                let content = content(earlier.bytes(&segment.path(generation.generation())));
                let wal = wals.entry(segment.index).or_default();
                assert_eq!(wal.len() as u64, segment.start.get(), "segments follow each other");
                wal.extend(content);
            }
            earlier.generations.push(Replicated { objects: generation, wals });
        }
        earlier
    }

    fn bytes(&self, path: &str) -> &[u8] {
        &self.objects[&join(&self.root, path)]
    }

    /// All of them, in order: the generation that began first comes first.
    pub fn commits(&self) -> Vec<EarlierCommit> {
        self.generations.iter().flat_map(Replicated::commits).collect()
    }

    /// The replica had nothing been written to it after a commit; and no other generation is there.
    pub fn as_of(&self, commit: &EarlierCommit) -> Objects {
        let of_generation = |replicated: &&Replicated| replicated.objects.generation() == commit.generation;
        let replicated = self.generations.iter().find(of_generation).expect("it is one of ours");
        let mut objects = Objects::new();
        let mut keep = |path: String, bytes: Vec<u8>| objects.insert(join(&self.root, &path), bytes);
        for snapshot in replicated.objects.snapshots().iter().filter(|s| s.index <= commit.index) {
            let path = snapshot.object(commit.generation).path();
            keep(path.clone(), self.bytes(&path).to_vec());
        }
        for segment in replicated.objects.segments() {
            let is_before = (segment.index, segment.start.get()) < (commit.index, commit.end);
            if !is_before {
                continue;
            }
            let path = segment.path(commit.generation);
            let whole = self.bytes(&path);
            let kept = replicated.cut(segment, commit, whole);
            keep(path, kept.unwrap_or_else(|| whole.to_vec()));
        }
        objects
    }
}

impl Replicated {
    fn commits(&self) -> Vec<EarlierCommit> {
        let generation = self.objects.generation();
        let first = self.objects.snapshots()[0].index;
        let mut commits = vec![EarlierCommit { generation, index: first, end: 0, header: None }];
        for (index, wal) in &self.wals {
            let Some(header) = wal.get(..WAL_HEADER) else { continue };
            let name = header.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let page_size = u32::from_be_bytes(header[8..12].try_into().expect("four bytes")) as usize;
            let frames = wal[WAL_HEADER..].chunks_exact(FRAME_HEADER + page_size).enumerate();
            let is_commit = |frame: &[u8]| frame[4..8] != [0; 4];
            commits.extend(frames.filter(|(_, frame)| is_commit(frame)).map(|(number, _)| {
                let end = (WAL_HEADER + (number + 1) * (FRAME_HEADER + page_size)) as u64;
                EarlierCommit { generation, index: *index, end, header: Some(name.clone()) }
            }));
        }
        commits
    }

    /// The segment up to a commit in it; `None` if the commit is not before its end.
    fn cut(&self, segment: &Segment, commit: &EarlierCommit, whole: &[u8]) -> Option<Vec<u8>> {
        let content = content(whole);
        let start = segment.start.get();
        let is_inside = segment.index == commit.index && commit.end < start + content.len() as u64;
        is_inside.then(|| encode(Style::Ours, &content[..(commit.end - start) as usize], None))
    }
}

/// What is in an object.
fn content(bytes: &[u8]) -> Vec<u8> {
    let (mut decoder, mut rest, mut content) = (FrameDecoder::new(), bytes, Vec::new());
    while let Some(block) = decoder.next_block(&mut rest).expect("a frame that is sound") {
        content.extend_from_slice(block);
    }
    content
}
