//! wal-agent
pub mod agent;
pub mod carry;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod disk;
pub mod event_loop;
pub mod remote;
pub mod restore;
pub mod shadow;
pub mod source;
pub mod sqlite;
pub mod watch;
pub mod worker;
