//! The tests' own tools tell the truth: a tool that never fails would let everything pass.

use crate::support::compare::{assert_holds, assert_same};
use crate::support::litestream;
use crate::support::sqlite::{Shell, Writer};
use crate::support::sshd::Sshd;
use crate::support::temporary_folder;
use crate::support::wait::wait_until;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[test]
fn a_killed_writer_has_committed_what_it_said_and_nothing_torn() {
    let folder = temporary_folder();
    let database = folder.path().join("app.db");
    for mode in ["plain", "one-shot", "rollback"] {
        let arguments = ["--mode", mode, "--rows", "1-5", "--size", "1-2000", "--writer", "7"];
        let mut writer = Writer::start(&database, &arguments);
        writer.wait_for(5);
        let committed = writer.kill();
        assert_holds(&database, 7, &committed);
        let next = committed.last().expect("5 commits") + 2; // one may have been committed and not said
        let missing = catch_unwind(AssertUnwindSafe(|| assert_holds(&database, 7, &[next])));
        assert!(missing.is_err(), "a commit that was never made is not missed");
    }
}

#[test]
fn a_writer_commits_when_told() {
    let folder = temporary_folder();
    let database = folder.path().join("app.db");
    let mut writer = Writer::start(&database, &["--step", "--mode", "churn", "--page-size", "512"]);
    writer.step();
    writer.step();
    let mut shell = Shell::open(&database);
    assert_eq!(shell.value("PRAGMA page_size"), "512");
    assert_eq!(shell.value("SELECT max(batch) FROM rows"), "2");
    assert_eq!(writer.finish(), [1, 2]);
}

#[test]
fn the_shell_answers_and_tells_errors() {
    let folder = temporary_folder();
    let mut shell = Shell::open(&folder.path().join("app.db"));
    assert_eq!(shell.run("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2); SELECT a FROM t"), ["1", "2"]);
    assert!(shell.try_run("SELECT b FROM t").is_err());
    assert_eq!(shell.value("PRAGMA journal_mode=wal"), "wal");
    assert!(folder.path().join("app.db-wal").exists() || shell.run("INSERT INTO t VALUES (3)").is_empty());
    shell.close();
    assert!(!folder.path().join("app.db-wal").exists(), "the last one out removes the WAL");
}

#[test]
fn databases_that_differ_are_not_the_same() {
    let folder = temporary_folder();
    let (one, other) = (folder.path().join("one.db"), folder.path().join("other.db"));
    let sql = "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3);";
    Shell::open(&one).run(sql);
    for change in
        ["", "UPDATE t SET a = 9 WHERE a = 3", "INSERT INTO t VALUES (4)", "CREATE INDEX i ON t (a)"]
    {
        let _ = fs::remove_file(&other);
        Shell::open(&other).run(&format!("{sql} {change}"));
        let same = catch_unwind(|| assert_same(&one, &other));
        assert_eq!(same.is_ok(), change.is_empty(), "{change:?}");
    }
}

#[test]
fn litestream_replicates_to_our_servers_and_restores() {
    let server = Sshd::start();
    let folder = temporary_folder();
    let database = folder.path().join("app.db");
    let mut writer = Writer::start(&database, &["--step"]);
    writer.step();
    let on_server = litestream::on_server(&server.location());
    let in_folder = litestream::in_folder(&folder.path().join("replica"));
    for (replica, at) in [(on_server, server.storage()), (in_folder, folder.path().join("replica"))] {
        let configuration = litestream::configuration(folder.path(), &database, &replica);
        let runs = (1..=10).find(|_| {
            files_below(&at).iter().for_each(|path| fs::remove_file(path).expect("the folder is ours"));
            let process = litestream::replicate(&configuration);
            wait_until("a segment, which comes after the snapshot", Duration::from_secs(30), || {
                files_below(&at).iter().any(|path| path.to_string_lossy().ends_with(".wal.lz4"))
            });
            litestream::stop(process)
        });
        assert!(runs.is_some(), "litestream hangs each time");
        let restored = at.join("restored.db");
        litestream::restore(&configuration, &database, &restored, &[]);
        assert_holds(&restored, 0, &[1]);
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
