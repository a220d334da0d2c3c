//! SQLite itself: the only file that speaks SQL.

use crate::core::restore::Check;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Asks SQLite whether a database file that nobody else has open is sound. Leaves no -wal or -shm behind.
///
/// # Errors
/// What SQLite found, in its own words.
pub fn check(path: &Path, check: Check) -> Result<(), String> {
    let pragma = match check {
        Check::Quick => "quick_check",
        Check::Full => "integrity_check",
        Check::None => return Ok(()),
    };
    let escaped: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        })
        .collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let ask = || {
        let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
        let mut statement = connection.prepare(&format!("PRAGMA {pragma}"))?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect::<Result<Vec<_>, _>>()
    };
    match ask() {
        Ok(rows) if rows == ["ok"] => Ok(()),
        Ok(rows) => Err(rows.join("; ")),
        Err(error) => Err(error.to_string()),
    }
}
