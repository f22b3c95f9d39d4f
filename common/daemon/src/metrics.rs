//! Metrics in the Prometheus text format.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;

/// The metrics of one process; cheap to clone, shared by its threads. Names get the prefix `ember_`.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("ember"))))
    }
}

impl Metrics {
    /// A counter `ember_NAME_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, counter.clone());
        counter
    }
    /// A gauge `ember_NAME`.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, gauge.clone());
        gauge
    }
    /// All metrics as text (OpenMetrics).
    pub fn text(&self) -> String {
        let mut out = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match encode(&mut out, &registry) {
            Ok(()) => out,
            Err(error) => format!("# {error}\n# EOF\n"),
        }
    }
}
