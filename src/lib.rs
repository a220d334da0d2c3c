//! wal-agent
pub mod config;
pub mod control;
pub mod core;
pub mod disk;
pub mod remote;
pub mod shadow;
pub mod source;
pub mod sqlite;
