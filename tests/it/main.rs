//! All integration tests, as one program: it links once.

mod config;
mod control;
mod status;
