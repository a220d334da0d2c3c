//! Owner, group, mode and access list of open files.

use crate::core::rights::Rights;
use rustix::fs::{XattrFlags, fgetxattr, fgetxattr_query, fsetxattr};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

/// Where the kernel keeps an access list (acl(5)).
const ACCESS_LIST: &str = "system.posix_acl_access";

/// The user as whom this process makes files.
pub fn maker() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What a file has.
///
/// # Errors
/// The kernel's.
pub fn of(file: &File) -> io::Result<Rights> {
    let metadata = file.metadata()?;
    let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
    Ok(Rights { owner, group, mode, list: access_list(file)? })
}

fn access_list(file: &File) -> io::Result<Option<Vec<u8>>> {
    let read = || {
        let mut list = vec![0; fgetxattr_query(file, ACCESS_LIST)?];
        let length = fgetxattr(file, ACCESS_LIST, &mut list[..])?;
        list.truncate(length);
        Ok(list)
    };
    match read() {
        Ok(list) => Ok(Some(list)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file that has `present` the rights that are `wanted`, or as much of them as the kernel lets us.
///
/// # Errors
/// The kernel's: only root, or who has `CAP_CHOWN`, may give files away.
pub fn give(file: &File, present: &Rights, wanted: &Rights) -> io::Result<()> {
    if present.permits_the_same(wanted) {
        return give_away(file, wanted);
    }
    match permit(file, wanted) {
        // Without CAP_FOWNER only its owner may say what a file permits: it is ours for these microseconds.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fchown(file, Some(maker()), None)?;
            let permitted = permit(file, wanted);
            give_away(file, wanted).and(permitted)
        }
        Err(error) => Err(error),
        Ok(()) => give_away(file, wanted),
    }
}

fn give_away(file: &File, wanted: &Rights) -> io::Result<()> {
    fchown(file, Some(wanted.owner), Some(wanted.group)).inspect_err(|_| {
        // A file of ours may at least have any group that we are in; if we are not, the first error says so.
        let _ = fchown(file, None, Some(wanted.group));
    })
}

fn permit(file: &File, wanted: &Rights) -> io::Result<()> {
    match &wanted.list {
        // The mode is a part of it.
        Some(list) => Ok(fsetxattr(file, ACCESS_LIST, list, XattrFlags::empty())?),
        None => file.set_permissions(Permissions::from_mode(wanted.mode)),
    }
}

/// What a file that this process makes in a folder has in the end, if it is to have the rights of this database, and why it
/// has no others. Nothing of it stays.
///
/// # Errors
/// No file can be made there.
pub fn to_be_had(folder: &Path, database: &Rights) -> io::Result<(Rights, io::Result<()>)> {
    let file = tempfile::tempfile_in(folder)?;
    // As SQLite makes files.
    file.set_permissions(Permissions::from_mode(database.mode))?;
    let made = of(&file)?;
    let given = give(&file, &made, &database.beside(&made));
    Ok((of(&file)?, given))
}
