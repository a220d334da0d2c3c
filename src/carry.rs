//! Carrying out one job on a replica. It decides nothing: what is to be done stands in the job, and whatever goes
//! wrong is handed back.

mod look;
mod segments;

use crate::core::checksum::Crc64;
use crate::core::names::{self, Object};
use crate::core::page::{PageCount, PageSize};
use crate::core::page_table::DatabaseState;
use crate::core::position::{Generation, Index, Offset};
use crate::core::replica::{Failure, FailureCause, Job, Outcome, SegmentStart, SentSnapshot};
use crate::core::segment::{self, END_MARK, FRAME_HEADER, SegmentTrailer, SnapshotTrailer, Trailer};
use crate::database_file::DatabaseFile;
use crate::disk::{Disk, is_unreadable, read_full};
use crate::precedence::Deference;
use crate::remote::{Entry, FailureKind, Remote, RemoteError, join, objects_of};
use crate::shadow::ShadowReadError;
use crossbeam_channel::{Receiver, bounded};
use segments::Content;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes before compression that are sent together: large enough for libssh2 to fill the line within one call, small enough
/// that compressing one goes on beside sending another.
const BLOCK: usize = 1 << 20;
/// Blocks that are compressed ahead of sending: bounds memory.
const BLOCKS_AHEAD: usize = 2;
/// A replica's listing is not longer than this; more is a folder that is not ours.
const MOST_OBJECTS: usize = 10_000_000;
/// Servers tell times in whole seconds. A restore takes the generation that was written last, so the first snapshot
/// of the next one waits for a later second. A clock that stands still or was set back is not waited for: then the snapshot
/// is given the time that it needs.
const TICK: Duration = Duration::from_millis(100);
const MOST_TICKS: u32 = 25;

/// A job with everything it needs.
#[derive(Clone)]
pub struct Order {
    /// What to do.
    pub job: Job,
    /// A random number, for names that no other attempt uses.
    pub attempt: u64,
    /// The history it belongs to.
    pub generation: Generation,
    /// The replica's path on its destination.
    pub root: String,
    /// The folder of the shadow files.
    pub shadow: PathBuf,
    /// Where the last of them ends, behind its last commit.
    pub shadow_end: (Index, Offset),
    /// Where they are.
    pub disk: Arc<dyn Disk>,
    /// The database file, for a snapshot.
    pub database: Option<DatabaseFile>,
    /// Whether acknowledged means that the server's fsync answered.
    pub fsync: bool,
    /// Generations of this run before it: nobody will finish a snapshot of theirs any more.
    pub left: Vec<Generation>,
    /// Whether a segment of this generation was written there, so that its folder must be there.
    pub has_written: bool,
    /// How far a snapshot has come.
    pub progress: Arc<Progress>,
}

/// How far a snapshot has come, for status.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the database that were sent.
    pub done: AtomicU64,
    /// Bytes of the database.
    pub total: AtomicU64,
    /// Whether the server does not offer fsync, though it was wanted.
    pub not_durable: AtomicBool,
    /// Nobody wants what is being sent any more.
    pub cancelled: AtomicBool,
}

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The replica's answer.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The shadow's.
    #[error(transparent)]
    Shadow(#[from] ShadowReadError),
    /// The database file could not be read.
    #[error("cannot read the database file for a snapshot: {0}")]
    Database(io::Error),
    /// The replica's folder is another one.
    #[error("what was sent before is not below {0} any more; what is missing is sent again")]
    PlaceGone(String),
    /// A new generation has begun meanwhile.
    #[error("given up: a new generation has begun")]
    Cancelled,
    /// The database file is not one.
    #[error("cannot send a snapshot: the database file has no valid header")]
    NotADatabase,
}

impl CarryError {
    /// Whether the connection is of no more use.
    pub fn is_disconnected(&self) -> bool {
        // A failed write of many packets leaves a connection in doubt, too; a new one costs little.
        matches!(self, CarryError::Remote(e) if e.kind != FailureKind::NotFound && e.kind != FailureKind::Denied)
    }

    /// As the replica's course takes it.
    pub fn into_failure(self) -> Failure {
        let cause = match &self {
            CarryError::Remote(e) if e.kind == FailureKind::Disconnected => FailureCause::Disconnected,
            CarryError::Shadow(ShadowReadError::Damaged(_)) => FailureCause::ShadowDamaged,
            // What should be there is not: no later try will find it.
            CarryError::Shadow(ShadowReadError::Disk(e))
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) =>
            {
                FailureCause::ShadowDamaged
            }
            CarryError::Shadow(ShadowReadError::Disk(e)) if is_unreadable(e) => {
                FailureCause::ShadowUnreadable
            }
            _ => FailureCause::Other,
        };
        Failure { message: self.to_string(), cause }
    }
}

/// Carries out orders, one after the other.
#[derive(Default)]
pub struct Carrier {
    /// What was read of the segment that grows, by generation: sealing it then reads nothing again.
    contents: HashMap<Generation, Content>,
    deference: Deference,
}

impl Carrier {
    /// One that lets others go first.
    pub fn new(deference: Deference) -> Self {
        Carrier { contents: HashMap::new(), deference }
    }

    /// Carries out `order`.
    ///
    /// # Errors
    /// Where it stopped. Anything of it may have been done.
    pub fn carry(&mut self, remote: &mut dyn Remote, order: &Order) -> Result<Outcome, CarryError> {
        match order.job {
            Job::Survey => look::survey(remote, order).map(|surveyed| Outcome::Surveyed(Ok(surveyed))),
            Job::Look { written } => look::look(remote, order, written).map(Outcome::Found),
            Job::SendSnapshot { index } => send_snapshot(remote, order, index).map(Outcome::SnapshotSent),
            Job::RenewSnapshot { index } => {
                renew_snapshot(remote, order, index).map(|is_newest| Outcome::SnapshotRenewed { is_newest })
            }
            Job::PublishSnapshot { sent, valid_from, state } => {
                publish_snapshot(remote, order, sent, valid_from, state)
                    .map(|is_older| Outcome::SnapshotPublished { is_older })
            }
            Job::Begin { segment, to, replace } => self.begin(remote, order, segment, to, replace),
            Job::SendSealed { segment, end, replace, state } => {
                self.send_sealed(remote, order, segment, end, replace, state)
            }
            Job::Extend { segment, length, from, to } => {
                self.extend(remote, order, segment, length, from, to)
            }
            Job::Seal { segment, length, end, last_of_index, state } => {
                let SegmentStart { index, start } = segment;
                let trailer = SegmentTrailer { index, start, end, last_of_index, crc: 0, state };
                self.seal(remote, order, segment, length, trailer).map(|()| Outcome::Sealed)
            }
        }
    }
}

impl Order {
    fn path(&self, below: &str) -> String {
        join(&self.root, below)
    }
    fn segment(&self, segment: SegmentStart) -> Object {
        Object::Segment { generation: self.generation, index: segment.index, start: segment.start }
    }
    fn sync(&self, remote: &mut dyn Remote, path: &str) -> Result<(), CarryError> {
        if self.fsync && !remote.sync(path)? {
            self.progress.not_durable.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
    /// Gives an object its own name, durably.
    fn name(&self, remote: &mut dyn Remote, temporary: &str, path: &str) -> Result<(), CarryError> {
        remote.rename(temporary, path)?;
        if self.fsync && !remote.sync_name(path)? {
            self.progress.not_durable.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Compresses pieces on a thread of their own while the caller sends: `produce` calls back with each raw piece, and
/// `send` gets its block and its length before compression. Blocks that were sent are used again.
fn pipelined<E: Send>(
    produce: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), E> + Send,
    mut send: impl FnMut(&mut Vec<u8>, u64) -> Result<(), CarryError>,
) -> Result<(), CarryError>
where
    CarryError: From<E>,
{
    std::thread::scope(|scope| {
        let (blocks, incoming): (_, Receiver<(Vec<u8>, u64)>) = bounded(BLOCKS_AHEAD);
        let (used, reusable) = bounded::<Vec<u8>>(BLOCKS_AHEAD + 1);
        let producer = scope.spawn(move || {
            produce(&mut |raw: &[u8]| {
                let mut block = reusable.try_recv().unwrap_or_default();
                block.clear();
                segment::push_block(&mut block, raw);
                blocks.send((block, raw.len() as u64)).is_ok()
            })
        });
        let sent = incoming.iter().try_for_each(|(mut block, raw)| -> Result<(), CarryError> {
            send(&mut block, raw)?;
            // The producer may have ended; then nobody uses it again.
            let _ = used.try_send(block);
            Ok(())
        });
        drop(incoming);
        let produced = producer.join().expect("BUG: reading and compressing does not panic");
        sent?;
        produced.map_err(CarryError::from)
    })
}

/// A database file was read.
struct ReadDatabase {
    page_size: PageSize,
    length: u64,
    crc: u64,
}

fn read_database(
    file: &File,
    progress: &Progress,
    piece: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<ReadDatabase, CarryError> {
    let mut header = [0; 18];
    file.read_exact_at(&mut header, 0).map_err(CarryError::Database)?;
    let page_size =
        PageSize::from_database_header([header[16], header[17]]).ok_or(CarryError::NotADatabase)?;
    progress.total.store(file.metadata().map_err(CarryError::Database)?.len(), Ordering::Relaxed);
    let (mut buffer, mut at, mut crc) = (vec![0; BLOCK], 0, Crc64::new());
    loop {
        let read = read_full(file, &mut buffer, at).map_err(CarryError::Database)?;
        // A file that is growing may end within a page; that page is in the WAL.
        let whole = read / page_size.get() as usize * page_size.get() as usize;
        if whole == 0 {
            return Ok(ReadDatabase { page_size, length: at, crc: crc.value() });
        }
        crc.update(&buffer[..whole]);
        at += whole as u64;
        if !piece(&buffer[..whole]) {
            return Ok(ReadDatabase { page_size, length: at, crc: crc.value() });
        }
    }
}

/// Streams the database file. It holds no reader: what is written meanwhile is in the WAL, too.
fn send_snapshot(remote: &mut dyn Remote, order: &Order, index: Index) -> Result<SentSnapshot, CarryError> {
    let path =
        order.path(&Object::Snapshot { generation: order.generation, index }.temporary_path(order.attempt));
    let sent = stream_snapshot(remote, order, index, &path);
    if sent.is_err() {
        // Where the server is gone, a look of this run finds it, also once another generation has begun.
        let _ = remote.remove(&path);
    }
    sent
}

fn stream_snapshot(
    remote: &mut dyn Remote,
    order: &Order,
    index: Index,
    path: &str,
) -> Result<SentSnapshot, CarryError> {
    let is_wanted = || match order.progress.cancelled.load(Ordering::Relaxed) {
        true => Err(CarryError::Cancelled),
        false => Ok(()),
    };
    let database = order.database.as_ref().expect("BUG: a snapshot comes with its database");
    remote.create(path)?;
    remote.write_at(path, 0, &FRAME_HEADER)?;
    let mut length = FRAME_HEADER.len() as u64;
    let mut read = None;
    order.progress.done.store(0, Ordering::Relaxed);
    pipelined(
        |piece| {
            read = Some(read_database(database, &order.progress, piece)?);
            Ok::<(), CarryError>(())
        },
        |block, raw| {
            is_wanted()?;
            remote.write_at(path, length, block)?;
            length += block.len() as u64;
            order.progress.done.fetch_add(raw, Ordering::Relaxed);
            Ok(())
        },
    )?;
    remote.write_at(path, length, &END_MARK)?;
    order.sync(remote, path)?;
    is_wanted()?;
    let ReadDatabase { page_size, length: database_length, crc } = read.ok_or(CarryError::NotADatabase)?;
    let pages = u32::try_from(database_length / u64::from(page_size.get())).ok();
    let page_count = pages.and_then(PageCount::new).ok_or(CarryError::NotADatabase)?;
    let valid_from = (index, Offset::ZERO);
    let trailer = SnapshotTrailer { index, valid_from, page_size, page_count, crc, state: None };
    Ok(SentSnapshot { attempt: order.attempt, length: length + END_MARK.len() as u64, trailer })
}

/// Gives a snapshot its name; whether another generation was written to that is not older all the same.
fn publish_snapshot(
    remote: &mut dyn Remote,
    order: &Order,
    sent: SentSnapshot,
    valid_from: (Index, Offset),
    state: Option<DatabaseState>,
) -> Result<bool, CarryError> {
    let object = Object::Snapshot { generation: order.generation, index: sent.trailer.index };
    let temporary = order.path(&object.temporary_path(sent.attempt));
    let trailer = Trailer::Snapshot(SnapshotTrailer { valid_from, state, ..sent.trailer }).encode();
    remote.write_at(&temporary, sent.length, &trailer)?;
    let others = newest_of_others(remote, order, usize::MAX)?;
    let mut is_older = others.is_some();
    for _ in 0..MOST_TICKS {
        if !is_older || modified(remote, &temporary)? > others {
            is_older = false;
            break;
        }
        std::thread::sleep(TICK);
        remote.write_at(&temporary, sent.length, &trailer)?;
    }
    order.sync(remote, &temporary)?;
    let path = order.path(&object.path());
    order.name(remote, &temporary, &path)?;
    remote.close(&path);
    Ok(is_older)
}

/// Gives a snapshot a later time than anything of the other generations has, if nothing of its own has one, so that a
/// restore takes it. `false` if the server does not let us.
fn renew_snapshot(remote: &mut dyn Remote, order: &Order, index: Index) -> Result<bool, CarryError> {
    let ours = objects_of(order.generation, &order.root, |folder| remote.list(folder))?.newest();
    let others = newest_of_others(remote, order, usize::MAX)?;
    let Some(after) = others.filter(|others| Some(*others) >= ours) else { return Ok(true) };
    let object = Object::Snapshot { generation: order.generation, index };
    let path = order.path(&object.path());
    remote.set_modified(&path, after.saturating_add(1))?;
    Ok(modified(remote, &path)? > Some(after))
}

/// When anything of the other generations that a restore could take was last written, by the server's clock. Of those
/// that began before the present one, the last `earlier` are looked into, since there may be many: a generation's folder is
/// written to when it begins.
fn newest_of_others(
    remote: &mut dyn Remote,
    order: &Order,
    earlier: usize,
) -> Result<Option<i64>, RemoteError> {
    let ours = order.generation.to_string();
    let mut folders = listed(remote, &order.path(names::GENERATIONS))?;
    folders.sort_by_key(|folder| Reverse(folder.modified));
    let began = folders.iter().find(|folder| folder.name == ours).and_then(|folder| folder.modified);
    let is_early = |folder: &Entry| folder.modified.is_some() && folder.modified < began;
    folders.retain(|folder| folder.is_folder && folder.name != ours);
    let (early, later): (Vec<_>, Vec<_>) = folders.into_iter().partition(is_early);
    let mut times = None;
    for folder in later.into_iter().chain(early.into_iter().take(earlier)) {
        let Ok(other) = folder.name.parse() else { continue };
        let objects = objects_of(other, &order.root, |folder| listed(remote, folder))?;
        if !objects.snapshots().is_empty() {
            times = times.max(objects.newest());
        }
    }
    Ok(times)
}

/// What is in a folder; nothing if it cannot be listed, and so not be restored.
fn listed(remote: &mut dyn Remote, folder: &str) -> Result<Vec<Entry>, RemoteError> {
    let mut entries = match remote.list(folder) {
        Err(error) if error.kind == FailureKind::Denied => Vec::new(),
        entries => entries?,
    };
    entries.truncate(MOST_OBJECTS);
    Ok(entries)
}

/// When a file was last written, by the server's clock. What else is in its folder may be left over from a time when that
/// was ahead.
fn modified(remote: &mut dyn Remote, path: &str) -> Result<Option<i64>, RemoteError> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    Ok(remote.list(folder)?.into_iter().find(|entry| entry.name == name).and_then(|entry| entry.modified))
}
