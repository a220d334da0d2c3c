//! The control socket: how `agent status` asks a running agent, and how that one answers without ever waiting.
//!
//! A client sends one line: `status`, `status json`, or `detach` and the path of a database. The answer is one line with
//! the health as the exit code of `agent status` (0 healthy, 1 lagging, 2 failing; or the word `error`), then the body;
//! then the socket is closed. To `detach`, 0 says that it is detached, 1 that it is not, yet, and why; 2 that the
//! agent has no such database.

mod json;

use crate::core::status::{AgentStatus, Health};
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many clients are served at once. One more, and the oldest is dropped: it may have been silent for ever.
pub const MAX_CLIENTS: usize = 16;
/// How many tokens a [`Server`] needs: its listener's, and one for each client.
pub const TOKENS: usize = 1 + MAX_CLIENTS;

/// The longest request in bytes: a word, and a path as long as the kernel takes them.
const MAX_REQUEST: usize = 4096 + 16;
const DETACH: &str = "detach ";
/// How long a client waits for an answer: the agent's loop never waits, so a second would do.
const PATIENCE: Duration = Duration::from_secs(5);
/// Owner and group may ask.
const MODE: u32 = 0o660;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The status for people.
    Status,
    /// The status for programs.
    StatusJson,
    /// To let go of a database as soon as nobody else has it open.
    Detach(PathBuf),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How well replication works.
    pub health: Health,
    /// What was asked for.
    pub body: String,
}

/// Why there is no answer, or no server.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No agent listens there.
    #[error("no agent is running: nobody listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// Another agent listens there already.
    #[error("another agent is running: it answers on {}; stop it, or give this one another socket", .0.display())]
    AlreadyRunning(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{} is in the way: it is not a socket, and is left alone", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} the control socket {}: {source}", .path.display())]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What came back is not an answer.
    #[error("the agent at {} answered: {answer}", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What it said.
        answer: String,
    },
}

/// Asks the agent that listens on `socket`.
///
/// # Errors
/// [`ControlError::NotRunning`] if there is none; any other if it does not answer within five seconds.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ControlError> {
    let failed = |action| move |source| ControlError::Failed { action, path: socket.to_owned(), source };
    let mut stream = match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) if is_nobody_there(&error) => return Err(ControlError::NotRunning(socket.to_owned())),
        other => other.map_err(failed("open"))?,
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed("set up"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed("set up"))?;
    stream.write_all(format!("{}\n", request.line()).as_bytes()).map_err(failed("write to"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed("read from"))?;
    parse_reply(&answer).ok_or(ControlError::Answer { path: socket.to_owned(), answer })
}

/// The status for people.
pub fn status_reply(status: &AgentStatus) -> Reply {
    Reply { health: status.health(), body: status.to_string() }
}

/// The status for programs.
pub fn json_reply(status: &AgentStatus) -> Reply {
    Reply { health: status.health(), body: format!("{:#}\n", json::agent(status)) }
}

/// The exit code of `agent status`.
pub fn exit_code(health: Health) -> u8 {
    match health {
        Health::Healthy => 0,
        Health::Lagging => 1,
        Health::Failing => 2,
    }
}

impl Reply {
    /// As they are sent.
    pub fn bytes(&self) -> Vec<u8> {
        format!("{}\n{}", exit_code(self.health), self.body).into_bytes()
    }
}

fn parse_reply(answer: &str) -> Option<Reply> {
    let (code, body) = answer.split_once('\n')?;
    let all = [Health::Healthy, Health::Lagging, Health::Failing];
    let health = all.into_iter().find(|health| exit_code(*health).to_string() == code)?;
    Some(Reply { health, body: body.to_owned() })
}

fn is_nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Request {
    /// What a client sends, without the newline.
    pub fn line(&self) -> String {
        match self {
            Request::Status => "status".to_owned(),
            Request::StatusJson => "status json".to_owned(),
            Request::Detach(path) => format!("{DETACH}{}", path.display()),
        }
    }

    /// The request that a line is; `None` for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        match line {
            "status" => Some(Request::Status),
            "status json" => Some(Request::StatusJson),
            _ => line.strip_prefix(DETACH).map(|path| Request::Detach(path.into())),
        }
    }
}

/// The listening side. Nothing here waits; the event loop says when a token is ready.
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket: only our own is unlinked at the end.
    identity: (u64, u64),
    registry: Registry,
    listener: UnixListener,
    first: Token,
    clients: [Option<Client>; MAX_CLIENTS],
    accepted: u64,
}

struct Client {
    stream: UnixStream,
    /// The how-many-th accepted it is.
    number: u64,
    received: Vec<u8>,
    /// What is still to be written, once the request is there.
    reply: Option<Vec<u8>>,
}

impl Server {
    /// Listens on `path` with the tokens `first` to `first + TOKENS - 1`. A socket on which nobody answers is
    /// replaced; folders above it are made.
    ///
    /// # Errors
    /// If another agent answers there, or something else is in the way.
    pub fn bind(path: &Path, registry: &Registry, first: Token) -> Result<Self, ControlError> {
        let failed = |action| move |source| ControlError::Failed { action, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        }
        make_way(path)?;
        let mut listener = UnixListener::bind(path).map_err(failed("make"))?;
        let permissions = std::fs::Permissions::from_mode(MODE);
        std::fs::set_permissions(path, permissions).map_err(failed("set the mode of"))?;
        let identity = identity(path).map_err(failed("look at"))?;
        let registry = registry.try_clone().map_err(failed("watch"))?;
        registry.register(&mut listener, first, Interest::READABLE).map_err(failed("watch"))?;
        let clients = [const { None }; MAX_CLIENTS];
        Ok(Server { path: path.to_owned(), identity, registry, listener, first, clients, accepted: 0 })
    }

    /// Whether a token belongs to this server.
    pub fn owns(&self, token: Token) -> bool {
        (self.first.0..self.first.0 + TOKENS).contains(&token.0)
    }

    /// Goes on with whatever `token` stands for, until it would have to wait. `answer` makes an answer, see [`Reply::bytes`].
    pub fn ready(&mut self, token: Token, answer: &mut dyn FnMut(Request) -> Vec<u8>) {
        if token == self.first {
            self.accept();
            return;
        }
        let slot = token.0.checked_sub(self.first.0 + 1).and_then(|slot| self.clients.get_mut(slot));
        let Some(slot) = slot else { return };
        // A client that went away is nobody's error: it asks again, or not.
        let is_over =
            slot.as_mut().is_some_and(|client| !matches!(client.go_on(answer), Ok(Progress::Waiting)));
        if is_over {
            *slot = None;
        }
    }

    /// Takes all clients that wait in. Their first readiness is reported after they are registered.
    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let number_of = |client: &Option<Client>| client.as_ref().map(|client| client.number);
            let slots = 0..MAX_CLIENTS;
            let slot = slots.min_by_key(|slot| number_of(&self.clients[*slot])).expect("BUG: no slots");
            let token = Token(self.first.0 + 1 + slot);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.accepted += 1;
            self.clients[slot] = match self.registry.register(&mut stream, token, interest) {
                Ok(()) => Some(Client { stream, number: self.accepted, received: Vec::new(), reply: None }),
                Err(_) => None,
            };
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the control socket {}: {error}", self.path.display());
        }
    }
}

enum Progress {
    Waiting,
    Over,
}

impl Client {
    fn go_on(&mut self, answer: &mut dyn FnMut(Request) -> Vec<u8>) -> io::Result<Progress> {
        if self.reply.is_none() {
            let Some(line) = self.receive()? else { return Ok(Progress::Waiting) };
            self.reply = Some(match Request::parse(&line) {
                Some(request) => answer(request),
                None => b"error\nthis agent knows the requests `status`, `status json` and `detach PATH`\n"
                    .to_vec(),
            });
        }
        self.send()
    }

    /// The request, once it is whole.
    fn receive(&mut self) -> io::Result<Option<String>> {
        let mut buffer = [0; MAX_REQUEST];
        while !self.received.contains(&b'\n') {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) if self.received.len() + length <= MAX_REQUEST => {
                    self.received.extend_from_slice(&buffer[..length]);
                }
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let line = self.received.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }

    fn send(&mut self) -> io::Result<Progress> {
        let rest = self.reply.get_or_insert_default();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(length) => drop(rest.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Over)
    }
}

/// Removes a socket on which nobody answers.
fn make_way(path: &Path) -> Result<(), ControlError> {
    let failed = |action| move |source| ControlError::Failed { action, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ControlError::AlreadyRunning(path.to_owned())),
        Err(error) if is_nobody_there(&error) => std::fs::remove_file(path).map_err(failed("remove the old")),
        Err(error) => Err(failed("try")(error)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
