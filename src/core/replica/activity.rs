//! What a replica is doing, in words for others.

use std::time::Instant;

/// What a replica is doing, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Connecting, or looking what is there.
    Connecting,
    /// Sending the first snapshot and the WAL up to it: nothing of this generation can be restored yet.
    SendingSnapshot,
    /// The WAL follows the application.
    Streaming,
    /// The WAL follows the application, but a restore takes another generation: [`SUPERSEDED`].
    Superseded {
        /// When it is asked again.
        retry_at: Instant,
    },
    /// The last try failed.
    Failing {
        /// When the next one is due.
        retry_at: Instant,
    },
}

/// Why a restore would not take the present generation, and what to do.
pub const SUPERSEDED: &str = "a restore takes another generation, which is newer by the server's clock, and the server \
                              does not let us change that: remove what is dated in the future";
