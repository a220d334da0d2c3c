//! Thinking: pure functions over values. It does not know files, networks, threads, clocks, randomness, logs or SQL;
//! it uses std, `crc64fast`, `lz4_flex`'s blocks and `thiserror`'s derive, which are pure, too.

pub mod checkpoint;
pub mod checksum;
pub mod evidence;
pub mod frame;
pub mod inventory;
pub mod job;
pub mod lag;
pub mod machine;
pub mod names;
pub mod pace;
pub mod page;
pub mod page_table;
pub mod position;
pub mod replay;
pub mod replica;
pub mod restore;
pub mod scan;
pub mod segment;
pub mod shadow;
pub mod space;
pub mod status;
pub mod survey;
pub mod sync;
pub mod synthetic;
pub mod table_file;
pub mod wal;
