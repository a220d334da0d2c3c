//! What is packaged, as far as it can be looked at without a Debian root; the rest is in tests/package.

use crate::support::build_folder;
use crate::support::place::{Place, is_streaming};
use crate::support::process::output;
use crate::support::sqlite::Writer;
use crate::support::temporary_folder;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MANIFEST: &str = include_str!("../../Cargo.toml");
const UNIT: &str = include_str!("../../packaging/wal-agent.service");
const ALERTS: &str = include_str!("../../packaging/monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../../packaging/monitoring/dashboard.json");

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// What maintainers need, and no user.
const NOT_PACKAGED: [&str; 3] = ["README.md", "build-deb", "manual.rs"];
/// What the packager takes by its name.
const TAKEN_BY_NAME: [&str; 3] = ["wal-agent.service", "wal-agent.sysusers", "changelog"];

#[test]
fn every_file_of_the_packaging_folder_is_packaged_or_for_maintainers() {
    for entry in fs::read_dir(packaging()).expect("it is there") {
        let name = entry.expect("an entry").file_name().into_string().expect("plain names");
        let is_asset = MANIFEST.contains(&format!("[\"packaging/{name}\""))
            || MANIFEST.contains(&format!("[\"packaging/{name}/*\""));
        let is_known = NOT_PACKAGED.contains(&name.as_str()) || TAKEN_BY_NAME.contains(&name.as_str());
        assert!(is_asset != is_known, "packaging/{name}");
    }
}

#[test]
fn the_changelog_ends_with_this_version() {
    let changelog = fs::read_to_string(packaging().join("changelog")).expect("it is there");
    let first = format!("wal-agent ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "{changelog}");
}

#[test]
fn the_unit_is_valid_and_hardly_exposed() {
    let folder = temporary_folder();
    let unit = folder.path().join("wal-agent.service");
    fs::write(&unit, UNIT.replace("/usr/bin/agent", env!("CARGO_BIN_EXE_agent")))
        .expect("the folder is ours");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let verify = verify.expect("systemd-analyze is there");
    let said = String::from_utf8_lossy(&verify.stderr);
    let about_us: Vec<_> = said.lines().filter(|line| line.contains("wal-agent")).collect();
    assert!(about_us.is_empty(), "{said}");
    let mut security = Command::new("systemd-analyze");
    output(security.args(["security", "--offline=true", "--threshold=20"]).arg(&unit));
}

#[test]
fn every_command_has_a_manual_page_with_all_its_options_and_every_shell_completes_it() {
    let folder = temporary_folder();
    let manual = build_folder().join("examples/manual");
    assert!(manual.exists(), "{} is not built: run tests/run, or cargo build --examples", manual.display());
    output(Command::new(manual).arg(folder.path()));
    let read =
        |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let completions = ["agent.bash", "_agent", "agent.fish"].map(read);
    let help = |words: &[&str]| output(Command::new(env!("CARGO_BIN_EXE_agent")).args(words).arg("--help"));
    for (command, page) in [
        (&["replicate"][..], "agent-replicate.1"),
        (&["restore"], "agent-restore.1"),
        (&["status"], "agent-status.1"),
        (&["demo"], "agent-demo.1"),
        (&["config", "check"], "agent-config-check.1"),
    ] {
        let (page, help) = (read(page).replace("\\-", "-"), help(command));
        let options = help.split([' ', ',', '\n']).filter(|word| word.starts_with("--"));
        options.for_each(|option| assert!(page.contains(option), "{command:?} {option}:\n{page}"));
        completions.iter().for_each(|shell| assert!(shell.contains(command[0]), "{command:?}"));
    }
    assert!(read("agent.1").contains("Exit codes"));
}

/// All names `wal_agent_...` of a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let begins = text.match_indices("wal_agent_").map(|(at, _)| &text[at..]);
    begins.map(|rest| &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]).collect()
}

fn textfile(file: &Path, options: &[&str]) -> String {
    let mut script = Command::new(packaging().join("monitoring/wal-agent-textfile"));
    let path = std::env::var("PATH").expect("there is a PATH");
    let programs =
        Path::new(env!("CARGO_BIN_EXE_agent")).parent().expect("it is in a folder").display().to_string();
    output(script.env("PATH", format!("{programs}:{path}")).arg(file).args(options));
    fs::read_to_string(file).expect("the script wrote it")
}

#[test]
fn the_metrics_tell_how_an_agent_is_and_alerts_and_dashboard_use_no_others() {
    let place = Place::new();
    let mut writer = Writer::start(&place.database(), &["--step"]);
    writer.step();
    let agent = place.agent(&[]);
    agent.wait_for_status("streams", is_streaming);
    let (file, socket) = (place.path("agent.prom"), agent.configuration().with_file_name("agent.sock"));
    let asking = ["--socket", socket.to_str().expect("a plain path")];
    let text = textfile(&file, &asking);
    let (database, up) = (place.database(), "wal_agent_up 1");
    let labels = format!("{{database=\"{}\"", database.display());
    let health = format!("wal_agent_database_health{labels}}} 0");
    let present = format!("wal_agent_database_present{labels}}} 1");
    let streaming = format!("wal_agent_replica_streaming{labels},replica=\"file\"}} 1");
    for line in [up, &health, &present, &streaming] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let written = metrics(&text);
    for (name, text) in [("alerts.yml", ALERTS), ("dashboard.json", DASHBOARD)] {
        let unknown: Vec<_> = metrics(text).into_iter().filter(|metric| !written.contains(metric)).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?} of {written:?}");
    }
    assert_eq!(agent.stop().code(), Some(0));
    let missing = ["--config", "/there/is/none.yml"];
    for nobody in [&asking, &missing] {
        let text = textfile(&file, nobody);
        assert!(text.contains("wal_agent_up 0\n") && !text.contains("{database="), "{nobody:?}: {text}");
    }
    let left = fs::read_dir(file.parent().expect("a folder")).expect("a folder").flatten();
    let temporary =
        left.filter(|entry| entry.file_name().to_string_lossy().starts_with("agent.prom.")).count();
    assert_eq!(temporary, 0, "a temporary file is left");
}

#[test]
fn alerts_and_dashboard_can_be_read() {
    serde_json::from_str::<serde_json::Value>(DASHBOARD).expect("the dashboard is JSON");
    let rules: serde_json::Value = serde_saphyr::from_str(ALERTS).expect("the rules are YAML");
    let rules = rules["groups"][0]["rules"].as_array().expect("a list of rules");
    assert!(rules.iter().all(|rule| rule["expr"].is_string() && rule["alert"].is_string()));
}
