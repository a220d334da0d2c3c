//! The one thread that decides: it waits for the watch, workers, signals, clients and the clock, and takes a turn.

use crate::agent::{self, Agent, Now};
use crate::config::Config;
use crate::control::{self, Request, Server};
use crate::disk::OsDisk;
use crate::watch::Watch;
use crate::worker::Threads;
use anyhow::Context;
use log::{info, warn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use signal_hook_mio::v1_0::Signals;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const WAKER: Token = Token(0);
const SIGNALS: Token = Token(1);
const TIMER: Token = Token(2);
const MOUNTS: Token = Token(3);
const CONTROL: Token = Token(4);

/// How long stopping may take before the agent goes without everything acknowledged.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// A folder that is not there, or cannot be watched, is tried again after this.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Watched folders are compared with those at their paths at least so often, when something wakes us anyway.
const CHECK_PAUSE: Duration = Duration::from_secs(60);
/// The kernel's list of what is mounted: urgent data stands for a change of it (proc(5)).
const MOUNT_LIST: &str = "/proc/self/mounts";
/// Events taken from the kernel at once.
const EVENTS: usize = 64;

fn now() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::now() }
}

/// Replicates until SIGTERM or SIGINT. Returns whether everything was acknowledged then.
///
/// # Errors
/// What keeps the agent from starting. Nothing that happens later ends it.
pub fn run(config: &Config) -> anyhow::Result<bool> {
    let mut config = config.clone();
    config.databases.iter_mut().for_each(|database| follow_link(&mut database.path));
    config.notices.iter().for_each(|notice| info!("{notice}"));
    let poll = Poll::new().context("cannot wait for events")?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).context("cannot make a waker")?);
    let signals = [libc::SIGTERM, libc::SIGINT];
    let mut signals = Signals::new(signals).context("cannot catch signals")?;
    poll.registry().register(&mut signals, SIGNALS, Interest::READABLE).context("cannot catch signals")?;
    let timer = Timer::new(&poll).context("cannot make a timer")?;
    let mounts = File::open(MOUNT_LIST).and_then(|file| {
        poll.registry().register(&mut SourceFd(&file.as_raw_fd()), MOUNTS, Interest::PRIORITY)?;
        Ok(file)
    });
    if let Err(error) = &mounts {
        warn!(
            "cannot follow what is mounted: {error}; databases in folders that are mounted later are noticed late"
        );
    }
    let paths: Vec<PathBuf> = config.databases.iter().map(|database| database.path.clone()).collect();
    let watch = Watch::new(&paths, Box::new(wake(&waker))).map_err(anyhow::Error::msg)?;
    let workers = Box::new(Threads::start(Arc::new(wake(&waker)), std::env::home_dir()));
    let agent = Agent::new(&config, workers, Arc::new(OsDisk), agent::random_seed(), now());
    let control = match Server::bind(&config.socket, poll.registry(), CONTROL) {
        Ok(control) => Some(control),
        Err(error) => {
            // Replicating matters more than being asked about it.
            warn!("{error}; the agent goes on, and agent status will not reach it");
            None
        }
    };
    let (follow_at, check_at) = (Some(Instant::now()), Instant::now() + CHECK_PAUSE);
    let _mounts = mounts.ok();
    EventLoop { poll, signals, timer, watch, agent, control, paths, follow_at, check_at, _mounts }.run()
}

/// SQLite keeps the WAL beside the file that a symbolic link leads to.
fn follow_link(path: &mut PathBuf) {
    if path.is_symlink()
        && let Ok(target) = path.canonicalize()
    {
        info!("{}: is a link to {}", path.display(), target.display());
        *path = target;
    }
}

fn wake(waker: &Arc<Waker>) -> impl Fn() + Send + Sync + use<> {
    let waker = Arc::clone(waker);
    move || {
        // A waker fails only when the kernel has no memory; the safety look makes up for it.
        if let Err(error) = waker.wake() {
            warn!("cannot wake the event loop: {error}");
        }
    }
}

struct EventLoop {
    poll: Poll,
    signals: Signals,
    timer: Timer,
    watch: Watch,
    agent: Agent,
    control: Option<Server>,
    paths: Vec<PathBuf>,
    /// When folders that are not watched are tried again.
    follow_at: Option<Instant>,
    /// When those that are watched are compared with what is there.
    check_at: Instant,
    /// Only polled; open as long as the loop runs.
    _mounts: Option<File>,
}

impl EventLoop {
    fn run(mut self) -> anyhow::Result<bool> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            if Instant::now() >= self.check_at {
                self.check();
            }
            self.follow();
            let Self { agent, watch, .. } = &mut self;
            let next = agent.step(now(), &mut |database| watch.take(database));
            if let Some(all_acknowledged) = self.agent.stopped(now()) {
                return Ok(all_acknowledged);
            }
            self.timer.set([next, self.follow_at].into_iter().flatten().min())?;
            self.wait(&mut events)?;
            for event in &events {
                match event.token() {
                    WAKER => {}
                    TIMER => self.timer.clear(),
                    MOUNTS => self.check(),
                    SIGNALS => {
                        if self.on_signal() {
                            return Ok(false);
                        }
                    }
                    token => self.on_client(token),
                }
            }
        }
    }

    fn wait(&mut self, events: &mut Events) -> anyhow::Result<()> {
        match self.poll.poll(events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(error).context("cannot wait for events")
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self) {
        self.check_at = Instant::now() + CHECK_PAUSE;
        self.watch.check();
    }

    /// Watches the folders that are not watched yet.
    fn follow(&mut self) {
        let is_due = self.follow_at.is_some_and(|at| Instant::now() >= at);
        if !is_due && !self.watch.has_lost() {
            return;
        }
        let mut missing = 0;
        for database in 0..self.paths.len() {
            match self.watch.follow(database) {
                Ok(true) => {}
                Ok(false) => missing += 1,
                Err(error) => {
                    missing += 1;
                    warn!("{error}; changes are noticed late");
                }
            }
        }
        self.follow_at = (missing > 0).then(|| Instant::now() + FOLLOW_PAUSE);
    }

    /// Whether to go at once: this is the second signal.
    fn on_signal(&mut self) -> bool {
        if self.signals.pending().next().is_none() {
            return false;
        }
        if self.agent.is_stopping() {
            warn!("a second signal: going without waiting");
            return true;
        }
        let begun = now();
        self.agent.begin_stop(begun, begun.mono + STOP_PATIENCE);
        false
    }

    fn on_client(&mut self, token: Token) {
        let Self { agent, control, .. } = self;
        if let Some(control) = control.as_mut().filter(|control| control.owns(token)) {
            control.ready(token, &mut |request| answer(agent, request));
        }
    }
}

fn answer(agent: &mut Agent, request: Request) -> Vec<u8> {
    let reply = match request {
        Request::Status => control::status_reply(&agent.status(now())),
        Request::StatusJson => control::json_reply(&agent.status(now())),
        Request::Detach(path) => agent.detach(&path, now()),
    };
    reply.bytes()
}

/// A clock that wakes the loop to the microsecond; a poll timeout is rounded up to a millisecond.
struct Timer {
    descriptor: OwnedFd,
    set_to: Option<Instant>,
}

impl Timer {
    fn new(poll: &Poll) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let fd = descriptor.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        Ok(Timer { descriptor, set_to: None })
    }

    fn set(&mut self, at: Option<Instant>) -> io::Result<()> {
        if self.set_to == at {
            return Ok(());
        }
        self.set_to = at;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = at.map_or(zero, |at| {
            // Zero would turn the timer off.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            let tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let value = Itimerspec { it_interval: zero, it_value };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    fn clear(&mut self) {
        // Reading takes the expiry back; that there was none is fine.
        let _ = rustix::io::read(&self.descriptor, &mut [0; 8]);
        self.set_to = None;
    }
}
