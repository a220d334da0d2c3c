//! Databases that the configuration names by a symbolic link, in the last place of their path or above. SQLite keeps the WAL
//! beside the file that it leads to, so that file is replicated, and whatever is done by its path is done there. Once the link
//! leads elsewhere, as after a release that is switched by a link, the application has another database, and the old file is
//! as it was for ever. A link may also come later, where there was nothing, or a folder.

use crate::config::DatabaseConfig;
use log::info;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause between two looks. No event would tell: a link on the way may have changed, in any folder.
const PAUSE: Duration = Duration::from_secs(5);
/// The same, after a change was found and could not be taken on.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// Where the paths of all databases lead.
pub struct Links {
    links: Vec<Link>,
    look_at: Instant,
}

struct Link {
    path: PathBuf,
    /// Whether the file itself was named by a link when the agent began.
    is_of_file: bool,
    /// Where the path led then; itself, if nothing was there.
    target: PathBuf,
}

impl Link {
    fn of(path: &Path) -> Link {
        let itself = Link { path: path.to_owned(), is_of_file: path.is_symlink(), target: path.to_owned() };
        Link { target: itself.leads_to().unwrap_or_else(|| path.to_owned()), ..itself }
    }

    /// The file that the path leads to, or will once it is there. `None` where a link leads nowhere, or is gone: it may be
    /// on its way.
    fn leads_to(&self) -> Option<PathBuf> {
        let is_link = self.is_of_file || self.path.is_symlink();
        self.path.canonicalize().ok().or_else(|| in_its_folder(&self.path).filter(|_| !is_link))
    }
}

impl Links {
    /// Puts the file that each database's path leads to in its place, and the folder that the agent's own files are in.
    pub fn follow<'a>(databases: impl Iterator<Item = &'a mut DatabaseConfig>, now: Instant) -> Links {
        let follow = |database: &'a mut DatabaseConfig| {
            if let Some(meta) = in_its_folder(&database.meta_path) {
                database.meta_path = meta;
            }
            let link = Link::of(&database.path);
            if link.target != link.path {
                info!("{}: is a link to {}", link.path.display(), link.target.display());
                database.path.clone_from(&link.target);
            }
            link
        };
        Links { links: databases.map(follow).collect(), look_at: now + PAUSE }
    }

    /// When to look again.
    pub fn next_timeout(&self) -> Instant {
        self.look_at
    }

    /// If it is time to look: a path that leads to another file now, and that file.
    pub fn changed(&mut self, now: Instant) -> Option<(&Path, PathBuf)> {
        if now < self.look_at {
            return None;
        }
        self.look_at = now + PAUSE;
        let target = |link: &Link| link.leads_to().filter(|now| *now != link.target);
        let changed = self.links.iter().find_map(|link| Some((link.path.as_path(), target(link)?)));
        if changed.is_some() {
            self.look_at = now + LONG_PAUSE;
        }
        changed
    }
}

/// A path without links above its last part; `None` if its folder is not there.
fn in_its_folder(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ReplicaConfig;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A folder with two databases, `one/app.db` and `two/app.db`.
    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("app.db"), name).unwrap();
        }
        folder
    }

    /// Follows a path; the file that is replicated then, and where the path leads after each of the changes.
    fn followed(path: &Path, changes: &[&dyn Fn()]) -> (PathBuf, Vec<Option<PathBuf>>) {
        let replicas: Vec<ReplicaConfig> = Vec::new();
        let (mut database, mut now) = (DatabaseConfig::new(path.to_owned(), replicas), Instant::now());
        let mut links = Links::follow([&mut database].into_iter(), now);
        let after = |change: &&dyn Fn()| {
            change();
            now += LONG_PAUSE;
            links.changed(now).map(|(_, target)| target)
        };
        (database.path, changes.iter().map(after).collect())
    }

    fn link(to: &Path, at: &Path) {
        let _ = fs::remove_file(at);
        symlink(to, at).unwrap();
    }

    #[test]
    fn a_link_that_is_gone_for_a_while_is_on_its_way() {
        let folder = folder();
        let [one, two] = ["one/app.db", "two/app.db"].map(|name| folder.path().join(name));
        let path = folder.path().join("app.db");
        link(&one, &path);
        let (file, led) = followed(
            &path,
            &[
                &|| fs::remove_file(&path).unwrap(),
                &|| link(&folder.path().join("nothing"), &path),
                &|| link(&one, &path),
                &|| link(&two, &path),
            ],
        );
        assert_eq!((file, led), (one.clone(), vec![None, None, None, Some(two.clone())]));
    }

    #[test]
    fn a_link_above_is_followed_also_where_it_comes_later_or_in_a_folders_place() {
        let folder = folder();
        let (at, two) = (folder.path().join("current"), folder.path().join("two"));
        let (file, led) =
            followed(&at.join("app.db"), &[&|| link(&two, &at), &|| fs::remove_file(&at).unwrap()]);
        assert_eq!((file, led), (at.join("app.db"), vec![Some(two.join("app.db")), None]));
        let one = folder.path().join("one");
        let (file, led) = followed(
            &one.join("app.db"),
            &[&|| {
                fs::rename(&one, folder.path().join("away")).unwrap();
                link(&two, &one);
            }],
        );
        assert_eq!((file, led), (one.join("app.db"), vec![Some(two.join("app.db"))]));
    }

    #[test]
    fn a_file_without_links_leads_to_itself_whether_it_is_there_or_not() {
        let folder = folder();
        let file = folder.path().join("one/app.db");
        let (followed, led) = followed(
            &file,
            &[&|| fs::remove_file(&file).unwrap(), &|| fs::write(&file, "again").unwrap(), &|| {
                fs::remove_dir_all(folder.path().join("one")).unwrap();
            }],
        );
        assert_eq!((followed, led), (file.clone(), vec![None, None, None]));
    }

    #[test]
    fn a_link_that_takes_a_files_place_is_followed() {
        let folder = folder();
        let [one, two] = ["one/app.db", "two/app.db"].map(|name| folder.path().join(name));
        let (_, led) = followed(&one, &[&|| link(&two, &one)]);
        assert_eq!(led, [Some(two)]);
    }
}
