//! wal-agent
pub mod config;
pub mod core;
pub mod remote;
