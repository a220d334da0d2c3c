//! A gate at which the agent waits before it syncs a file.

use super::place::Place;
use super::wait::wait_until;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// Whoever syncs a file whose name ends so waits as long as there is a gate.
const GATED_FSYNC: &str = r#"
#include <fcntl.h>

static int before_fsync(int fd)
{
    if (!is_named(fd, getenv("GATED")) || access(getenv("GATE"), F_OK) != 0)
        return 0;
    close(open(getenv("REACHED"), O_CREAT | O_WRONLY, 0600));
    while (access(getenv("GATE"), F_OK) == 0)
        usleep(1000);
    return 0;
}
"#;

/// While it is shut, the agent waits at each fsync of a file whose name ends in a certain way.
pub struct Gate {
    gate: PathBuf,
    reached: PathBuf,
    library: PathBuf,
    name_ends: &'static str,
}

impl Gate {
    /// For an agent of this place; open.
    pub fn at_fsyncs(place: &Place, name_ends: &'static str) -> Gate {
        let library = place.preload(GATED_FSYNC);
        Gate { gate: place.path("gate"), reached: place.path("reached"), library, name_ends }
    }

    /// The variables with which the agent comes to it.
    pub fn environment(&self) -> [(&str, &str); 4] {
        let paths =
            [&self.library, &self.gate, &self.reached].map(|path| path.to_str().expect("it is UTF-8"));
        let [library, gate, reached] = paths;
        [("LD_PRELOAD", library), ("GATED", self.name_ends), ("GATE", gate), ("REACHED", reached)]
    }

    pub fn shut(&self) {
        fs::write(&self.gate, "").expect("the folder is ours");
    }

    pub fn wait_until_reached(&self) {
        wait_until("the gate is reached", DEADLINE, || self.reached.exists());
    }

    pub fn open(&self) {
        fs::remove_file(&self.gate).expect("it is shut");
    }
}
