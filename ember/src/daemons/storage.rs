//! `ember storage`: one storage node.

use crate::daemons::{Base, identity};
use crate::paths::{Daemon, DataDir};
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_rt_uring::{Options, run_reactor};
use ember_types::NodeKind;
use identity::Secrets;

/// Runs until SIGTERM.
pub(crate) fn run(dir: &DataDir, number: u32) -> Result<u8> {
    let base = Base::start_named(dir, &Daemon::Storage(number).name())?;
    if number == 0 || number > base.cluster.storage_nodes {
        let nodes = base.cluster.storage_nodes;
        return Err(Failure::usage(format!("--node {number}: this machine has storage nodes 1 to {nodes}")));
    }
    let secrets = Secrets::load(dir)?;
    let mut config = base.settings.storage.clone();
    if config.disks.is_empty() {
        let disk = dir.storage(number);
        std::fs::create_dir_all(&disk).with_context(|| format!("making {}", disk.display()))?;
        config.disks.push(disk.display().to_string());
    }
    if config.listen.is_empty() {
        config.listen.push(dir.socket(&Daemon::Storage(number).name())?.to_string());
    }
    let node = identity::storage_node(number);
    let options = Options { disk_depth: config.disk_depth as u32, ..Options::default() };
    let (dir, cluster) = (dir.clone(), base.cluster.clone());
    run_reactor(&options, |rt| async move {
        let shutdown = ember_daemon::shutdown_signal(&rt)?;
        let pool = secrets.pool(&rt, &cluster, node);
        let parts = ember_storage::Parts {
            server: secrets.server(&cluster, node),
            routing: identity::routing(&rt, &dir, &pool)?,
            pool,
            node: identity::node(&rt, &dir, node, NodeKind::Storage, config.disks[0].clone()),
            key: secrets.capability_key(),
        };
        ember_storage::run(rt, config, parts, shutdown).await.context("storage")
    })??;
    Ok(usage::OK)
}
