//! All integration tests, one binary: real SQLite, real sshd, the real Litestream, in processes of their own.

mod host_key;
mod house;
mod outside_world;
mod remote_contract;
#[allow(dead_code, reason = "what one file of tests does not use, another does")]
mod support;
