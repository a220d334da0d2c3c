//! A process of the application.

use crate::support::build_folder;
use crate::support::process::Killed;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, Stdio};

/// What a process answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Ok(String),
    Error(String),
    /// SQLite's busy handler asks what to do.
    Waiting,
    Died,
}

/// One process of applications; it lives until it is killed, through many histories.
pub struct Process {
    child: Killed,
    answers: BufReader<ChildStdout>,
}

impl Process {
    pub fn start() -> Process {
        let program = build_folder().join("examples/application");
        assert!(program.exists(), "{} is not built: run tests/run", program.display());
        let mut command = Command::new(program);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = Killed(spawned.expect("the application can be run"));
        let stdout = child.0.stdout.take().expect("BUG: stdout is a pipe");
        Process { child, answers: BufReader::new(stdout) }
    }

    pub fn tell(&mut self, line: &str) -> Answer {
        let stdin = self.child.0.stdin.as_mut().expect("BUG: stdin is a pipe");
        if writeln!(stdin, "{line}").is_err() {
            return Answer::Died;
        }
        let mut answer = String::new();
        match self.answers.read_line(&mut answer) {
            Ok(length) if length > 0 && answer.ends_with('\n') => {}
            _ => return Answer::Died,
        }
        let answer = answer.trim_end();
        match answer.split_once(' ').unwrap_or((answer, "")) {
            ("waiting", _) => Answer::Waiting,
            ("error", message) => Answer::Error(message.to_owned()),
            (_, values) => Answer::Ok(values.to_owned()),
        }
    }
}
