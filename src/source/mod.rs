//! One database: whether it is there, whether we hold it, what was copied, and when its WAL is checkpointed.
//!
//! A source decides; what takes time (attaching, fsyncs, checkpoints) goes to a worker as a [`LocalJob`], one at a
//! time. Its turn never waits for anything.

mod attach;
mod breaks;
mod capture;
mod compare;
mod guard;
mod job;
mod let_go;
mod look;
mod outcome;
mod proof;
mod recheck;
mod refusal;
mod resting;
mod room;
mod round;
mod table;
mod yielding;

pub use attach::{AttachOutcome, AttachRequest, Attached, FileIdentity, attach};
pub use capture::{Look, LookError};
pub use compare::{Doubt, compare};
pub use job::{CheckpointFailure, LocalJob, LocalOutcome};
pub use let_go::{LetGoOutcome, LetGoRequest, Resting, Stay, let_go};
pub use proof::stamp_at;
pub use refusal::Refusal;
pub use round::{UrgentReport, checkpoint_patiently, urgent_round};

use crate::core::checkpoint::{CheckpointPolicy, CheckpointState, Extent, Round};
use crate::core::evidence::Sighting;
use crate::core::pace::Pace;
use crate::core::position::{Generation, Index};
use crate::core::shadow::ShadowExtent;
use crate::core::space::SpaceLimits;
use crate::core::status::WriteLockHolds;
use crate::core::sync::{Break, Dirty};
use crate::disk::Disk;
use crate::shadow::ShadowWal;
use crate::sqlite::WalExtent;
use log::{error, info, warn};
use look::{LONGEST_MOVE_PAUSE, MOVE_PAUSE};
use recheck::Recheck;
use room::Room;
use round::LOCK_PATIENCE;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use table::TableWork;
use yielding::Aside;

/// A commit frame can be in the WAL before it is in the wal-index, and no event follows: the first pause before
/// asking again, doubled each time.
const IN_FLIGHT_PAUSE: Duration = Duration::from_micros(50);
/// While a transaction is being written, each page is an event. Up to this pause we listen to the clock instead.
const DEAF_PAUSE: Duration = Duration::from_millis(2);
/// The same, after the database file was written: a checkpoint says only later that it is done.
const BACKFILL_PAUSE: Duration = Duration::from_micros(100);
/// Asking again after the database file was written ends at this pause.
const BACKFILL_PATIENCE: Duration = Duration::from_secs(1);
/// Asking again about frames in flight ends at this pause; the safety look does the rest.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_secs(30);
/// After something failed: the first pause, doubled each time up to the longest.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(10);
/// A break that comes back in a generation before anything was copied in it: the first pause before the next one.
const BREAK_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_BREAK_PAUSE: Duration = Duration::from_secs(300);

/// What a source is configured to do.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// The database file.
    pub database: PathBuf,
    /// Our state.
    pub meta: PathBuf,
    /// When to checkpoint.
    pub checkpoint: CheckpointPolicy,
    /// The longest that writers may wait for us.
    pub max_write_block: Duration,
    /// How long nobody else must have had it open before we let go of it; `None` for never.
    pub let_go_after: Option<Duration>,
    /// How much of the disk the shadow WAL may take.
    pub space: SpaceLimits,
}

/// Where a source stands. Each change is logged once.
pub enum State {
    /// There is no database; it is waited for.
    Absent,
    /// There may be one; we hold nothing of it, and attach.
    Detached,
    /// Nobody has it open, not even we. Its file is what was copied, or will be seen to have changed.
    Resting(Box<Resting>),
    /// We hold it.
    Attached(Box<Attached>),
    /// A worker has what we hold, for an urgent round.
    Lent,
    /// There is one, but it cannot be attached to now.
    Refused(Refusal),
}

/// What a source does, as far as it fails and works again on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Look,
    MoveReader,
    Checkpoint,
    BeginGeneration,
}

/// One database.
pub struct Source {
    settings: SourceSettings,
    wal: PathBuf,
    disk: Arc<dyn Disk>,
    state: State,
    job_in_flight: bool,
    dirty: Dirty,
    /// More is known to be there; take another turn at once.
    hot: bool,
    recheck: Option<Recheck>,
    pace: Pace,
    move_at: Option<Recheck>,
    moved_at: Option<Instant>,
    /// The wal-index when the reader was last moved to read lock 0, and how often it was then.
    confirmed: (WalExtent, usize),
    retry: Option<Recheck>,
    /// When it is asked whether a checkpoint waits for our reader.
    yield_at: Option<Recheck>,
    aside: Option<Aside>,
    /// The wal-index when it was last asked whether a checkpoint waits.
    yielded_at: Option<WalExtent>,
    wal_index: PathBuf,
    extent: WalExtent,
    /// The last turn that found everything committed in the shadow.
    up_to_date_at: Option<Instant>,
    checkpoint: CheckpointState,
    urgent_next: bool,
    needs_sync: bool,
    forced_break: Option<Break>,
    /// Begins a new generation at the next turn, or at `break_at`.
    requested_break: Option<Break>,
    /// What the page table is to settle at the next turn.
    to_compare: Option<Break>,
    /// A generation has begun, and until a look succeeds in it the next one must not begin earlier.
    break_at: Option<Recheck>,
    /// Lets go of the database once nothing is lent any more.
    leaving: Option<Break>,
    /// The file and who was there, when that was last looked at.
    sighting: Option<Sighting>,
    /// Nobody else is there: when we let go.
    let_go_at: Option<Instant>,
    let_go_again: Option<Recheck>,
    /// Why we did not let go the last time.
    stay: Option<Stay>,
    /// When a file that has changed while nobody held it is opened.
    settle_at: Option<Instant>,
    is_needed: bool,
    descriptor: Weak<File>,
    breaks: u32,
    last_break: Option<Break>,
    holds: WriteLockHolds,
    table: TableWork,
    room: Room,
    problems: BTreeMap<Task, String>,
}

impl Source {
    /// A source that has not looked yet.
    pub fn new(settings: SourceSettings, disk: Arc<dyn Disk>) -> Self {
        let mut wal = settings.database.clone().into_os_string();
        wal.push("-wal");
        let mut wal_index = settings.database.clone().into_os_string();
        wal_index.push("-shm");
        Source {
            settings,
            wal: wal.into(),
            disk,
            state: State::Detached,
            job_in_flight: false,
            dirty: Dirty::ALL,
            hot: false,
            recheck: None,
            pace: Pace::default(),
            move_at: None,
            moved_at: None,
            confirmed: (WalExtent { frames: 0, backfilled: 0 }, 0),
            retry: None,
            yield_at: None,
            aside: None,
            yielded_at: None,
            wal_index: wal_index.into(),
            extent: WalExtent { frames: 0, backfilled: 0 },
            up_to_date_at: None,
            checkpoint: CheckpointState::new(),
            urgent_next: false,
            needs_sync: false,
            forced_break: None,
            requested_break: None,
            to_compare: None,
            break_at: None,
            leaving: None,
            sighting: None,
            let_go_at: None,
            let_go_again: None,
            stay: None,
            settle_at: None,
            is_needed: false,
            descriptor: Weak::new(),
            breaks: 0,
            last_break: None,
            holds: WriteLockHolds::default(),
            table: TableWork::default(),
            room: Room::default(),
            problems: BTreeMap::new(),
        }
    }

    /// The database file.
    pub fn database(&self) -> &Path {
        &self.settings.database
    }
    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }
    /// What replicas compare themselves with; `None` while we do not hold the database.
    pub fn shadow(&self) -> Option<&ShadowWal> {
        match &self.state {
            State::Attached(attached) => Some(&attached.capture.shadow),
            State::Resting(resting) => Some(&resting.shadow),
            _ => None,
        }
    }
    /// The extent of the shadow, as [`Source::shadow`].
    pub fn shadow_extent(&self) -> Option<&ShadowExtent> {
        self.shadow().map(ShadowWal::extent)
    }
    /// The one descriptor of the database file, for reading a snapshot. `None` until everything committed was copied
    /// once in this generation: before, the file may hold what is newer than the shadow.
    pub fn descriptor(&self) -> Option<Arc<File>> {
        match &self.state {
            State::Attached(attached) if self.is_certain() => Some(Arc::clone(&attached.descriptor)),
            _ => None,
        }
    }
    /// Whether the database file holds nothing that is newer than the shadow.
    pub fn is_certain(&self) -> bool {
        match &self.state {
            State::Attached(attached) => attached.capture.guarded && !self.is_broken(),
            State::Resting(_) => true,
            _ => false,
        }
    }
    /// Whether continuity is lost, and what follows has not been done yet.
    fn is_broken(&self) -> bool {
        self.requested_break.is_some() || self.to_compare.is_some()
    }
    /// The wal-index at the last look.
    pub fn wal_extent(&self) -> WalExtent {
        self.extent
    }
    /// How often, and why last, continuity was lost.
    pub fn breaks(&self) -> (u32, Option<&Break>) {
        (self.breaks, self.last_break.as_ref())
    }
    /// How long writers waited for us.
    pub fn lock_holds(&self) -> WriteLockHolds {
        self.holds
    }
    /// What keeps the database from being followed, if anything does.
    pub fn problem(&self) -> Option<&str> {
        self.problems.values().next().map(String::as_str)
    }
    /// Whether everything that was committed before `then` is in the shadow for certain.
    pub fn holds_all_before(&self, then: Instant) -> bool {
        self.up_to_date_at.is_some_and(|at| at >= then)
    }

    /// Takes in what the watch saw.
    pub fn mark(&mut self, dirty: Dirty) {
        self.dirty.wal |= dirty.wal;
        self.dirty.database |= dirty.database;
        self.dirty.folder |= dirty.folder;
        self.dirty.closed |= dirty.closed;
    }

    /// Removes shadow files that neither a replica nor the page table needs any more.
    pub fn forget_before(&mut self, index: Index) {
        let shadow = match &mut self.state {
            State::Attached(attached) => &mut attached.capture.shadow,
            State::Resting(resting) => &mut resting.shadow,
            _ => return,
        };
        let before = shadow.extent().complete.len();
        if let Err(e) = shadow.forget_before(index) {
            warn!("{}: cannot remove an old shadow WAL: {e}; it stays", self.settings.database.display());
        }
        if shadow.extent().complete.len() < before {
            self.has_room_again();
        }
    }

    /// When the next turn is due though nothing happens.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Lent => None,
            State::Absent | State::Detached | State::Resting(_) | State::Refused(_) if self.is_busy() => None,
            State::Absent => self.dirty.any().then_some(now),
            State::Resting(_) => self.resting_timeout(now),
            State::Detached if self.settle_at.is_some() => self.resting_timeout(now),
            State::Refused(_) if self.room.given_up.is_some() => Some(now),
            State::Detached | State::Refused(_) => Some(self.retry.map_or(now, |retry| retry.at)),
            State::Attached(_) => self.attached_timeout(now),
        }
    }

    fn attached_timeout(&self, now: Instant) -> Option<Instant> {
        if self.leaving.is_some() && self.job_in_flight {
            return None;
        }
        if self.leaving.is_some() || self.dirty.folder {
            return Some(now);
        }
        if self.requested_break.is_some() {
            return Some(self.break_at.map_or(now, |r| r.at));
        }
        if self.to_compare.is_some() && self.is_busy() {
            return None;
        }
        if self.hot || self.dirty.any() || self.to_compare.is_some() {
            return Some(now);
        }
        if let Some(aside) = self.aside {
            return Some(aside.next);
        }
        let at = |recheck: Option<Recheck>| recheck.map(|r| r.at);
        let extent = self.checkpoint_extent();
        let checkpoint = self.checkpoint.next_timeout(&self.settings.checkpoint, extent);
        // A checkpoint waits for the reader to move up.
        let checkpoint = checkpoint.map(|due| at(self.move_at).map_or(due, |moves| due.max(moves)));
        let checkpoint = checkpoint.filter(|_| self.may_checkpoint());
        let let_go = self.let_go_at.filter(|_| !self.job_in_flight);
        let listens = self.pace.next_timeout(now);
        let times = [at(self.recheck), at(self.move_at), at(self.yield_at), checkpoint, let_go, listens];
        times.into_iter().flatten().min()
    }

    fn may_checkpoint(&self) -> bool {
        !self.job_in_flight && !self.problems.contains_key(&Task::Look)
    }

    /// Takes a turn: looks if there is reason to, and returns the job that is due. `generation` is for the case that
    /// a new one must begin.
    pub fn turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        let job = match &self.state {
            State::Attached(_) => self.attached_turn(now, generation),
            State::Lent => None,
            State::Absent | State::Detached | State::Resting(_) | State::Refused(_) => {
                self.attach_turn(now, generation)
            }
        };
        self.job_in_flight |= job.is_some();
        job
    }

    /// Whether a worker still has something of the last attachment.
    fn is_busy(&self) -> bool {
        self.job_in_flight || self.table.is_in_flight()
    }

    fn attach_turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        if !self.is_busy()
            && let Some(folder) = self.room.given_up.take()
        {
            return Some(LocalJob::Remove { paths: vec![folder], disk: Arc::clone(&self.disk) });
        }
        let is_due = match self.state {
            State::Absent => self.dirty.any(),
            _ if self.is_busy() => false,
            State::Resting(_) => self.is_wanted(now),
            State::Detached if self.settle_at.is_some() => self.is_wanted(now),
            _ => self.retry.is_none_or(|retry| now >= retry.at),
        };
        if self.is_busy() || !is_due {
            // A refused database may be written without a pause: it is tried again by the clock only.
            if matches!(self.state, State::Refused(_)) {
                self.dirty = Dirty::default();
            }
            return None;
        }
        (self.dirty, self.settle_at) = (Dirty::default(), None);
        if self.is_still_read() {
            self.refuse(Refusal::StillReading, now);
            return None;
        }
        let resting = match std::mem::replace(&mut self.state, State::Detached) {
            State::Resting(resting) => Some(resting),
            other => {
                self.state = other;
                None
            }
        };
        Some(LocalJob::Attach(AttachRequest {
            database: self.settings.database.clone(),
            wal: self.wal.clone(),
            meta: self.settings.meta.clone(),
            disk: Arc::clone(&self.disk),
            next_generation: generation,
            forced_break: self.forced_break.clone(),
            resting,
            is_needed: self.is_needed || self.requested_break.is_some(),
        }))
    }

    /// Whether a snapshot of the file at the path is still read through a descriptor of an earlier attachment: closing
    /// that would drop the locks of the next one.
    fn is_still_read(&self) -> bool {
        let identity = self.descriptor.upgrade().and_then(|file| FileIdentity::of_file(&file).ok());
        identity.is_some() && identity == FileIdentity::of_path(&self.settings.database)
    }

    fn attached_turn(&mut self, now: Instant, generation: Generation) -> Option<LocalJob> {
        if std::mem::take(&mut self.dirty.folder) && !self.is_at_path() {
            self.leaving = Some(Break::DatabaseReplaced);
        }
        if self.leaving.is_none() {
            self.look_around(now);
        }
        if self.leaving.is_some() {
            self.detach(now);
            return None;
        }
        if self.requested_break.is_some() && !self.begin_requested(now, generation) {
            return None;
        }
        if self.to_compare.is_some() {
            return self.compare_job(generation);
        }
        if self.aside.is_some() && !self.come_back(now) {
            return None;
        }
        let recheck_is_due = self.recheck.is_some_and(|r| now >= r.at);
        if self.dirty.any() || self.hot || recheck_is_due {
            self.look(now);
        }
        if self.move_at.is_some_and(|m| now >= m.at) {
            self.move_reader(now);
        }
        if self.yield_at.is_some_and(|y| now >= y.at) {
            self.yield_to_checkpoint(now);
        }
        let waits = self.job_in_flight || self.leaving.is_some() || self.aside.is_some();
        if waits { None } else { self.job(now).or_else(|| self.let_go_job(now)) }
    }

    fn is_at_path(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.is_at_path(&self.settings.database))
    }

    fn checkpoint_extent(&self) -> Extent {
        let index = self.shadow_extent().map_or(Index::ZERO, |extent| extent.index);
        Extent { index, frames: self.extent.frames, backfilled: self.extent.backfilled }
    }

    /// The job that is due while we hold the database and none is in flight.
    fn job(&mut self, now: Instant) -> Option<LocalJob> {
        let State::Attached(attached) = &mut self.state else { return None };
        let stale = attached.capture.shadow.take_stale();
        if !stale.is_empty() {
            return Some(LocalJob::Remove { paths: stale, disk: Arc::clone(&self.disk) });
        }
        if std::mem::take(&mut self.needs_sync) {
            match attached.capture.shadow.to_sync() {
                Some(sync) => return Some(LocalJob::Sync(sync)),
                None => self.move_at = Some(Recheck::now(now)),
            }
        }
        if std::mem::take(&mut self.urgent_next) {
            return self.urgent_job();
        }
        self.checkpoint_job(now)
    }

    fn checkpoint_job(&mut self, now: Instant) -> Option<LocalJob> {
        let extent = self.checkpoint_extent();
        if !self.may_checkpoint() {
            return None;
        }
        let round = self.checkpoint.due(&self.settings.checkpoint, extent, now)?;
        let State::Attached(attached) = &mut self.state else { return None };
        if !attached.guard.is_newest(&attached.capture, self.extent) && round == Round::Cooperative {
            // The move comes first.
            self.move_at.get_or_insert(Recheck::after(None, MOVE_PAUSE, LONGEST_MOVE_PAUSE, now));
            return None;
        }
        let sync = attached.capture.shadow.to_sync();
        let identity = FileIdentity::of_file(&attached.descriptor).ok()?;
        let checkpointer = attached.checkpointer.take()?;
        self.urgent_next = round == Round::Urgent;
        let stamp = self.sighting.filter(|sighting| sighting.alone).map(|sighting| sighting.stamp);
        let database = self.settings.database.clone();
        let patience = if self.urgent_next { LOCK_PATIENCE } else { Duration::ZERO };
        Some(LocalJob::Checkpoint { checkpointer, sync, database, identity, stamp, patience })
    }

    fn urgent_job(&mut self) -> Option<LocalJob> {
        Some(LocalJob::Urgent {
            attached: self.lend()?,
            database: self.settings.database.clone(),
            budget: self.settings.max_write_block,
        })
    }

    /// Everything that is held, for a worker.
    fn lend(&mut self) -> Option<Box<Attached>> {
        match std::mem::replace(&mut self.state, State::Lent) {
            State::Attached(attached) => Some(attached),
            other => {
                self.state = other;
                None
            }
        }
    }

    fn failed(&mut self, task: Task, problem: &str) {
        if self.problems.get(&task).is_none_or(|known| known != problem) {
            error!("{}: {problem}; it is tried again by itself", self.settings.database.display());
            self.problems.insert(task, problem.to_owned());
        }
    }

    fn solved(&mut self, task: Task) {
        if self.problems.remove(&task).is_some() && self.problems.is_empty() {
            info!("{}: works again", self.settings.database.display());
        }
    }
}
