//! Whose a replica's place is: reading the object that says so, and doing what follows.

use super::{CarryError, Order};
use crate::core::names;
use crate::core::owner::{
    Claim, LENGTH, LINE, Other, Owner, Party, Standing, Step, next_step, no_question, owned_by, question_of,
};
use crate::remote::{FailureKind, Remote, RemoteError};

/// Finds out whether `me`, who `had` the place in this run or not, may write there.
pub(super) fn own(
    remote: &mut dyn Remote,
    order: &Order,
    me: &Party,
    had: bool,
    claim: Claim,
) -> Result<Standing, CarryError> {
    let path = order.path(names::OWNER);
    let mut object = read(remote, &path)?;
    if next_step(object.as_ref(), me, had, claim) == Step::Create {
        match create(remote, order, &path, me) {
            // Somebody was first.
            Err(CarryError::Remote(error)) if error.kind == FailureKind::Exists => {}
            created => return created.map(|()| Standing::Ours { asked_by: None }),
        }
        object = read(remote, &path)?;
    }
    let step = next_step(object.as_ref(), me, had, claim);
    let object = object.unwrap_or_default();
    let second = LINE as u64;
    let standing = match step {
        Step::Create => return Err(gone(&path).into()),
        Step::Keep => Standing::Ours { asked_by: None },
        Step::Answer => {
            // Its own line only: if the other one takes over at this moment, the next check sees that.
            remote.write_at(&path, second, &no_question())?;
            Standing::Ours { asked_by: object.asking.map(|asking| asking.who) }
        }
        Step::Own | Step::Stop => {
            remote.write_at(&path, 0, &owned_by(me, step == Step::Stop))?;
            order.sync(remote, &path)?;
            Standing::Ours { asked_by: None }
        }
        Step::Ask => {
            remote.write_at(&path, second, &question_of(me))?;
            Standing::Asked(Other::of(&object))
        }
        Step::Wait => Standing::Asked(Other::of(&object)),
        Step::Yield => Standing::Theirs(Other::of(&object)),
    };
    remote.close(&path);
    Ok(standing)
}

fn read(remote: &mut dyn Remote, path: &str) -> Result<Option<Owner>, RemoteError> {
    let mut bytes = [0; LENGTH];
    match remote.read_at(path, 0, &mut bytes) {
        Err(error) if error.kind == FailureKind::NotFound => Ok(None),
        read => {
            let object = Owner::parse(&bytes[..read?]);
            // What is open would stay what it is if somebody removed it.
            remote.close(path);
            Ok(Some(object))
        }
    }
}

fn create(remote: &mut dyn Remote, order: &Order, path: &str, me: &Party) -> Result<(), CarryError> {
    // Of one run, so that no attempt leaves another one behind.
    let temporary = order.path(&names::temporary_owner(me.run));
    remote.create(&temporary)?;
    remote.write_at(&temporary, 0, &owned_by(me, false))?;
    order.sync(remote, &temporary)?;
    let renamed = remote.rename(&temporary, path);
    remote.close(path);
    if renamed.is_err() {
        remote.remove(&temporary)?;
    }
    Ok(renamed?)
}

fn gone(path: &str) -> RemoteError {
    let reason = "it was there a moment ago".to_owned();
    RemoteError { kind: FailureKind::Other, action: format!("read {path}"), reason }
}
