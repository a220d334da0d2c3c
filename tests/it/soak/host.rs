//! The server, and the agent's lives: what is done to both.

use crate::Soak;
use crate::database::PLANS;
use crate::support::agent::{Agent, agent};
use crate::support::process::{output, signal};
use crate::support::sshd::Sshd;
use crate::support::wait::wait_for;
use crate::tally::{Life, Usage};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the agent may take to have everything acknowledged, once the server is there.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// So many generations stay on a replica between two lives of the agent.
const KEPT_GENERATIONS: usize = 2;
/// How often the agent is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// More than any life of the agent was seen to need, in KiB.
const MOST_MEMORY: u64 = 48 * 1024;
/// A life may end with so many KiB more than it had once it had caught up: a leak would need more in the long ones.
const MOST_GROWTH: u64 = 12 * 1024;
const MOST_DESCRIPTORS: usize = 200;
/// After the server was disturbed, so long the agent need not have everything acknowledged when it is stopped.
const CONSEQUENCES: Duration = Duration::from_secs(20);
/// In a database's folder, while its shadow is volatile.
const MARK: &str = ".app.db-agent/volatile";

/// What the agent may say about a server that is being disturbed, or about databases that are replaced and writers that
/// are killed. Every other warning is something to look at.
const EXPLAINED: [&str; 3] = [
    "it is tried again by itself",
    "let go of the old one, the new one begins a new generation",
    "not acknowledged: ",
];

/// The configuration of the agent, and how to ask it.
#[derive(Clone)]
pub struct Configuration(PathBuf);

impl Configuration {
    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.0.parent().expect("it is in a folder")
    }

    /// Runs a command of the agent.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        agent(command, &self.0, None).args(arguments).output().expect("the agent can be run")
    }

    /// What the agent says of all; `None` while there is none.
    pub fn status(&self) -> Option<Value> {
        serde_json::from_slice(&self.run("status", &["--json"]).stdout).ok()
    }
}

/// The server and the agent.
pub struct Host {
    server: Sshd,
    configuration: Configuration,
    random: StdRng,
    /// How much of the agent's log was read.
    read: u64,
    disturbed: Instant,
    is_disturbed: bool,
}

impl Host {
    /// A server, and a configuration for all databases; nothing else runs yet.
    pub fn new(folder: &Path, random: StdRng) -> Host {
        let server = Sshd::start();
        let location = server.location();
        let mut text = format!("socket: {}\ndbs:\n", folder.join("agent.sock").display());
        for plan in &PLANS {
            let (name, settings) = (plan.name, plan.settings.join("\n    "));
            text += &format!("  - path: {}\n    {settings}\n", folder.join(name).join("app.db").display());
            let key = location.key_path.as_deref().expect("we log in by key").display();
            text += &format!(
                "    replicas:\n      - {{name: server, url: 'sftp://{}@127.0.0.1:{}{}/{name}', key-path: {key}, host-key: {}}}\n",
                location.user, location.port, location.path, location.host_keys[0]
            );
            if plan.has_folder {
                let path = folder.join("replica").join(name);
                text += &format!("      - {{name: folder, type: file, path: {}}}\n", path.display());
            }
        }
        let path = folder.join("wal-agent.yml");
        fs::write(&path, text).expect("the folder is ours");
        Host {
            server,
            configuration: Configuration(path),
            random,
            read: 0,
            disturbed: Instant::now(),
            is_disturbed: false,
        }
    }

    /// How to ask the agent.
    pub fn configuration(&self) -> Configuration {
        self.configuration.clone()
    }

    /// One agent after the other, until the soak is over.
    pub fn live(mut self, soak: &Soak) {
        while soak.has_databases() && !soak.is_over() {
            self.one_life(soak);
            // Sometimes the application goes on without an agent, for longer than its WAL lasts.
            let pause = if self.random.random_bool(0.3) { 15_000 } else { 1_000 };
            let pause = Duration::from_millis(self.random.random_range(0..pause));
            soak.pass(pause);
        }
    }

    /// As an administrator does whose disk would be full else: in two hours, generations that were left take more than 60 GB.
    /// The newest may have no snapshot yet.
    fn remove_left_generations(&self, soak: &Soak) {
        let written = |generation: &PathBuf| {
            let folders = ["wal", "snapshots"].map(|name| generation.join(name));
            let times = folders.iter().filter_map(|folder| fs::metadata(folder).ok()?.modified().ok());
            times.max()
        };
        for plan in &PLANS {
            for replicas in [self.server.storage(), self.configuration.folder().join("replica")] {
                let entries = fs::read_dir(replicas.join(plan.name).join("generations"));
                let mut generations: Vec<PathBuf> =
                    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
                generations.sort_by_key(written);
                for left in generations.iter().rev().skip(KEPT_GENERATIONS) {
                    fs::remove_dir_all(left).expect("the folder is ours");
                    soak.count("replicas: a left generation removed");
                }
            }
        }
    }

    /// From a start of the agent to its end.
    fn one_life(&mut self, soak: &Soak) {
        let agent = {
            let _calm = soak.calm.write();
            self.remove_left_generations(soak);
            let agent = Agent::start_again(&self.configuration.0);
            agent.wait_for_status("it answers", |_| true);
            soak.is_agent_up.store(true, Ordering::Relaxed);
            agent
        };
        soak.count("agent: starts");
        let begun = Instant::now();
        // Most lives are short, and some are long: a leak shows in the long ones.
        let length = Duration::from_secs(20 << self.random.random_range(0..7));
        let mut first = None;
        let mut next = self.soon();
        while soak.has_databases() && !soak.is_over() && begun.elapsed() < length {
            self.watch(soak, &agent, &mut first, LOOK);
            if Instant::now() > next && soak.goes_on() {
                self.disturb(soak, &agent, &mut first);
                next = self.soon();
            }
        }
        let last = usage(agent.pid());
        let length = begun.elapsed();
        let end = self.end_life(soak, agent);
        self.read_log(soak);
        let first = first.unwrap_or(last);
        let seconds = length.as_secs();
        let (begin, grown) = (first.memory, last.memory.saturating_sub(first.memory));
        assert!(grown < MOST_GROWTH, "the agent had {begin} KiB and has {grown} more after {seconds} s");
        soak.tally().life(Life { length, end, first, last });
    }

    fn end_life(&mut self, soak: &Soak, agent: Agent) -> &'static str {
        let is_without_server = self.random.random_bool(0.15);
        let _calm = soak.calm.write();
        if is_without_server {
            self.server.stop();
            soak.count("server: stopped around the agent's end");
        }
        soak.is_agent_up.store(false, Ordering::Relaxed);
        let end = if soak.goes_on() && self.random.random_bool(0.6) {
            agent.kill();
            soak.count("agent: kill -9");
            soak.tally().count("shadows: volatile at a kill -9", self.volatile_shadows() as u64);
            "killed"
        } else {
            let status = agent.stop();
            let is_allowed = status.success() || (status.code() == Some(1) && self.was_disturbed());
            assert!(is_allowed || is_without_server, "the agent ended with {status}");
            soak.count("agent: stopped by SIGTERM");
            "stopped"
        };
        if is_without_server {
            self.server.start_again(&["ed25519"]);
            self.disturbed = Instant::now();
        }
        end
    }

    fn was_disturbed(&self) -> bool {
        self.disturbed.elapsed() < CONSEQUENCES
    }

    fn soon(&mut self) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(2_000..40_000))
    }

    /// Something happens to the server.
    fn disturb(&mut self, soak: &Soak, agent: &Agent, first: &mut Option<Usage>) {
        let _calm = soak.calm.write();
        self.is_disturbed = true;
        match self.random.random_range(0..10) {
            0..5 => {
                let servers = self.server.sftp_servers();
                soak.tally().count("server: kill -9 of sftp-server processes", servers.len() as u64);
                let some = servers.iter().filter(|_| self.random.random_bool(0.7));
                some.for_each(|pid| signal(*pid, Signal::KILL));
            }
            5..8 => {
                let servers = self.server.sftp_servers();
                soak.count("server: sftp-server processes stopped for seconds");
                servers.iter().for_each(|pid| signal(*pid, Signal::STOP));
                let time = Duration::from_millis(self.random.random_range(100..15_000));
                self.watch(soak, agent, first, time);
                servers.iter().for_each(|pid| signal(*pid, Signal::CONT));
            }
            _ => {
                self.server.stop();
                let longest = if self.random.random_bool(0.3) { 60_000 } else { 10_000 };
                soak.count("server: sshd stopped for seconds to a minute");
                let time = Duration::from_millis(self.random.random_range(500..longest));
                self.watch(soak, agent, first, time);
                self.server.start_again(&["ed25519"]);
            }
        }
        (self.disturbed, self.is_disturbed) = (Instant::now(), false);
    }

    /// Lets time pass, and looks at the agent.
    fn watch(&mut self, soak: &Soak, agent: &Agent, first: &mut Option<Usage>, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !soak.is_over() {
            soak.pass(until.saturating_duration_since(Instant::now()).min(LOOK));
            self.look(soak, agent, first);
        }
    }

    /// What the agent says and uses now.
    fn look(&mut self, soak: &Soak, agent: &Agent, first: &mut Option<Usage>) {
        let status = wait_for("the agent answers", PATIENCE, || self.configuration.status());
        let databases = status["databases"].as_array().expect("a status has databases");
        let replicas = databases.iter().flat_map(|database| database["replicas"].as_array());
        let lags = replicas.flatten().filter_map(|replica| replica["lag_millis"].as_u64());
        let lag = Duration::from_millis(lags.max().unwrap_or_default());
        // What a replica lacked while the server was away is no fault; that it still does, later, may be one.
        let undisturbed = if self.is_disturbed { Duration::ZERO } else { self.disturbed.elapsed() };
        soak.tally().lag(lag, lag.min(undisturbed));
        soak.tally().count("shadows: seen volatile", self.volatile_shadows() as u64);
        let used = usage(agent.pid());
        assert!(used.memory < MOST_MEMORY, "the agent has {} KiB", used.memory);
        assert!(used.descriptors < MOST_DESCRIPTORS, "the agent has {} descriptors", used.descriptors);
        if status["health"] == "healthy" {
            first.get_or_insert(used);
        }
        self.read_log(soak);
    }

    /// Databases whose shadow is marked: not all of it is durable.
    fn volatile_shadows(&self) -> usize {
        let marks = PLANS.iter().map(|plan| self.configuration.folder().join(plan.name).join(MARK));
        marks.filter(|mark| mark.exists()).count()
    }

    /// Counts what the agent has logged since the last time.
    fn read_log(&mut self, soak: &Soak) {
        let mut file = fs::File::open(self.configuration.folder().join("agent.log")).expect("the agent logs");
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut bytes)).expect("readable");
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            let level = line.get(25..30).unwrap_or_default();
            let reason = line.split_once(": begins generation");
            if let Some((_, reason)) = reason.and_then(|(_, rest)| rest.split_once(": ")) {
                soak.tally().reason(&format!("a new generation: {reason}"));
            } else if line.contains("compared with the page table") {
                soak.tally().reason("compared with the page table, the generation goes on");
            } else if line.contains("nobody has it open: let go of") {
                soak.tally().reason("let go of");
            }
            if matches!(level, "INFO " | "DEBUG") {
                continue;
            }
            assert!(EXPLAINED.iter().any(|known| line.contains(known)), "not explained: {line}");
            soak.tally().reason(&format!("{level} {}", kind(line)));
        }
    }
}

/// A line without its numbers and names, so that lines of one kind are counted together.
fn kind(line: &str) -> String {
    let text = line.get(31..).unwrap_or(line);
    let words =
        text.split(' ').filter(|word| !word.contains('/') && !word.contains(|c: char| c.is_ascii_digit()));
    words.take(14).collect::<Vec<_>>().join(" ")
}

fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a number of KiB")
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent runs").count();
    Usage { memory: number("VmRSS:"), peak: number("VmHWM:"), descriptors }
}

/// Puts a file in a database's place, as an administrator does.
pub fn move_into_place(from: &Path, to: &Path) {
    output(Command::new("mv").arg("-f").arg(from).arg(to));
}
