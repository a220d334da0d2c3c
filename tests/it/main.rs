//! All integration tests, one binary: real SQLite, real sshd, the real Litestream, in processes of their own.

mod config;
mod control;
mod host_key;
mod house;
mod litestream;
mod planners;
mod remote_contract;
mod restore;
mod restore_damage;
mod segment;
mod status;
#[allow(dead_code, reason = "what one file of tests does not use, another does")]
mod support;
