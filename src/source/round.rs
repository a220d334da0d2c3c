//! Rounds beside writers that never pause: a checkpoint follows them, and in an urgent one the last frames are
//! checkpointed under the write lock.

use super::attach::Attached;
use super::capture::Look;
use super::checkpointer::patiently;
use super::guard::GuardError;
use crate::core::checkpoint::Round;
use crate::core::sync::Break;
use crate::core::wal_index::{Checkpointed, WalExtent};
use crate::locks::{self, Slot, cut_off};
use crate::processor::Stay;
use crate::sqlite::SqliteError;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a round tries to get the write lock.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// Before the lock is taken, the checkpoint follows the writers until so few frames are left: writing them takes a
/// small part of the budget.
const FEW_FRAMES: u32 = 200;
/// How long a round without the lock waits for a moment in which nothing is left, or nobody reads.
const WATCH: Duration = Duration::from_millis(10);
/// Writers that have committed nothing for so long, while nobody checkpoints, pause.
const REST: Duration = Duration::from_millis(2);
/// The pause between two looks at a checkpoint of many frames, whose first fsync takes longer.
const CHECKPOINT_PAUSE: Duration = Duration::from_micros(50);
/// How long is waited for a commit at the most, to see on which processor the writer does not run.
const SIGHT: Duration = Duration::from_micros(100);
/// Whoever was kept from the processor for so long may have been kept from it by the writer.
const INTERRUPTION: Duration = Duration::from_micros(5);
/// How often it is looked for after an interruption.
const MOST_SIGHTS: u32 = 4;
/// So few come from writers that pause, while a checkpoint follows them. Between two of their commits nothing is left, and
/// then no fsync is needed under the lock: that moment is tried for.
const SPARSE_FRAMES: u32 = 20;
/// How often the checkpoint follows the writers before the round gives up, or goes on with what is left.
const MOST_CHASES: u32 = 6;
/// Between two of them, where somebody else's reader was in the way.
const CHASE_PAUSE: Duration = Duration::from_millis(1);
/// A copy takes a few turns at the most: the bulk of it was done before.
const MOST_LOOKS: u32 = 64;

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundReport {
    /// Which one; `None` if it was to empty the WAL.
    pub round: Option<Round>,
    /// How long writers had to wait for us; `None` if we did not get the lock.
    pub held: Option<Duration>,
    /// Whether the next writer will restart the WAL.
    pub finished: bool,
    /// Whether writers went on committing meanwhile, and never paused but for a checkpoint.
    pub went_on: bool,
    /// What a look on the way found.
    pub broken: Option<Break>,
    /// What failed; the round is tried again.
    pub error: Option<String>,
}

/// Why a round stops before its end.
pub(super) enum Stop {
    /// Somebody was in the way, or the budget is used up. Nothing is lost; the round is tried again.
    Later,
    Broken(Break),
    Failed(String),
}

impl From<SqliteError> for Stop {
    fn from(error: SqliteError) -> Self {
        match error {
            SqliteError::Busy | SqliteError::Interrupted => Stop::Later,
            error => Stop::Failed(error.to_string()),
        }
    }
}

impl From<GuardError> for Stop {
    fn from(error: GuardError) -> Self {
        match error {
            GuardError::Sqlite(error) => error.into(),
            error => Stop::Failed(error.to_string()),
        }
    }
}

/// How a round beside writers that never pause is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundPlan {
    /// It follows the writers, once.
    Following {
        /// From so many frames on we checkpoint, because nobody else does.
        most_frames: u32,
    },
    /// It takes the write lock.
    Urgent {
        /// For so long at the most.
        budget: Duration,
    },
    /// It brings everything into the file and empties the WAL, because nobody could recover that.
    Emptying,
}

/// Carries out a round. Invariant: the WAL is held throughout, and the write lock is free when this returns.
pub fn round(attached: &mut Attached, database: &Path, plan: RoundPlan) -> RoundReport {
    let (mut held, mut has_paused) = (None, false);
    let before = attached.capture.shadow.extent().position();
    let (round, result) = match plan {
        RoundPlan::Following { most_frames } => {
            let has_come = follow(attached, database, most_frames, &mut has_paused);
            (Some(Round::Following), has_come.and_then(|has_come| has_come.then_some(()).ok_or(Stop::Later)))
        }
        RoundPlan::Urgent { budget } => (Some(Round::Urgent), urgent(attached, database, budget, &mut held)),
        RoundPlan::Emptying => (None, empty(attached, database)),
    };
    let went_on = attached.capture.shadow.extent().position() != before && !has_paused;
    let report = RoundReport { round, held, finished: result.is_ok(), went_on, broken: None, error: None };
    match result {
        Ok(()) | Err(Stop::Later) => report,
        Err(Stop::Broken(reason)) => RoundReport { broken: Some(reason), ..report },
        Err(Stop::Failed(error)) => RoundReport { error: Some(error), ..report },
    }
}

/// Follows the writers, and checkpoints the rest under the write lock; how long that was `held`, if we got it.
fn urgent(
    attached: &mut Attached,
    database: &Path,
    budget: Duration,
    held: &mut Option<Duration>,
) -> Result<(), Stop> {
    chase(attached, database)?;
    patiently(LOCK_PATIENCE, || attached.write_lock.begin_immediate())?;
    let locked = Instant::now();
    let result = locked_part(attached, database, budget);
    attached.write_lock.rollback();
    *held = Some(locked.elapsed());
    result?;
    // What was copied under the lock is made durable without it, before anything of the next WAL is copied.
    sync_shadow(attached)
}

/// Brings everything into the file and empties the WAL, while nobody reads or writes: with a reader it could not be emptied,
/// and what others recovered then would be laid over newer pages. Beside nobody, another file may just be copied over this
/// one: then it is let go of, which looks for that.
fn empty(attached: &mut Attached, database: &Path) -> Result<(), Stop> {
    let ours = shut_out_durably(attached)?;
    let settled = settle_shut(attached, database);
    attached.guard.let_in_readers(ours).map_err(GuardError::from)?;
    settled?;
    let Some(checkpointer) = &attached.checkpointer else { return Err(Stop::Later) };
    let emptied = checkpointer.empty_wal()?;
    attached.capture.is_unsummed = emptied.frames > 0;
    // A power cut must not bring back what lies over newer pages.
    sync_wal(attached)
}

/// Keeps readers out once everything is copied and durable, in the shadow and in the WAL: nobody has to wait for that. Tries
/// for a moment: writers that never pause leave gaps of microseconds.
fn shut_out_durably(attached: &mut Attached) -> Result<Slot, Stop> {
    let begun = Instant::now();
    let mut durable = None;
    while durable.is_none() || begun.elapsed() < WATCH {
        let copied = copy_all(attached, None)?;
        if durable != Some(copied.frames) {
            sync_shadow(attached)?;
            sync_wal(attached)?;
            durable = Some(copied.frames);
        }
        if let Some(ours) = attached.guard.shut_out_readers().map_err(GuardError::from)? {
            if attached.extent().is_ok_and(|extent| extent.frames == copied.frames) {
                return Ok(ours);
            }
            attached.guard.let_in_readers(ours).map_err(GuardError::from)?;
        }
        std::thread::yield_now();
    }
    Err(Stop::Later)
}

/// Brings everything into the file while nobody can commit, and goes to read lock 0: SQLite empties no WAL then that has come
/// since, for it would have to bring that in first.
fn settle_shut(attached: &mut Attached, database: &Path) -> Result<(), Stop> {
    if let Some(reason) = attached.replaced(database) {
        return Err(Stop::Broken(reason));
    }
    if !locks::is_shared(&attached.descriptor).unwrap_or(false) {
        return Err(Stop::Later);
    }
    // Whoever copies another file over this one may come as soon as they have gone: it is written at once.
    let is_in_file = attached.checkpoint_alone()?;
    attached.descriptor.sync_data().map_err(|error| Stop::Failed(error.to_string()))?;
    let extent = attached.extent()?;
    match is_in_file && bring_in_place(attached, extent)? {
        true => Ok(()),
        false => Err(Stop::Later),
    }
}

fn sync_wal(attached: &Attached) -> Result<(), Stop> {
    let synced = attached.capture.live_file().map_or(Ok(()), File::sync_all);
    synced.map_err(|error| Stop::Failed(error.to_string()))
}

/// Waits for the moment between two commits in which the application has checkpointed everything: then it restarts the
/// WAL with the next one. Where the application leaves much, we checkpoint. Whether it came; and whether writers paused.
fn follow(
    attached: &mut Attached,
    database: &Path,
    most_frames: u32,
    has_paused: &mut bool,
) -> Result<bool, Stop> {
    let _stay = stay_apart(attached);
    let until = Instant::now() + WATCH;
    // On read lock 0 alone, we would keep the application from its checkpoint all the while.
    attached.guard.forbid_restart().map_err(GuardError::from)?;
    let extent = copy_all(attached, None)?;
    if extent.frames >= most_frames && extent.left() > FEW_FRAMES {
        sync_shadow(attached)?;
        checkpoint(attached, database, None, Duration::ZERO)?;
    }
    let mut news = Instant::now();
    while Instant::now() < until {
        let copied = copy_all(attached, None)?;
        while let Ok(extent) = attached.extent() {
            // Everything is copied, and held by our slot since.
            if extent.frames == copied.frames
                && extent.is_backfilled()
                && attached.guard.let_restart(&attached.query, extent, |_| true)?
            {
                return Ok(true);
            }
            if extent.left() > FEW_FRAMES && !is_about_to_end(attached, extent) {
                // The moment is not near, and a processor that we do not use is the writers'.
                std::thread::sleep(CHECKPOINT_PAUSE);
            }
            let now = Instant::now();
            if extent.frames != copied.frames {
                news = now;
                break;
            }
            if now.duration_since(news) > REST {
                *has_paused |= !attached.guard.index().is_checkpointed().unwrap_or(true);
                news = now;
            }
            if now >= until {
                break;
            }
        }
    }
    Ok(false)
}

/// Keeps this thread off the writer's processor, if it can be told: a writer is woken from its fsync where it slept, takes
/// the processor from whoever waits there for that moment, and has committed before they have it back.
fn stay_apart(attached: &mut Attached) -> Option<Stay> {
    for _ in 0..MOST_SIGHTS {
        let here = Stay::here()?;
        match sight(attached) {
            Sight::Commit => {
                attached.apart = Some(here.processor());
                return Some(here);
            }
            Sight::Nothing => break,
            Sight::Interruption => {}
        }
    }
    // It is in its checkpoint already, or everywhere. Seldom does it change its processor.
    attached.apart.and_then(Stay::on)
}

/// What was seen of a writer from one processor.
enum Sight {
    /// It runs on another one.
    Commit,
    /// This thread did not run all the time.
    Interruption,
    /// It does not run.
    Nothing,
}

fn sight(attached: &Attached) -> Sight {
    let begun = Instant::now();
    let Ok(first) = attached.extent() else { return Sight::Interruption };
    let mut seen = begun;
    while seen.duration_since(begun) < SIGHT {
        let is_commit = attached.extent().is_ok_and(|extent| extent.frames != first.frames);
        if seen.elapsed() > INTERRUPTION {
            return Sight::Interruption;
        }
        if is_commit {
            return Sight::Commit;
        }
        seen = Instant::now();
    }
    Sight::Nothing
}

/// Whether a checkpoint has everything on its way into the database file, and only the last fsync is left, or less.
fn is_about_to_end(attached: &Attached, extent: WalExtent) -> bool {
    cut_off(attached.guard.index().file()).is_ok_and(|attempted| attempted >= extent.frames)
}

/// Follows the writers until little is left for the time under the lock. While somebody else's reader is in the way, the
/// lock would be of no use: a short one is waited for.
fn chase(attached: &mut Attached, database: &Path) -> Result<(), Stop> {
    let mut is_hindered = false;
    for _ in 0..MOST_CHASES {
        if is_hindered {
            std::thread::sleep(CHASE_PAUSE);
        }
        sync_shadow(attached)?;
        let before = attached.extent()?;
        let checkpointed = checkpoint(attached, database, None, LOCK_PATIENCE)?;
        is_hindered = checkpointed.backfilled < before.frames;
        if !is_hindered && checkpointed.extent().left() <= FEW_FRAMES {
            let come_since = attached.extent().map_or(0, WalExtent::left);
            if come_since == 0 || come_since > SPARSE_FRAMES {
                return Ok(());
            }
        }
    }
    if is_hindered { Err(Stop::Later) } else { Ok(()) }
}

/// `Ok` if everything is backfilled and the next writer may restart the WAL.
fn locked_part(attached: &mut Attached, database: &Path, budget: Duration) -> Result<(), Stop> {
    let until = Instant::now() + budget;
    let mut extent = copy_all(attached, Some(until))?;
    if extent.left() > 0 {
        let patience = until.saturating_duration_since(Instant::now());
        checkpoint(attached, database, Some(until), patience)?;
        extent = attached.extent()?;
    }
    while extent.is_backfilled() && Instant::now() < until {
        // The application's checkpoint may just be about to give read lock 0 back.
        if bring_in_place(attached, extent)? {
            return Ok(());
        }
    }
    Err(Stop::Later)
}

/// A passive checkpoint, interrupted at `until`, and tried for `patience` while somebody else does one.
fn checkpoint(
    attached: &Attached,
    database: &Path,
    until: Option<Instant>,
    patience: Duration,
) -> Result<Checkpointed, Stop> {
    let Some(checkpointer) = &attached.checkpointer else { return Err(Stop::Later) };
    let limited = checkpointer.begin()?;
    if let Some(reason) = attached.replaced(database) {
        return Err(Stop::Broken(reason));
    }
    Ok(limited.checkpoint(patience, until)?)
}

fn bring_in_place(attached: &mut Attached, extent: WalExtent) -> Result<bool, Stop> {
    Ok(attached.guard.bring_in_place(&attached.query, &attached.capture, extent)?)
}

/// Copies what is committed, and returns what the wal-index said of that.
pub(super) fn copy_all(attached: &mut Attached, until: Option<Instant>) -> Result<WalExtent, Stop> {
    for _ in 0..MOST_LOOKS {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Stop::Later);
        }
        let look = attached.look();
        match look.map_err(|error| Stop::Failed(error.to_string()))? {
            Look::UpToDate { extent, .. } | Look::Copied { extent } => return Ok(extent),
            Look::More { .. } => {}
            Look::Unsynced { .. } => sync_shadow(attached)?,
            Look::Again => std::thread::sleep(CHASE_PAUSE),
            Look::Broken(reason) => return Err(Stop::Broken(reason)),
        }
    }
    Err(Stop::Later)
}

/// Makes what is copied durable.
pub(super) fn sync_shadow(attached: &mut Attached) -> Result<(), Stop> {
    if let Some(sync) = attached.capture.shadow.to_sync() {
        // A failed fsync is not retried: what it should have written may be gone from the cache.
        sync.file.sync().map_err(|_| Stop::Broken(Break::ShadowSyncFailed))?;
        attached.capture.shadow.on_synced(&sync);
    }
    Ok(())
}
