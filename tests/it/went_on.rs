//! A program that goes on with a database and its WAL after the agent has left both.

use crate::moved_away::{COUNT, GONE, assert_replicated, place_with_a_wal, rename};
use crate::moved_back::{Restart, restart};
use crate::support::place::is_streaming;
use crate::support::sqlite::Shell;

/// Both were written since the agent has left them, by their own program: its commits are nowhere else.
#[test]
fn a_program_that_goes_on_with_a_file_that_was_away_and_is_killed_loses_nothing() {
    for (stays_in_its_wal, is_moved_again) in [(true, true), (false, true), (false, false)] {
        let (place, agent, mut application) = place_with_a_wal();
        let (database, aside) = (place.database(), place.path("aside.db"));
        let mut reader = Shell::open(&database);
        if stays_in_its_wal {
            reader.run("BEGIN; SELECT count(*) FROM t");
        }
        rename(&database, &aside);
        agent.wait_for_log(GONE);
        let agent = restart(agent, Restart::Stopped, || {
            rename(&aside, &database);
            application.run("INSERT INTO t VALUES ('in both'); PRAGMA wal_checkpoint(PASSIVE)");
            application.run("INSERT INTO t VALUES ('only in the WAL')");
            application.kill();
            reader.kill();
            if is_moved_again {
                rename(&database, &aside);
                rename(&aside, &database);
            }
        });
        agent.wait_for_status("streams", is_streaming);
        let mut application = Shell::open(&database);
        assert_eq!(application.value(COUNT), "13", "{stays_in_its_wal} {is_moved_again}: {}", agent.log());
        assert_eq!(application.value("PRAGMA integrity_check"), "ok");
        application.close();
        assert_replicated(&place, agent);
    }
}
