//! Reading the file, part by part, while others have it open: what no checkpoint has written, and none of their times
//! tells.

use super::attach::Attached;
use super::{Source, State};
use crate::core::evidence::Writer;
use crate::core::page::PageCount;
use crate::core::page_table::{DatabaseState, PageEntry};
use crate::core::position::{Generation, Index};
use crate::core::scrub::{Pages, Part, Scrub};
use crate::core::wal_index::WalExtent;
use crate::page_table::{TableError, TableJob};
use log::debug;
use std::time::Instant;

/// What a source knows of it.
#[derive(Default)]
pub struct ScrubWork {
    plan: Scrub,
    reading: Option<Reading>,
}

/// A part that a worker reads, or has read.
struct Reading {
    pages: Pages,
    /// The index that was copied then.
    index: (Generation, Index),
    /// Its frames from here on may not have been in the file.
    in_file: u32,
    /// All were: what came since is behind them, or in another index.
    is_all_in_file: bool,
    /// What the table said then.
    before: Vec<PageEntry>,
    /// What the file says, and [`Source::looks`] then: the next look copies whatever else may have been in it.
    read: Option<(Vec<PageEntry>, u32)>,
}

impl Reading {
    /// Whether each page is what the table says, or may be on its way into the file. `None` if nothing tells: not all of the
    /// WAL was in the file, and it is another one by now.
    fn is_whole(&self, attached: &Attached, page_count: PageCount) -> Option<bool> {
        let Attached { capture, .. } = attached;
        let (after, entries) = (capture.table.part(&self.pages).ok()??, capture.table.wanted_entries()?);
        let (read, _) = self.read.as_ref()?;
        let part = Part { before: &self.before, read, after: &after };
        let mut differing = part.differing(*self.pages.start(), &entries);
        differing.retain(|number| number.get() <= page_count.get());
        if differing.is_empty() {
            return Some(true);
        }
        // What was committed since may have come and gone.
        let is_same = self.index == index_of(attached);
        let in_file = if is_same { self.in_file } else { 0 };
        if !is_same && !self.is_all_in_file {
            return None;
        }
        let in_wal = capture.shadow.pages_behind(in_file).ok()?;
        Some(differing.iter().all(|number| in_wal.contains(number)))
    }
}

/// The one that is copied.
fn index_of(attached: &Attached) -> (Generation, Index) {
    let extent = attached.capture.shadow.extent();
    (extent.generation, extent.index)
}

impl ScrubWork {
    /// Of what is not held any more. How far the file was read, stays.
    pub(super) fn give_up_part(&mut self) {
        self.reading = None;
    }
}

impl Source {
    /// When the next part is due. The file must be what its WAL and its table say, as far as is known.
    pub(super) fn scrub_timeout(&self, now: Instant) -> Option<Instant> {
        let State::Attached(attached) = &self.state else { return None };
        let is_known = self.is_caught_up
            && !self.is_written_over
            && self.written_beside.is_none()
            && !self.passes_over();
        let sighting = self.sighting.filter(|sighting| is_known && !sighting.alone)?;
        let may_begin = self.scrub.reading.is_none() && attached.capture.table.state().is_some();
        self.scrub.plan.next_timeout(sighting.stamp, now).filter(|_| may_begin)
    }

    /// The job of reading that part, if it is due. The agent has so many `databases`.
    pub(super) fn scrub_job(&mut self, databases: u32, now: Instant) -> Option<TableJob> {
        if self.scrub_timeout(now).is_none_or(|due| due > now) {
            return None;
        }
        let (State::Attached(attached), Some(sighting)) = (&self.state, self.sighting) else { return None };
        let capture = &attached.capture;
        let (entries, page_count) = (capture.table.wanted_entries()?, capture.table.state()?.page_count);
        let pages = self.scrub.plan.begin(sighting.stamp, (entries.page_size(), page_count), databases, now);
        let before = capture.table.part(&pages).ok().flatten()?;
        let job = capture.table.read_part(&attached.descriptor, pages.clone())?;
        let WalExtent { frames, backfilled, salt } = self.extent;
        let is_all_in_file = self.extent.is_backfilled();
        let is_of_it = capture.shadow.facts().is_some_and(|of| salt == Some(of.header.salt()));
        let in_file = match is_of_it {
            true => backfilled,
            // The next commit begins another one.
            false if frames == 0 => u32::MAX,
            // Of another WAL it says nothing.
            false => 0,
        };
        let index = index_of(attached);
        self.scrub.reading = Some(Reading { pages, index, in_file, is_all_in_file, before, read: None });
        Some(TableJob::Read(job))
    }

    pub(super) fn on_part_read(&mut self, read: Result<Vec<PageEntry>, TableError>) {
        let Some(reading) = &mut self.scrub.reading else { return };
        match read {
            Ok(read) => {
                reading.read = Some((read, self.looks));
                self.dirty.wal = true;
            }
            Err(error) => {
                debug!(
                    "{}: cannot be compared with its page table: {error}",
                    self.settings.database.display()
                );
                self.scrub.reading = None;
            }
        }
    }

    /// After a look that found everything copied: whether that part is what it must be. If not, all pages are asked.
    pub(super) fn judge_part(&mut self, now: Instant) {
        let is_due =
            |reading: &mut Reading| reading.read.as_ref().is_some_and(|(_, looks)| *looks != self.looks);
        let Some(reading) = self.scrub.reading.take_if(is_due) else { return };
        let (State::Attached(attached), Some(sighting)) = (&self.state, self.sighting) else { return };
        let Some(DatabaseState { page_count, .. }) = attached.capture.table.state() else { return };
        let Some(is_whole) = reading.is_whole(attached, page_count) else { return };
        self.scrub.plan.on_compared(&reading.pages, page_count);
        if !is_whole {
            self.suspect(Writer::Beside, sighting, now);
        }
    }
}
