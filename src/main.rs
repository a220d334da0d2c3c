//! The program.
fn main() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let path = std::env::args().nth(3).unwrap_or_default();
    let config = match wal_agent::config::load(std::path::Path::new(&path), &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(2);
        }
    };
    match wal_agent::event_loop::run(&config) {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(e) => {
            eprintln!("{e:#}");
            std::process::exit(1)
        }
    }
}
