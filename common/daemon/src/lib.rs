//! What every daemon needs around its service: configuration, logs, metrics, an admin page, signals.
//!
//! It is not a framework: each piece is a function that a daemon's `main` calls. Invariants: an unknown key in a
//! configuration is an error that names it; the admin page runs on a thread of its own, so that a busy reactor
//! still answers `/metrics`; a shutdown signal is told once, and a second one ends the process at once.
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod logs;
pub mod metrics;
pub mod signals;

pub use admin::{AdminPage, Health};
pub use config::{ConfigError, load_config, show_defaults};
pub use logs::{LogConfig, start_logs};
pub use metrics::{Counter, Gauge, Metrics};
pub use signals::shutdown_signal;
