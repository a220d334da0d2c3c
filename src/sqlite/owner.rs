//! Whose `-wal` and `-shm` are: the database's owner's, whoever makes them.
//!
//! SQLite gives files that it makes to the owner of the database, but only if it runs as root. A service that may
//! give files away (`CAP_CHOWN`) and is not root would leave an application in front of a `-wal` that it cannot open.

use rusqlite::ffi;
use std::sync::Once;

/// Lets SQLite try to give its files to the database's owner whoever the agent is; it ignores where it may not.
/// To be called before a database is opened.
pub fn give_files_to_owner() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a null name asks for the default VFS, which lives as long as the process.
        let vfs = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        // SAFETY: what is not null points to a whole `sqlite3_vfs`.
        let Some(set) = (unsafe { vfs.as_ref() }).and_then(|vfs| vfs.xSetSystemCall) else { return };
        // SAFETY: the two differ in their types alone: SQLite calls what it has as "geteuid" as `uid_t (*)(void)`.
        let call = unsafe {
            std::mem::transmute::<extern "C" fn() -> libc::uid_t, unsafe extern "C" fn()>(effective_user)
        };
        // SAFETY: `vfs` is the VFS that the function belongs to, the name ends with a zero, and nobody reads SQLite's
        // table of calls meanwhile: the first database is opened after this.
        unsafe { set(vfs, c"geteuid".as_ptr(), Some(call)) };
    });
}

/// What SQLite hears when it asks who it is; it asks only before it gives a file away.
extern "C" fn effective_user() -> libc::uid_t {
    0
}
