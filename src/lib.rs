//! wal-agent
pub mod core;
pub mod remote;
pub mod restore;
pub mod sqlite;
