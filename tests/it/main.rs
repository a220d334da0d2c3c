//! All integration tests, one binary: real SQLite, real sshd, the real Litestream, in processes of their own.

mod append;
mod attachment;
mod capture;
mod checkpoint;
mod cli;
mod config;
mod control;
mod documents;
mod ghost;
mod guard;
mod host_key;
mod house;
mod interop;
mod litestream;
mod outside_world;
mod outsider;
mod package;
mod planners;
mod reload;
mod remote_contract;
mod replica;
mod replica_faults;
mod replicas;
mod restart;
mod resting;
mod restore;
mod restore_damage;
mod segment;
mod service;
mod sftp;
mod snapshot;
mod status;
mod stop;
#[allow(dead_code, reason = "what one file of tests does not use, another does")]
mod support;
mod sync;
