//! What one look at the live WAL means: wait, copy, begin the next index, or begin a new generation.

use super::position::Offset;
use super::space::Shortage;
use super::wal::WalHeader;
use std::fmt;

/// What was seen in a database's folder since the last turn. Hints only: a lost one costs time, never data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dirty {
    /// The `-wal` was written.
    pub wal: bool,
    /// The database file was written.
    pub database: bool,
    /// One of the files was made, deleted or renamed.
    pub folder: bool,
    /// Somebody who could write has closed one of them.
    pub closed: bool,
    /// The database file got another owner or mode, or was touched.
    pub rights: bool,
}

impl Dirty {
    /// Look at everything.
    pub const ALL: Dirty = Dirty { wal: true, database: true, folder: true, closed: true, rights: true };

    /// Whether there is anything to look at; rights matter only beside what is held.
    pub fn any(self) -> bool {
        self.wal || self.database || self.folder || self.closed
    }
}

/// Why continuity is lost and a new generation begins. Each is logged once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// No generation has been begun for this database here.
    FirstRun,
    /// The shadow WAL of the last generation is not there.
    ShadowMissing,
    /// The shadow WAL of the last generation is not a valid WAL.
    ShadowDamaged,
    /// The live WAL holds less than was copied from it.
    WalShorterThanShadow,
    /// The live WAL does not hold what was copied from it.
    TailDiffers,
    /// The WAL was restarted while the agent was not holding it.
    WalRestarted,
    /// The wal-index promises frames that are not valid in the WAL.
    ChainBroken,
    /// The wal-index promises frames, but the WAL has no valid header.
    HeaderInvalid,
    /// The generation has no more indexes.
    IndexExhausted,
    /// Another file is at the database's path.
    DatabaseReplaced,
    /// The generation was begun on another machine, which may go on in it.
    AnotherMachine,
    /// The database file was written by something other than SQLite, while nobody but us held it or while we did not.
    DatabaseOverwritten,
    /// The database file was written while nobody is known to have checkpointed, and nothing can tell by whom.
    DatabaseDoubtful,
    /// The database was moved away and came back, and who wrote it meanwhile cannot be told.
    DatabaseMoved,
    /// The database was written while nobody held it, and the WAL that could tell what is gone.
    DatabaseChanged,
    /// The WAL was deleted or replaced under the agent.
    WalReplaced,
    /// The WAL is another one than the wal-index says, though nobody restarted it.
    WalOverwritten,
    /// The wal-index was deleted or replaced under the agent: nobody's locks count for who came since.
    WalIndexReplaced,
    /// Somebody had it open by another name, and so with another WAL: nobody knows what is in that.
    UsedApart,
    /// What was compared with the page table was to be the end of its WAL, and writers continued that WAL.
    WalContinued,
    /// A replica holds more than the shadow WAL, or does not continue in it.
    ReplicaDiverged,
    /// A part of what a replica had is not there any more.
    ReplicaIncomplete,
    /// The shadow WAL could not be made durable; what is in it is in doubt.
    ShadowSyncFailed,
    /// The machine ended while the shadow WAL was not durable, beside writers that never paused.
    ShadowLost,
    /// The shadow WAL was given up, with what the replicas had not got.
    NoRoom(Shortage),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Break::FirstRun => "this database has not been replicated from here before",
            Break::ShadowMissing => "the shadow WAL of the last generation is missing or empty",
            Break::ShadowDamaged => "the shadow WAL of the last generation is damaged",
            Break::WalShorterThanShadow => "the WAL holds less than was copied from it",
            Break::TailDiffers => "the WAL does not hold what was copied from it",
            Break::WalRestarted => "the WAL was restarted while the agent did not hold it",
            Break::ChainBroken => "the WAL holds frames that are not valid",
            Break::HeaderInvalid => "the WAL has no valid header",
            Break::IndexExhausted => "the generation has used up its indexes",
            Break::DatabaseReplaced => "another file was put in the database's place",
            Break::AnotherMachine => {
                "the last generation belongs to another machine, of which this is a copy"
            }
            Break::DatabaseOverwritten => "something other than SQLite has written over the database",
            Break::DatabaseMoved => "the database was moved away and back",
            Break::DatabaseDoubtful => "the database was written, and it cannot be told by whom",
            Break::DatabaseChanged => "the database was changed while the agent did not hold it",
            Break::WalReplaced => "the WAL was deleted or replaced while it was being read",
            Break::WalOverwritten => "something other than SQLite has written over the -wal",
            Break::WalIndexReplaced => "the database's -shm was deleted or replaced while it was in use",
            Break::UsedApart => "a program had it open by another name, beside which its commits are",
            Break::WalContinued => {
                "another reader kept the WAL from being restarted after the database was compared"
            }
            Break::ReplicaDiverged => "a replica does not continue in the shadow WAL",
            Break::ReplicaIncomplete => "a replica has lost a part of what it held",
            Break::ShadowSyncFailed => "the shadow WAL could not be written durably",
            Break::ShadowLost => {
                "the machine ended while the shadow WAL was not durable, beside writers that never paused"
            }
            Break::NoRoom(_) => "the shadow WAL was given up because there was no room for it",
        })
    }
}

/// Where the shadow WAL of the present index stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowFacts {
    /// The header of the WAL that was copied.
    pub header: WalHeader,
    /// The end of its last copied commit.
    pub end: Offset,
}

/// What one look found. The header was read before `frames` was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFacts {
    /// The shadow of the present index; `None` before its first commit.
    pub shadow: Option<ShadowFacts>,
    /// The live header; `None` if there is no valid one.
    pub live: Option<WalHeader>,
    /// Committed frames by the wal-index (mxFrame).
    pub frames: u32,
    /// Whether the WAL was held without a gap since the shadow's end was copied. Only then does
    /// another header mean the next index.
    pub guarded: bool,
    /// Whether the live header of the last copied frame is the shadow's. Asked when not guarded.
    pub tail_matches: bool,
}

/// What to do after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncDecision {
    /// Nothing is committed that is not copied.
    Wait,
    /// Copy from the shadow's end up to here.
    Copy {
        /// The end of the last committed frame.
        to: Offset,
    },
    /// The WAL was restarted, and nothing was lost: this header begins the next index.
    NextIndex {
        /// The live header.
        header: WalHeader,
        /// The end of the last committed frame.
        to: Offset,
    },
    /// Continuity is lost.
    NewGeneration(Break),
}

/// Judges a look at the live WAL.
///
/// Why a guarded restart is the next index: while a slot is held, nobody restarts the WAL; and read lock 0 (taken only when
/// everything was backfilled, and copied) forbids all backfill, so that at most one restart can follow.
pub fn decide(facts: &WalFacts) -> SyncDecision {
    let Some(shadow) = facts.shadow else {
        return match (facts.frames, facts.live) {
            (0, _) => SyncDecision::Wait,
            (_, None) => SyncDecision::NewGeneration(Break::HeaderInvalid),
            (frames, Some(header)) => {
                SyncDecision::NextIndex { header, to: Offset::after_frames(header.page_size(), frames) }
            }
        };
    };
    let live = match (facts.frames, facts.live) {
        // The WAL is empty, or a writer is about to restart it: the index is over, or still whole in the shadow.
        (0, _) if facts.guarded => return SyncDecision::Wait,
        (0, _) => return SyncDecision::NewGeneration(Break::WalRestarted),
        (_, None) => return SyncDecision::NewGeneration(Break::HeaderInvalid),
        (_, Some(live)) => live,
    };
    let to = Offset::after_frames(live.page_size(), facts.frames);
    if live != shadow.header {
        return match facts.guarded {
            true => SyncDecision::NextIndex { header: live, to },
            false => SyncDecision::NewGeneration(Break::WalRestarted),
        };
    }
    if to < shadow.end {
        return SyncDecision::NewGeneration(Break::WalShorterThanShadow);
    }
    if !facts.guarded && !facts.tail_matches {
        return SyncDecision::NewGeneration(Break::TailDiffers);
    }
    if to == shadow.end { SyncDecision::Wait } else { SyncDecision::Copy { to } }
}
