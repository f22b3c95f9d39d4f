//! `ember control`: mgmtd and meta in one process, over one embedded store, each on a thread of its own.

use crate::daemons::admin_client::AdminClient;
use crate::daemons::{Base, identity};
use crate::exports;
use crate::paths::DataDir;
use crate::usage;
use anyhow::{Context, Result, anyhow};
use ember_kv::Kv;
use ember_kv::local::{LocalKv, LocalOptions};
use ember_rt::select::{Either, Either3, select, select3};
use ember_rt::{Rt, watch};
use ember_rt_uring::{Options, ReactorThread, run_reactor, spawn_reactor};
use ember_types::{BootId, ChainTableId, NodeKind, Status};
use ember_wire::method::CreateChains;
use ember_wire::mgmtd::CreateChainsRequest;
use identity::{META_NODE, MGMTD_NODE, Secrets};
use std::sync::Arc;
use std::time::Duration;

/// How often the metadata are exported.
const EXPORT_PERIOD: Duration = Duration::from_secs(3600);
/// Pause between tries to make the first chains.
const BOOTSTRAP_PAUSE: Duration = Duration::from_millis(100);
/// Limit of one try.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(5);
/// How much later one thread may hear of a signal than another.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);
/// The table that new files lie on.
const FIRST_TABLE: ChainTableId = ChainTableId(1);

/// Runs until SIGTERM.
pub(crate) fn run(dir: &DataDir) -> Result<u8> {
    let base = Base::start_named(dir, "control")?;
    ember_rt_uring::blocking::configure(ember_rt_uring::blocking::Limits {
        threads_max: base.settings.daemon.blocking_threads_max.max(4),
        ..Default::default()
    });
    let kv = LocalKv::open(&dir.kv(), LocalOptions::new(base.cluster.cluster)).with_context(|| {
        format!(
            "the metadata store can't be used; `ember meta import --data {}` restores the newest export",
            dir.root().display()
        )
    })?;
    let base = Arc::new(base);
    let mgmtd = start_mgmtd(dir, &base, kv.clone())?;
    let meta = start_meta(dir, &base, kv.clone())?;
    let (own, shared, store) = (dir.clone(), base.clone(), kv.clone());
    run_reactor(&Options::default(), |rt| serve(rt, own, shared, store, mgmtd, meta))??;
    exports::write(&kv, &dir.exports(), wall_ms())?;
    kv.close()?;
    base.health.trouble("stopped");
    Ok(usage::OK)
}

#[expect(clippy::disallowed_methods, reason = "names a file; the reactors have ended")]
fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

type Service = ReactorThread<Result<()>>;

fn start_mgmtd(dir: &DataDir, base: &Arc<Base>, kv: LocalKv) -> Result<Service> {
    let (dir, base) = (dir.clone(), base.clone());
    let secrets = Secrets::load(&dir)?;
    let thread = spawn_reactor("mgmtd", Options::default(), move |rt| async move {
        let shutdown = ember_daemon::shutdown_signal(&rt)?;
        let mut config = base.settings.mgmtd.clone();
        if config.listen.is_empty() {
            config.listen.push(dir.socket("mgmtd")?.to_string());
        }
        let kv: Arc<dyn Kv> = Arc::new(kv);
        let parts = ember_mgmtd::Parts {
            kv,
            identity: secrets.server(&base.cluster, MGMTD_NODE),
            boot: BootId(rt.random_u64()),
            pid: std::process::id(),
            data_dir: dir.root().display().to_string(),
            release: env!("CARGO_PKG_VERSION").into(),
        };
        ember_mgmtd::run(rt, config, parts, shutdown).await.context("mgmtd")
    });
    Ok(thread?)
}

fn start_meta(dir: &DataDir, base: &Arc<Base>, kv: LocalKv) -> Result<Service> {
    let (dir, base) = (dir.clone(), base.clone());
    let secrets = Secrets::load(&dir)?;
    let thread = spawn_reactor("meta", Options::default(), move |rt| async move {
        let shutdown = ember_daemon::shutdown_signal(&rt)?;
        let mut config = base.settings.meta.clone();
        if config.listen.is_empty() {
            config.listen.push(dir.socket("meta")?.to_string());
        }
        let pool = secrets.pool(&rt, &base.cluster, META_NODE);
        let kv: Arc<dyn Kv> = Arc::new(kv);
        let parts = ember_meta::Parts {
            kv,
            server: secrets.server(&base.cluster, META_NODE),
            routing: identity::routing(&rt, &dir, &pool)?,
            pool,
            node: identity::node(&rt, &dir, META_NODE, NodeKind::Meta, String::new()),
            key: secrets.capability_key(),
            metrics: base.metrics.clone(),
        };
        ember_meta::run(rt, config, parts, shutdown).await.context("meta")
    });
    Ok(thread?)
}

/// Makes the first chains, exports the metadata each hour, and ends with the services.
async fn serve(
    rt: Rt,
    dir: DataDir,
    base: Arc<Base>,
    kv: LocalKv,
    mgmtd: Service,
    meta: Service,
) -> Result<()> {
    let shutdown = ember_daemon::shutdown_signal(&rt)?;
    rt.spawn("bootstrap", bootstrap(rt.clone(), dir.clone(), base.clone(), shutdown.clone()));
    rt.spawn("exports", export_hourly(rt.clone(), dir, kv, shutdown.clone()));
    let mut mgmtd = Box::pin(mgmtd.finished());
    let mut meta = Box::pin(meta.finished());
    let mut stop = Box::pin(stopped(shutdown));
    match select3(mgmtd.as_mut(), meta.as_mut(), stop.as_mut()).await {
        Either3::First(ended) => {
            told_to_end(&rt, "mgmtd", ended, stop).await?;
            meta.await?
        }
        Either3::Second(ended) => {
            told_to_end(&rt, "meta", ended, stop).await?;
            mgmtd.await?
        }
        Either3::Third(()) => {
            mgmtd.await??;
            meta.await?
        }
    }
}

/// A service that was told to end, on its own thread, may have done so before this one hears of the signal. Without it,
/// it has ended by itself.
async fn told_to_end(
    rt: &Rt,
    name: &str,
    ended: std::io::Result<Result<()>>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    match ended {
        Ok(Ok(())) if rt.timeout(SIGNAL_LIMIT, stop).await.is_ok() => Ok(()),
        ended => Err(ended_early(name, ended)),
    }
}

fn ended_early(name: &str, ended: std::io::Result<Result<()>>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("{name} ended by itself"),
        Ok(Err(error)) => error,
        Err(error) => anyhow::Error::from(error).context(name.to_owned()),
    }
}

/// Waits for SIGTERM.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    while !*shutdown.borrow() {
        if shutdown.changed().await.is_err() {
            return;
        }
    }
}

/// Makes the first chains once enough storage nodes have registered.
async fn bootstrap(rt: Rt, dir: DataDir, base: Arc<Base>, shutdown: watch::Receiver<bool>) {
    let client = match AdminClient::new(&rt, &dir, &base.cluster) {
        Ok(client) => client,
        Err(error) => return tracing::error!("no first chains: {error:#}"),
    };
    let request = CreateChainsRequest {
        table: FIRST_TABLE,
        replicas: base.cluster.replicas,
        targets_per_disk: base.cluster.targets_per_disk,
        storage_nodes: base.cluster.storage_nodes,
    };
    while !*shutdown.borrow() {
        match client.mgmtd::<CreateChains>(&request, BOOTSTRAP_LIMIT).await {
            Ok(answer) if matches!(answer.status, Status::Ok | Status::Exists) => {
                return tracing::info!(version = %answer.version, status = %answer.status, "first chain table");
            }
            Ok(answer) if !answer.status.is_retryable() => {
                tracing::error!(status = %answer.status, "no first chains: {}", answer.text);
            }
            Ok(answer) => tracing::debug!(status = %answer.status, "no first chains yet: {}", answer.text),
            Err(error) => tracing::debug!("no first chains yet: {error:#}"),
        }
        rt.sleep(BOOTSTRAP_PAUSE).await;
    }
}

async fn export_hourly(rt: Rt, dir: DataDir, kv: LocalKv, shutdown: watch::Receiver<bool>) {
    loop {
        if let Either::Left(()) = select(stopped(shutdown.clone()), rt.sleep(EXPORT_PERIOD)).await {
            return;
        }
        let (kv, exports, now) = (kv.clone(), dir.exports(), rt.unix_now_ms());
        let written = rt.blocking("export", move || async move { exports::write(&kv, &exports, now) }).await;
        match written {
            Ok(Ok(path)) => tracing::info!(path = %path.display(), "metadata exported"),
            Ok(Err(error)) => tracing::error!("metadata are not exported: {error:#}"),
            Err(error) => tracing::error!(%error, "metadata are not exported"),
        }
    }
}
