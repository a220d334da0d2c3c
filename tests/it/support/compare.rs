//! Whether two databases hold the same.
//!
//! A test must not open a database that another connection *of this process* has open by plain file calls: closing
//! the file would drop SQLite's locks. So everything here goes through SQLite.

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Row};
use std::path::Path;
use std::time::Duration;

/// Both are whole, and have the same schema and the same rows in the same order.
///
/// # Panics
/// With the first difference.
#[track_caller]
pub fn assert_same(one: &Path, other: &Path) {
    if let Some(difference) = difference(one, other) {
        panic!("{difference}");
    }
}

/// The first difference between two databases that are whole; `None` if they hold the same.
#[track_caller]
pub fn difference(one: &Path, other: &Path) -> Option<String> {
    let names = format!("{} and {}", one.display(), other.display());
    let (one, other) = (open(one), open(other));
    assert_whole(&one);
    assert_whole(&other);
    let (schema, others) = (schema(&one), schema(&other));
    if schema != others {
        return Some(format!("schema of {names}: {schema:?}, {others:?}"));
    }
    for pragma in ["page_size", "user_version", "application_id", "encoding", "auto_vacuum"] {
        let (left, right) = (read_pragma(&one, pragma), read_pragma(&other, pragma));
        if left != right {
            return Some(format!("{pragma} of {names}: {left:?}, {right:?}"));
        }
    }
    let tables = schema.iter().filter(|entry| entry[0] == text("table"));
    let mut tables =
        tables.filter_map(|entry| if let Value::Text(name) = &entry[1] { Some(name) } else { None });
    tables.find_map(|table| different_row(&one, &other, table).map(|what| format!("{what} of {names}")))
}

/// What was acknowledged is there, and every transaction is there whole or not at all: for databases written by one
/// `writer` (number `writer`, not in mode `churn`).
#[track_caller]
pub fn assert_holds(database: &Path, writer: i64, acknowledged: &[i64]) {
    let connection = open(database);
    assert_whole(&connection);
    let sql = "SELECT batch, count(*), max(of) FROM rows WHERE writer = ? GROUP BY batch ORDER BY batch";
    let mut statement = connection.prepare(sql).expect("the writer's table is there");
    let rows = statement.query_map([writer], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let batches: Vec<(i64, i64, i64)> =
        rows.expect("no parameter is wrong").map(|row| row.expect("a row")).collect();
    for &(batch, count, of) in &batches {
        assert_eq!(count, of, "commit {batch} of {} is torn", database.display());
    }
    let missing = acknowledged.iter().find(|batch| batches.binary_search_by_key(batch, |b| &b.0).is_err());
    assert_eq!(missing, None, "commit {missing:?} was acknowledged and is not in {}", database.display());
}

/// `PRAGMA integrity_check` finds nothing.
#[track_caller]
pub fn assert_whole(connection: &Connection) {
    assert_eq!(rows(connection, "PRAGMA integrity_check"), [[text("ok")]], "integrity_check");
}

fn open(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags);
    let connection = connection.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection.busy_timeout(Duration::from_secs(10)).expect("any timeout will do");
    connection.execute_batch("BEGIN").expect("a database"); // one state, whoever writes meanwhile
    connection
}

fn schema(connection: &Connection) -> Vec<Vec<Value>> {
    rows(connection, "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid")
}

fn read_pragma(connection: &Connection, name: &str) -> Value {
    connection.pragma_query_value(None, name, |row| row.get(0)).expect("a pragma that reads")
}

fn different_row(one: &Connection, other: &Connection, table: &str) -> Option<String> {
    let sql = format!("SELECT * FROM \"{}\"", table.replace('"', "\"\""));
    let (left, right) = (rows(one, &sql), rows(other, &sql));
    let different = left.iter().zip(&right).position(|(left, right)| left != right);
    match different {
        Some(at) => Some(format!("row {} of {table}", at + 1)),
        None if left.len() == right.len() => None,
        None => Some(format!("{} and {} rows of {table}", left.len(), right.len())),
    }
}

fn rows(connection: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let values =
        move |row: &Row<'_>| (0..columns).map(|column| row.get(column)).collect::<Result<Vec<_>, _>>();
    statement.query_map([], values).expect("a query").map(|row| row.expect("a row")).collect()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}
