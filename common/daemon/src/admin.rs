//! The admin page of a daemon: `/metrics`, `/healthz` and an overview, on a port of its own.

use crate::metrics::Metrics;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What `/healthz` says; set by the daemon. Healthy means 200, anything else 503.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Option<String>>>);

impl Health {
    /// All is well.
    pub fn well(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
    /// Something is wrong; the text says what.
    pub fn trouble(&self, what: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.into());
    }
    fn state(&self) -> (StatusCode, String) {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => (StatusCode::OK, "ok\n".into()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
        }
    }
}

/// A running admin page. It ends with the process.
pub struct AdminPage {
    addr: SocketAddr,
}

impl AdminPage {
    /// Serves the page at `addr` (port 0: any) from a thread of its own. `title` is the daemon's name.
    pub fn start(addr: SocketAddr, title: &str, metrics: Metrics, health: Health) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(addr).map_err(|error| {
            let text = format!("admin page on {addr}: {error}; choose another `admin` address or port 0");
            std::io::Error::new(error.kind(), text)
        })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let title = title.to_owned();
        let overview = move || {
            let title = title.clone();
            async move { format!("EmberFS {title}\n/metrics  Prometheus metrics\n/healthz  health\n") }
        };
        let text = (header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        let router = Router::new()
            .route("/", get(overview))
            .route("/metrics", get(move || async move { ([text], metrics.text()).into_response() }))
            .route("/healthz", get(move || async move { health.state() }));
        std::thread::Builder::new().name("admin page".into()).spawn(move || {
            if let Err(error) = serve(listener, router) {
                tracing::error!(%error, "the admin page ended");
            }
        })?;
        Ok(Self { addr })
    }
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

fn serve(listener: std::net::TcpListener, router: Router) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, router).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn fetch(addr: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_and_health_are_served() {
        let (metrics, health) = (Metrics::default(), Health::default());
        metrics.counter("test_things", "Things").inc_by(3);
        let page = AdminPage::start(([127, 0, 0, 1], 0).into(), "test", metrics, health.clone()).unwrap();
        assert!(fetch(page.addr(), "/metrics").contains("ember_test_things_total 3"));
        assert!(fetch(page.addr(), "/healthz").starts_with("HTTP/1.1 200"));
        health.trouble("no lease");
        let sick = fetch(page.addr(), "/healthz");
        assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("no lease"));
        let taken = AdminPage::start(page.addr(), "test", Metrics::default(), Health::default());
        assert!(taken.err().unwrap().to_string().contains("choose another"));
    }
}
