//! `agent demo`: replicates, kills, restores and compares, on a scratch database, and says what that proves.

mod child;
mod rows;

use super::{FAILED, Failure, OK, WRONG};
use crate::core::restore::Check;
use crate::core::status::{Bytes, Span};
use crate::remote::Location;
use anyhow::Context;
use child::{Agent, Seen};
use rows::Application;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long rows are committed.
const DURATION: Duration = Duration::from_secs(5);
/// The pause between two commits: an application that does something else, too.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a line is printed.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Replicate a scratch database, kill the agent, restore and compare; needs no server and no configuration
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Replicate to a new folder below this URL, not to a scratch folder
    #[arg(long, value_name = "URL")]
    to: Option<String>,
}

/// Runs the demo; exit code 1 if anything differs.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let scratch = tempfile::Builder::new().prefix("agent-demo-").tempdir();
    let scratch = scratch.context("cannot make a scratch folder")?;
    let url = match &arguments.to {
        Some(url) => fresh_folder(url),
        None => format!("file://{}/replica", scratch.path().display()),
    };
    let location = Location::parse_url(&url).map_err(|error| Failure::new(WRONG, error))?;
    let is_same = demonstrate(scratch.path(), &url, &location)?;
    if arguments.to.is_some() {
        say(&format!("The replica stays at {location}; remove it when you like."))?;
    }
    Ok(if is_same { OK } else { FAILED })
}

/// The whole story. Returns whether the restored database is the same.
fn demonstrate(scratch: &Path, url: &str, location: &Location) -> Result<bool, Failure> {
    let database = scratch.join("app.db");
    let application = Application::new(&database)?;
    let mut agent = Agent::start(&database, url, scratch)?;
    say(&format!("An agent (process {}) replicates {} to {location}.", agent.pid(), database.display()))?;
    let first = agent.wait_until_acked(None)?;
    say("The snapshot is there. Now an application commits rows, one a transaction:\n")?;

    let mut latencies = commit_rows(&application, &mut agent, first)?;
    latencies.sort_unstable();
    say(&format!("\n{}", summary(&latencies)))?;
    agent.kill()?;
    say("The agent was killed as kill -9 does. Now the database is restored from the replica alone.")?;

    let restored = scratch.join("restored.db");
    let report = super::restore::from_location(location, &restored, Check::Full, &mut |_| {});
    let report = report.context("the restore failed")?;
    say(&format!("{report}\n"))?;
    let comparison = application.compare(&restored)?;
    say(&comparison.to_string())?;
    Ok(comparison.is_same())
}

/// Commits rows for a while, each only after the one before was acknowledged; returns how long each one took.
fn commit_rows(application: &Application, agent: &mut Agent, first: Seen) -> Result<Vec<Duration>, Failure> {
    let begin = Instant::now();
    let mut seen = first;
    let mut latencies = Vec::new();
    let mut next_report = REPORT_EVERY;
    while begin.elapsed() < DURATION {
        application.commit_row()?;
        let committed = Instant::now();
        seen = agent.wait_until_acked(Some(&seen))?;
        let latency = committed.elapsed();
        latencies.push(latency);
        if begin.elapsed() >= next_report {
            next_report += REPORT_EVERY;
            say(&line(begin.elapsed(), latencies.len(), &seen, latency))?;
        }
        agent.pause(PAUSE)?;
    }
    Ok(latencies)
}

fn line(elapsed: Duration, commits: usize, seen: &Seen, latency: Duration) -> String {
    let Seen { position, lag_bytes, durable, .. } = seen;
    let durable = if *durable { "fsynced" } else { "written" };
    let (lag, latency) = (Bytes(*lag_bytes), Span(latency));
    let seconds = elapsed.as_secs_f64();
    format!(
        "{seconds:4.1} s  {commits:4} commits  position {position}  {lag} behind  {durable} after {latency}"
    )
}

/// Of sorted latencies, of which there is at least one.
fn summary(latencies: &[Duration]) -> String {
    let count = latencies.len();
    let at = |share: f64| Span(latencies[((count - 1) as f64 * share) as usize]);
    format!(
        "{count} commits, and each was acknowledged by the replica before the next one. From the end of a commit to \
         its acknowledgement, as seen through `agent status`: {} in the median, {} for 99 of 100, {} at most.",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

/// A folder below `url` that nothing else uses.
fn fresh_folder(url: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = now.as_millis();
    format!("{}/wal-agent-demo-{number}", url.trim_end_matches('/'))
}

fn say(text: &str) -> Result<(), Failure> {
    super::print(&format!("{text}\n"))
}
