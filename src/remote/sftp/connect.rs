//! Logging in: TCP, the SSH handshake, the server's key, then ours.

use super::host_key::{HostKey, Trust};
use super::{Failure, FailureKind, OPERATION_DEADLINE, milliseconds};
use crate::remote::location::{Secret, SftpLocation};
use libssh2_sys as raw;
use rustix::net::sockopt;
use ssh2::{ErrorCode, KeyboardInteractivePrompt, MethodType, Prompt, Session};
use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// How long TCP may take to connect: several lost packets, and no longer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// An idle connection is probed by the kernel, which keeps address translators from forgetting it (the shortest known
/// forget after a minute) and tells a dead server after another 30 s, without waking us.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// How many of the agent's keys are offered. sshd hangs up after 6 attempts (MaxAuthTries).
const MAX_AGENT_KEYS: usize = 4;

/// `sftp://user@host:port`.
pub(super) fn name(location: &SftpLocation) -> String {
    let SftpLocation { host, port, user, .. } = location;
    if host.contains(':') {
        format!("sftp://{user}@[{host}]:{port}")
    } else {
        format!("sftp://{user}@{host}:{port}")
    }
}

/// A session that is logged in, and a second handle of its socket.
pub(super) fn log_in(location: &SftpLocation, home: Option<&Path>) -> Result<(Session, TcpStream), Failure> {
    let addresses = resolve(location)?;
    let trust = Trust::load(location, home).map_err(refused)?;
    let mut failure = None;
    for methods in trust.attempts() {
        let (session, socket) = match handshake(&addresses, &methods) {
            // The server has no key of these types; it may have one of the next.
            Err(HandshakeError::NothingInCommon(reason)) => {
                failure.get_or_insert(Failure { kind: FailureKind::Other, reason });
                continue;
            }
            Err(HandshakeError::Disconnected(reason)) => {
                return Err(Failure { kind: FailureKind::Disconnected, reason });
            }
            Ok(connected) => connected,
        };
        let shown = session.host_key().map(|(blob, _)| HostKey::from_blob(blob));
        match trust.judge(&shown.ok_or_else(|| refused("the server showed no key".to_owned()))?) {
            Ok(()) => return authenticate(&session, location).map(|()| (session, socket)),
            Err(reason) => failure = Some(refused(reason)),
        }
    }
    Err(failure.expect("BUG: there is always one attempt"))
}

fn refused(reason: String) -> Failure {
    Failure { kind: FailureKind::HostKey, reason }
}

fn disconnected(what: &str, error: &io::Error) -> Failure {
    Failure { kind: FailureKind::Disconnected, reason: format!("{what}: {error}") }
}

fn resolve(location: &SftpLocation) -> Result<Vec<SocketAddr>, Failure> {
    let addresses = (location.host.as_str(), location.port).to_socket_addrs();
    let addresses: Vec<_> =
        addresses.map_err(|error| disconnected("no address of that name", &error))?.collect();
    if addresses.is_empty() {
        return Err(disconnected("no address of that name", &io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

enum HandshakeError {
    NothingInCommon(String),
    Disconnected(String),
}

fn handshake(addresses: &[SocketAddr], methods: &str) -> Result<(Session, TcpStream), HandshakeError> {
    let socket = open_socket(addresses).map_err(|error| HandshakeError::Disconnected(error.to_string()))?;
    let connected = || -> Result<Session, ssh2::Error> {
        let mut session = Session::new()?;
        session.set_timeout(milliseconds(OPERATION_DEADLINE));
        session.method_pref(MethodType::HostKey, methods)?;
        let second = socket.try_clone().map_err(|_| ssh2::Error::unknown())?;
        session.set_tcp_stream(second);
        session.handshake()?;
        Ok(session)
    };
    match connected() {
        Ok(session) => Ok((session, socket)),
        Err(error) => Err(match error.code() {
            ErrorCode::Session(raw::LIBSSH2_ERROR_KEX_FAILURE | raw::LIBSSH2_ERROR_METHOD_NONE) => {
                HandshakeError::NothingInCommon(format!("no agreement with the server: {}", error.message()))
            }
            _ => HandshakeError::Disconnected(format!("SSH handshake: {}", error.message())),
        }),
    }
}

/// Connects to the first address that answers.
fn open_socket(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let share = CONNECT_DEADLINE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut result = Err(io::ErrorKind::NotFound.into());
    for address in addresses {
        result = TcpStream::connect_timeout(address, share);
        if result.is_ok() {
            break;
        }
    }
    let socket = result?;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(&socket, milliseconds(OPERATION_DEADLINE))?;
    Ok(socket)
}

/// One way to log in. Secrets are in none of its texts.
enum Method<'a> {
    Key(&'a Path),
    Password(&'a Secret),
    Agent,
}

/// Tries what is configured, then the ssh-agent if there is one.
fn authenticate(session: &Session, location: &SftpLocation) -> Result<(), Failure> {
    let key = location.key_path.as_deref().map(Method::Key);
    let password = location.password.as_ref().map(Method::Password);
    let agent = env::var_os("SSH_AUTH_SOCK").map(|_| Method::Agent);
    let mut failures = Vec::new();
    for method in [key, password, agent].into_iter().flatten() {
        match method.log_in(session, &location.user) {
            Ok(()) => return Ok(()),
            Err(Failure { kind, reason }) => {
                failures.push(Failure { kind, reason: format!("{method}: {reason}") })
            }
        }
    }
    let reasons: Vec<_> = failures.iter().map(|failure| failure.reason.as_str()).collect();
    match failures.first() {
        None => Err(not_let_in(
            "nothing to log in with: set key-path or password, or run an ssh-agent".to_owned(),
        )),
        Some(first) => Err(Failure { kind: first.kind, reason: reasons.join("; ") }),
    }
}

fn not_let_in(reason: String) -> Failure {
    Failure { kind: FailureKind::Authentication, reason }
}

fn not_let_in_by(error: &ssh2::Error) -> Failure {
    let kind = match error.code() {
        ErrorCode::Session(
            raw::LIBSSH2_ERROR_SOCKET_SEND
            | raw::LIBSSH2_ERROR_SOCKET_RECV
            | raw::LIBSSH2_ERROR_SOCKET_DISCONNECT
            | raw::LIBSSH2_ERROR_TIMEOUT,
        ) => FailureKind::Disconnected,
        _ => FailureKind::Authentication,
    };
    let hint = match error.code() {
        ErrorCode::Session(raw::LIBSSH2_ERROR_FILE) => {
            " (one with a passphrase must be given to an ssh-agent)"
        }
        _ => "",
    };
    Failure { kind, reason: format!("{}{hint}", error.message()) }
}

impl Method<'_> {
    fn log_in(&self, session: &Session, user: &str) -> Result<(), Failure> {
        let result = match self {
            Method::Key(path) => {
                let key = fs::read_to_string(path);
                let key = key.map_err(|error| not_let_in(format!("cannot be read: {error}")))?;
                session.userauth_pubkey_memory(user, None, &key, None)
            }
            Method::Password(password) => session
                .userauth_password(user, password.reveal())
                .or_else(|_| session.userauth_keyboard_interactive(user, &mut PasswordPrompt(password))),
            Method::Agent => return by_agent(session, user),
        };
        result.map_err(|error| not_let_in_by(&error))
    }
}

impl fmt::Display for Method<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Key(path) => write!(f, "key {}", path.display()),
            Method::Password(_) => f.write_str("password"),
            Method::Agent => f.write_str("ssh-agent"),
        }
    }
}

fn by_agent(session: &Session, user: &str) -> Result<(), Failure> {
    let listed = session.agent().and_then(|mut agent| {
        agent.connect()?;
        agent.list_identities()?;
        let keys = agent.identities()?;
        Ok((agent, keys))
    });
    let (agent, keys) = listed.map_err(|error| not_let_in(error.message().to_owned()))?;
    let mut failure = not_let_in("it has no keys".to_owned());
    for key in keys.iter().take(MAX_AGENT_KEYS) {
        match agent.userauth(user, key) {
            Ok(()) => return Ok(()),
            Err(error) => failure = not_let_in_by(&error),
        }
    }
    Err(failure)
}

/// Answers every hidden question with the password: servers that ask by dialogue ask for nothing else.
struct PasswordPrompt<'a>(&'a Secret);

impl KeyboardInteractivePrompt for PasswordPrompt<'_> {
    fn prompt(&mut self, _user: &str, _instructions: &str, prompts: &[Prompt<'_>]) -> Vec<String> {
        let answer = |prompt: &Prompt<'_>| if prompt.echo { "" } else { self.0.reveal() };
        prompts.iter().map(|prompt| answer(prompt).to_owned()).collect()
    }
}
