//! The WAL that is found beside a database, and was left there by us.

use super::attach::{AttachRequest, meta_error};
use super::held::{Belonging, Held};
use super::kept;
use super::left_behind::LeftBehind;
use super::proof;
use super::refusal::Refusal;
use super::went_on::continues;
use crate::database_file::DatabaseFile;
use crate::locks;
use crate::shadow::ShadowWal;
use std::fs::File;
use std::io;

/// Moves it away if it belongs to another file than the one it lies beside now; or to this one, but others have written
/// that since.
pub(super) fn settle(request: &AttachRequest, database: &DatabaseFile) -> Result<(), Refusal> {
    let at = request.paths();
    let Ok(wal) = File::open(at.wal) else { return Ok(()) };
    let Some(held) = Held::kept(at.disk, at.meta) else { return Ok(()) };
    let belonging = held.judge(database, &wal, || kept::is_kept(&wal, at));
    let belonging = belonging.map_err(|e| meta_error(request, e))?;
    if belonging != Belonging::Ours && move_away(request, held, belonging, database, &wal)? {
        // Whoever locks it exclusively now keeps our connections out, too.
        let _ = locks::let_in(database);
    } else if belonging != Belonging::Foreign && held.away().is_some() {
        kept::take_back(&wal, at);
    }
    Ok(())
}

/// Whether it was to be moved away.
fn move_away(
    request: &AttachRequest,
    held: Held,
    belonging: Belonging,
    database: &DatabaseFile,
    wal: &File,
) -> Result<bool, Refusal> {
    let (at, error) = (request.paths(), |e: io::Error| meta_error(request, e));
    let last = ShadowWal::last_begun(at.disk, at.meta).map_err(error)?;
    let Some((generation, inode)) = last else { return Ok(false) };
    let shadow = ShadowWal::recover(&request.disk, at.meta, inode).map_err(error)?;
    let Ok(mut shadow) = shadow else { return Ok(false) };
    let Some(facts) = shadow.facts() else { return Ok(false) };
    let no_access = |e: io::Error| Refusal::NoAccess(e.to_string());
    let (is_used, old) = match belonging {
        // Whoever opened the new file may have found an empty WAL of the old one, and used it.
        Belonging::Foreign => (proof::wal_header(at.wal) != Some(facts.header), None),
        _ => {
            let continues = continues(&mut shadow, held, at.database, database, wal);
            (continues.map_err(no_access)?, Some(database.clone()))
        }
    };
    if !is_used {
        let mut left = LeftBehind {
            identity: old.as_ref().map(DatabaseFile::identity),
            database: old,
            is_used: true,
            ..LeftBehind::of(wal.try_clone().map_err(no_access)?, generation)
        };
        left.settle(at, Some(database));
    }
    Ok(!is_used)
}
