//! Support: a file system that keeps whole seconds and no times of birth, as ext3 does, for the threads that want one.
//!
//! Seconds may be short there: the wall clock of such a thread, and the times that it sees of files, go so many times as
//! fast as others'. The C library's `statx` and `clock_gettime` are this file's; Rust's standard library asks them.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};

/// A clock that was right at a moment, in nanoseconds since 1970, and goes so much faster.
type Clock = (i128, i128);

const SECOND: i128 = 1_000_000_000;

thread_local! {
    static CLOCK: Cell<Option<Clock>> = const { Cell::new(None) };
}

/// As long as it lives, this thread's file system keeps whole seconds.
pub struct WholeSeconds(());

impl WholeSeconds {
    /// From now on; `speed` 1 is that of other clocks.
    pub fn begin(speed: u16) -> WholeSeconds {
        CLOCK.set(Some((now(libc::CLOCK_REALTIME), speed.into())));
        WholeSeconds(())
    }
}

impl Drop for WholeSeconds {
    fn drop(&mut self) {
        CLOCK.set(None);
    }
}

/// Whether this thread's file system keeps whole seconds.
pub fn is_coarse() -> bool {
    CLOCK.get().is_some()
}

/// Does something with the times that files really have.
pub fn exactly<T>(what: impl FnOnce() -> T) -> T {
    let clock = CLOCK.take();
    let result = what();
    CLOCK.set(clock);
    result
}

fn fast(time: i128, (since, speed): Clock) -> i128 {
    since + (time - since) * speed
}

fn now(clock: libc::clockid_t) -> i128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it points to a time.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) };
    i128::from(time.tv_sec) * SECOND + i128::from(time.tv_nsec)
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(which: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's promises are handed on as they are.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, which, time) as c_int };
    // A thread that ends may ask for the time when it has no clock of its own any more.
    let clock = CLOCK.try_with(Cell::get).ok().flatten();
    if let (0, libc::CLOCK_REALTIME, Some(ours)) = (result, which, clock) {
        // SAFETY: the kernel has just written it.
        let time = unsafe { &mut *time };
        let told = fast(i128::from(time.tv_sec) * SECOND + i128::from(time.tv_nsec), ours);
        (time.tv_sec, time.tv_nsec) = (told.div_euclid(SECOND) as _, told.rem_euclid(SECOND) as _);
    }
    result
}

#[unsafe(no_mangle)]
extern "C" fn statx(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    found: *mut libc::statx,
) -> c_int {
    // SAFETY: the caller's promises are handed on as they are.
    let result = unsafe { libc::syscall(libc::SYS_statx, folder, path, flags, mask, found) as c_int };
    let clock = CLOCK.try_with(Cell::get).ok().flatten();
    if let (0, false, Some(ours)) = (result, found.is_null(), clock) {
        // SAFETY: the kernel has just written it.
        let found = unsafe { &mut *found };
        for time in [&mut found.stx_mtime, &mut found.stx_ctime] {
            let told = fast(i128::from(time.tv_sec) * SECOND + i128::from(time.tv_nsec), ours);
            (time.tv_sec, time.tv_nsec) = (told.div_euclid(SECOND) as _, 0);
        }
        found.stx_mask &= !libc::STATX_BTIME;
    }
    result
}
