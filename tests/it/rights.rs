//! Whoever may use a database may use the `-wal` and `-shm` that the agent makes beside it, or the agent does not make them.
//! Needs root.

use crate::support::agent::Agent;
use crate::support::place::{Place, first, is_resting, is_streaming};
use crate::support::process::output;
use crate::support::sqlite::{Shell, as_user};
use crate::support::wait::{BEFORE_THE_SLOW_LOOK, wait_until};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const APPLICATION: u32 = 2001;
const TABLE: &str = "PRAGMA journal_mode=wal; CREATE TABLE t (data)";
const INSERT: &str = "INSERT INTO t VALUES (randomblob(3000))";

/// What the unit of the package gives the agent, see `packaging/wal-agent.service`.
const AS_THE_SERVICE: [&str; 9] = with_powers("+dac_override,+chown");
/// Another user, who may open every file.
const AS_A_READER_OF_ALL: [&str; 9] = with_powers("+dac_override");
const AS_ROOT: [&str; 1] = ["--no-new-privs"];

/// Another user than the application, with these powers.
const fn with_powers(powers: &'static str) -> [&'static str; 9] {
    ["--reuid", "2002", "--regid", "2002", "--clear-groups", "--inh-caps", powers, "--ambient-caps", powers]
}

/// A folder of the application's, with a database beside it that is not in place yet.
fn place() -> Place {
    let place = Place::new();
    let mut new = Shell::open(&place.path("new.db"));
    new.run(TABLE);
    new.close();
    let folder = place.path("");
    give(&folder, APPLICATION);
    permit(&folder, 0o755);
    place
}

fn give(file: &Path, user: u32) {
    chown(file, Some(user), Some(user)).expect("the tests run as root");
}

fn permit(file: &Path, mode: u32) {
    fs::set_permissions(file, Permissions::from_mode(mode)).expect("it is ours");
}

fn put_in_place(place: &Place) {
    fs::copy(place.path("new.db"), place.database()).expect("the folder is ours");
}

fn rights(file: &Path) -> Option<(u32, u32, u32)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.uid(), metadata.gid(), metadata.mode() & 0o777))
}

#[track_caller]
fn wait_for_rights_of_the_database(place: &Place) {
    for beside in [place.wal(), place.path("app.db-shm")] {
        wait_until("it has the rights of the database", BEFORE_THE_SLOW_LOOK, || {
            rights(&beside).is_some() && rights(&beside) == rights(&place.database())
        });
    }
}

/// The application comes, writes, and goes.
#[track_caller]
fn application_writes(place: &Place) {
    output(
        as_user(APPLICATION).args(["sqlite3", "-cmd", ".timeout 10000"]).arg(place.database()).arg(INSERT),
    );
}

fn is_attached(status: &Value) -> bool {
    first(status)["state"] == "attached"
}

fn is_refused(status: &Value) -> bool {
    let reason = first(status)["refused_because"].as_str().unwrap_or_default();
    first(status)["state"] == "refused" && reason.contains("its application could not use the -wal and -shm")
}

fn is_open(place: &Place) -> bool {
    place.wal().exists() || place.path("app.db-shm").exists()
}

/// `cp`, `chown`, `chmod`, and the start of the application; the agent opens the database after each.
fn deployed(privileges: &[&str]) {
    let place = place();
    let agent = place.agent_as(&["let-go-after: never"], privileges);
    agent.wait_for_status("waits for it", |status| first(status)["state"] == "absent");
    put_in_place(&place);
    permit(&place.database(), 0o600);
    agent.wait_for_status("attaches", is_attached);
    give(&place.database(), APPLICATION);
    wait_for_rights_of_the_database(&place);
    permit(&place.database(), 0o660);
    wait_for_rights_of_the_database(&place);
    application_writes(&place);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_database_that_is_given_to_its_application_once_the_agent_has_it_open_is_its_applications() {
    deployed(&AS_ROOT);
}

#[test]
fn the_service_of_the_package_does_the_same() {
    deployed(&AS_THE_SERVICE);
}

#[test]
fn a_database_that_has_just_come_is_not_opened_before_its_application_opens_it() {
    let place = place();
    let agent = place.agent(&["let-go-after: never"]);
    agent.wait_for_status("waits for it", |status| first(status)["state"] == "absent");
    put_in_place(&place);
    agent.wait_for_status("has seen it", |status| first(status)["state"] == "attaching");
    assert!(!is_open(&place), "it was opened before it could be given to anybody");
    give(&place.database(), APPLICATION);
    application_writes(&place);
    place.wait_until_replicated(&agent);
    place.stop(agent);
}

/// An access list as the kernel keeps it: for the owner, a user, the group, the most that a list can grant, all others.
fn access_list(user: u32, permissions: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [(1, 7, none), (2, permissions, user), (4, 0, none), (16, 7, none), (32, 0, none)];
    let bytes = entries.into_iter().flat_map(|(tag, permissions, user): (u16, u16, u32)| {
        [tag.to_le_bytes().to_vec(), permissions.to_le_bytes().to_vec(), user.to_le_bytes().to_vec()].concat()
    });
    2u32.to_le_bytes().into_iter().chain(bytes).collect()
}

#[test]
fn an_application_that_has_its_rights_by_an_access_list_has_them_on_what_the_agent_makes() {
    let place = place();
    give(&place.path(""), 0);
    permit(&place.path(""), 0o700);
    put_in_place(&place);
    for (file, permissions) in [(place.path(""), 7), (place.database(), 6)] {
        let file = File::open(file).expect("it is there");
        let (name, list) = ("system.posix_acl_access", access_list(APPLICATION, permissions));
        rustix::fs::fsetxattr(&file, name, &list, rustix::fs::XattrFlags::empty())
            .expect("it can have a list");
    }
    let agent = place.agent(&["let-go-after: never"]);
    agent.wait_for_status("attaches", is_attached);
    application_writes(&place);
    place.wait_until_replicated(&agent);
    place.stop(agent);
}

#[test]
fn a_member_of_the_databases_group_gives_it_what_it_makes() {
    let place = place();
    put_in_place(&place);
    give(&place.database(), APPLICATION);
    permit(&place.database(), 0o660);
    let privileges = [&["--reuid", "2002", "--regid", "2002", "--groups", "2001"], &AS_A_READER_OF_ALL[5..]];
    let agent = place.agent_as(&["let-go-after: never"], &privileges.concat());
    agent.wait_for_status("streams", is_streaming);
    application_writes(&place);
    place.wait_until_replicated(&agent);
    place.stop(agent);
}

/// The agent cannot give files away, and is not the first to open the database.
fn only_opened_after_the_application(privileges: &[&str]) {
    let place = place();
    put_in_place(&place);
    give(&place.database(), APPLICATION);
    permit(&place.database(), 0o640);
    let agent = place.agent_as(&["let-go-after: 100ms"], privileges);
    agent.wait_for_status("is refused", is_refused);
    assert!(!is_open(&place), "it was opened");
    assert_eq!(agent.run("status", &[]).status.code(), Some(2), "failing");
    let mut application = Shell::open_as(APPLICATION, &place.database());
    application.run(INSERT);
    agent.wait_for_status("follows what the application has made", is_streaming);
    application.run(INSERT);
    place.wait_until_replicated(&agent);
    application.close();
    agent.wait_for_status("lets go", is_resting);
    assert!(!is_open(&place));
    application_writes(&place);
    // It may miss what is only there for a moment, and would say so.
    agent.kill();
}

#[test]
fn root_that_may_give_nothing_away_is_not_the_first_to_open_a_database() {
    only_opened_after_the_application(&["--bounding-set", "-chown", "--inh-caps", "-chown"]);
}

#[test]
fn a_user_who_may_only_open_all_files_is_not_the_first_to_open_a_database() {
    only_opened_after_the_application(&AS_A_READER_OF_ALL);
}

#[test]
fn a_database_whose_new_owner_cannot_use_what_the_agent_has_made_is_let_go_of() {
    let place = place();
    put_in_place(&place);
    let agent: Agent =
        place.agent_as(&["let-go-after: never"], &["--bounding-set", "-chown", "--inh-caps", "-chown"]);
    agent.wait_for_status("streams", is_streaming);
    assert!(is_open(&place));
    give(&place.database(), APPLICATION);
    wait_until("it is let go of", BEFORE_THE_SLOW_LOOK, || !is_open(&place));
    agent.wait_for_log("its application could not use the -wal and -shm");
    application_writes(&place);
    // It may miss what is only there for a moment, and would say so.
    agent.kill();
}
