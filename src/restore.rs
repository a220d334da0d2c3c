//! Bringing a database back: list, plan, fetch, verify, write, prove, and only then give it its name.
//!
//! One thread fetches, ahead across objects; the caller's thread decodes, verifies and writes. Every frame of the WAL
//! is verified and applied here, so SQLite's own recovery, which ends silently at the first bad frame, has no part
//! in it. The output appears whole or not at all, and never in the place of something else.

mod apply;
mod error;
mod fetch;
mod output;
mod proof;
mod report;

pub use error::{Damage, RestoreError};
pub use fetch::{OpenRemote, read_inventory};
pub use report::{Cut, Phase, Progress, RestoreReport};

use crate::core::inventory::Inventory;
use crate::core::names::Object;
use crate::core::restore::{Check, Note, RestoreGap, RestorePlan, Target, Wanted, plan_restore};
use apply::{Applied, Applier};
use fetch::{Connection, Feed};
use output::Output;
use std::path::PathBuf;

/// Listings that change under a restore (retention, a live agent) are looked at again so many times, no more.
const PLANS: u32 = 5;

/// What to restore, from where, to where.
pub struct RestoreOptions<'a> {
    /// Opens a connection to the replica; called again after one breaks.
    pub remotes: &'a OpenRemote<'a>,
    /// The replica's own path, before `generations/`; empty where the remote knows it.
    pub root: &'a str,
    /// The database file to make.
    pub output: PathBuf,
    /// What it is compared with before the file gets its name.
    pub check: Check,
    /// Told how far it is; drawing it is the caller's.
    pub progress: &'a mut dyn FnMut(Progress),
}

/// Restores a database to the newest state of a replica.
///
/// # Errors
/// Nothing exists under the output's name then, and the replica is as it was.
pub fn restore(mut options: RestoreOptions) -> Result<RestoreReport, RestoreError> {
    output::refuse_existing(&options.output)?;
    let mut connection = Connection::new(options.remotes, options.root);
    let mut passed_over: Vec<(Object, RestoreError)> = Vec::new();
    let mut listed = connection.inventory()?;
    let mut inventory = listed.clone();
    for attempt in 1.. {
        let error = match plan_without(&inventory, &mut passed_over) {
            Ok(plan) => match carry_out(&plan, &mut connection, &mut options) {
                Ok(report) => return Ok(report),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if let Some(snapshot) = replaceable_snapshot(&error, &inventory) {
            passed_over.push((snapshot, error));
            continue;
        }
        if attempt >= PLANS || !error.may_be_stale() {
            return Err(error);
        }
        let now = connection.inventory()?;
        if now == listed {
            return Err(error);
        }
        inventory = now.clone().up_to(&listed);
        listed = now;
    }
    unreachable!("BUG: the loop above ends by returning")
}

/// Plans without the snapshots that turned out to be of no use. If no other is left, the newest one's error stands.
fn plan_without(
    inventory: &Inventory,
    passed_over: &mut Vec<(Object, RestoreError)>,
) -> Result<RestorePlan, RestoreError> {
    let mut inventory = inventory.clone();
    for (object, _) in passed_over.iter() {
        let Object::Snapshot { generation, index } = *object else { continue };
        let objects = inventory.generations.iter_mut().find(|objects| objects.generation() == generation);
        objects.into_iter().for_each(|objects| objects.remove_snapshot(index));
    }
    match plan_restore(&inventory, Target::Newest) {
        Ok(mut plan) => {
            let note = |(snapshot, error): &(Object, RestoreError)| Note::PassedOver {
                snapshot: *snapshot,
                reason: error.to_string(),
            };
            plan.notes.extend(passed_over.iter().map(note));
            Ok(plan)
        }
        Err(RestoreGap::NoSnapshot { .. }) if !passed_over.is_empty() => Err(passed_over.swap_remove(0).1),
        Err(gap) => Err(gap.into()),
    }
}

/// The snapshot an error is about, if another one can stand in for it: a damaged one only by an older one of its own
/// generation, so that no commit is lost.
fn replaceable_snapshot(error: &RestoreError, inventory: &Inventory) -> Option<Object> {
    let (object, other_generations) = match error {
        RestoreError::Damaged { object, .. } => (*object, false),
        RestoreError::SnapshotTooNew { object, .. } => (*object, true),
        _ => return None,
    };
    let Object::Snapshot { generation, index } = object else { return None };
    let others = inventory.generations.iter().filter(|objects| !objects.snapshots().is_empty());
    let mut candidates = others.flat_map(|objects| {
        objects.snapshots().iter().map(move |snapshot| (objects.generation(), snapshot.index))
    });
    candidates
        .any(|(other, older)| match other == generation {
            true => older < index,
            false => other_generations,
        })
        .then_some(object)
}

fn carry_out(
    plan: &RestorePlan,
    connection: &mut Connection,
    options: &mut RestoreOptions,
) -> Result<RestoreReport, RestoreError> {
    let mut output = Output::create(&options.output)?;
    let wanted: Vec<Wanted> = plan.wanted().collect();
    let size = wanted.iter().map(|wanted| wanted.size).sum();
    let (sender, receiver) = fetch::channel();
    let (applied, fetched) = std::thread::scope(|scope| {
        scope.spawn(move || fetch::fetch_all(connection, &wanted, &sender));
        let mut feed = Feed::new(receiver, size, options.progress);
        let applied = Applier::new(plan, &mut feed, &mut output, options.check != Check::None).apply();
        applied.map(|applied| (applied, feed.fetched()))
    })?;
    (options.progress)(Progress { phase: Phase::Check, done: 0, total: 0 });
    let pages = output.publish(options.check)?;
    let Applied { position, proven, page_size, cut, mut notes } = applied;
    notes.splice(0..0, plan.notes.iter().cloned());
    Ok(RestoreReport {
        position,
        proven,
        snapshot: plan.snapshot.index,
        indexes: plan.indexes.len(),
        fetched,
        pages: pages / u64::from(page_size.get()),
        page_size,
        cut,
        notes,
        check: options.check,
    })
}
