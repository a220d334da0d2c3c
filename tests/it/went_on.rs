//! A program that goes on with a database and its WAL after the agent has left both.

use crate::moved_away::{COUNT, GONE, assert_replicated, kept_wals, place_with_a_wal, rename};
use crate::moved_back::{Restart, restart};
use crate::support::place::{Place, is_streaming};
use crate::support::sqlite::Shell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The file goes away, and comes back while the agent is not there; its application and a reader go on, and are killed. How many
/// rows there are in the end.
fn rows_of_a_program_that_goes_on(go_on: impl FnOnce(&Place, &mut Shell, &mut Shell)) -> String {
    let (place, agent, mut application) = place_with_a_wal();
    let (database, aside) = (place.database(), place.path("aside.db"));
    let mut reader = Shell::open(&database);
    reader.run("BEGIN; SELECT count(*) FROM t");
    application.run("INSERT INTO t VALUES ('behind the reader')");
    place.wait_until_replicated(&agent);
    rename(&database, &aside);
    agent.wait_for_log(GONE);
    let agent = restart(agent, Restart::Stopped, || {
        rename(&aside, &database);
        go_on(&place, &mut application, &mut reader);
        application.kill();
        reader.kill();
    });
    agent.wait_for_status("streams", is_streaming);
    let mut application = Shell::open(&database);
    assert_eq!(application.value("PRAGMA integrity_check"), "ok", "{}", agent.log());
    let rows = application.value(COUNT);
    application.close();
    assert_eq!(kept_wals(&place), Vec::<PathBuf>::new(), "{}", agent.log());
    assert_replicated(&place, agent);
    rows
}

const CHECKPOINT: &str = "PRAGMA wal_checkpoint(PASSIVE)";

#[test]
fn a_program_that_goes_on_with_a_file_that_was_away_and_is_killed_loses_nothing() {
    let rows = rows_of_a_program_that_goes_on(|place, application, _| {
        application.run(CHECKPOINT);
        application.run("INSERT INTO t VALUES ('only in the WAL')");
        rename(&place.database(), &place.path("again.db"));
        rename(&place.path("again.db"), &place.database());
    });
    assert_eq!(rows, "13");
}

/// No page is in the file that has a later version in the WAL: without that, it is no database.
#[test]
fn nor_does_one_that_only_checkpoints() {
    let rows = rows_of_a_program_that_goes_on(|_, application, _| drop(application.run(CHECKPOINT)));
    assert_eq!(rows, "12");
}

/// What was in the WAL before is in the file, and in no WAL that is still there.
#[test]
fn nor_does_one_that_has_begun_another_wal() {
    for checkpoints in [false, true] {
        let rows = rows_of_a_program_that_goes_on(|place, application, reader| {
            reader.run("COMMIT");
            application.run("CREATE TABLE w (x); INSERT INTO w VALUES ('in the file')");
            application.run(CHECKPOINT);
            application.run("INSERT INTO t VALUES ('in the next WAL')");
            reader.run("BEGIN; SELECT count(*) FROM t");
            application.run("INSERT INTO t VALUES ('behind the reader')");
            match checkpoints {
                true => drop(application.run(CHECKPOINT)),
                false => {
                    fs::set_permissions(place.database(), Permissions::from_mode(0o640)).expect("it is ours")
                }
            }
        });
        assert_eq!(rows, "14", "{checkpoints}");
    }
}
