//! Going on after nobody of us held a database: its pages are compared with the page table, and what has changed becomes
//! one index of our own making.
//!
//! Why that is complete: first everything committed is brought into the database file, and we take read lock 0, which
//! forbids all backfill. From then on SQLite does not change the file, and whoever does so all the same
//! is noticed by its times: it is the whole database at that moment. Each of its pages is compared with the entry that the table has at the end of the shadow, which is the end of
//! the generation's history; a page that is not equal goes into the new index, and the size does. Replayed on the history,
//! it gives the file, whatever happened in between: nothing is concluded from inodes, times, counters or salts. Writers go
//! on meanwhile, in the next WAL, which is the next index. A WAL that they continue instead of restarting it (another
//! reader kept them from that) has frames that no index can begin with; then a new generation begins.

use super::attach::Attached;
use super::guard::GuardError;
use super::proof;
use crate::core::evidence::Sighting;
use crate::core::position::Generation;
use crate::core::sync::Break;
use crate::core::synthetic::SyntheticWal;
use crate::core::wal::Salt;
use crate::core::wal_index::WalExtent;
use crate::page_table::{Difference, StagedFrames, TableError};
use crate::shadow::AbsorbError;
use crate::sqlite::SqliteError;
use log::info;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often it is tried to bring everything into the file while others write, and the pause between two tries.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);
/// Frames that are written at once, in bytes: bounds memory.
const WINDOW: usize = 1 << 20;

/// Why the generation cannot go on by comparing.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// There is none to compare with.
    #[error("there is no page table to compare with")]
    NoTable,
    /// It is no history of what was there before.
    #[error("another content was put into the file")]
    AnotherContent,
    /// Everything was never in the file at once.
    #[error("others read or write without a pause")]
    Busy,
    /// A snapshot is better.
    #[error("most pages have changed")]
    TooMuch,
    /// The generation has no further index.
    #[error("no further index can begin: {0}")]
    Index(Break),
    /// There are frames, and no header that they could belong to: a checkpoint would copy whatever stands there.
    #[error("its WAL is damaged")]
    WalDamaged,
    /// What was compared is not the database.
    #[error("another file is at the path of the database, or of its -shm")]
    Replaced,
    /// While we forbade all backfill.
    #[error("something other than SQLite has written the file meanwhile")]
    Overwritten,
    /// The table, or the database, could not be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The WAL could not be held.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The shadow's.
    #[error("cannot write the shadow WAL: {0}")]
    Shadow(#[from] AbsorbError),
    /// The disk's.
    #[error("cannot read or write: {0}")]
    Disk(#[from] io::Error),
}

/// What comparing has found.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// How many pages had changed.
    pub pages: usize,
    /// The file that was compared.
    pub seen: Sighting,
}

/// Says how comparing has ended.
pub(super) fn report(database: &Path, reason: &Break, result: &Result<Compared, Doubt>) {
    let name = database.display();
    match result {
        Ok(Compared { pages: 0, .. }) => info!(
            "{name}: {reason}; compared with the page table: no page has changed, the generation goes on"
        ),
        Ok(Compared { pages, .. }) => info!(
            "{name}: {reason}; compared with the page table: {pages} pages have changed and are copied, the generation \
             goes on"
        ),
        Err(doubt) => info!("{name}: {reason}; the generation cannot go on by comparing: {doubt}"),
    }
}

/// The salt of an index of our own making, from the random generation that would begin otherwise: no other WAL has it.
fn salt_of(generation: Generation) -> Salt {
    let bits = generation.get();
    Salt((bits >> 32) as u32, bits as u32)
}

/// Whether comparing can tell what a break is about.
pub(super) fn can_settle(reason: &Break) -> bool {
    matches!(
        reason,
        Break::WalRestarted | Break::TailDiffers | Break::WalShorterThanShadow | Break::DatabaseChanged
    )
}

/// Compares, and copies what has changed. `next_generation` is the one that would begin
/// otherwise.
///
/// # Errors
/// Why a new generation must begin; the WAL is held all the same.
pub fn compare(
    attached: &mut Attached,
    database: &Path,
    wal: &Path,
    next_generation: Generation,
) -> Result<Compared, Doubt> {
    let has_table = attached.capture.table.state().is_some();
    // What was written over is settled in any case, for whatever follows.
    if !has_table && !attached.capture.is_written_over() {
        return Err(Doubt::NoTable);
    }
    settle(attached, database, wal)?;
    if !has_table {
        return Err(Doubt::NoTable);
    }
    // A copy that is on its way is no database yet, and what comes behind that in a generation could not be restored by all.
    if attached.capture.written_over.is_some_and(|written_over| !written_over.is_begun) {
        return Err(Doubt::AnotherContent);
    }
    let seen = attached.sight().ok_or(Doubt::Busy)?;
    let difference = attached.capture.table.compare(&attached.descriptor)?;
    must_be(attached, &seen)?;
    let pages = difference.pages.len();
    if pages > difference.page_count.get() as usize / 2 + 16 {
        return Err(Doubt::TooMuch);
    }
    if pages > 0 {
        copy(attached, &difference, salt_of(next_generation), &seen)?;
    }
    attached.capture.guarded = true;
    Ok(Compared { pages, seen })
}

/// Fails if the file has been written since.
fn must_be(attached: &Attached, seen: &Sighting) -> Result<(), Doubt> {
    let is_same = proof::stamp_of(&attached.descriptor)? == seen.stamp;
    is_same.then_some(()).ok_or(Doubt::Overwritten)
}

/// Brings everything into the file, and keeps it as it is by read lock 0.
fn settle(attached: &mut Attached, database: &Path, wal: &Path) -> Result<(), Doubt> {
    for _ in 0..TRIES {
        let checkpoint = match &attached.checkpointer {
            // Then whatever is in the way of reading the database does not matter.
            _ if attached.extent().is_ok_and(WalExtent::is_backfilled) => None,
            None => return Err(Doubt::Busy),
            Some(checkpointer) => {
                let Ok(checkpoint) = checkpointer.begin() else {
                    thread::sleep(PAUSE);
                    continue;
                };
                Some(checkpoint)
            }
        };
        if attached.replaced(database).is_some() {
            return Err(Doubt::Replaced);
        }
        let header = proof::wal_header(wal);
        if header.is_none() && attached.extent().is_ok_and(|extent| extent.left() > 0) {
            return Err(Doubt::WalDamaged);
        }
        let settled = match attached.guard.settle(&attached.query, checkpoint) {
            Err(GuardError::Sqlite(SqliteError::Busy)) => None,
            other => other?,
        };
        if let Some(extent) = settled
            && proof::wal_header(wal) == header
        {
            attached.capture.settled = Some((header, extent.frames));
            attached.capture.look_for_unsummed(extent.frames).map_err(io::Error::other)?;
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    Err(Doubt::Busy)
}

/// Writes the pages that differ as one transaction into the next index.
fn copy(attached: &mut Attached, difference: &Difference, salt: Salt, seen: &Sighting) -> Result<(), Doubt> {
    let page_size = difference.entries.page_size();
    let mut wal = SyntheticWal::new(page_size, salt);
    let capture = &mut attached.capture;
    capture.shadow.begin_index(*wal.header())?.map_err(Doubt::Index)?;
    capture.table.begin_index(page_size);
    let (mut frames, mut staged) = (Vec::with_capacity(WINDOW), StagedFrames::default());
    let mut page = vec![0; page_size.get() as usize];
    let last = difference.pages.last();
    for number in &difference.pages {
        FileExt::read_exact_at(&*attached.descriptor, &mut page, number.file_offset(page_size))?;
        let commit = (Some(number) == last).then_some(difference.page_count);
        wal.push(&mut frames, *number, &page, commit);
        if commit.is_some() {
            must_be(attached, seen)?;
        }
        let capture = &mut attached.capture;
        if frames.len() >= WINDOW || commit.is_some() {
            capture.shadow.append(&frames, staged.begin(Some(difference.entries)))?;
            frames.clear();
            capture.table.take(&mut staged);
        }
    }
    attached.capture.keep_state();
    Ok(())
}
