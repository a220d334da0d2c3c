//! With the real Litestream 0.3.13: each restores what the other wrote.

use crate::support::history::{History, Style, rows, scratch};
use crate::support::litestream::{command, replicate};
use crate::support::process::output;
use crate::support::wait::wait_until;
use rusqlite::Connection;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::core::restore::Check;
use wal_agent::remote::dir::DirRemote;
use wal_agent::restore::{RestoreOptions, RestoreReport, restore};

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
const DEADLINE: Duration = Duration::from_secs(60);

fn restore_folder(replica: &Path, output: &Path) -> RestoreReport {
    restore(RestoreOptions {
        remotes: &|| Ok(Box::new(DirRemote::new())),
        root: replica.to_str().unwrap(),
        output: output.to_owned(),
        check: Check::Full,
        progress: &mut |_| {},
    })
    .unwrap()
}

/// A configuration with which WALs are short.
fn configuration(folder: &Path) -> PathBuf {
    let path = folder.join("litestream.yml");
    let text = format!(
        "dbs:\n  - path: {0}/app.db\n    monitor-interval: 20ms\n    min-checkpoint-page-count: 20\n    \
         replicas:\n      - type: file\n        path: {0}/replica\n        sync-interval: 20ms\n",
        folder.display()
    );
    fs::write(&path, text).unwrap();
    path
}

/// Whether a replica has an object of this kind, in whatever generation.
fn has(replica: &Path, kind: &str, name_starts: &str) -> bool {
    let generations = fs::read_dir(replica.join("generations")).into_iter().flatten().flatten();
    let mut objects =
        generations.flat_map(|folder| fs::read_dir(folder.path().join(kind)).into_iter().flatten());
    objects.any(|object| object.unwrap().file_name().to_string_lossy().starts_with(name_starts))
}

#[test]
fn what_litestream_wrote_is_restored() {
    let mut most_indexes = 0;
    for page_size in PAGE_SIZES {
        let folder = scratch();
        let (database, replica) = (folder.path().join("app.db"), folder.path().join("replica"));
        let connection = Connection::open(&database).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)").unwrap();
        let _running = replicate(&configuration(folder.path()));
        wait_until("first snapshot", DEADLINE, || has(&replica, "snapshots", "00000000.snapshot.lz4"));
        wait_until("three restarts of the WAL", DEADLINE, || {
            connection.execute("INSERT INTO t (data) VALUES (randomblob(5000))", []).unwrap();
            has(&replica, "wal", "00000003_00000000.wal.lz4")
        });
        let source = rows(&database);
        wait_until("everything comes back", DEADLINE, || {
            let folder = scratch();
            let output = folder.path().join("out.db");
            let report = restore_folder(&replica, &output);
            assert!(report.cut.is_none(), "{report}");
            most_indexes = most_indexes.max(report.indexes);
            rows(&output) == source
        });
    }
    // Litestream begins another generation now and then, with few of them.
    assert!(most_indexes >= 4, "{most_indexes}");
}

#[test]
fn litestream_restores_what_we_write() {
    for page_size in PAGE_SIZES {
        let history = History::new(page_size, &[3, 1, 4], 20_000);
        for commits in [1, 3] {
            let folder = scratch();
            for (path, bytes) in history.objects(Style::Ours, commits) {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            let (theirs, ours) = (folder.path().join("theirs.db"), folder.path().join("ours.db"));
            let url = format!("file://{}", folder.path().display());
            output(command().arg("restore").arg("-o").arg(&theirs).arg(url));
            restore_folder(folder.path(), &ours);
            assert!(rows(&theirs) == *history.newest(), "{page_size}");
            assert!(rows(&ours) == *history.newest(), "{page_size}");
        }
    }
}
