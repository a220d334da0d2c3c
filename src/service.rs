//! The service manager that started the agent: what systemd is told. Without one, nothing is said.

use log::warn;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Whether stderr goes to the journal, which keeps time and level of each line by itself.
pub fn is_journal() -> bool {
    let stderr =
        std::fs::metadata("/proc/self/fd/2").map(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()));
    stderr.is_ok_and(|stderr| std::env::var("JOURNAL_STREAM") == Ok(stderr))
}

/// Lets the agent open as many files as whoever started it allows: a database takes fifteen, and the limit that most
/// programs get is 1,024, because some cannot cope with more.
pub fn open_as_many_files_as_allowed() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    // What is missing then is said of each database.
    raised.unwrap_or_else(|error| warn!("cannot open more than {:?} files: {error}", limit.current));
}

/// Lets no signal end the program until [`take_signals`]: this thread blocks those that the event loop catches, and so does
/// the program that takes the place of this one. The kernel keeps what comes meanwhile.
pub fn keep_signals() {
    let result = caught().thread_block();
    result.unwrap_or_else(|error| {
        warn!("cannot block signals: {error}; one at the wrong moment ends the agent")
    });
}

/// Takes signals again, once there is somebody who catches them.
pub fn take_signals() {
    let result = caught().thread_unblock();
    result.unwrap_or_else(|error| warn!("cannot unblock signals: {error}; only SIGKILL ends the agent"));
}

fn caught() -> SigSet {
    SigSet::from_iter([Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT])
}

/// The way to the service manager.
pub struct Service {
    /// Half of what the watchdog allows; `None` without a watchdog.
    period: Option<Duration>,
    next_ping: Option<Instant>,
}

impl Service {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_environment(now: Instant) -> Self {
        let period = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Service { period, next_ping: period.map(|_| now) }
    }

    /// The configuration is read, and everything listens that can.
    pub fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A new configuration was asked for; [`Service::ready`] ends this, whatever came of it.
    pub fn reloading(&self) {
        let Ok(since) = NotifyState::monotonic_usec_now() else { return };
        tell(&[NotifyState::Reloading, since, NotifyState::Status("taking on a new configuration")]);
    }

    /// The agent was told to stop, and sends what is pending.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("sending what is pending")]);
    }

    /// When the next ping is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next_ping
    }

    /// Says that the loop turns, if that is due. Invariant: called by the loop alone, so that a loop that hangs is
    /// killed by the watchdog.
    pub fn turn(&mut self, now: Instant, status: &dyn Fn() -> String) {
        if self.next_ping.is_none_or(|at| now < at) {
            return;
        }
        self.next_ping = self.period.map(|period| now + period);
        tell(&[NotifyState::Watchdog, NotifyState::Status(&status())]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot reach the service manager: {error}");
    }
}
