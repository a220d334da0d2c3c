//! What the soak has counted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Everything that is told at the end.
#[derive(Default)]
pub struct Tally {
    counts: BTreeMap<String, u64>,
    /// Why generations began, and went on.
    reasons: BTreeMap<String, u64>,
    lives: Vec<Life>,
    /// As far as the server was there meanwhile.
    calm_lag: Duration,
    lag: Duration,
}

/// What one agent was seen to use.
pub struct Life {
    /// How long it ran.
    pub length: Duration,
    /// How it ended.
    pub end: &'static str,
    /// After it had caught up for the first time.
    pub first: Usage,
    /// Just before its end.
    pub last: Usage,
}

/// What a process uses.
#[derive(Clone, Copy)]
pub struct Usage {
    /// Resident memory, in KiB.
    pub memory: u64,
    /// The most memory it ever had, in KiB.
    pub peak: u64,
    pub descriptors: usize,
}

impl Tally {
    /// Something happened so many times more.
    pub fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }

    /// The agent logged this reason.
    pub fn reason(&mut self, reason: &str) {
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
    }

    /// An agent has ended.
    pub fn life(&mut self, life: Life) {
        self.lives.push(life);
    }

    /// A replica was so far behind, `calm` of it with the server there.
    pub fn lag(&mut self, lag: Duration, calm: Duration) {
        (self.lag, self.calm_lag) = (self.lag.max(lag), self.calm_lag.max(calm));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "{count:10}  {what}")?;
        }
        writeln!(f, "the agent said")?;
        for (reason, count) in &self.reasons {
            writeln!(f, "{count:10}  {reason}")?;
        }
        let (calm, ever) = (self.calm_lag.as_millis(), self.lag.as_millis());
        writeln!(f, "largest lag: {calm} ms with the server there, {ever} ms in all")?;
        writeln!(f, "the agent's lives: length, memory and descriptors (once caught up, at the end), peak")?;
        for Life { length, end, first, last } in &self.lives {
            write!(f, "{:7} s  {:6} {:6} KiB", length.as_secs(), first.memory, last.memory)?;
            write!(f, "  {:3} {:3}", first.descriptors, last.descriptors)?;
            writeln!(f, "  {:6} KiB  {end}", last.peak)?;
        }
        Ok(())
    }
}
