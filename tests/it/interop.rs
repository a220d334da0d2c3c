//! While the agent replicates and writers write, Litestream restores from the same replicas, at every page size.

use crate::support::agent::Agent;
use crate::support::compare::assert_same;
use crate::support::litestream;
use crate::support::place::{Place, objects, restore, url, whole_commits};
use crate::support::process::output;
use crate::support::sqlite::Writer;
use crate::support::sshd::Sshd;
use crate::support::wait::wait_until;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
/// The others are replicated into folders.
const OVER_SFTP: [u32; 3] = [512, 4096, 65536];
const DEADLINE: Duration = Duration::from_secs(60);

struct Database {
    path: PathBuf,
    /// As a folder, also where it is written over SFTP: the server is this machine.
    replica: PathBuf,
    writer: Writer,
}

impl Database {
    fn new(place: &Place, server: &Sshd, page_size: u32) -> Database {
        let path = place.path(&format!("{page_size}.db"));
        let replicas = if OVER_SFTP.contains(&page_size) { server.storage() } else { place.path("replicas") };
        let page_size = page_size.to_string();
        let arguments = ["--step", "--rows", "1-3", "--size", "1-1500", "--page-size", &page_size];
        let writer = Writer::start(&path, &arguments);
        Database { path, replica: replicas.join(page_size), writer }
    }

    fn configuration(&self, server: &Sshd) -> String {
        let (path, replica) = (self.path.display(), self.replica.display());
        let replica = if self.replica.starts_with(server.storage()) {
            let location = server.location();
            let key = location.key_path.as_deref().expect("tests log in by key").display();
            let host_key = &location.host_keys[0];
            format!(
                "{{type: sftp, host: '127.0.0.1:{}', user: '{}', key-path: '{key}', host-key: '{host_key}', path: '{replica}'}}",
                location.port, location.user
            )
        } else {
            format!("{{type: file, path: '{replica}'}}")
        };
        format!("  - path: {path}\n    min-checkpoint-page-count: 50\n    replicas: [{replica}]\n")
    }
}

/// Restores with Litestream; `false` while there is nothing yet.
fn restored_by_litestream(replica: &Path, path: &Path) -> bool {
    let has_snapshot = !objects(replica, "snapshots").is_empty();
    if has_snapshot {
        let mut command = Command::new(litestream::program());
        output(command.arg("restore").arg("-o").arg(path).arg(url(replica)));
    }
    has_snapshot
}

/// The same of one database, while commits are made in all of them.
fn restored_while_all_write(databases: &mut [Database], at: usize, path: &Path) -> bool {
    let replica = databases[at].replica.clone();
    thread::scope(|scope| {
        let restored = scope.spawn(|| restored_by_litestream(&replica, path));
        loop {
            databases.iter_mut().for_each(|database| database.writer.step());
            if restored.is_finished() {
                return restored.join().expect("Litestream restores");
            }
        }
    })
}

#[test]
fn litestream_restores_what_the_agent_is_writing_at_every_page_size() {
    let (place, server) = (Place::new(), Sshd::start());
    let mut databases = PAGE_SIZES.map(|page_size| Database::new(&place, &server, page_size));
    databases.iter_mut().for_each(|database| database.writer.step());
    let entries = databases.iter().map(|database| database.configuration(&server)).collect::<String>();
    let agent = Agent::start(&place.path(""), &format!("dbs:\n{entries}"));
    for round in 0..2 {
        for at in 0..databases.len() {
            let newest = databases[at].writer.committed().len() as i64;
            let restored = databases[at].path.with_extension(format!("theirs-{round}"));
            wait_until("Litestream restores what was committed before", DEADLINE, || {
                let _ = std::fs::remove_file(&restored); // there is none the first time
                let is_there = restored_while_all_write(&mut databases, at, &restored);
                is_there && whole_commits(&restored) >= newest
            });
        }
    }
    let paths = databases.map(|database| {
        database.writer.finish();
        (database.path, database.replica)
    });
    assert!(agent.stop().success());
    for (path, replica) in paths {
        let (theirs, ours) = (path.with_extension("theirs"), path.with_extension("ours"));
        assert!(restored_by_litestream(&replica, &theirs), "there is no snapshot");
        restore(&replica, &ours);
        assert_same(&path, &theirs);
        assert_same(&path, &ours);
    }
}
