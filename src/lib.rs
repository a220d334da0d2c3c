//! wal-agent
pub mod core;
pub mod remote;
