//! One database: whether it is there, whether we hold it, what was copied, and when its WAL is checkpointed.
//!
//! A source decides; what takes time (attaching, fsyncs, checkpoints) goes to a worker as a [`LocalJob`], one at a
//! time. Its turn never waits for anything.

mod apart;
mod attach;
mod breaks;
mod capture;
mod checkpointer;
mod compare;
mod durability;
mod emptying;
mod found;
mod guard;
mod held;
mod held_files;
mod inspect;
mod job;
mod kept;
mod kept_out;
mod leave;
mod left_behind;
mod let_go;
mod loan;
mod look;
mod newcomer;
mod outcome;
mod overwritten;
mod proof;
mod recheck;
mod refusal;
mod resting;
mod rights;
mod room;
mod round;
mod scrub;
mod table;
mod turn;
mod visits;
mod went_on;
mod written_over;

pub use attach::{AttachOutcome, AttachRequest, Attached, attach};
pub use capture::{Look, LookError};
pub use checkpointer::Checkpointer;
pub use compare::{Compared, Doubt, compare};
pub use held_files::HeldFiles;
pub use inspect::{Inspection, InspectionError, Suspicion, inspect};
pub use job::{CheckpointFailure, LocalJob, LocalOutcome};
pub use leave::{LeaveOutcome, LeaveRequest, leave};
pub use let_go::{LetGoOutcome, LetGoRequest, Resting, Stay, let_go};
pub use proof::stamp_at;
pub use refusal::Refusal;
pub use round::{RoundPlan, RoundReport, round};

use crate::core::checkpoint::{CheckpointPolicy, CheckpointState};
use crate::core::evidence::Sighting;
use crate::core::names;
use crate::core::pace::Pace;
use crate::core::position::Index;
use crate::core::settling::Settling;
use crate::core::shadow::ShadowExtent;
use crate::core::space::SpaceLimits;
use crate::core::status::WriteLockHolds;
use crate::core::sync::{Break, Dirty};
use crate::core::wal_index::WalExtent;
use crate::database_file::DatabaseFile;
use crate::disk::Disk;
use crate::shadow::ShadowWal;
use apart::Apart;
use durability::DurabilityWork;
use emptying::Emptying;
use left_behind::{LeftBehind, Paths};
use loan::Loan;
use log::{error, info, warn};
use recheck::Recheck;
use room::Room;
use scrub::ScrubWork;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::TableWork;
use written_over::WrittenBeside;

/// A commit frame can be in the WAL before it is in the wal-index, and no event follows: the first pause before
/// asking again, doubled each time.
const IN_FLIGHT_PAUSE: Duration = Duration::from_micros(50);
/// While a transaction is being written, each page is an event. Up to this pause we listen to the clock instead.
const DEAF_PAUSE: Duration = Duration::from_millis(2);
/// The same, after the database file was written: a checkpoint says only later that it is done.
const BACKFILL_PAUSE: Duration = Duration::from_micros(100);
/// The longest pause then: a checkpoint may wait for somebody else's reader for hours, and asks for its lock as often.
const LONGEST_BACKFILL_PAUSE: Duration = Duration::from_millis(100);
/// Asking again about frames in flight ends at this pause; the safety look does the rest.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_secs(30);
/// After something failed: the first pause, doubled each time up to the longest.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(10);
/// As long as the pause is no longer than this, another process may be about to let go of its lock.
const BRIEF: Duration = Duration::from_millis(400);
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
    /// A worker has what we hold, for a round.
    Lent,
    /// There is one, but it cannot be attached to now.
    Refused(Refusal),
}

/// What a source does, as far as it fails and works again on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Look,
    Hold,
    Checkpoint,
    LetGo,
    BeginGeneration,
    Rights,
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
    /// When it is asked what a checkpoint of the application has done.
    backfill_at: Option<Recheck>,
    pace: Pace,
    /// When the guard is brought in place again, if it is not.
    place_at: Option<Recheck>,
    retry: Option<Recheck>,
    wal_index: PathBuf,
    extent: WalExtent,
    /// Committed bytes that the last turn left uncopied, and since when there are any.
    uncopied: Option<(u64, Instant)>,
    /// The last turn that found everything committed in the shadow.
    up_to_date_at: Option<Instant>,
    looks: u32,
    /// The last look did, and nothing was lent since.
    is_caught_up: bool,
    checkpoint: CheckpointState,
    urgent_next: bool,
    needs_sync: bool,
    forced_break: Option<Break>,
    /// Begins a new generation at the next turn, or at `break_at`.
    requested_break: Option<Break>,
    /// The pages of the file are to tell who has written it.
    to_inspect: Option<Suspicion>,
    /// What the page table is to settle at the next turn.
    to_compare: Option<Break>,
    /// When, where that has to be repeated.
    compare_at: Option<Recheck>,
    /// A generation has begun, and until a look succeeds in it the next one must not begin earlier.
    break_at: Option<Recheck>,
    /// Lets go of the database once nothing is lent any more.
    leaving: Option<Break>,
    loan: Loan,
    /// The WAL of the file that was at the database's path before, while it is still there.
    left: Option<LeftBehind>,
    /// The file that was at the database's path before, while another process has it open.
    used: Option<DatabaseFile>,
    /// Somebody has opened the database with the WAL of the file that was there before.
    is_mixed: bool,
    /// The file and who was there, when that was last looked at.
    sighting: Option<Sighting>,
    /// What nobody is known to have written, until its pages are asked.
    written_beside: Option<WrittenBeside>,
    /// Another content was put into the file beside those who have it open; the wal-index has the size of what was there
    /// before.
    is_written_over: bool,
    /// The WAL has no name at its path, and nobody who comes can read it.
    is_wal_elsewhere: bool,
    /// That could not be looked at when there was reason to.
    look_around_at: Option<Recheck>,
    /// Of who works with another WAL; while it is held.
    apart: Option<Apart>,
    /// When it is asked again whether `-wal` and `-shm` have the database's rights; while it is held.
    rights_at: Option<Instant>,
    /// Nobody else is there: when we let go.
    let_go_at: Option<Instant>,
    /// Since when nobody else was there, nor has written.
    quiet_since: Option<Instant>,
    let_go_again: Option<Recheck>,
    /// Somebody has asked to let go, and nobody has come since.
    is_told_to_let_go: bool,
    /// Why we did not let go the last time.
    stay: Option<Stay>,
    /// When a file that has changed while nobody held it is opened.
    settle_at: Option<Instant>,
    /// How it changes until then.
    settling: Option<Settling>,
    is_needed: bool,
    behind: u64,
    lets_fill: bool,
    gaps: u32,
    breaks: u32,
    last_break: Option<Break>,
    holds: WriteLockHolds,
    table: TableWork,
    scrub: ScrubWork,
    durability: DurabilityWork,
    emptying: Emptying,
    room: Room,
    problems: BTreeMap<Task, String>,
}

impl Source {
    /// A source that has not looked yet.
    pub fn new(settings: SourceSettings, disk: Arc<dyn Disk>) -> Self {
        let wal = names::beside(&settings.database, "-wal");
        let wal_index = names::beside(&settings.database, "-shm");
        Source {
            settings,
            wal,
            disk,
            state: State::Detached,
            job_in_flight: false,
            dirty: Dirty::ALL,
            hot: false,
            recheck: None,
            backfill_at: None,
            pace: Pace::default(),
            place_at: None,
            retry: None,
            wal_index,
            extent: WalExtent::default(),
            uncopied: None,
            up_to_date_at: None,
            looks: 0,
            is_caught_up: false,
            checkpoint: CheckpointState::new(),
            urgent_next: false,
            needs_sync: false,
            forced_break: None,
            requested_break: None,
            to_inspect: None,
            to_compare: None,
            compare_at: None,
            break_at: None,
            leaving: None,
            loan: Loan::default(),
            left: None,
            used: None,
            is_mixed: false,
            sighting: None,
            written_beside: None,
            is_written_over: false,
            is_wal_elsewhere: false,
            look_around_at: None,
            apart: None,
            rights_at: None,
            let_go_at: None,
            quiet_since: None,
            let_go_again: None,
            is_told_to_let_go: false,
            stay: None,
            settle_at: None,
            settling: None,
            is_needed: false,
            behind: 0,
            lets_fill: false,
            gaps: 0,
            breaks: 0,
            last_break: None,
            holds: WriteLockHolds::default(),
            table: TableWork::default(),
            scrub: ScrubWork::default(),
            durability: DurabilityWork::default(),
            emptying: Emptying::default(),
            room: Room::default(),
            problems: BTreeMap::new(),
        }
    }

    /// The database file.
    pub fn database(&self) -> &Path {
        &self.settings.database
    }
    fn paths(&self) -> Paths<'_> {
        let SourceSettings { database, meta, .. } = &self.settings;
        Paths { database, wal: &self.wal, meta, disk: &*self.disk }
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
    /// once in this generation.
    pub fn descriptor(&self) -> Option<DatabaseFile> {
        match &self.state {
            State::Attached(attached) if self.is_certain() && !self.shuts_out() => {
                Some(attached.descriptor.clone())
            }
            _ => None,
        }
    }
    /// Whether SQLite can have written nothing into the database file that will not be in the shadow after the next look,
    /// and nobody else has.
    pub fn is_certain(&self) -> bool {
        match &self.state {
            State::Attached(attached) => attached.capture.guarded && !self.is_broken(),
            State::Resting(_) => true,
            _ => false,
        }
    }
    /// Whether continuity is lost or in doubt, and what follows has not been done yet.
    fn is_broken(&self) -> bool {
        self.requested_break.is_some() || self.is_comparing()
    }
    /// The wal-index at the last look.
    pub fn wal_extent(&self) -> WalExtent {
        self.extent
    }
    /// Committed bytes that are seen and not copied yet, and since when there are any.
    pub fn uncopied(&self) -> Option<(u64, Instant)> {
        self.uncopied
    }
    /// Whether its pages are being compared with the page table, or will be.
    pub fn is_comparing(&self) -> bool {
        self.to_compare.is_some() || self.to_inspect.is_some()
    }
    /// How many looks have found everything committed in the shadow. What was in the file before the last one is in it.
    pub fn looks(&self) -> u32 {
        self.looks
    }
    /// How often the database may have been checkpointed beyond what was copied, and the generation may go on all the
    /// same: what was read of the file before, and what is read after it, are of no one time.
    pub fn gaps(&self) -> u32 {
        self.gaps
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
        self.dirty.rights |= dirty.rights;
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
