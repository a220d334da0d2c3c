//! Leaving a database whose file is not at its path any more as SQLite's last close would have left it: with everything
//! in the file, wherever that is by now.

use super::attach::Attached;
use super::capture::LookError;
use super::checkpointer::Checkpointer;
use super::held::Held;
use super::inspect::{Inspection, inspect};
use super::kept;
use super::kept_out;
use super::left_behind::{Content, Fate, LeftBehind, Paths, Seen};
use super::newcomer::{Door, Newcomer};
use super::proof;
use super::round::{Stop, copy_all, sync_shadow};
use super::visits::Visits;
use crate::core::evidence::Sighting;
use crate::core::names;
use crate::core::sync::Break;
use crate::core::wal_index::WalExtent;
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::disk::Disk;
use crate::locks;
use log::{info, warn};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long those are waited for who look into a file that was just renamed.
const VISIT: Duration = Duration::from_secs(3);
/// How often it is asked whether they have gone, or another file has come to the path, which must not meet our WAL.
const VISIT_PAUSE: Duration = Duration::from_millis(1);

/// Among so many names, another one of a file is looked for.
const MOST_NAMES: usize = 10_000;

/// What a worker needs to leave.
pub struct LeaveRequest {
    /// What is held.
    pub attached: Box<Attached>,
    /// Why it is left.
    pub reason: Break,
    /// The database's path.
    pub database: PathBuf,
    /// Its `-wal`.
    pub wal: PathBuf,
    /// Our state.
    pub meta: PathBuf,
    /// Where our state is.
    pub disk: Arc<dyn Disk>,
    /// The file when it was last seen, and who was there.
    pub seen: Option<Sighting>,
    /// Its path.
    pub door: Door,
}

/// What is left of a database. Nothing is held any more.
pub struct LeaveOutcome {
    /// Why it was left.
    pub reason: Break,
    /// Its WAL, as long as that has to be looked after.
    pub left: Option<LeftBehind>,
    /// The file, if it still has a name and another process has it open.
    pub used: Option<DatabaseFile>,
}

/// What is in the file that is left.
#[derive(PartialEq, Eq)]
enum Course {
    /// Everything; its WAL may be emptied.
    Complete,
    /// Not everything; its WAL continues it.
    Continued,
    /// What others have written; its WAL does not continue it.
    Changed,
}

/// Leaves.
pub fn leave(request: LeaveRequest) -> LeaveOutcome {
    let LeaveRequest { mut attached, reason, database, wal, meta, disk, seen, door } = request;
    let at = Paths { database: &database, wal: &wal, meta: &meta, disk: &*disk };
    // From before it is asked who is there.
    let visits = Visits::of(&attached.descriptor).ok();
    await_visitors(&attached, at);
    let aside = door.make_way(&attached, at);
    // As long as the door is shut, nobody opens what is at the path with the old WAL.
    let is_entered = is_entered(&attached, &door, at);
    let has_name = attached.descriptor.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
    let is_used = locks::is_shared(&attached.descriptor).unwrap_or(true);
    let may_complete = has_one_name(&attached.descriptor)
        && !is_used
        && !is_entered
        && (reason != Break::WalReplaced || aside.is_some());
    let mut course = match may_complete {
        true => bring_in(&mut attached, at, seen.as_ref(), &door),
        false => Course::Continued,
    };
    let is_whole = attached.extent().is_ok_and(|extent| extent.left() == 0);
    let Attached { query, write_lock, checkpointer, capture, guard, descriptor, lock, apart: _ } = *attached;
    let generation = capture.shadow.extent().generation;
    let mut others = Some((query, write_lock));
    if course == Course::Complete {
        others = None;
        if let Err(error) = empty(checkpointer.as_deref(), capture.live_file()) {
            warn!("{}: cannot empty the -wal of the file that was there: {error}", database.display());
            course = Course::Continued;
        }
    }
    let mut left = capture.into_live().map(|wal| {
        // A program that is still there may go on writing into an empty one.
        let is_empty = !is_used && wal.metadata().is_ok_and(|metadata| metadata.len() == 0);
        let is_complete = course == Course::Complete || is_empty;
        let content = if is_complete { Content::InDatabase } else { Content::InWal };
        let seen = Seen::now(&descriptor).filter(|_| has_name && course != Course::Changed);
        LeftBehind {
            identity: Some(descriptor.identity()),
            database: Some(descriptor.clone()),
            seen,
            is_used,
            content,
            ..LeftBehind::of(wal, generation)
        }
    });
    match (&mut left, aside) {
        (Some(left), Some(aside)) if left.content == Content::InWal => left.content = Content::Named(aside),
        (Some(left), None) if left.content == Content::InWal => left.name(at),
        // There is nothing in it any more.
        (Some(left), Some(aside)) => drop(kept::remove_name(&aside, &left.wal)),
        _ => {}
    }
    // The new file stays locked until our connections are closed: a program that came in before would join our `-shm`.
    drop((others, checkpointer));
    kept_out::after_closing(&descriptor);
    door.keep_out(at.database);
    let fate = left.as_mut().map(|left| {
        left.visits = visits.filter(|_| is_used && locks::all_share_index(&descriptor, guard.index().file()));
        remember(left, at);
        if course == Course::Complete {
            info!("{}: everything committed is in the file that was there", database.display());
        }
        // The source that holds what has come to the path may have heard of it meanwhile.
        if is_entered { left.mixed(at) } else { left.settle(at, door.keep_out(at.database).file()) }
    });
    if has_name && !is_whole && !is_used && matches!(fate, Some(Fate::Gone | Fate::MovedAway(_))) {
        let name = database.display();
        warn!(
            "{name}: its last commits could not be brought into the file that was there: that -wal has them"
        );
    }
    let is_back = matches!(fate, Some(Fate::Back | Fate::BackChanged));
    let waits = matches!(fate, Some(Fate::NoDatabase | Fate::Later(_)));
    drop((fate, guard));
    door.let_in();
    if let Some(left) = &left {
        left.save_removed(at);
    }
    let is_elsewhere = has_name && FileIdentity::of_path(at.database) != Some(descriptor.identity());
    let used = Some(descriptor).filter(|_| is_used && is_elsewhere);
    drop(lock);
    // What was judged once is not judged again: its application may be at work by then.
    let reason = if is_back { Break::DatabaseMoved } else { reason };
    LeaveOutcome { reason, left: left.filter(|_| waits), used }
}

/// Who renames a database often looks into it at once. While nothing is at the path, they are waited for: what is in the
/// WAL can only be brought in when they have gone.
fn await_visitors(attached: &Attached, at: Paths) {
    let is_visited = || {
        has_one_name(&attached.descriptor)
            && FileIdentity::of_path(at.database).is_none()
            && locks::is_shared(&attached.descriptor).unwrap_or(false)
    };
    if !is_visited() {
        return;
    }
    info!("{}: was renamed, and another process has it open: waiting a moment", at.database.display());
    let begun = Instant::now();
    while begun.elapsed() < VISIT && is_visited() {
        thread::sleep(VISIT_PAUSE);
    }
}

/// Keeps what the next run must know of the WAL.
fn remember(left: &LeftBehind, at: Paths) {
    let Some(database) = &left.database else { return };
    if Held::is_mixed(at, database.metadata()) {
        return;
    }
    let keep = || {
        let held = Held::of(&database.metadata()?, &left.wal.metadata()?);
        held.left(left.seen.map(|seen| seen.stamp), left.is_used).keep(at.disk, at.meta)
    };
    let result = match left.content {
        Content::InDatabase => Held::forget(at.disk, at.meta),
        _ => keep(),
    };
    if let Err(error) = result {
        // It counts in this run all the same.
        warn!("{}: cannot write {}: {error}", at.database.display(), at.meta.display());
    }
}

/// Copies everything, and brings it into the file, with all others locked out.
fn bring_in(attached: &mut Attached, at: Paths, seen: Option<&Sighting>, door: &Door) -> Course {
    match try_bring_in(attached, at, seen, door) {
        Ok(course) => course,
        Err(Stop::Failed(error)) => {
            let name = at.database.display();
            warn!("{name}: cannot bring what is in the -wal into the file that was there: {error}");
            Course::Continued
        }
        Err(Stop::Later | Stop::Broken(_)) => Course::Continued,
    }
}

fn try_bring_in(
    attached: &mut Attached,
    at: Paths,
    seen: Option<&Sighting>,
    door: &Door,
) -> Result<Course, Stop> {
    if !locks::lock_out(&attached.descriptor).map_err(failed)? {
        return Ok(Course::Continued);
    }
    let live = attached.capture.live_file().map(FileIdentity::of_file).transpose().map_err(failed)?;
    if let Some(wal) = attached.capture.live_file().and_then(name_of)
        && let Some(process) = locks::process_with(&wal)
    {
        info!("{}: {process} has its WAL open, though without a lock", at.database.display());
        return Ok(left_alone(attached, seen));
    }
    if has_another_log(&attached.descriptor, live) {
        return Ok(left_alone(attached, seen));
    }
    let wal = attached.capture.live_file().and_then(|wal| proof::stamp_of(wal).ok());
    // What was behind its last commit then is no commit of others.
    let is_known =
        wal.is_some_and(|wal| attached.capture.in_flight.is_some_and(|seen| seen.is_but_for_its_name(wal)));
    match copy_all(attached, None) {
        // A WAL without a name is not copied any more, but it is as good as before.
        Ok(_) | Err(Stop::Broken(Break::WalReplaced)) => {}
        Err(stop) => return Err(stop),
    }
    sync_shadow(attached)?;
    let extent = attached.extent()?;
    // Whoever opened the file where it is now has another -shm, and commits to our WAL if that was moved along.
    let failed_to_look = |error: LookError| Stop::Failed(error.to_string());
    if !is_known && attached.capture.has_commit_behind(extent).map_err(failed_to_look)? {
        info!("{}: others have committed to its WAL under another name", at.database.display());
        return Ok(left_alone(attached, seen));
    }
    if extent.left() > 0 && !is_unchanged(attached, seen) {
        return Ok(Course::Changed);
    }
    // What whoever has come to the path commits to our WAL is another file's.
    if is_entered(attached, door, at) {
        return Ok(Course::Continued);
    }
    // On a slot, our own lock would keep us from emptying the WAL.
    let is_settled = extent.left() == 0 && attached.guard.lets_restart();
    let settled = if is_settled { Some(extent) } else { settle(attached)? };
    let Some(settled) = settled else { return Err(Stop::Later) };
    attached.descriptor.sync_data().map_err(failed)?;
    let is_complete = !is_entered(attached, door, at) && attached.extent()? == settled;
    Ok(if is_complete { Course::Complete } else { Course::Continued })
}

/// Whether somebody has opened what has come to the path with the old `-shm`, and so with the old WAL. If nobody has it
/// open, nobody will from here on.
fn is_entered(attached: &Attached, door: &Door, at: Paths) -> bool {
    matches!(door.keep_out(at.database), Newcomer::Busy)
        && locks::is_index_used(attached.guard.index().file()).unwrap_or(true)
}

fn settle(attached: &mut Attached) -> Result<Option<WalExtent>, Stop> {
    let Some(checkpointer) = &attached.checkpointer else { return Err(Stop::Later) };
    let checkpoint = checkpointer.begin()?;
    Ok(attached.guard.settle(&attached.query, Some(checkpoint))?)
}

/// The name that a file has now. The kernel tells the one that it was opened by, also when that is gone and another one in
/// its folder is left.
fn name_of(file: &File) -> Option<PathBuf> {
    let ours = FileIdentity::of_file(file).ok()?;
    let told = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if FileIdentity::of_path(&told) == Some(ours) {
        return Some(told);
    }
    let entries = std::fs::read_dir(told.parent()?).ok()?.flatten().take(MOST_NAMES);
    let mut others = entries.filter(|entry| entry.ino() == ours.inode()).map(|entry| entry.path());
    others.find(|name| FileIdentity::of_path(name) == Some(ours))
}

/// Whether a file has one name, and it is known: beside another one there may be a WAL that we do not see.
fn has_one_name(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 1) && name_of(file).is_some()
}

/// Whether others have worked on the file under the name that it has now: their commits may still be in a WAL of that
/// name, since our own lock kept their last close from bringing them into the file. One that this process has open is of
/// another database of this agent, which was there before.
fn has_another_log(database: &File, ours: Option<FileIdentity>) -> bool {
    let Some(name) = name_of(database) else { return true };
    ["-wal", "-journal"].iter().any(|suffix| {
        let path = names::beside(&name, suffix);
        let is_empty = std::fs::metadata(&path).map_or(true, |metadata| metadata.len() == 0);
        let there = FileIdentity::of_path(&path);
        !is_empty && there != ours && !locks::is_open_here(&path)
    })
}

/// Neither the file nor its WAL is touched.
fn left_alone(attached: &mut Attached, seen: Option<&Sighting>) -> Course {
    if is_unchanged(attached, seen) { Course::Continued } else { Course::Changed }
}

/// Whether nobody but us, and who had the WAL, has written the file: then its WAL continues it. In doubt it does not, and
/// is kept: what others have written could be nowhere else.
fn is_unchanged(attached: &mut Attached, seen: Option<&Sighting>) -> bool {
    let Some(now) = attached.sight() else { return false };
    if let Some(seen) = seen.filter(|seen| seen.stamp.inode == now.stamp.inode) {
        if seen.stamp.is_but_for_its_name(now.stamp) && seen.header == now.header {
            return true;
        }
        if (seen.backfilled, seen.cut_off) == (now.backfilled, now.cut_off) {
            return false;
        }
    }
    // A checkpoint of its own WAL has ended since, or was cut off.
    matches!(inspect(attached), Inspection::Whole)
}

/// Empties the WAL: whatever it lies beside from now on, nothing in it is read as that file's.
fn empty(last: Option<&Checkpointer>, wal: Option<&File>) -> Result<(), String> {
    let (Some(last), Some(wal)) = (last, wal) else { return Ok(()) };
    last.empty_wal().map_err(|error| error.to_string())?;
    match wal.metadata().map_err(|error| error.to_string())?.len() {
        0 => wal.sync_all().map_err(|error| error.to_string()),
        length => Err(format!("it still has {length} bytes")),
    }
}

fn failed(error: io::Error) -> Stop {
    Stop::Failed(error.to_string())
}
