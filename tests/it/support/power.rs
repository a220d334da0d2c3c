//! Support: what of a database's files survives a power cut. Used by the test's process and by the applications.
//!
//! The C library's `fsync` and `fdatasync` are this file's: what they make durable is remembered beside the files that
//! are recorded. At a power cut each sector of a file is what it was at the file's last sync, or what it is now.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::copy_file_range;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The unit in which a write may be torn, in bytes.
const SECTOR: usize = 512;
/// Beside the files that are recorded; what is in it is named by inode.
const FOLDER: &str = "durable";
/// Bytes; copied in one call.
const AT_ONCE: usize = 1 << 30;

/// Begins to record what becomes durable of the files in a folder.
pub fn record(folder: &Path) {
    fs::create_dir(folder.join(FOLDER)).expect("the folder is ours");
}

/// Makes a file what a power cut leaves of it. Nobody may have it open.
pub fn cut(file: &Path, seed: u64) {
    let Ok(live) = fs::read(file) else { return };
    let synced = fs::read(copy_of(file).expect("it is there")).unwrap_or_default();
    let mut random = StdRng::seed_from_u64(seed);
    let fate = random.random_range(0..4);
    let takes_new = |random: &mut StdRng| match fate {
        0 => false,
        1 => true,
        _ => random.random_bool(0.5),
    };
    let mut content = if takes_new(&mut random) { live.clone() } else { synced.clone() };
    for (number, sector) in content.chunks_mut(SECTOR).enumerate() {
        let source = if takes_new(&mut random) { &live } else { &synced };
        let rest = source.get(number * SECTOR..).unwrap_or_default();
        // Behind the end of one of them there is nothing.
        let length = rest.len().min(sector.len());
        sector[..length].copy_from_slice(&rest[..length]);
    }
    become_only(file, &content);
}

/// Gives a file this content, and makes it durable. Who has this content already is not written, and keeps its mtime, as
/// in a power cut.
pub fn become_only(file: &Path, content: &[u8]) {
    if fs::read(file).ok().as_deref() != Some(content) {
        fs::write(file, content).expect("the folder is ours");
    }
    fs::write(copy_of(file).expect("it is there"), content).expect("the folder is ours");
}

fn copy_of(file: &Path) -> io::Result<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new("/")).join(FOLDER);
    Ok(folder.join(file.metadata()?.ino().to_string()))
}

/// Called behind each sync that succeeded.
fn remember(descriptor: c_int) {
    let Ok(file) = fs::read_link(format!("/proc/self/fd/{descriptor}")) else { return };
    let is_recorded = file.parent().is_some_and(|folder| folder.join(FOLDER).is_dir());
    let name = file.as_os_str().as_encoded_bytes();
    if !is_recorded || !(name.ends_with(b"-wal") || name.ends_with(b"-journal") || name.ends_with(b".db")) {
        return;
    }
    let copy = copy_of(&file).expect("it is open, and was not renamed");
    copy_onto(descriptor, &copy).expect("the folder is ours");
}

/// Makes `copy` what the descriptor's file is. The kernel copies: there are many syncs, and opening the file here, and
/// closing it, would drop SQLite's locks on it.
fn copy_onto(descriptor: c_int, copy: &Path) -> io::Result<()> {
    // SAFETY: it is open as long as whoever syncs it waits for us.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
    // What is written over needs no new memory.
    let copy = fs::File::options().write(true).create(true).truncate(false).open(copy)?;
    let mut length = 0;
    while copy_file_range(file, Some(&mut length), &copy, None, AT_ONCE)? > 0 {}
    copy.set_len(length)
}

/// What a sync does instead, if it is to fail.
pub type Fault = fn() -> bool;

/// Asked before each sync; `true` fails it. Of applications.
pub static FAULT: std::sync::OnceLock<Fault> = std::sync::OnceLock::new();

#[unsafe(no_mangle)]
extern "C" fn fsync(descriptor: c_int) -> c_int {
    sync(libc::SYS_fsync, descriptor)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    sync(libc::SYS_fdatasync, descriptor)
}

fn sync(call: libc::c_long, descriptor: c_int) -> c_int {
    if FAULT.get().is_some_and(|fails| fails()) {
        // SAFETY: the place of errno is this thread's own.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    // SAFETY: any number may be given as a descriptor.
    let result = unsafe { libc::syscall(call, descriptor) as c_int };
    if result == 0 {
        remember(descriptor);
    }
    result
}
