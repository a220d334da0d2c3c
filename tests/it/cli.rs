//! The command line, as a person or a script sees it.

use crate::support::process::output;
use crate::support::sshd::{Sshd, home_with_known_hosts};
use assert_cmd::Command;
use std::path::Path;
use std::time::Duration;

/// `agent` with these arguments: its exit code, stdout and stderr.
fn agent(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(arguments)
        .timeout(Duration::from_secs(60))
        .env_remove("RUST_LOG")
        .env("PASSWORD", "s3cret")
        .output()
        .expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

/// Writes a configuration and returns its path.
fn configuration(folder: &Path, text: &str) -> String {
    let path = folder.join("agent.yml");
    std::fs::write(&path, text).expect("a configuration");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn all_errors_of_a_configuration_are_printed_with_file_line_and_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "dbs:\n- path: /a.db\n  replica: []\n- pth: /b.db\n  replicas: [{path: /b}]\n";
    let file = configuration(folder.path(), text);
    let expected = format!(
        "{file}:2:3: replicas is missing or empty: give at least one replica\n\
         {file}:3:3: replica is not supported by wal-agent; write replicas, a list\n\
         {file}:4:3: pth is no key of a database; perhaps path was meant\n\
         {file}:4:3: path is missing: which database is it?\n"
    );
    for command in [&["replicate"][..], &["config", "check"]] {
        let found = agent(&[command, &["--config", &file]].concat());
        assert_eq!(found, (2, String::new(), expected.clone()));
    }
}

#[test]
fn config_check_prints_what_is_in_effect_and_no_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "logging: {level: warn, type: text}\ndbs:\n- path: /a.db\n  max-checkpoint-page-count: 0\n  replicas:\n  \
                - {url: 'sftp://u:$PASSWORD@h/p', sync-interval: 10s}\n";
    let file = configuration(folder.path(), text);
    let (code, out, err) = agent(&["config", "check", "--config", &file]);
    let expected = "\
socket                       /run/wal-agent/agent.sock
log level                    WARN

database                     /a.db
  meta-path                  /.a.db-agent
  min-checkpoint-page-count  1000
  max-checkpoint-page-count  0: never force
  checkpoint-interval        60.0 s
  max-write-block            20.0 ms
  let-go-after               800.0 ms
  max-local-bytes            any number
  min-free-bytes             268435456, or a twentieth of the disk
  replica sftp               sftp://u@h/p
    sync-interval            10.0 s
    durability               fsync
    password                 given
    key-path                 none
    host-key                 from known_hosts

note: logging: type has no effect: the log is plain lines on stderr
";
    assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
}

#[test]
fn status_of_no_agent_is_3_even_if_the_configuration_is_not_usable() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path(), "socket: nowhere.sock\ndbs: [{path: $UNSET_HERE}]\n");
    let socket = file.replace("agent.yml", "nobody.sock");
    let (code, _, err) = agent(&["status", "--json", "--socket", &socket]);
    assert_eq!(code, 3);
    assert!(err.contains("no agent is running"), "{err}");
    let (code, _, err) = agent(&["status", "--config", &file]);
    assert_eq!(code, 3);
    assert!(err.contains("nowhere.sock"), "{err}");
    let (code, ..) = agent(&["status", "--config", &file.replace("agent.yml", "missing.yml")]);
    assert_eq!(code, 2);
}

#[test]
fn restore_says_by_its_exit_code_what_is_the_matter() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "dbs:\n- path: /a.db\n  replicas: [{path: /b}, {path: /c}]\n";
    let config = configuration(folder.path(), text);
    let output = config.replace("agent.yml", "out.db");
    let empty = format!("file://{}", config.replace("agent.yml", "nothing"));
    let cases: [(i32, &str, &[&str]); 5] = [
        (4, "there is no backup", &["-o", &output, &empty]),
        (2, "-o must say which file to make", &["file:///b"]),
        (2, "is no database of the configuration", &["--config", &config, "/other.db"]),
        (2, "choose a replica with --replica: file, file-2", &["--config", &config, "/a.db"]),
        (
            2,
            "there is no replica \"x\"; there are file, file-2",
            &["--config", &config, "--replica", "x", "/a.db"],
        ),
    ];
    for (expected, message, arguments) in cases {
        let (code, out, err) = agent(&[&["restore"], arguments].concat());
        assert_eq!((code, out.as_str()), (expected, ""), "{arguments:?}: {err}");
        assert!(err.contains(message), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn arguments_that_exclude_each_other_are_wrong() {
    let cases: [&[&str]; 4] = [
        &[],
        &["replicate", "/a.db"],
        &["replicate", "--config", "/c.yml", "/a.db", "file:///b"],
        &["restore", "--integrity", "some", "/a.db"],
    ];
    for arguments in cases {
        assert_eq!(agent(arguments).0, 2, "{arguments:?}");
    }
    let (code, _, err) = agent(&["replicate", "/a.db", "sftp://u:s3cret@h:x/p", "ftp://u:s3cret@h"]);
    assert_eq!(code, 2);
    assert!(!err.contains("s3cret") && err.lines().count() == 2, "{err}");
}

#[test]
fn the_demo_proves_that_all_commits_come_back() {
    let (code, out, err) = agent(&["demo"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("Proved: all "), "{out}");
}

#[test]
fn the_demo_goes_to_a_server_that_wants_a_password() {
    let server = Sshd::with_password("open sesame");
    let home = home_with_known_hosts(&format!("{} {}\n", server.known_as(), server.host_key("ed25519")));
    let (user, storage) = (server.location().user, server.storage());
    let to = format!("sftp://{user}:open%20sesame@127.0.0.1:{}{}/demo", server.port(), storage.display());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agent"));
    let out =
        output(command.args(["demo", "--to", &to]).env("HOME", home.path()).env_remove("SSH_AUTH_SOCK"));
    assert!(out.contains("Proved: all "), "{out}");
    assert!(!out.contains("sesame"), "{out}");
    assert!(server.log().contains("Accepted password for"), "{}", server.log());
}
