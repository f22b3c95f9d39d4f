//! `ember up`.

use crate::cluster::Cluster;
use crate::commands::{down, status, wait};
use crate::paths::DataDir;
use crate::process;
use crate::report::line;
use crate::settings::Settings;
use crate::usage::{self, Failure};
use crate::wanted::{Wanted, supervisor};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Storage processes of a new cluster.
const STORAGE_NODES: u32 = 3;
/// Most storage processes on one machine.
const STORAGE_NODES_MAX: u32 = 64;
/// Replicas of a new cluster.
const REPLICAS: u32 = 3;
/// Targets on each disk of a new cluster: enough for reads of a lost replica to spread.
const TARGETS_PER_DISK: u32 = 4;

/// What `up` was asked for.
pub(crate) struct Options {
    pub(crate) dir: DataDir,
    pub(crate) mount: Option<PathBuf>,
    pub(crate) storage_nodes: Option<u32>,
    pub(crate) replicas: Option<u32>,
    pub(crate) detach: bool,
    pub(crate) restart: bool,
}

/// Starts what is missing of a cluster, and the cluster itself on first use.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let dir = &options.dir;
    if let Err(trouble) = ember_rt_uring::probe() {
        return Err(Failure::refused(trouble));
    }
    check_numbers(options)?;
    let existing = Cluster::load(dir)?;
    if let Some(cluster) = &existing {
        check_against(cluster, options)?;
    }
    // Here and not in each daemon's log.
    Settings::load(dir).map_err(|error| Failure::refused(format!("{error:#}")))?;
    let before = supervisor(dir)?;
    let point = options.mount.as_deref().map(|point| mount_point(dir, point)).transpose()?;
    let cluster = match existing {
        Some(cluster) => cluster,
        None => {
            let nodes = options.storage_nodes.unwrap_or(STORAGE_NODES);
            let replicas = options.replicas.unwrap_or(REPLICAS.min(nodes));
            Cluster::create(dir, nodes, replicas, TARGETS_PER_DISK)?
        }
    };
    std::fs::create_dir_all(dir.run()).with_context(|| format!("making {}", dir.run().display()))?;
    std::fs::create_dir_all(dir.logs())?;
    let round = want(dir, &cluster, point.clone(), options.restart)?;
    if before.is_none() {
        process::start_supervisor(dir)?;
    }
    let ready = wait::ready(dir, &cluster, round);
    if let Err(error) = ready {
        if before.is_none() {
            down::stop_supervisor(dir)?;
        }
        return Err(error);
    }
    say_ready(dir, &cluster, point.as_deref());
    status::say_errors(dir)?;
    if options.detach || before.is_some() {
        return Ok(usage::OK);
    }
    foreground(dir)
}

fn check_numbers(options: &Options) -> Result<()> {
    let nodes = options.storage_nodes.unwrap_or(STORAGE_NODES);
    let replicas = options.replicas.unwrap_or(REPLICAS.min(nodes));
    if nodes == 0 || nodes > STORAGE_NODES_MAX {
        return Err(Failure::usage(format!(
            "--storage-nodes {nodes}: 1 to {STORAGE_NODES_MAX} are possible"
        )));
    }
    if replicas == 0 || (options.storage_nodes.is_some() && replicas > nodes) {
        let text = format!("--replicas {replicas}: 1 to {nodes} are possible with {nodes} storage nodes");
        return Err(Failure::usage(text));
    }
    Ok(())
}

fn check_against(cluster: &Cluster, options: &Options) -> Result<()> {
    let differs = |asked: Option<u32>, has: u32| asked.is_some_and(|asked| asked != has);
    if differs(options.storage_nodes, cluster.storage_nodes) || differs(options.replicas, cluster.replicas) {
        return Err(Failure::refused(format!(
            "the cluster in {} was made with --storage-nodes {} --replicas {}, which can't be changed by `up`: \
             leave these flags out, or use another --data",
            options.dir.root().display(),
            cluster.storage_nodes,
            cluster.replicas
        )));
    }
    Ok(())
}

/// The mount point as an absolute path, made if it isn't there. One that this cluster mounts already is fine.
pub(crate) fn mount_point(dir: &DataDir, point: &Path) -> Result<PathBuf> {
    let point = std::path::absolute(point).with_context(|| format!("mount point {}", point.display()))?;
    let running = process::find(dir, &crate::paths::Daemon::Mount(point.clone()));
    if running.is_some_and(process::is_alive) {
        return Ok(point);
    }
    if let Ok(root) = std::fs::canonicalize(dir.root())
        && (point.starts_with(&root) || root.starts_with(&point))
    {
        return Err(Failure::refused(format!(
            "mount point {} and data directory {} must not contain one another: choose another --mount",
            point.display(),
            root.display()
        )));
    }
    // A mount whose daemon was killed refuses every access: take it away first.
    ember_fuse_kernel::mount::clean_stale(&point).map_err(|error| Failure::refused(error.to_string()))?;
    if !point.exists() {
        std::fs::create_dir_all(&point).with_context(|| format!("making mount point {}", point.display()))?;
    }
    ember_fuse_kernel::mount::check_mount_point(&point, false)
        .map_err(|error| Failure::refused(error.to_string()))?;
    Ok(point)
}

/// Writes down what is to run, and returns the round in which it is to be started.
pub(crate) fn want(dir: &DataDir, cluster: &Cluster, point: Option<PathBuf>, restart: bool) -> Result<u64> {
    let mut wanted = Wanted::load(dir)?;
    if supervisor(dir)?.is_none() {
        wanted.mounts.clear();
    }
    wanted.storage_nodes = cluster.storage_nodes;
    wanted.restart = restart;
    wanted.round += 1;
    if let Some(point) = point
        && !wanted.mounts.contains(&point)
    {
        wanted.mounts.push(point);
    }
    wanted.save(dir)?;
    Ok(wanted.round)
}

fn say_ready(dir: &DataDir, cluster: &Cluster, point: Option<&Path>) {
    let data = dir.root().display();
    line(&format!(
        "EmberFS is ready: {} storage nodes, {} replicas of every chunk, data in {data}",
        cluster.storage_nodes, cluster.replicas
    ));
    match point {
        Some(point) => {
            let point = point.display();
            line(&format!("mounted on {point}; try"));
            line(&format!("  cp -a /usr/share/doc {point}/ && ls {point}/doc | head"));
        }
        None => line(&format!("try\n  ember mount --data {data} ./mnt")),
    }
    line(&format!("  ember status --data {data}"));
    line(&format!("  ember down --data {data}"));
}

/// Shows one live status line until Ctrl-C, then stops everything.
fn foreground(dir: &DataDir) -> Result<u8> {
    line("Ctrl-C stops everything.");
    let data = dir.clone();
    let options = ember_rt_uring::Options::default();
    ember_rt_uring::run_reactor(&options, move |rt| async move {
        let mut shutdown = ember_daemon::shutdown_signal(&rt)?;
        loop {
            crate::report::progress(&status::one_line(&rt, &data).await);
            let pause = rt.timeout(Duration::from_secs(1), shutdown.changed()).await;
            if pause.is_ok() {
                return anyhow::Ok(());
            }
        }
    })??;
    crate::report::progress_done();
    line("stopping");
    down::stop_supervisor(dir)?;
    Ok(usage::OK)
}
