//! The demo's application: it commits rows, and later knows which ones must be there.

use crate::sqlite;
use anyhow::{Context, ensure};
use std::cell::Cell;
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const SCHEMA: &str =
    "CREATE TABLE measurements (id INTEGER PRIMARY KEY, unix_micros INTEGER NOT NULL, note TEXT NOT NULL)";
const ALL_ROWS: &str = "SELECT id, unix_micros, note FROM measurements ORDER BY id";

/// An open database with one table.
pub struct Application {
    connection: sqlite::Application,
    commits: Cell<u64>,
}

/// How a restored database compares with the one it came from.
pub struct Comparison {
    committed: u64,
    source_rows: usize,
    restored_rows: usize,
    differing_rows: usize,
}

type Row = (i64, i64, String);

impl Application {
    /// Makes the database.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let connection = sqlite::open_application(path).context("cannot make the scratch database")?;
        connection.execute(SCHEMA, ())?;
        Ok(Application { connection, commits: Cell::new(0) })
    }

    /// Commits one row.
    pub fn commit_row(&self) -> anyhow::Result<()> {
        let number = self.commits.get() + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(now.as_micros()).context("the clock is beyond all years")?;
        let insert = "INSERT INTO measurements (unix_micros, note) VALUES (?1, ?2)";
        self.connection
            .execute(insert, (micros, format!("commit number {number}")))
            .context("cannot commit")?;
        self.commits.set(number);
        Ok(())
    }

    /// Compares every row with those of a restored database.
    pub fn compare(&self, restored: &Path) -> anyhow::Result<Comparison> {
        ensure!(restored.exists(), "{} is not there", restored.display());
        let connection = sqlite::open_application(restored).context("cannot open the restored database")?;
        let source = rows(&self.connection)?;
        let restored = rows(&connection)?;
        let same = source.iter().zip(&restored).filter(|(a, b)| a == b).count();
        let differing_rows = source.len().max(restored.len()) - same;
        let committed = self.commits.get();
        Ok(Comparison { committed, source_rows: source.len(), restored_rows: restored.len(), differing_rows })
    }
}

fn rows(connection: &sqlite::Application) -> anyhow::Result<Vec<Row>> {
    let mut statement = connection.prepare(ALL_ROWS)?;
    let rows = statement.query_map((), |row| row.try_into())?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Comparison {
    /// Whether nothing is missing and nothing is different.
    pub fn is_same(&self) -> bool {
        self.differing_rows == 0 && self.committed == self.restored_rows as u64
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { committed, source_rows, restored_rows, differing_rows } = self;
        if self.is_same() {
            return write!(
                f,
                "Proved: all {committed} commits are in the restored database, all {restored_rows} rows are equal to \
                 the source's, value by value, and SQLite's integrity_check finds nothing wrong. What the replica \
                 had acknowledged was enough: neither the source nor the agent was asked."
            );
        }
        write!(
            f,
            "FAILED: {committed} rows were committed; the source has {source_rows}, the restored database \
             {restored_rows}, and {differing_rows} differ."
        )
    }
}
