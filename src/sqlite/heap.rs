//! How much memory a connection takes: the agent has five for each database, and reads little more than page 1 with them.

use rusqlite::ffi;
use std::ptr::null_mut;
use std::sync::Once;

/// Lets connections take memory as they need it, and not 130 kB each in advance. To be called before SQLite is used.
pub fn take_no_memory_in_advance() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the arguments have the types that these options ask for, and null is no memory. SQLite refuses both
        // once it is in use, and then only takes more memory.
        unsafe {
            // Small allocations, of which a connection has 48 kB otherwise.
            let _ = ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 0, 0);
            // Pages, of which a connection has room for twenty otherwise.
            let _ = ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, null_mut::<libc::c_void>(), 0, 0);
        }
    });
}
