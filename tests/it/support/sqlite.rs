//! Real SQLite in other processes: the `sqlite3` shell, and the `writer` program.

use super::build_folder;
use super::process::Killed;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long one statement, or one commit of a writer, may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A `sqlite3` shell that stays open, as an application's connection does.
pub struct Shell {
    process: Killed,
    answers: Receiver<String>,
    count: u32,
}

/// Four readers, each at a mark of its own, for which `commit` commits before each comes: then all slots of SQLite's readers
/// are taken.
pub fn readers_in_all_slots(database: &Path, mut commit: impl FnMut()) -> Vec<Shell> {
    let readers = (0..4).map(|_| {
        commit();
        let mut reader = Shell::open(database);
        reader.run("BEGIN; SELECT count(*) FROM t");
        reader
    });
    readers.collect()
}

impl Shell {
    /// Opens a database, with a busy timeout of 5 s.
    pub fn open(database: &Path) -> Shell {
        Shell::with_environment(database, &[])
    }

    /// The same, in a process with further environment variables.
    pub fn with_environment(database: &Path, environment: &[(&str, &Path)]) -> Shell {
        let mut command = Command::new("sqlite3");
        command.envs(environment.iter().copied());
        Shell::start(command, database)
    }

    /// The same, by another user, who is in no other group.
    pub fn open_as(user: u32, database: &Path) -> Shell {
        let mut command = as_user(user);
        command.arg("sqlite3");
        Shell::start(command, database)
    }

    fn start(mut command: Command, database: &Path) -> Shell {
        let (reader, writer) = io::pipe().expect("there are descriptors left");
        let complaints = writer.try_clone().expect("there are descriptors left");
        command.arg("-batch").arg(database).stdin(Stdio::piped()).stdout(writer).stderr(complaints);
        let process = Killed(command.spawn().expect("sqlite3 can be run: see tests/run"));
        drop(command); // and with it our ends of the pipe
        let mut shell = Shell { process, answers: lines(reader), count: 0 };
        shell.run(".timeout 5000");
        shell
    }

    /// Runs SQL or a dot command; what it printed, as lines.
    ///
    /// # Panics
    /// If the shell reports an error, ends, or takes too long.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> Vec<String> {
        self.try_run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL or a dot command; what it printed, as lines, or the error it printed.
    #[track_caller]
    pub fn try_run(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.count += 1;
        let marker = format!("--answered {}--", self.count);
        let stdin = self.process.0.stdin.as_mut().expect("BUG: stdin is a pipe");
        writeln!(stdin, "{sql}\n;\n.print {marker}").expect("the shell reads");
        let end = Instant::now() + DEADLINE;
        let mut printed = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(line) if line == marker => break,
                Ok(line) => printed.push(line),
                Err(error) => panic!("{sql}: {error} after {printed:?}"),
            }
        }
        let is_error = |line: &String| line.contains("Error: ") || line.contains(" error near ");
        if printed.iter().any(is_error) { Err(printed.join("\n")) } else { Ok(printed) }
    }

    /// The one line that `sql` prints.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let mut lines = self.run(sql);
        assert_eq!(lines.len(), 1, "{sql}: {lines:?}");
        lines.remove(0)
    }

    /// The shell's process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Closes the database as an application does that ends.
    pub fn close(mut self) {
        drop(self.process.0.stdin.take());
        self.process.0.wait().expect("the shell is our child");
    }

    /// Kills it: whatever is in the WAL stays there.
    pub fn kill(self) {
        drop(self.process);
    }
}

/// Runs a program as a user, whose only group has the same number.
pub fn as_user(user: u32) -> Command {
    let user = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command
}

/// A `writer` program at work.
pub struct Writer {
    process: Killed,
    lines: Receiver<String>,
    committed: Vec<i64>,
    busy: usize,
}

impl Writer {
    /// Starts writing to a database; `arguments` as `writer --help` says.
    pub fn start(database: &Path, arguments: &[&str]) -> Writer {
        let program = build_folder().join("examples/writer");
        assert!(
            program.exists(),
            "{} is not built: run tests/run, or cargo build --examples",
            program.display()
        );
        let mut command = Command::new(program);
        command.arg(database).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Killed(command.spawn().expect("the writer can be run"));
        let stdout = process.0.stdout.take().expect("BUG: stdout is a pipe");
        Writer { process, lines: lines(stdout), committed: Vec::new(), busy: 0 }
    }

    /// The commits that have returned so far, by number.
    pub fn committed(&mut self) -> &[i64] {
        while let Ok(line) = self.lines.try_recv() {
            self.take(&line);
        }
        &self.committed
    }

    /// How often a commit was answered "database is locked" so far.
    pub fn busy(&mut self) -> usize {
        self.committed();
        self.busy
    }

    /// Waits until `count` commits have returned.
    #[track_caller]
    pub fn wait_for(&mut self, count: usize) {
        while self.committed.len() < count {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => self.take(&line),
                Err(error) => panic!("{} of {count} commits: {error}", self.committed.len()),
            }
        }
    }

    /// Makes one commit, of a writer started with `--step`, and waits until it has returned.
    #[track_caller]
    pub fn step(&mut self) {
        let stdin = self.process.0.stdin.as_mut().expect("BUG: stdin is a pipe");
        writeln!(stdin).expect("the writer reads");
        let count = self.committed.len() + 1;
        self.wait_for(count);
    }

    /// Lets a writer started with `--step` make so many commits, without waiting for them.
    pub fn ask_for(&mut self, commits: usize) {
        let stdin = self.process.0.stdin.as_mut().expect("BUG: stdin is a pipe");
        stdin.write_all("\n".repeat(commits).as_bytes()).expect("the writer reads");
    }

    /// The writer's process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Lets the writer come to its end; all commits.
    #[track_caller]
    pub fn finish(mut self) -> Vec<i64> {
        drop(self.process.0.stdin.take());
        self.drain();
        let status = self.process.0.wait().expect("the writer is our child");
        assert!(status.success(), "the writer failed: {status}");
        std::mem::take(&mut self.committed)
    }

    /// Kills the writer wherever it is; the commits that had returned.
    pub fn kill(mut self) -> Vec<i64> {
        self.process.0.kill().expect("the writer is our child");
        self.drain();
        std::mem::take(&mut self.committed)
    }

    /// Reads on until the writer has ended.
    fn drain(&mut self) {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the writer does not come to an end"),
            }
        }
    }

    fn take(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("committed", batch)) => {
                self.committed.push(batch.parse().expect("the writer prints numbers"))
            }
            Some(("busy", _)) => self.busy += 1,
            _ => {} // the half line of a writer that was killed
        }
    }
}

/// The lines of a pipe, read by a thread of their own so that waiting for one can end.
fn lines(pipe: impl io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let lines = BufReader::new(pipe).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    receiver
}
