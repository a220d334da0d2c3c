//! No server is trusted but the known one, and nothing is said to any other.

use crate::support::process::output;
use crate::support::sshd::{Sshd, fingerprint, home_with_known_hosts, make_key};
use crate::support::temporary_folder;
use crate::support::wait::wait_until;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use wal_agent::remote::FailureKind;
use wal_agent::remote::location::SftpLocation;
use wal_agent::remote::sftp::SftpRemote;

/// Connects with what `host-key` says; "" leaves it out.
fn connect_by_host_key(server: &Sshd, host_key: &str) -> Result<(), String> {
    let location = SftpLocation { host_keys: vec![host_key.to_owned()], ..server.location() };
    checked(server, &location, None)
}

/// Connects with what known_hosts says.
fn connect_by_known_hosts(server: &Sshd, known_hosts: &str) -> Result<(), String> {
    let home = home_with_known_hosts(known_hosts);
    connect_from_home(server, home.path())
}

fn connect_from_home(server: &Sshd, home: &Path) -> Result<(), String> {
    let location = SftpLocation { host_keys: Vec::new(), ..server.location() };
    checked(server, &location, Some(home))
}

/// A refusal must be by the host key, and before the server has seen any request for authentication.
fn checked(server: &Sshd, location: &SftpLocation, home: Option<&Path>) -> Result<(), String> {
    let Err(error) = SftpRemote::connect(location, home) else {
        assert!(server.log().contains("userauth-request"), "the log does not tell:\n{}", server.log());
        return Ok(());
    };
    assert_eq!(error.kind, FailureKind::HostKey, "{error}");
    wait_until("the server sees the end", Duration::from_secs(10), || server.sessions().is_empty());
    assert!(!server.log().contains("userauth-request"), "asked to be let in:\n{}", server.log());
    Err(error.reason)
}

/// A key pair that is nobody's: its public line, and its fingerprint.
fn other_key(kind: &str) -> (String, String) {
    let folder = temporary_folder();
    let path = folder.path().join("other");
    make_key(&path, kind);
    let line = fs::read_to_string(path.with_extension("pub")).expect("ssh-keygen wrote it");
    (line.split_whitespace().take(2).collect::<Vec<_>>().join(" "), fingerprint(&path))
}

#[test]
fn a_key_in_known_hosts_is_accepted() {
    let server = Sshd::start();
    let line = format!("{} {}\n", server.known_as(), server.host_key("ed25519"));
    assert_eq!(connect_by_known_hosts(&server, &line), Ok(()));
}

#[test]
fn a_hashed_name_in_known_hosts_is_found() {
    let server = Sshd::start();
    let (other, _) = other_key("ed25519");
    let key = server.host_key("ed25519");
    let home = home_with_known_hosts(&format!("elsewhere {other}\n{} {key}\n", server.known_as()));
    let path = home.path().join(".ssh/known_hosts");
    output(Command::new("ssh-keygen").args(["-H", "-f"]).arg(&path));
    assert!(!fs::read_to_string(&path).expect("it is there").contains("127.0.0.1"));
    assert_eq!(connect_from_home(&server, home.path()), Ok(()));
}

#[test]
fn a_key_of_the_bare_name_counts_only_if_the_port_has_none() {
    let (other, _) = other_key("ed25519");
    let server = Sshd::start();
    let bare = format!("somewhere,127.0.0.1 {}\n", server.host_key("ed25519"));
    assert_eq!(connect_by_known_hosts(&server, &bare), Ok(()));
    let server = Sshd::start();
    let bare = format!("127.0.0.1 {}\n{} {other}\n", server.host_key("ed25519"), server.known_as());
    assert!(connect_by_known_hosts(&server, &bare).is_err());
}

#[test]
fn patterns_in_known_hosts_count_and_exclude() {
    let server = Sshd::start();
    let key = server.host_key("ed25519");
    let (host, port) = ("127.0.0.1", server.port());
    let reason = connect_by_known_hosts(&server, &format!("[127.0.0.*]:{port},![{host}]:{port} {key}\n"));
    assert!(reason.expect_err("excluded").contains("not known"));
    assert_eq!(connect_by_known_hosts(&server, &format!("[127.0.?.*]:{port} {key}\n")), Ok(()));
}

#[test]
fn an_unknown_server_is_refused_and_the_way_to_accept_it_is_told() {
    let server = Sshd::start();
    let reason = connect_by_known_hosts(&server, "").expect_err("unknown");
    assert!(reason.contains("not known"), "{reason}");
    assert!(reason.contains(&server.fingerprint("ed25519")), "{reason}");
    assert!(reason.contains(&format!("`host-key: {}`", server.host_key("ed25519"))), "{reason}");
    assert!(reason.contains(&format!("ssh-keyscan -p {} 127.0.0.1", server.port())), "{reason}");
}

#[test]
fn a_changed_key_is_refused_and_both_fingerprints_are_told() {
    let mut server = Sshd::start();
    let known = format!("{} {}\n", server.known_as(), server.host_key("ed25519"));
    let old = server.fingerprint("ed25519");
    server.stop();
    server.replace_host_key("ed25519");
    server.start_again(&["ed25519"]);
    let reason = connect_by_known_hosts(&server, &known).expect_err("changed");
    assert!(reason.contains("NOT THE KNOWN ONE"), "{reason}");
    assert!(reason.contains(&old) && reason.contains(&server.fingerprint("ed25519")), "{reason}");
    assert!(reason.contains("known_hosts line 1"), "{reason}");
}

#[test]
fn a_revoked_key_is_refused_even_if_it_is_known() {
    let server = Sshd::start();
    let (name, key) = (server.known_as(), server.host_key("ed25519"));
    let reason =
        connect_by_known_hosts(&server, &format!("{name} {key}\n@revoked * {key}\n")).expect_err("revoked");
    assert!(reason.contains("revoked") && reason.contains("known_hosts line 2"), "{reason}");
}

#[test]
fn the_key_of_an_authority_is_not_a_servers() {
    let server = Sshd::start();
    let line = format!("@cert-authority * {}\n", server.host_key("ed25519"));
    assert!(connect_by_known_hosts(&server, &line).expect_err("no server's key").contains("not known"));
}

#[test]
fn lines_that_are_not_understood_lose_no_others() {
    let server = Sshd::start();
    let (name, key) = (server.known_as(), server.host_key("ed25519"));
    let nonsense =
        format!("# comment\n\n{name}\n{name} ssh-ed25519 !!!\n{name} ssh-rsa AAAA\n@odd x y\n|1|x|y {key}\n");
    let reason = connect_by_known_hosts(&server, &nonsense).expect_err("nothing of use");
    assert!(reason.contains("Not understood:") && reason.contains("known_hosts line 4"), "{reason}");
    assert_eq!(connect_by_known_hosts(&server, &format!("{nonsense}{name} {key}\n")), Ok(()));
}

#[test]
fn the_server_is_asked_for_the_type_of_key_that_is_known() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let server = Sshd::with_host_keys(&["ed25519", "ecdsa", "rsa"]);
        let line = format!("{} {}\n", server.known_as(), server.host_key(kind));
        assert_eq!(connect_by_known_hosts(&server, &line), Ok(()), "{kind}");
    }
}

#[test]
fn a_configured_key_is_accepted_however_it_is_written() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let server = Sshd::with_host_keys(&["ed25519", "ecdsa", "rsa"]);
        let key = server.host_key(kind);
        let scanned = format!("{} {key}", server.known_as());
        for text in [key.clone(), format!("{key} root@server"), scanned, server.fingerprint(kind)] {
            assert_eq!(connect_by_host_key(&server, &text), Ok(()), "{text}");
        }
    }
}

#[test]
fn another_key_than_the_configured_one_is_refused() {
    let server = Sshd::start();
    let (other, other_fingerprint) = other_key("ed25519");
    for text in [other, other_fingerprint.clone()] {
        let reason = connect_by_host_key(&server, &text).expect_err("another key");
        assert!(reason.contains("NOT THE KNOWN ONE"), "{reason}");
        assert!(
            reason.contains(&other_fingerprint) && reason.contains(&server.fingerprint("ed25519")),
            "{reason}"
        );
    }
}

#[test]
fn a_configured_key_leaves_known_hosts_aside() {
    let server = Sshd::start();
    let home = home_with_known_hosts(&format!("{} {}\n", server.known_as(), server.host_key("ed25519")));
    let location = SftpLocation { host_keys: vec![other_key("ed25519").0], ..server.location() };
    assert!(checked(&server, &location, Some(home.path())).is_err());
}

#[test]
fn a_configured_key_that_is_none_is_refused() {
    let server = Sshd::start();
    let reason = connect_by_host_key(&server, "ssh-ed25519 nonsense").expect_err("no key");
    assert!(reason.contains("neither a key"), "{reason}");
}
