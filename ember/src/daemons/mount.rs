//! `ember mount --foreground`: the FUSE daemon.

use crate::commands::up;
use crate::daemons::admin_client::client_identity;
use crate::daemons::{Base, identity};
use crate::paths::{Daemon, DataDir};
use crate::usage;
use anyhow::{Context, Result};
use ember_client::{Client, ClientConfig, ClientError, Shared};
use ember_net::{Identity, Pool};
use ember_rt::Rt;
use ember_rt_uring::{Options, run_reactor};
use ember_types::{ClientId, Status};
use std::path::Path;
use std::sync::Arc;

/// Runs until SIGTERM, or until somebody unmounts.
pub(crate) fn run(dir: &DataDir, point: &Path) -> Result<u8> {
    let point = std::path::absolute(point)?;
    let base = Base::start_named(dir, &Daemon::Mount(point.clone()).name())?;
    let point = up::mount_point(dir, &point)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| anyhow::anyhow!("random numbers from the system: {error}"))?;
    let shared = Shared::new(ClientId(id));
    let identity = client_identity(dir, base.cluster.cluster, shared.id())?;
    let config = base.settings.client.clone();
    let connect: ember_fuse::Connect = {
        let (dir, shared) = (dir.clone(), shared.clone());
        Arc::new(move |rt| {
            let (dir, shared, identity, config) =
                (dir.clone(), shared.clone(), identity.clone(), config.clone());
            Box::pin(async move { client(&rt, &dir, shared, identity, config).await })
        })
    };
    let parts = ember_fuse::Parts { connect, metrics: base.metrics.clone() };
    let settings = base.settings.fuse.clone();
    run_reactor(&Options::default(), |rt| async move {
        let shutdown = ember_daemon::shutdown_signal(&rt)?;
        ember_fuse::run(rt, &point, settings, parts, shutdown, |_| {}).await.context("mount")?;
        anyhow::Ok(())
    })??;
    Ok(usage::OK)
}

/// A client on one reactor.
async fn client(
    rt: &Rt,
    dir: &DataDir,
    shared: Arc<Shared>,
    identity: Identity,
    config: ClientConfig,
) -> ember_client::Result<Client> {
    let pool = Pool::new(rt, identity, ember_net::Options::default());
    let routing = identity::routing(rt, dir, &pool)
        .map_err(|error| ClientError::new(Status::Internal, format!("{error:#}")))?;
    routing.ready().await;
    Ok(Client::new(rt.clone(), config, shared, routing, pool))
}
