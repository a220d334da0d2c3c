//! wal-agent
pub mod config;
pub mod control;
pub mod core;
pub mod remote;
