//! Databases that the configuration names by a symbolic link. SQLite keeps the WAL beside the file that the link leads to,
//! so that file is replicated. Once the link leads elsewhere, as after a release that is switched by a link, the
//! application has another database, and the old file is as it was for ever.

use log::info;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause between two looks. No event would tell: a link on the way may have changed, in any folder.
const PAUSE: Duration = Duration::from_secs(5);
/// The same, after a change was found and could not be taken on.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// The links among the paths of databases.
pub struct Links {
    links: Vec<Link>,
    look_at: Instant,
}

struct Link {
    path: PathBuf,
    /// Where it led when the agent began; `None` if nothing was there.
    target: Option<PathBuf>,
}

impl Links {
    /// Puts the file that each link leads to in its place.
    pub fn follow<'a>(paths: impl Iterator<Item = &'a mut PathBuf>, now: Instant) -> Links {
        let follow = |path: &'a mut PathBuf| {
            let link =
                path.is_symlink().then(|| Link { path: path.clone(), target: path.canonicalize().ok() })?;
            if let Some(target) = &link.target {
                info!("{}: is a link to {}", path.display(), target.display());
                path.clone_from(target);
            }
            Some(link)
        };
        Links { links: paths.filter_map(follow).collect(), look_at: now + PAUSE }
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
        let target =
            |link: &Link| link.path.canonicalize().ok().filter(|now| Some(now) != link.target.as_ref());
        let changed = self.links.iter().find_map(|link| Some((link.path.as_path(), target(link)?)));
        if changed.is_some() {
            self.look_at = now + LONG_PAUSE;
        }
        changed
    }
}
