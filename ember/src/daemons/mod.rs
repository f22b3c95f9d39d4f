//! The daemons: thin mains around the services' libraries.

pub(crate) mod admin_client;
pub(crate) mod control;
pub(crate) mod identity;
pub(crate) mod mount;
pub(crate) mod storage;

use crate::cluster::Cluster;
use crate::paths::DataDir;
use crate::settings::Settings;
use crate::usage;
use anyhow::{Context, Result};
use ember_daemon::{AdminPage, Health, Metrics};

/// What every daemon of a data directory begins with.
pub(crate) struct Base {
    pub(crate) cluster: Cluster,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    _admin: AdminPage,
}

impl Base {
    /// Reads cluster and settings, starts logs and the admin page.
    pub(crate) fn start_named(dir: &DataDir, title: &str) -> Result<Self> {
        let cluster = Cluster::require(dir)?;
        let settings = Settings::load(dir)?;
        ember_daemon::start_logs(&settings.logs).map_err(anyhow::Error::msg)?;
        let (metrics, health) = (Metrics::default(), Health::default());
        let admin = &settings.daemon.admin;
        let addr = admin.parse().with_context(|| format!("admin address {admin:?} is not IP:PORT"))?;
        let page = AdminPage::start(addr, title, metrics.clone(), health.clone())?;
        std::fs::write(dir.run().join(format!("{title}.admin")), page.addr().to_string())?;
        tracing::info!(daemon = title, admin = %page.addr(), release = env!("CARGO_PKG_VERSION"), "starts");
        Ok(Self { cluster, settings, metrics, health, _admin: page })
    }
}

/// Runs the supervisor of a data directory.
pub(crate) fn supervise(dir: &DataDir) -> Result<u8> {
    Cluster::require(dir)?;
    let settings = Settings::load(dir)?;
    ember_daemon::start_logs(&settings.logs).map_err(anyhow::Error::msg)?;
    let dir = dir.clone();
    ember_rt_uring::run_reactor(&ember_rt_uring::Options::default(), |rt| crate::supervisor::run(rt, dir))??;
    Ok(usage::OK)
}
