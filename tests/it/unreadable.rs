//! The disk fails to read one file of the shadow WAL: the database and its WAL are readable, so a new generation goes on.

use crate::support::agent::Agent;
use crate::support::place::Place;
use crate::support::sqlite::Shell;
use std::fs;
use std::path::PathBuf;

/// Lets whoever reads the beginning of the file that has this second name, too, fail with EIO.
const UNREADABLE: &str = r#"
#include <sys/stat.h>

ssize_t pread64(int fd, void *buffer, size_t size, off64_t at)
{
    struct stat bad, read;
    if (at < 100 && stat(getenv("UNREADABLE"), &bad) == 0 && fstat(fd, &read) == 0 && bad.st_ino == read.st_ino) {
        errno = EIO;
        return -1;
    }
    return ((ssize_t (*)(int, void *, size_t, off64_t)) dlsym(RTLD_NEXT, "pread64"))(fd, buffer, size, at);
}
"#;

const DAMAGED: &str = "the shadow WAL of the last generation is damaged";

/// A place whose agents cannot read the shadow file that [`Failing::fail`] is called for.
struct Failing {
    place: Place,
    library: PathBuf,
}

impl Failing {
    fn new() -> Failing {
        let place = Place::new();
        let library = place.library(UNREADABLE);
        Failing { place, library }
    }

    fn agent(&self) -> Agent {
        let switch = self.place.path("unreadable");
        let names = [&self.library, &switch].map(|path| path.to_str().expect("a plain name"));
        self.place.agent_with(&[], &[("LD_PRELOAD", names[0]), ("UNREADABLE", names[1])])
    }

    /// Everything is replicated, and from then on the shadow cannot be read.
    fn begin(&self) -> (Shell, Agent) {
        let mut application = Shell::open(&self.place.database());
        application.run("PRAGMA journal_mode=wal; CREATE TABLE t (data BLOB)");
        let agent = self.agent();
        self.place.wait_until_replicated(&agent);
        self.fail(&agent.generation());
        (application, agent)
    }

    fn fail(&self, generation: &str) {
        let folder = self.place.path(".app.db-agent").join("generations").join(generation);
        let shadow = folder.join("wal/00000000.wal");
        fs::hard_link(shadow, self.place.path("unreadable")).expect("both folders are ours");
    }
}

#[test]
fn a_shadow_that_cannot_be_read_while_it_is_sent_is_followed_by_a_new_generation() {
    let failing = Failing::new();
    let place = &failing.place;
    let (mut application, agent) = failing.begin();
    application.run("INSERT INTO t VALUES (randomblob(3000))");
    agent.wait_for_log(DAMAGED);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}

#[test]
fn a_shadow_that_cannot_be_read_at_a_start_is_followed_by_a_new_generation() {
    let failing = Failing::new();
    let place = &failing.place;
    let (mut application, agent) = failing.begin();
    agent.kill();
    application.run("INSERT INTO t VALUES (randomblob(3000))");
    let agent = failing.agent();
    agent.wait_for_log(DAMAGED);
    place.wait_until_replicated(&agent);
    place.stop(agent);
    place.assert_restores();
}
