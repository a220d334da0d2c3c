//! A real OpenSSH server on a port of its own, with keys of its own.

use super::process::{Killed, descendants, named, output, signal};
use super::temporary_folder;
use super::wait::wait_for;
use rustix::process::Signal;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use wal_agent::remote::location::SftpLocation;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// sshd, its files, and its log. Stops with everything it started when dropped.
pub struct Sshd {
    folder: TempDir,
    port: u16,
    process: Killed,
}

impl Sshd {
    /// A server with an ed25519 host key.
    pub fn start() -> Sshd {
        Sshd::with_host_keys(&["ed25519"])
    }

    /// A server with host keys of these types (as `ssh-keygen -t` calls them).
    pub fn with_host_keys(kinds: &[&str]) -> Sshd {
        let folder = temporary_folder();
        make_key(&folder.path().join("client"), "ed25519");
        kinds.iter().for_each(|kind| make_key(&host_key(folder.path(), kind), kind));
        let server = Sshd::on_free_port(folder, kinds);
        server.let_in(&server.client_key().with_extension("pub"));
        server
    }

    /// A server that lets nobody in but by this password. Only its own processes see the password: `/etc/shadow` is
    /// another file for them, which needs root.
    pub fn with_password(password: &str) -> Sshd {
        let folder = temporary_folder();
        make_key(&host_key(folder.path(), "ed25519"), "ed25519");
        let hash = output(Command::new("perl").args(["-e", "print crypt($ARGV[0], '$6$salt$')", password]));
        fs::write(folder.path().join("shadow"), format!("{}:{hash}:::::::\n", user())).expect("ours");
        Sshd::on_free_port(folder, &["ed25519"])
    }

    /// Another test may take the port between our looking and sshd's binding: then look for another one.
    fn on_free_port(folder: TempDir, kinds: &[&str]) -> Sshd {
        let _ = fs::create_dir_all("/run/sshd"); // sshd run by root wants it
        let (port, process) = (0..10)
            .find_map(|_| {
                let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
                let port = port.expect("there is a free port").port();
                start(folder.path(), port, kinds).map(|process| (port, process))
            })
            .expect("sshd starts on one of ten free ports");
        Sshd { folder, port, process }
    }

    /// The server stops, with all connections.
    pub fn stop(&mut self) {
        let processes = descendants(self.process.0.id());
        processes.into_iter().chain([self.process.0.id()]).for_each(|pid| signal(pid, Signal::KILL));
        let _ = self.process.0.wait();
    }

    /// The server comes back on its port, after [`Sshd::stop`], with host keys of these types.
    pub fn start_again(&mut self, kinds: &[&str]) {
        self.process = start(self.folder.path(), self.port, kinds).expect("its port is still free");
    }

    /// The server comes back on its port with another command in place of sftp-server; `{}` is that program.
    pub fn start_again_with(&mut self, sftp_server: &str) {
        self.process = start_with(self.folder.path(), self.port, &["ed25519"], sftp_server)
            .expect("its port is still free");
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The client's private key, which lets in.
    pub fn client_key(&self) -> PathBuf {
        self.folder.path().join("client")
    }

    /// Lets in another client, by its public key.
    pub fn let_in(&self, public_key: &Path) {
        let key = fs::read(public_key).expect("ssh-keygen wrote it");
        fs::write(self.folder.path().join("authorized_keys"), key).expect("the folder is ours");
    }

    /// A folder for replicas: the same for the server and for the test.
    pub fn storage(&self) -> PathBuf {
        let storage = self.folder.path().join("storage");
        fs::create_dir_all(&storage).expect("the folder is ours");
        storage
    }

    /// How to reach [`Sshd::storage`], the server's ed25519 key included.
    pub fn location(&self) -> SftpLocation {
        SftpLocation {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: user(),
            password: None,
            key_path: Some(self.client_key()),
            host_keys: vec![self.host_key("ed25519")],
            path: self.storage().to_str().expect("temporary folders have plain names").to_owned(),
        }
    }

    /// The host key of a type, as `ssh-ed25519 AAAA...`.
    pub fn host_key(&self, kind: &str) -> String {
        let line = fs::read_to_string(host_key(self.folder.path(), kind).with_extension("pub"));
        let line = line.expect("the server has a key of this type");
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// The host key's `SHA256:...`.
    pub fn fingerprint(&self, kind: &str) -> String {
        fingerprint(&host_key(self.folder.path(), kind))
    }

    /// Removes a host key and makes another one, for [`Sshd::start_again`].
    pub fn replace_host_key(&self, kind: &str) {
        fs::remove_file(host_key(self.folder.path(), kind)).expect("the server has a key of this type");
        make_key(&host_key(self.folder.path(), kind), kind);
    }

    /// The server's name in known_hosts.
    pub fn known_as(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    /// What the server wrote down (LogLevel DEBUG1).
    pub fn log(&self) -> String {
        log(self.folder.path())
    }

    /// The sftp-server processes of all connections.
    pub fn sftp_servers(&self) -> Vec<u32> {
        named(descendants(self.process.0.id()), "sftp-server")
    }

    /// The processes of all connections: sshd's own and sftp-server.
    pub fn sessions(&self) -> Vec<u32> {
        descendants(self.process.0.id())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop(); // also what a test has stopped with a signal
    }
}

/// A home with a known_hosts of this text.
pub fn home_with_known_hosts(text: &str) -> TempDir {
    let home = temporary_folder();
    fs::create_dir(home.path().join(".ssh")).expect("the folder is ours");
    fs::write(home.path().join(".ssh/known_hosts"), text).expect("the folder is ours");
    home
}

/// A new key pair at `path` and `path`.pub.
pub fn make_key(path: &Path, kind: &str) {
    output(Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(path));
}

/// The fingerprint of a key at `path`.
pub fn fingerprint(path: &Path) -> String {
    let line = output(Command::new("ssh-keygen").args(["-l", "-E", "sha256", "-f"]).arg(path));
    line.split_whitespace().nth(1).expect("bits, fingerprint, comment, type").to_owned()
}

/// `None` if the port was taken.
fn start(folder: &Path, port: u16, kinds: &[&str]) -> Option<Killed> {
    start_with(folder, port, kinds, "{}")
}

fn start_with(folder: &Path, port: u16, kinds: &[&str], sftp_server: &str) -> Option<Killed> {
    let config = folder.join("sshd_config");
    fs::write(&config, configuration(folder, port, kinds, sftp_server)).expect("the folder is ours");
    fs::write(folder.join("log"), "").expect("the folder is ours");
    let log_file = || File::options().append(true).open(folder.join("log")).expect("written above");
    let sshd = find("sshd", &["/usr/sbin", "/usr/local/sbin", "/usr/bin"]);
    let mut command = Command::new("unshare");
    if folder.join("shadow").exists() {
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/shadow && exec \"$@\""]);
        command.arg(folder.join("shadow")).arg(sshd);
    } else {
        command = Command::new(sshd);
    }
    command.args(["-D", "-e", "-f"]).arg(&config);
    command.stdin(Stdio::null()).stdout(log_file()).stderr(log_file());
    let mut process = Killed(command.spawn().expect("sshd can be run"));
    let is_up = wait_for("sshd listens", START_DEADLINE, || {
        if log(folder).contains("Server listening on") {
            return Some(true);
        }
        process.0.try_wait().expect("sshd is our child").map(|_| false)
    });
    assert!(is_up || log(folder).contains("in use"), "sshd did not start:\n{}", log(folder));
    is_up.then_some(process)
}

fn configuration(folder: &Path, port: u16, kinds: &[&str], sftp_server: &str) -> String {
    let program =
        find("sftp-server", &["/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec"]);
    let sftp_server = sftp_server.replace("{}", program.to_str().expect("a plain name"));
    let mut lines = vec![
        format!("Port {port}"),
        "ListenAddress 127.0.0.1".to_owned(),
        format!("PidFile {}", folder.join("pid").display()),
        format!("AuthorizedKeysFile {}", folder.join("authorized_keys").display()),
        "StrictModes no".to_owned(),
        "UsePAM no".to_owned(),
        format!("PasswordAuthentication {}", if folder.join("shadow").exists() { "yes" } else { "no" }),
        "PermitRootLogin yes".to_owned(),
        "LogLevel DEBUG1".to_owned(),
        format!("Subsystem sftp {sftp_server}"),
    ];
    lines.extend(kinds.iter().map(|kind| format!("HostKey {}", host_key(folder, kind).display())));
    lines.join("\n") + "\n"
}

fn find(program: &str, folders: &[&str]) -> PathBuf {
    let candidates = folders.iter().map(|folder| Path::new(folder).join(program));
    candidates.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {program}: run tests/run"))
}

fn host_key(folder: &Path, kind: &str) -> PathBuf {
    folder.join(format!("host_{kind}"))
}

fn log(folder: &Path) -> String {
    String::from_utf8_lossy(&fs::read(folder.join("log")).unwrap_or_default()).into_owned()
}

fn user() -> String {
    output(Command::new("id").arg("-un")).trim().to_owned()
}
