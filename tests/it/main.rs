//! All integration tests, in one binary.

mod history;
mod litestream;
mod memory;
mod planners;
mod restore;
mod restore_damage;
mod segment;
