//! Databases that the configuration names by a symbolic link, in the last place of their path or above. SQLite keeps the WAL
//! beside the file that it leads to, so that file is replicated, and whatever is done by its path is done there. Once the link
//! leads elsewhere, as after a release that is switched by a link, the application has another database, and the old file is
//! as it was for ever.

use crate::config::DatabaseConfig;
use log::info;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause between two looks. No event would tell: a link on the way may have changed, in any folder.
const PAUSE: Duration = Duration::from_secs(5);
/// The same, after a change was found and could not be taken on.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// The databases whose paths have links in them.
pub struct Links {
    links: Vec<Link>,
    look_at: Instant,
}

struct Link {
    path: PathBuf,
    /// Where it led when the agent began; itself, if nothing was there.
    target: PathBuf,
}

impl Links {
    /// Puts the file that each database's path leads to in its place, and the folder that the agent's own files are in.
    pub fn follow<'a>(databases: impl Iterator<Item = &'a mut DatabaseConfig>, now: Instant) -> Links {
        let follow = |database: &'a mut DatabaseConfig| {
            if let Some(meta) = in_its_folder(&database.meta_path) {
                database.meta_path = meta;
            }
            let path = database.path.clone();
            let target = target_of(&path).unwrap_or_else(|| path.clone());
            if target != path {
                info!("{}: is a link to {}", path.display(), target.display());
                database.path.clone_from(&target);
            }
            (target != path || path.is_symlink()).then_some(Link { path, target })
        };
        Links { links: databases.filter_map(follow).collect(), look_at: now + PAUSE }
    }

    /// When to look again; `None` if there are no links.
    pub fn next_timeout(&self) -> Option<Instant> {
        (!self.links.is_empty()).then_some(self.look_at)
    }

    /// If it is time to look: one that leads to another file now, and that file. One that leads nowhere may be on its way.
    pub fn changed(&mut self, now: Instant) -> Option<(&Path, PathBuf)> {
        if self.next_timeout().is_none_or(|at| now < at) {
            return None;
        }
        self.look_at = now + PAUSE;
        let target = |link: &Link| target_of(&link.path).filter(|now| *now != link.target);
        let changed = self.links.iter().find_map(|link| Some((link.path.as_path(), target(link)?)));
        if changed.is_some() {
            self.look_at = now + LONG_PAUSE;
        }
        changed
    }
}

/// The file that a path leads to, or will once it is there; `None` if a link leads nowhere.
fn target_of(path: &Path) -> Option<PathBuf> {
    let target = path.canonicalize().ok();
    target.or_else(|| in_its_folder(path).filter(|path| !path.is_symlink()))
}

fn in_its_folder(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}
