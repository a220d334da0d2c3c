//! The one thread that decides: it waits for the watch, workers, signals, clients and the clock, and takes a turn.

use crate::agent::{self, Agent, Now};
use crate::config::Config;
use crate::control::{self, Request, Server};
use crate::disk::OsDisk;
use crate::links::Links;
use crate::service::{self, Service};
use crate::watch::Watch;
use crate::worker::Threads;
use anyhow::Context;
use log::{error, info, warn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use signal_hook_mio::v1_0::Signals;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const WAKER: Token = Token(0);
const SIGNALS: Token = Token(1);
const TIMER: Token = Token(2);
const MOUNTS: Token = Token(3);
const CONTROL: Token = Token(4);

/// How long a worker is waited for at the end, even after a second signal, that is just emptying a WAL.
const END_PATIENCE: Duration = Duration::from_secs(1);
const END_PAUSE: Duration = Duration::from_millis(1);
/// How long stopping may take before the agent goes without everything acknowledged.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The kernel's list of what is mounted: urgent data stands for a change of it (proc(5)).
const MOUNT_LIST: &str = "/proc/self/mounts";
/// Events taken from the kernel at once.
const EVENTS: usize = 64;

fn now() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::now() }
}

/// Why the loop has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped {
        /// Whether everything that was committed before is acknowledged.
        all_acknowledged: bool,
    },
    /// Everything is let go of, so that an agent with the new configuration can begin.
    Reload,
}

/// Whether there is a new configuration that can be taken on; else what is wrong with it.
pub type CheckConfig<'a> = &'a dyn Fn() -> Result<(), String>;

/// Replicates until SIGTERM or SIGINT; with `check`, until SIGHUP, too, if there is a valid configuration then.
///
/// # Errors
/// What keeps the agent from starting. Nothing that happens later ends it.
pub fn run(config: &Config, check: Option<CheckConfig<'_>>) -> anyhow::Result<Ended> {
    // First of all: a signal that nobody catches would end the process.
    let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let mut signals = Signals::new(signals).context("cannot catch signals")?;
    service::take_signals();
    let mut config = config.clone();
    let links = Links::follow(config.databases.iter_mut(), Instant::now());
    config.notices.iter().for_each(|notice| info!("{notice}"));
    let poll = Poll::new().context("cannot wait for events")?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).context("cannot make a waker")?);
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
    let service = Service::from_environment(Instant::now());
    service.ready(&agent.status(now()).summary());
    let (reload, _mounts) = (Reload { check, is_begun: false }, mounts.ok());
    let agent = ManuallyDrop::new(agent);
    let mut event_loop = EventLoop {
        poll,
        signals,
        timer,
        watch,
        agent,
        control,
        service,
        links,
        databases: paths.len(),
        reload,
        _mounts,
    };
    let ended = event_loop.run();
    let until = Instant::now() + END_PATIENCE;
    while !event_loop.agent.end(now()) && Instant::now() < until {
        std::thread::sleep(END_PAUSE);
    }
    ended
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

struct EventLoop<'a> {
    poll: Poll,
    signals: Signals,
    timer: Timer,
    watch: Watch,
    /// What it has open closes with the process: a thread may still be in a checkpoint, and closing a file of that
    /// database would drop the locks that it works under.
    agent: ManuallyDrop<Agent>,
    control: Option<Server>,
    service: Service,
    links: Links,
    databases: usize,
    /// Only polled; open as long as the loop runs.
    _mounts: Option<File>,
    reload: Reload<'a>,
}

/// What SIGHUP does.
struct Reload<'a> {
    /// `None` if there is no configuration that could change.
    check: Option<CheckConfig<'a>>,
    /// The agent stops to begin anew.
    is_begun: bool,
}

impl EventLoop<'_> {
    fn run(&mut self) -> anyhow::Result<Ended> {
        let mut events = Events::with_capacity(EVENTS);
        let mut clients = Vec::new();
        loop {
            // Before the step: what follows from it is due at once.
            self.look_at_links();
            let mut next = self.step();
            if !clients.is_empty() {
                // What was committed before a question counts in its answer; and an answer may change what is due.
                clients.drain(..).for_each(|token| self.on_client(token));
                next = self.step();
            }
            if let Some(all_acknowledged) = self.agent.stopped(now()) {
                let is_reload = self.reload.is_begun;
                return Ok(if is_reload { Ended::Reload } else { Ended::Stopped { all_acknowledged } });
            }
            self.doze();
            let Self { agent, service, .. } = self;
            service.turn(Instant::now(), &|| agent.status(now()).summary());
            let links = (!self.agent.is_stopping()).then(|| self.links.next_timeout());
            let next = [next, self.service.next_timeout(), links].into_iter().flatten().min();
            self.timer.set(next)?;
            self.wait(&mut events)?;
            for event in &events {
                match event.token() {
                    WAKER => {}
                    TIMER => self.timer.clear(),
                    MOUNTS => self.watch.begin_anew(),
                    SIGNALS => {
                        if self.on_signals() {
                            return Ok(Ended::Stopped { all_acknowledged: false });
                        }
                    }
                    token => clients.push(token),
                }
            }
        }
    }

    fn step(&mut self) -> Option<Instant> {
        let Self { agent, watch, .. } = self;
        agent.step(now(), &mut |database| watch.take(database))
    }

    /// Lets the watch pass over databases that are looked at by the clock.
    fn doze(&mut self) {
        let now = now();
        for database in 0..self.databases {
            self.watch.doze(database, self.agent.needs_no_events(database, now));
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

    /// Whether to go at once: a second signal says so.
    fn on_signals(&mut self) -> bool {
        let signals: Vec<i32> = self.signals.pending().collect();
        signals.into_iter().any(|signal| match self.reload.check {
            Some(check) if signal == libc::SIGHUP => {
                self.begin_reload(check);
                false
            }
            _ => self.begin_stop(),
        })
    }

    /// Whether to go at once.
    fn begin_stop(&mut self) -> bool {
        if std::mem::take(&mut self.reload.is_begun) {
            info!("stopping for good");
        } else if self.agent.is_stopping() {
            warn!("a second signal: going without waiting");
            return true;
        } else {
            self.let_go();
        }
        self.service.stopping();
        false
    }

    fn begin_reload(&mut self, check: CheckConfig<'_>) {
        if self.agent.is_stopping() {
            return;
        }
        self.service.reloading();
        if let Err(wrong) = check() {
            error!("the new configuration is wrong, and the old one stays in effect:\n{wrong}");
            let status = self.agent.status(now()).summary();
            self.service.ready(&format!("{status}; the new configuration is wrong, see the log"));
            return;
        }
        info!("the configuration is read anew");
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.reload.is_begun = true;
        self.let_go();
    }

    /// A database that is another file now is taken on as a changed configuration is.
    fn look_at_links(&mut self) {
        if self.agent.is_stopping() {
            return;
        }
        let Some((path, target)) = self.links.changed(Instant::now()) else { return };
        info!("{}: is a link to {} now", path.display(), target.display());
        match self.reload.check {
            Some(check) => self.begin_reload(check),
            None => self.begin_anew(),
        }
    }

    fn let_go(&mut self) {
        let begun = now();
        self.agent.begin_stop(begun, begun.mono + STOP_PATIENCE);
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
