//! A machine that is set back to an image of itself, while its replicas keep what came after.

use super::super::power;
use super::World;
use rand::RngExt;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The files of a database that an image has: the wal-index is nothing but memory.
const IN_IMAGE: [&str; 3] = ["app.db", "app.db-wal", "app.db-journal"];

/// Everything on the machine's disk, at one moment.
pub struct Image {
    database: Vec<(&'static str, Vec<u8>)>,
    of_agent: BTreeMap<PathBuf, Vec<u8>>,
    /// What was acknowledged by then: of what came after, the machine knows nothing.
    acked: Vec<Option<usize>>,
}

impl World {
    /// An image of the machine is made, whatever goes on; once there is a database.
    pub fn keep_image(&mut self) {
        if self.application().states().is_empty() {
            return;
        }
        self.note(&format!("image {} is made", self.images.len()));
        let of_file = |name| Some((name, std::fs::read(self.folder.path().join(name)).ok()?));
        let database = IN_IMAGE.into_iter().filter_map(of_file).collect();
        self.images.push(Image { database, of_agent: self.disk.image(), acked: self.acked.clone() });
    }

    /// One of the images is the machine: nobody survives, and it may be another boot. `false` if there is no image.
    pub fn set_back(&mut self) -> bool {
        if self.images.is_empty() {
            return false;
        }
        let (chosen, reboots) =
            (self.random.random_range(0..self.images.len()), self.random.random_bool(0.7));
        self.note(&format!("the machine is set back to image {chosen}, reboots: {reboots}"));
        self.kill_agent();
        self.application().kill_all();
        self.application().count("set back to an image");
        self.application().release_promise();
        self.lose_present();
        let image = &self.images[chosen];
        self.disk.set_back(&image.of_agent, reboots);
        self.acked.clone_from(&image.acked);
        for name in IN_IMAGE.into_iter().chain(["app.db-shm"]) {
            let path = self.folder.path().join(name);
            match image.database.iter().find(|(kept, _)| *kept == name) {
                Some((_, content)) => power::become_only(&path, content),
                None => drop(std::fs::remove_file(path)),
            }
        }
        self.lose_present();
        self.application().show_all();
        self.application().remember_certainly();
        true
    }

    /// A restore gives what the machine was set back to, though nothing was written since.
    pub fn check_what_it_is_set_back_to(&mut self) {
        self.heal();
        if !self.has_agent() {
            self.start_agent();
        }
        self.settle();
        self.application().remember_certainly();
        self.settle();
        self.check_all_is_replicated();
    }
}
