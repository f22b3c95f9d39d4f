//! Logs: lines of text on standard error, filtered by level.

use tracing_subscriber::EnvFilter;

ember_types::config! {
    /// Logs, on standard error.
    pub struct LogConfig {
        /// Least level shown: error, warn, info, debug or trace; or per module as in `info,ember_storage=debug`.
        pub level: String = "info".into(),
        /// Whether lines are coloured.
        pub colour: bool = false,
    }
}

/// Starts logging for the process. A second call changes nothing. `Err` names a level that isn't one.
pub fn start_logs(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| {
        format!("log level {:?}: {error}; use error, warn, info, debug or trace", config.level)
    })?;
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(config.colour)
        .with_writer(std::io::stderr)
        .try_init();
    // Logging started already (tests, several services in one process): that one stays.
    drop(started);
    Ok(())
}
