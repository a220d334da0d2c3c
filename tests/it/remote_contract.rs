//! What every destination promises (`Remote`), held to by a folder and by a real SFTP server alike.

use crate::support::process::{output, signal};
use crate::support::sshd::{Sshd, make_key};
use crate::support::temporary_folder;
use crate::support::wait::wait_until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wal_agent::core::segment::PACKET;
use wal_agent::remote::dir::DirRemote;
use wal_agent::remote::location::{Secret, SftpLocation};
use wal_agent::remote::sftp::{OPERATION_DEADLINE, SftpRemote};
use wal_agent::remote::{Entry, FailureKind, MAX_OPEN, Remote, RemoteError, join};

/// Far below any deadline: what must not wait for one.
const AT_ONCE: Duration = Duration::from_secs(5);

/// So many folders are made to get one with a number that was given before.
const MOST_FOLDERS: usize = 10_000;

/// A destination, and its folder as the test sees it.
struct Place<'a> {
    remote: &'a mut dyn Remote,
    folder: PathBuf,
}

impl Place<'_> {
    fn path(&self, path: &str) -> String {
        join(self.folder.to_str().expect("temporary folders have plain names"), path)
    }

    fn create(&mut self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        self.remote.create(&path).expect("create");
        self.remote.write_at(&path, 0, bytes).expect("write");
    }

    fn content(&self, path: &str) -> Vec<u8> {
        fs::read(self.folder.join(path)).expect("the file is there")
    }

    fn names(&mut self, folder: &str) -> Vec<String> {
        let mut entries = self.remote.list(&self.path(folder)).expect("list");
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        entries.into_iter().map(|entry| entry.name).collect()
    }
}

fn in_folder(promise: fn(Place<'_>)) {
    let folder = temporary_folder();
    promise(Place { remote: &mut DirRemote::new(), folder: folder.path().to_owned() });
}

fn on_server(promise: fn(Place<'_>)) {
    let server = Sshd::start();
    promise(Place { remote: &mut connect(&server.location()), folder: server.storage() });
}

fn connect(location: &SftpLocation) -> SftpRemote {
    SftpRemote::connect(location, None).expect("the server lets us in")
}

/// The error of a connection that must not come to be.
fn connect_error(location: &SftpLocation) -> RemoteError {
    SftpRemote::connect(location, None).err().expect("no connection")
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    StdRng::seed_from_u64(count as u64).fill(bytes.as_mut_slice());
    bytes
}

macro_rules! contract {
    ($($promise:ident),* $(,)?) => {
        mod folder { $(#[test] fn $promise() { super::in_folder(super::$promise) })* }
        mod server { $(#[test] fn $promise() { super::on_server(super::$promise) })* }
    };
}

contract!(
    a_folder_that_is_not_there_is_listed_as_empty,
    a_listing_tells_names_sizes_times_and_folders,
    creating_makes_the_folders_above,
    creating_below_a_link_to_nowhere_fails,
    creating_again_empties,
    a_write_changes_only_what_it_writes,
    writing_does_not_create,
    what_is_synced_is_promised,
    a_file_gets_the_time_that_it_is_given_and_keeps_it_under_its_new_name,
    an_open_file_is_written_under_its_new_name,
    a_taken_name_is_never_replaced,
    renaming_what_is_not_there_is_not_found,
    removing_twice_is_fine,
    a_removed_file_is_not_written_any_more,
    reading_ends_where_the_file_ends,
    reading_sees_what_was_appended_meanwhile,
    ten_megabytes_come_back,
    more_files_than_may_be_open_are_written_by_turns,
);

fn a_folder_that_is_not_there_is_listed_as_empty(place: Place<'_>) {
    assert_eq!(place.remote.list(&place.path("no/such/folder")).expect("list"), []);
}

fn a_listing_tells_names_sizes_times_and_folders(mut place: Place<'_>) {
    place.create("a/file", b"12345");
    place.create("a/folder/inner", b"1");
    let mut entries = place.remote.list(&place.path("a")).expect("list");
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    for entry in &mut entries {
        let modified = entry.modified.take().expect("a time");
        assert!((now - 60..=now + 1).contains(&modified), "{modified} is not about {now}");
    }
    let entry =
        |name: &str, size, is_folder| Entry { name: name.to_owned(), size, modified: None, is_folder };
    assert_eq!(entries, [entry("file", 5, false), entry("folder", 0, true)]);
}

fn creating_makes_the_folders_above(mut place: Place<'_>) {
    place.create("a/b/c/d/file", b"x");
    place.create("a/b/c/d/other", b"y");
    assert_eq!(place.names("a/b/c/d"), ["file", "other"]);
}

fn creating_below_a_link_to_nowhere_fails(place: Place<'_>) {
    symlink("nowhere", place.folder.join("link")).expect("the folder is ours");
    let error = place.remote.create(&place.path("link/a/file")).expect_err("no folder");
    assert_eq!(error.kind, FailureKind::NotFound, "{error}");
}

fn creating_again_empties(mut place: Place<'_>) {
    place.create("file", b"longer");
    place.create("file", b"new");
    assert_eq!(place.content("file"), b"new");
}

fn a_write_changes_only_what_it_writes(mut place: Place<'_>) {
    place.create("file", b"0123456789");
    place.remote.write_at(&place.path("file"), 3, b"abc").expect("write");
    place.remote.write_at(&place.path("file"), 10, b"end").expect("write");
    assert_eq!(place.content("file"), b"012abc6789end");
}

fn writing_does_not_create(place: Place<'_>) {
    let error = place.remote.write_at(&place.path("file"), 0, b"x").expect_err("there is no file");
    assert_eq!(error.kind, FailureKind::NotFound, "{error}");
    assert!(!place.folder.join("file").exists());
}

fn what_is_synced_is_promised(mut place: Place<'_>) {
    place.create("file", b"x");
    assert!(place.remote.sync(&place.path("file")).expect("sync"));
}

fn a_file_gets_the_time_that_it_is_given_and_keeps_it_under_its_new_name(mut place: Place<'_>) {
    place.create("new", b"content");
    let [new, named] = ["new", "named"].map(|name| place.path(name));
    let later = 4_000_000_000;
    place.remote.set_modified(&new, later).expect("set the time");
    place.remote.sync(&new).expect("sync");
    place.remote.rename(&new, &named).expect("rename");
    let modified = place.remote.list(&place.path("")).expect("list")[0].modified;
    assert_eq!(modified, Some(later));
    let missing = place.remote.set_modified(&place.path("none"), later).expect_err("it is not there");
    assert_eq!(missing.kind, FailureKind::NotFound);
}

fn an_open_file_is_written_under_its_new_name(mut place: Place<'_>) {
    place.create("file.tmp", b"one");
    place.remote.rename(&place.path("file.tmp"), &place.path("file")).expect("rename");
    place.create("file.tmp", b"another");
    place.remote.write_at(&place.path("file"), 3, b" two").expect("write");
    assert_eq!(place.content("file"), b"one two");
    assert_eq!(place.content("file.tmp"), b"another");
}

fn a_taken_name_is_never_replaced(mut place: Place<'_>) {
    place.create("new", b"new");
    place.create("old", b"old");
    let error = place.remote.rename(&place.path("new"), &place.path("old")).expect_err("the name is taken");
    assert_eq!(error.kind, FailureKind::Exists, "{error}");
    assert_eq!((place.content("new"), place.content("old")), (b"new".to_vec(), b"old".to_vec()));
}

fn renaming_what_is_not_there_is_not_found(place: Place<'_>) {
    let error = place.remote.rename(&place.path("a"), &place.path("b")).expect_err("there is no file");
    assert_eq!(error.kind, FailureKind::NotFound, "{error}");
}

fn removing_twice_is_fine(mut place: Place<'_>) {
    place.create("file", b"x");
    place.remote.remove(&place.path("file")).expect("remove");
    place.remote.remove(&place.path("file")).expect("remove");
    assert_eq!(place.names(""), [""; 0]);
}

fn a_removed_file_is_not_written_any_more(mut place: Place<'_>) {
    place.create("file", b"x");
    place.remote.remove(&place.path("file")).expect("remove");
    let error = place.remote.write_at(&place.path("file"), 0, b"y").expect_err("there is no file");
    assert_eq!(error.kind, FailureKind::NotFound, "{error}");
}

fn reading_ends_where_the_file_ends(mut place: Place<'_>) {
    place.create("file", b"0123456789");
    let mut buffer = [0; 8];
    assert_eq!(place.remote.read_at(&place.path("file"), 0, &mut buffer).expect("read"), 8);
    assert_eq!(&buffer, b"01234567");
    assert_eq!(place.remote.read_at(&place.path("file"), 8, &mut buffer).expect("read"), 2);
    assert_eq!(&buffer[..2], b"89");
    assert_eq!(place.remote.read_at(&place.path("file"), 10, &mut buffer).expect("read"), 0);
    assert_eq!(place.remote.read_at(&place.path("file"), 99, &mut buffer).expect("read"), 0);
    let error = place.remote.read_at(&place.path("none"), 0, &mut buffer).expect_err("there is no file");
    assert_eq!(error.kind, FailureKind::NotFound, "{error}");
}

fn reading_sees_what_was_appended_meanwhile(mut place: Place<'_>) {
    place.create("file", b"one");
    let mut buffer = [0; 100];
    assert_eq!(place.remote.read_at(&place.path("file"), 0, &mut buffer).expect("read"), 3);
    place.remote.write_at(&place.path("file"), 3, b" two").expect("write");
    assert_eq!(place.remote.read_at(&place.path("file"), 3, &mut buffer).expect("read"), 4);
    // The same, when reading has stopped exactly at the end and libssh2 has already asked for more.
    assert_eq!(place.remote.read_at(&place.path("file"), 0, &mut buffer[..7]).expect("read"), 7);
    place.remote.write_at(&place.path("file"), 7, &[b'x'; 90_000]).expect("write");
    assert_eq!(place.remote.read_at(&place.path("file"), 7, &mut buffer).expect("read"), 100);
    assert_eq!(buffer, [b'x'; 100]);
}

fn ten_megabytes_come_back(mut place: Place<'_>) {
    let bytes = random_bytes(10_000_000);
    place.create("file", b"");
    for (number, part) in bytes.chunks(4 << 20).enumerate() {
        place.remote.write_at(&place.path("file"), (number * (4 << 20)) as u64, part).expect("write");
    }
    assert!(place.content("file") == bytes, "the file is not what was written");
    let mut read = vec![0; bytes.len()];
    for (number, part) in read.chunks_mut(1 << 20).enumerate() {
        let length =
            place.remote.read_at(&place.path("file"), (number * (1 << 20)) as u64, part).expect("read");
        assert_eq!(length, part.len());
    }
    assert!(read == bytes, "what was read is not the file");
}

fn more_files_than_may_be_open_are_written_by_turns(mut place: Place<'_>) {
    let names: Vec<_> = (0..2 * MAX_OPEN).map(|number| format!("file{number}")).collect();
    for name in &names {
        place.create(name, b"one");
    }
    for name in &names {
        place.remote.write_at(&place.path(name), 3, name.as_bytes()).expect("write");
    }
    for name in &names {
        assert_eq!(place.content(name), format!("one{name}").as_bytes());
    }
}

/// Every operation says that the connection is gone, and none waits.
fn assert_gone(remote: &mut SftpRemote, path: &str) {
    let start = Instant::now();
    let errors = [
        remote.write_at(path, 0, b"x").expect_err("the server is gone"),
        remote.write_at(path, 0, &vec![0; PACKET * 10]).expect_err("the server is gone"),
        remote.read_at(path, 0, &mut [0; 10]).expect_err("the server is gone"),
        remote.create(path).expect_err("the server is gone"),
        remote.sync(path).expect_err("the server is gone"),
        remote.rename(path, "x").expect_err("the server is gone"),
        remote.remove(path).expect_err("the server is gone"),
        remote.list(path).expect_err("the server is gone"),
    ];
    for error in errors {
        assert_eq!(error.kind, FailureKind::Disconnected, "{error}");
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn what_was_removed_or_replaced_in_a_folder_is_not_appended_to() {
    let folder = temporary_folder();
    let path = folder.path().join("object").display().to_string();
    let aside = folder.path().join("aside");
    let mut remote = DirRemote::new();
    let begin = |remote: &mut DirRemote| {
        remote.close(&path);
        remote.create(&path).and_then(|_| remote.write_at(&path, 0, b"begun")).expect("the folder is ours");
    };
    begin(&mut remote);
    fs::rename(&path, &aside).expect("the folder is ours");
    let error = remote.write_at(&path, 5, b"more").expect_err("nobody would find it");
    assert_eq!(error.kind, FailureKind::NotFound);
    begin(&mut remote);
    fs::rename(&aside, &path).expect("the folder is ours");
    remote.write_at(&path, 5, b"more").expect_err("nobody would find it");
    assert_eq!(fs::read(&path).expect("it is there"), b"begun");
}

#[test]
fn what_was_removed_or_replaced_on_a_server_is_soon_not_appended_to() {
    let server = Sshd::start();
    let (path, aside) = (server.storage().join("object"), server.storage().join("aside"));
    let name = path.display().to_string();
    let mut remote = connect(&server.location());
    let mut append_until_noticed = |put_there: fn(&Path)| {
        remote.close(&name);
        remote.create(&name).and_then(|_| remote.write_at(&name, 0, b"begun")).expect("the folder is ours");
        fs::rename(&path, &aside).expect("the folder is ours");
        put_there(&path);
        let mut error = None;
        wait_until("it is noticed", Duration::from_secs(60), || {
            error = remote.write_at(&name, 5, b"more").err();
            error.is_some()
        });
        error.expect("it was noticed").kind
    };
    assert_eq!(append_until_noticed(|_| ()), FailureKind::NotFound);
    assert_eq!(append_until_noticed(|path| fs::write(path, b"older").expect("ours")), FailureKind::Other);
    assert_eq!(fs::read(&path).expect("it is there"), b"older");
}

#[test]
fn a_killed_server_is_disconnected_at_once() {
    let server = Sshd::start();
    let mut remote = connect(&server.location());
    let path = join(&server.location().path, "file");
    remote.create(&path).expect("create");
    server.sftp_servers().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    assert_gone(&mut remote, &path);
    connect(&server.location()).write_at(&path, 0, b"x").expect("a new connection works");
}

#[test]
fn a_connection_that_is_cut_is_disconnected_at_once() {
    let mut server = Sshd::start();
    let mut remote = connect(&server.location());
    let path = join(&server.location().path, "file");
    remote.create(&path).expect("create");
    server.stop();
    assert_gone(&mut remote, &path);
}

#[test]
fn a_stopped_server_is_disconnected_at_the_deadline() {
    let server = Sshd::start();
    let mut remote = connect(&server.location());
    let path = join(&server.location().path, "file");
    remote.create(&path).expect("create");
    server.sftp_servers().into_iter().for_each(|pid| signal(pid, Signal::STOP));
    let start = Instant::now();
    let error = remote.write_at(&path, 0, b"x").expect_err("nobody answers");
    assert_eq!(error.kind, FailureKind::Disconnected, "{error}");
    assert!(start.elapsed() < OPERATION_DEADLINE + AT_ONCE, "{:?}", start.elapsed());
    let start = Instant::now();
    assert_gone(&mut remote, &path);
    drop(remote);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn a_server_that_does_not_listen_is_disconnected() {
    let mut server = Sshd::start();
    server.stop();
    let error = connect_error(&server.location());
    assert_eq!(error.kind, FailureKind::Disconnected, "{error}");
    assert!(error.action.contains(&format!("sftp://{}@127.0.0.1:{}", server.location().user, server.port())));
}

#[test]
fn a_server_that_says_nothing_is_disconnected_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let server = Sshd::start();
    let start = Instant::now();
    let error = connect_error(&SftpLocation { port, ..server.location() });
    assert_eq!(error.kind, FailureKind::Disconnected, "{error}");
    assert!(start.elapsed() < OPERATION_DEADLINE + AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn a_failed_login_tells_what_was_tried_and_no_secret() {
    let server = Sshd::start();
    let folder = temporary_folder();
    let stranger = folder.path().join("stranger");
    make_key(&stranger, "ed25519");
    let password = Some(Secret::new("open sesame".to_owned()));
    let location = SftpLocation { key_path: Some(stranger), password, ..server.location() };
    let error = connect_error(&location);
    assert_eq!(error.kind, FailureKind::Authentication, "{error}");
    let text = error.to_string();
    assert!(text.contains("/stranger: ") && text.contains("password: "), "{text}");
    assert!(!text.contains("sesame") && !format!("{location:?}").contains("sesame"), "{text}");
}

#[test]
fn a_key_file_that_is_not_there_is_named() {
    let server = Sshd::start();
    let location = SftpLocation { key_path: Some("/no/such/key".into()), ..server.location() };
    let error = connect_error(&location);
    assert_eq!(error.kind, FailureKind::Authentication, "{error}");
    assert!(error.reason.contains("key /no/such/key: cannot be read"), "{error}");
}

#[test]
fn a_key_with_a_passphrase_is_said_to_need_an_agent() {
    let server = Sshd::start();
    let folder = temporary_folder();
    let key = folder.path().join("key");
    make_key(&key, "ed25519");
    output(Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "a phrase", "-f"]).arg(&key));
    let error = connect_error(&SftpLocation { key_path: Some(key), ..server.location() });
    assert_eq!(error.kind, FailureKind::Authentication, "{error}");
    assert!(error.reason.contains("ssh-agent"), "{error}");
}

#[test]
fn any_kind_of_client_key_lets_in() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let server = Sshd::start();
        let folder = temporary_folder();
        let key = folder.path().join("key");
        make_key(&key, kind);
        server.let_in(&key.with_extension("pub"));
        connect(&SftpLocation { key_path: Some(key), ..server.location() });
    }
}

#[test]
fn a_folder_that_was_removed_and_made_again_is_another_one_though_its_number_is_given_again() {
    let folder = temporary_folder();
    let inside = folder.path().join("inside");
    let path = inside.join("file").to_str().expect("temporary folders have plain names").to_owned();
    let mut remote = DirRemote::new();
    fs::create_dir(&inside).expect("the folder is ours");
    assert!(!remote.create(&path).expect("create"), "it is the first time");
    assert!(!remote.create(&path).expect("create"), "it is the same one");
    remote.close(&path);
    let identity = || {
        let metadata = fs::metadata(&inside).expect("it is there");
        (metadata.ino(), metadata.created().ok())
    };
    let before = identity();
    // Not every file system gives a number again; and its clock goes in steps of milliseconds.
    for _ in 0..MOST_FOLDERS {
        fs::remove_dir_all(&inside).expect("the folder is ours");
        fs::create_dir(&inside).expect("the folder is ours");
        let again = identity();
        if again.0 == before.0 && again.1 != before.1 {
            break;
        }
    }
    assert!(remote.create(&path).expect("create"));
}
