//! What a restore leaves under its output's name, and how it fetches what is still growing.

use crate::support::history::{History, Style, rows, scratch, segment};
use crate::support::memory::{Server, restore_from};
use crate::support::place::{Place, url};
use crate::support::sqlite::Shell;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes the fsync of one folder fail.
const FAILING_FSYNC: &str = r#"
static int before_fsync(int fd)
{
    if (!is_named(fd, "/restored"))
        return 0;
    errno = EIO;
    return -1;
}
"#;

#[test]
fn a_restore_whose_name_cannot_be_made_durable_leaves_nothing_and_can_be_tried_again() {
    let place = Place::new();
    let mut application = Shell::open(&place.database());
    application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
    let agent = place.streaming_agent(&[]);
    place.stop(agent);
    let folder = place.path("restored");
    let output = folder.join("app.db");
    let library = place.preload(FAILING_FSYNC);
    let restore = |library: Option<_>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(["restore", "-o"]).arg(&output).arg(url(&place.replica()));
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
        command.output().expect("the agent can be run")
    };
    let failed = restore(Some(&library));
    let told = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && told.contains("fsync"), "{told}");
    assert_eq!(fs::read_dir(&folder).expect("it was made").count(), 0, "{told}");
    assert!(restore(None).status.success());
}

#[test]
fn what_has_grown_since_it_was_listed_is_fetched_in_few_reads() {
    let history = History::new(4096, &[6], 500_000);
    let whole = history.objects(Style::Ours, 10);
    let path = segment(0, 0).path();
    let mut listed = history.objects(Style::Ours, 1);
    let short = listed.get(&path).expect("there is a segment").len();
    let grown = whole.get(&path).expect("there is a segment").clone();
    assert!(grown.len() > short + (1 << 20), "{} after {short}", grown.len());
    listed.retain(|name, _| name.contains("/snapshots/") || *name == path);
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let server = Server::new(listed).on_read(move |objects, name, _| {
        if name == path {
            counted.fetch_add(1, Ordering::Relaxed);
            objects.insert(name.to_owned(), grown.clone());
        }
        Ok(())
    });
    let folder = scratch();
    let output = folder.path().join("out.db");
    restore_from(&server, &output).expect("it restores");
    assert!(rows(&output) == *history.newest());
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads < 20, "{reads} reads");
}
