//! Rules of the house that no compiler keeps: who may import whom, who may use which outside crate, and what is not
//! written at all.

use std::fs;
use std::path::Path;

/// The pipes: each carries for one outside thing, and knows no other.
const PIPES: [&str; 11] = [
    "disk",
    "database_file",
    "rights",
    "sqlite",
    "watch",
    "locks",
    "memory",
    "processor",
    "control",
    "service",
    "remote",
];

/// What a pipe may import of this crate, besides itself.
const BELOW_PIPES: [&str; 2] = ["core", "error"];

/// Outside crates, each with the only places that may use it: files (without `.rs`) or folders of `src`.
const DOORS: [(&str, &[&str]); 16] = [
    ("base64", &["remote/sftp"]),
    ("clap", &["cli", "main"]),
    ("crc64fast", &["core/checksum"]),
    ("crossbeam_channel", &["worker", "carry", "restore", "watch"]),
    ("env_logger", &["main"]),
    ("libssh2_sys", &["remote/sftp"]),
    ("memmap2", &["disk"]),
    ("mio", &["event_loop", "control"]),
    ("nix", &["locks", "service"]),
    ("notify", &["watch"]),
    ("rand", &["agent"]),
    ("rusqlite", &["sqlite"]),
    ("sd_notify", &["service"]),
    ("serde_saphyr", &["config"]),
    ("sha2", &["remote/sftp"]),
    ("ssh2", &["remote/sftp"]),
];

/// What thinking does not do: files, networks, threads, processes, clocks, logs.
const NOT_IN_CORE: [&str; 9] = [
    "std::fs",
    "std::io",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime::now",
    "Instant::now",
    "log::",
];

/// Where `unsafe` is allowed: mapping the live WAL, and calls that only the C interfaces of SQLite and of the allocator
/// have.
const UNSAFE: [&str; 4] = ["disk", "memory", "sqlite/heap", "sqlite/owner"];

/// What is never written: an error from outside must not end the program, and nothing is left for later.
const NEVER: [&str; 5] = [".unwrap()", "todo!", "unimplemented!", "dbg!", "#[allow("];

/// A line of code in `src`: no comment, no test.
struct Line {
    file: String,
    number: usize,
    text: String,
}

impl Line {
    /// Whether the file is one of these places, or in one.
    fn is_in(&self, places: &[&str]) -> bool {
        let is_in =
            |place: &&str| self.file.strip_prefix(place).is_some_and(|rest| rest.starts_with(['/', '.']));
        places.iter().any(is_in)
    }

    /// What stands behind `crate::`; of `crate::{a, b}`, all.
    fn rooms(&self) -> Vec<&str> {
        let first_name = |text: &'_ str| text.find(|c| !is_part_of_name(c)).unwrap_or(text.len());
        let mut rooms = Vec::new();
        for rest in self.text.split("crate::").skip(1) {
            let names = rest.strip_prefix('{').map_or(vec![rest], |inside| inside.split(", ").collect());
            rooms.extend(names.into_iter().map(|name| &name[..first_name(name)]));
        }
        rooms
    }

    /// Whether a name stands there, and not as a part of a longer one.
    fn names(&self, name: &str) -> bool {
        let mut found = self.text.match_indices(name);
        found.any(|(at, _)| {
            let (before, after) = (&self.text[..at], &self.text[at + name.len()..]);
            !before.ends_with(is_part_of_name) && !after.starts_with(is_part_of_name)
        })
    }
}

fn is_part_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All lines of code, without comments, and of each file only what stands before its tests.
fn lines() -> Vec<Line> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut lines = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is there") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("src is readable");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines().zip(1..);
            let code = code.filter(|(line, _)| !line.trim_start().starts_with("//"));
            lines.extend(code.map(|(text, number)| Line {
                file: file.clone(),
                number,
                text: text.to_owned(),
            }));
        }
    }
    lines
}

/// Fails with all lines that offend.
#[track_caller]
fn assert_none(what: &str, is_offence: impl Fn(&Line) -> bool) {
    let lines = lines();
    let offences = lines.iter().filter(|line| is_offence(line));
    let told: Vec<_> =
        offences.map(|line| format!("{}:{}: {}", line.file, line.number, line.text.trim())).collect();
    assert!(told.is_empty(), "{what}:\n{}", told.join("\n"));
}

#[test]
fn core_imports_nothing_of_the_other_floors() {
    assert_none("core imports from above", |line| {
        line.is_in(&["core"]) && line.rooms().iter().any(|room| *room != "core")
    });
}

#[test]
fn core_only_thinks() {
    assert_none("core reaches outside", |line| {
        line.is_in(&["core"]) && NOT_IN_CORE.iter().any(|what| line.text.contains(what))
    });
}

#[test]
fn pipes_import_only_from_below() {
    for pipe in PIPES {
        let may = |room: &&str| *room == pipe || BELOW_PIPES.contains(room);
        let what = format!("{pipe} imports another pipe or a room");
        assert_none(&what, |line| line.is_in(&[pipe]) && !line.rooms().iter().all(may));
    }
}

#[test]
fn each_outside_crate_has_its_doors() {
    for (name, doors) in DOORS {
        let (path, import) = (format!("{name}::"), [format!("use {name};"), format!("use {name} ")]);
        let is_used = |line: &Line| {
            let is_whole = |at: usize| {
                let before = &line.text[..at];
                !before.strip_suffix("::").unwrap_or(before).ends_with(is_part_of_name)
            };
            line.text.match_indices(&path).any(|(at, _)| is_whole(at))
                || import.iter().any(|import| line.text.starts_with(import))
        };
        assert_none(&format!("{name} is used outside {doors:?}"), |line| is_used(line) && !line.is_in(doors));
    }
}

#[test]
fn unsafe_is_only_where_it_is_allowed() {
    assert_none("unsafe", |line| line.names("unsafe") && !line.is_in(&UNSAFE));
}

#[test]
fn nothing_is_left_for_later_nor_left_to_chance() {
    assert_none("never written", |line| NEVER.iter().any(|never| line.text.contains(never)));
}
