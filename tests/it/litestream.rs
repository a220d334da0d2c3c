//! With the real Litestream 0.3, where `WAL_AGENT_LITESTREAM` names its binary: each restores what the other wrote.

use crate::history::{History, Style, rows, scratch};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wal_agent::core::restore::Check;
use wal_agent::remote::dir::DirRemote;
use wal_agent::restore::{Progress, RestoreOptions, RestoreReport, restore};

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("WAL_AGENT_LITESTREAM").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: WAL_AGENT_LITESTREAM is not set");
    }
    path
}

/// Waits for a condition; the only place that sleeps.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn files(folder: &Path, name_ends: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path, name_ends)),
            false if path.to_string_lossy().ends_with(name_ends) => found.push(path),
            false => {}
        }
    }
    found
}

fn restore_folder(replica: &Path, output: &Path) -> RestoreReport {
    restore(RestoreOptions {
        remotes: &|| Ok(Box::new(DirRemote::new(replica.to_owned()))),
        root: "",
        output: output.to_owned(),
        check: Check::Full,
        progress: &mut |_: Progress| {},
    })
    .unwrap()
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn replicate(litestream: &Path, folder: &Path) -> Running {
    let config = folder.join("litestream.yml");
    let text = format!(
        "dbs:\n  - path: {0}/app.db\n    monitor-interval: 20ms\n    min-checkpoint-page-count: 20\n    \
         replicas:\n      - type: file\n        path: {0}/replica\n        sync-interval: 20ms\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(litestream);
    command.arg("replicate").arg("-config").arg(&config);
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn what_litestream_wrote_is_restored() {
    let Some(litestream) = binary() else { return };
    for page_size in PAGE_SIZES {
        let folder = scratch();
        let connection = Connection::open(folder.path().join("app.db")).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)").unwrap();
        let _running = replicate(&litestream, folder.path());
        let replica = folder.path().join("replica");
        wait_until("first snapshot", || !files(&replica, ".snapshot.lz4").is_empty());
        let mut id = 0;
        wait_until("the WAL was restarted", || {
            id += 1;
            connection.execute("INSERT INTO t VALUES (?1, randomblob(5000))", [id]).unwrap();
            !files(&replica, "_00000000.wal.lz4")
                .iter()
                .all(|path| !path.to_string_lossy().contains("00000003_"))
        });
        let source = rows(&folder.path().join("app.db"));
        wait_until("everything is replicated and comes back", || {
            let folder = scratch();
            let output = folder.path().join("out.db");
            let report = restore_folder(&replica, &output);
            assert!(report.indexes >= 4 && report.cut.is_none(), "{report}");
            rows(&output) == source
        });
    }
}

#[test]
fn litestream_restores_what_we_write() {
    let Some(litestream) = binary() else { return };
    for page_size in PAGE_SIZES {
        let history = History::new(page_size, &[3, 1, 4], 20_000);
        for commits in [1, 3] {
            let folder = scratch();
            for (path, bytes) in history.objects(Style::Ours, commits) {
                let path = folder.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
            let output = folder.path().join("out.db");
            let mut command = Command::new(&litestream);
            command.arg("restore").arg("-o").arg(&output).arg(format!("file://{}", folder.path().display()));
            let done = command.output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            assert!(rows(&output) == *history.newest(), "{page_size}");
            let ours = folder.path().join("ours.db");
            restore_folder(folder.path(), &ours);
            assert!(rows(&ours) == rows(&output));
        }
    }
}
