//! Writes the manual pages and the shell completions of `agent` into a folder, from the command line's own definitions.
//!
//!     cargo run --example manual -- FOLDER

use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;
use wal_agent::cli::Cli;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| std::io::Error::other("usage: manual FOLDER"))?;
    std::fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(Cli::command(), &folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "agent", &folder)?;
    }
    Ok(())
}
