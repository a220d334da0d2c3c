//! The control socket: questions, answers, and clients that behave badly.

use mio::{Events, Poll, Token};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wal_agent::control::{self, ControlError, MAX_CLIENTS, Reply, Request, Server};
use wal_agent::core::status::{AgentStatus, Health, Moment};

fn status() -> AgentStatus {
    let started = Moment { unix_millis: 5, age: Duration::from_secs(1) };
    AgentStatus { version: "1".into(), sqlite_version: "3".into(), pid: 7, started, databases: Vec::new() }
}

/// Serves `socket` with `answer` while `client` runs.
fn served<T>(socket: &Path, answer: impl Fn(Request) -> Vec<u8> + Sync, client: impl FnOnce() -> T) -> T {
    let mut poll = Poll::new().expect("a poll");
    let mut server = Server::bind(socket, poll.registry(), Token(100)).expect("a server");
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let (done, answer) = (&done, &answer);
        let served = scope.spawn(move || {
            let mut events = Events::with_capacity(4);
            while !done.load(Ordering::Relaxed) {
                poll.poll(&mut events, Some(Duration::from_millis(5))).expect("events");
                for event in &events {
                    assert!(server.owns(event.token()));
                    server.ready(event.token(), &mut |request| answer(request));
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(client));
        done.store(true, Ordering::Relaxed);
        served.join().expect("the server's thread");
        result
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn answer(request: Request) -> Vec<u8> {
    let reply = match request {
        Request::Status => control::status_reply(&status()),
        Request::StatusJson => control::json_reply(&status()),
        Request::Detach(path) => {
            Reply { health: Health::Lagging, body: format!("{} is open", path.display()) }
        }
    };
    reply.bytes()
}

fn raw(socket: &Path, question: &[u8]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(question)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn an_agent_answers_in_text_and_in_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("made/agent.sock");
    let (text, json) = served(&socket, answer, || {
        let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        (control::ask(&socket, &Request::Status), control::ask(&socket, &Request::StatusJson))
    });
    let text = text.expect("a status");
    assert_eq!(text.health, Health::Healthy);
    assert!(text.body.starts_with("healthy; agent 1, SQLite 3, process 7"), "{text:?}");
    let json: serde_json::Value = serde_json::from_str(&json.expect("a status").body).expect("JSON");
    assert_eq!(json["health"], "healthy");
    assert_eq!(json["started"]["unix_millis"], 5);
    let detach = || control::ask(&socket, &Request::Detach("/srv/my app.db".into()));
    let reply = served(&socket, answer, detach).expect("an answer");
    assert_eq!(reply, Reply { health: Health::Lagging, body: "/srv/my app.db is open".to_owned() });
    assert!(!socket.exists(), "the socket outlives its server");
}

#[test]
fn an_answer_larger_than_the_sockets_buffer_arrives_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    let large = "x".repeat(10 << 20);
    let failing = |_| Reply { health: Health::Failing, body: large.clone() }.bytes();
    let reply = served(&socket, failing, || control::ask(&socket, &Request::Status));
    let reply = reply.expect("an answer");
    assert!(reply.health == Health::Failing && reply.body == large);
}

#[test]
fn bad_clients_harm_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    served(&socket, answer, || {
        let silent: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| UnixStream::connect(&socket)).collect();
        let answer = raw(&socket, b"make coffee\n").expect("an answer");
        assert!(answer.starts_with("error\n"), "{answer}");
        let too_long = raw(&socket, &[b'x'; 5000]);
        assert!(too_long.is_err() || too_long.is_ok_and(|answer| answer.is_empty()));
        let hurried = UnixStream::connect(&socket).and_then(|mut stream| stream.write_all(b"status\n"));
        assert!(hurried.is_ok());
        assert!(raw(&socket, b"status\nand more").expect("an answer").starts_with("0\n"));
        assert!(control::ask(&socket, &Request::Status).is_ok());
        drop(silent);
    });
}

#[test]
fn where_no_agent_listens_none_is_running() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    let is_not_running =
        || matches!(control::ask(&socket, &Request::Status), Err(ControlError::NotRunning(_)));
    assert!(is_not_running());
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    assert!(socket.exists() && is_not_running());
    // A socket on which nobody answers is taken over.
    served(&socket, answer, || {
        assert!(control::ask(&socket, &Request::Status).is_ok());
        let poll = Poll::new().expect("a poll");
        let second = Server::bind(&socket, poll.registry(), Token(0));
        assert!(matches!(second, Err(ControlError::AlreadyRunning(_))));
        assert!(control::ask(&socket, &Request::Status).is_ok(), "the second one has harmed the first");
    });
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    std::fs::write(&path, "precious").expect("a file");
    let poll = Poll::new().expect("a poll");
    let refused = Server::bind(&path, poll.registry(), Token(0));
    assert!(matches!(refused, Err(ControlError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "precious");
}

#[test]
fn an_agent_that_answers_nonsense_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    let reply = served(&socket, |_| b"9\nhm".to_vec(), || control::ask(&socket, &Request::Status));
    assert!(matches!(reply, Err(ControlError::Answer { .. })), "{reply:?}");
    let error = served(&socket, |_| Vec::new(), || control::ask(&socket, &Request::Status));
    assert!(matches!(error, Err(ControlError::Answer { .. })), "{error:?}");
    let denied = raw(&folder.path().join("nothing"), b"").expect_err("nobody is there");
    assert_eq!(denied.kind(), ErrorKind::NotFound);
}
