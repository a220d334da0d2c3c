//! The agent that the demo starts: a process of its own, watched through its control socket.

use crate::control::{self, ControlError, Request};
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the status is looked at: what is measured is longer than the truth by this much at most.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// How long anything may take: a login to a slow server, and a snapshot of an empty database.
const PATIENCE: Duration = Duration::from_secs(30);
/// As much of the agent's log is shown if something goes wrong.
const LAST_LINES: usize = 10;

/// A running agent. It is killed when this value goes away.
pub struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    signals: signal_hook_mio::v1_0::Signals,
}

/// What the status said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The database's position, as text.
    pub position: String,
    /// Bytes that the replica does not have.
    pub lag_bytes: u64,
    /// Whether the server's disk has what it acknowledged.
    pub durable: bool,
    is_acked: bool,
}

impl Agent {
    /// Starts this same program as an agent for one database and one replica, its files in `scratch`.
    pub fn start(database: &Path, url: &str, scratch: &Path) -> anyhow::Result<Self> {
        let signals = signal_hook_mio::v1_0::Signals::new([libc::SIGINT, libc::SIGTERM])?;
        let socket = scratch.join("agent.sock");
        let log = scratch.join("agent.log");
        let program = std::env::current_exe().context("cannot find this program")?;
        let database = database.as_os_str();
        let arguments =
            [OsStr::new("replicate"), "--socket".as_ref(), socket.as_ref(), database, url.as_ref()];
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("cannot make {}", log.display()))?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Agent { child, socket, log, signals })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the replica has acknowledged all there is, and that is not `before` any more.
    pub fn wait_until_acked(&mut self, before: Option<&Seen>) -> anyhow::Result<Seen> {
        let begin = Instant::now();
        loop {
            let seen = self.look()?;
            let is_new = |seen: &Seen| before.is_none_or(|before| before.position != seen.position);
            match seen {
                Some(seen) if seen.is_acked && is_new(&seen) => return Ok(seen),
                _ if begin.elapsed() > PATIENCE => {
                    let reason = self.last_lines();
                    bail!(
                        "the agent has not replicated a commit within {PATIENCE:?}; its log ends:\n{reason}"
                    );
                }
                _ => sleep(LOOK_EVERY),
            }
        }
    }

    /// Waits, but not through a Ctrl-C.
    pub fn pause(&mut self, time: Duration) -> anyhow::Result<()> {
        sleep(time);
        self.is_interrupted()
    }

    /// Kills the process as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        Ok(())
    }

    /// `None` until it answers and has a position.
    fn look(&mut self) -> anyhow::Result<Option<Seen>> {
        self.is_interrupted()?;
        if let Some(status) = self.child.try_wait()? {
            bail!("the agent ended ({status}); its log ends:\n{}", self.last_lines());
        }
        match control::ask(&self.socket, &Request::StatusJson) {
            Ok(reply) => Ok(seen(&serde_json::from_str(&reply.body)?)),
            Err(ControlError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_interrupted(&mut self) -> anyhow::Result<()> {
        match self.signals.pending().next() {
            Some(_) => Err(anyhow!("interrupted; everything is cleaned up")),
            None => Ok(()),
        }
    }

    fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Whoever is gone already cannot be killed, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the status of one database with one replica says.
fn seen(status: &Value) -> Option<Seen> {
    let database = &status["databases"][0];
    let replica = &database["replicas"][0];
    let position = database["position"].as_str()?;
    Some(Seen {
        position: position.to_owned(),
        lag_bytes: replica["lag_bytes"].as_u64()?,
        durable: replica["durable"].as_bool()?,
        is_acked: replica["state"] == "streaming" && replica["position"] == position,
    })
}
