//! The WALs that are kept of files that went away, each by a second name, so that its commits stay whatever removes the
//! first one.

use super::left_behind::Paths;
use crate::core::names;
use crate::core::position::Generation;
use crate::database_file::FileIdentity;
use crate::remote::dir::rename_to_free_name;
use rustix::fs::{AtFlags, CWD, linkat};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// So many WALs of replaced files are kept in one folder; the oldest one goes first.
const KEPT: usize = 8;

/// What the WAL of a generation is kept as; the second where the first is on another file system.
pub(super) fn names_of(at: Paths, generation: Generation) -> [PathBuf; 2] {
    let name = names::replaced_wal(generation);
    [at.meta.join(&name), names::beside(at.wal, &format!("-{name}"))]
}

/// Which of these names a WAL has.
pub(super) fn name_of(wal: &File, at: Paths, generation: Generation) -> io::Result<Option<PathBuf>> {
    let ours = FileIdentity::of_file(wal)?;
    Ok(names_of(at, generation).into_iter().find(|name| FileIdentity::of_path(name) == Some(ours)))
}

/// The second names that we gave a WAL.
fn of(wal: &File, at: Paths) -> Vec<PathBuf> {
    let Ok(ours) = FileIdentity::of_file(wal) else { return Vec::new() };
    let folders = [Some(at.meta), at.wal.parent()].into_iter().flatten();
    let entries = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let is_name = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(names::parse_replaced_wal).is_some() && FileIdentity::of_path(path) == Some(ours)
    };
    entries.map(|entry| entry.path()).filter(is_name).collect()
}

/// Whether a WAL has a second name that we gave it.
pub(super) fn is_kept(wal: &File, at: Paths) -> bool {
    !of(wal, at).is_empty()
}

/// Takes the second names back of a WAL whose file is back. One that cannot be removed counts among those that are kept.
pub(super) fn take_back(wal: &File, at: Paths) {
    if wal.metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
        of(wal, at).iter().for_each(|name| drop(remove_name(name, wal)));
    }
}

/// Gives an open file another name, wherever its own is by now.
pub(super) fn link(file: &File, to: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, open, CWD, to, AtFlags::SYMLINK_FOLLOW) {
        Err(rustix::io::Errno::EXIST) if FileIdentity::of_path(to) == FileIdentity::of_file(file).ok() => {
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Gives a WAL a name by which it is kept, instead of the one that it has. A file that has both already is not renamed:
/// rename(2) does nothing then. What is kept by that name already is never replaced; another file system takes no rename.
pub(super) fn set_aside(wal: &File, at: Paths, generation: Generation) -> io::Result<PathBuf> {
    if let Some(name) = name_of(wal, at, generation)? {
        return remove_name(at.wal, wal).map(|()| name);
    }
    let [inside, beside] = names_of(at, generation);
    let moved = move_to_free_name(at.wal, inside).or_else(|_| move_to_free_name(at.wal, beside))?;
    if FileIdentity::of_path(&moved) == Some(FileIdentity::of_file(wal)?) {
        return Ok(moved);
    }
    // Somebody has just moved another one there.
    rename_to_free_name(&moved, at.wal)?;
    Err(io::Error::other("another file was put in its place"))
}

/// Moves a file to a name, or to that with a number, whichever nothing has.
fn move_to_free_name(from: &Path, to: PathBuf) -> io::Result<PathBuf> {
    let numbered = (2..=KEPT).map(|number| {
        let mut name = to.clone().into_os_string();
        name.push(format!("-{number}"));
        PathBuf::from(name)
    });
    for name in std::iter::once(to.clone()).chain(numbered) {
        match rename_to_free_name(from, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            renamed => return renamed.map(|()| name),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Copies a file to a name that nothing has, and makes it durable.
pub(super) fn copy(mut file: &File, to: &Path) -> io::Result<()> {
    use std::io::Seek;
    let result = File::options().write(true).create_new(true).mode(0o600).open(to).and_then(|mut new| {
        file.seek(io::SeekFrom::Start(0))?;
        io::copy(&mut file, &mut new)?;
        new.sync_all()
    });
    if let Err(error) = &result
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        let _ = std::fs::remove_file(to);
    }
    result
}

/// Removes a name if it is still that of a file of ours.
pub(super) fn remove_name(name: &Path, file: &File) -> io::Result<()> {
    if FileIdentity::of_path(name) == Some(FileIdentity::of_file(file)?) {
        std::fs::remove_file(name)?;
    }
    Ok(())
}

/// Removes the oldest WALs that were moved to where this one is. One that cannot be removed stays.
pub(super) fn forget_oldest(newest: &Path) {
    let (Some(folder), Some(name)) = (newest.parent(), newest.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    let stem = |name: &str| names::parse_replaced_wal(name).map(|(stem, _)| stem.to_owned());
    let ours = stem(name);
    let is_one = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).and_then(stem) == ours;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let moved_at = |path: PathBuf| Some((std::fs::symlink_metadata(&path).ok()?.modified().ok()?, path));
    let mut all: Vec<_> = entries.map(|e| e.path()).filter(is_one).filter_map(moved_at).collect();
    all.sort_unstable();
    for (_, path) in all.iter().rev().skip(KEPT).filter(|(_, path)| path != newest) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;

    #[test]
    fn a_wal_is_set_aside_beside_all_that_are_kept_and_no_other_one_is() {
        let folder = tempfile::tempdir().expect("there is room");
        let (database, wal) = (folder.path().join("app.db"), folder.path().join("app.db-wal"));
        let at = Paths { database: &database, wal: &wal, meta: folder.path(), disk: &OsDisk };
        let generation = Generation::from_random(1);
        let put = |content: &str| {
            std::fs::write(&wal, content).expect("the folder is ours");
            File::open(&wal).expect("it is there")
        };
        let contents = ["first", "second", "third"];
        let kept = contents.map(|content| {
            let kept = set_aside(&put(content), at, generation).expect("there is a free name");
            assert!(!wal.exists());
            kept
        });
        for (kept, content) in kept.iter().zip(contents) {
            assert_eq!(std::fs::read_to_string(kept).expect("it is kept"), content);
        }
        let ours = put("ours");
        std::fs::remove_file(&wal)
            .and_then(|()| std::fs::write(&wal, "another's"))
            .expect("the folder is ours");
        set_aside(&ours, at, generation).expect_err("another one has come to the path");
        assert_eq!(std::fs::read_to_string(&wal).expect("it is there"), "another's");
    }
}
