//! The program itself, as a process.

use super::build_folder;
use super::process::{Killed, signal};
use super::wait::{wait_for, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// How long the agent may take to start, to stop, or to try again what did not work.
const DEADLINE: Duration = Duration::from_secs(120);

/// `agent replicate` with a configuration and a log of its own. Killed when dropped.
pub struct Agent {
    configuration: PathBuf,
    log: PathBuf,
    home: Option<PathBuf>,
    process: Killed,
}

impl Agent {
    /// Starts the agent with a configuration, which it writes to `folder`; the control socket is there, too.
    pub fn start(folder: &Path, configuration: &str) -> Agent {
        Agent::start_again(&write_configuration(folder, configuration))
    }

    /// Starts the agent as a service manager would: with these variables in its environment.
    pub fn start_with(folder: &Path, configuration: &str, environment: &[(&str, &str)]) -> Agent {
        Agent::spawn(&write_configuration(folder, configuration), None, environment)
    }

    /// Starts the agent with so many open files allowed, as `SOFT:HARD`.
    pub fn start_with_files(folder: &Path, configuration: &str, limit: &str) -> Agent {
        let configuration = write_configuration(folder, configuration);
        let agent = agent("replicate", &configuration, None);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(agent.get_program()).args(agent.get_args());
        Agent::spawn_command(&configuration, None, command)
    }

    /// Starts the agent as somebody else, or with other powers: what `setpriv` is to do.
    pub fn start_as(folder: &Path, configuration: &str, privileges: &[&str]) -> Agent {
        let configuration = write_configuration(folder, configuration);
        let agent = agent("replicate", &configuration, None);
        let mut command = Command::new("setpriv");
        command.args(privileges).arg(agent.get_program()).args(agent.get_args());
        Agent::spawn_command(&configuration, None, command)
    }

    /// Starts the agent where the kernel has no inotify watch left.
    pub fn start_without_watches(folder: &Path, configuration: &str) -> Agent {
        let configuration = write_configuration(folder, configuration);
        let agent = agent("replicate", &configuration, None);
        let script = "echo 0 >/proc/sys/user/max_inotify_watches && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
        command.arg(agent.get_program()).args(agent.get_args());
        Agent::spawn_command(&configuration, None, command)
    }

    /// Starts the agent of a user with this home, where `.ssh/known_hosts` is looked for.
    pub fn start_at_home(folder: &Path, configuration: &str, home: &Path) -> Agent {
        Agent::spawn(&write_configuration(folder, configuration), Some(home), &[])
    }

    /// Starts the agent with a configuration file that is there, as after [`Agent::kill`]. The log goes on.
    pub fn start_again(configuration: &Path) -> Agent {
        Agent::spawn(configuration, None, &[])
    }

    fn spawn(configuration: &Path, home: Option<&Path>, environment: &[(&str, &str)]) -> Agent {
        let mut command = agent("replicate", configuration, home);
        command.envs(environment.iter().copied());
        Agent::spawn_command(configuration, home, command)
    }

    fn spawn_command(configuration: &Path, home: Option<&Path>, mut command: Command) -> Agent {
        let log = configuration.with_file_name("agent.log");
        let file = File::options().create(true).append(true).open(&log).expect("the folder is ours");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("there are descriptors left"))
            .stderr(file);
        let process = Killed(command.spawn().expect("the agent can be run"));
        let home = home.map(Path::to_owned);
        Agent { configuration: configuration.to_owned(), log, home, process }
    }

    /// The configuration file.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The agent's process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What `agent status --json` says; `None` while the agent does not answer.
    pub fn status(&self) -> Option<Value> {
        serde_json::from_slice(&self.run("status", &["--json"]).stdout).ok()
    }

    /// Runs another command of the agent with the same configuration.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let mut command = agent(command, &self.configuration, self.home.as_deref());
        command.args(arguments).output().expect("the agent can be run")
    }

    /// Waits until the status fulfils a condition.
    #[track_caller]
    pub fn wait_for_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let status = || self.status().filter(&condition);
        wait_for(&format!("{what} (log: {})", self.log.display()), DEADLINE, status)
    }

    /// The generation that it is in.
    #[track_caller]
    pub fn generation(&self) -> String {
        let database = |status: &Value| status["databases"][0]["generation"].as_str().map(str::to_owned);
        let status = self.wait_for_status("knows its generation", |status| database(status).is_some());
        database(&status).expect("BUG: that was waited for")
    }

    /// Waits until the log has a text.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in {}", self.log.display()), DEADLINE, || self.log().contains(text));
    }

    /// Gives the running agent another configuration, and tells it so.
    pub fn reload(&self, configuration: &str) {
        write_configuration(self.configuration.parent().expect("it is in a folder"), configuration);
        signal(self.pid(), Signal::HUP);
    }

    /// Asks the agent to end, and waits until it has.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        signal(self.pid(), Signal::TERM);
        self.wait_for_exit()
    }

    /// Waits until the agent has ended by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        wait_for("the agent ends", DEADLINE, || self.process.0.try_wait().expect("the agent is our child"))
    }

    /// Whether the agent has ended by itself, or was killed.
    pub fn has_ended(&mut self) -> bool {
        self.process.0.try_wait().expect("the agent is our child").is_some()
    }

    /// Kills the agent wherever it is.
    pub fn kill(mut self) {
        self.process.0.kill().expect("the agent is our child");
        self.process.0.wait().expect("the agent is our child");
    }
}

fn write_configuration(folder: &Path, configuration: &str) -> PathBuf {
    let path = folder.join("wal-agent.yml");
    let socket = folder.join("agent.sock");
    fs::write(&path, format!("socket: {}\n{configuration}", socket.display())).expect("the folder is ours");
    path
}

/// A command of the program, with a configuration.
pub fn agent(command: &str, configuration: &Path, home: Option<&Path>) -> Command {
    let mut program = Command::new(build_folder().join("agent"));
    program.arg(command).arg("--config").arg(configuration);
    home.map(|home| program.env("HOME", home));
    program
}
