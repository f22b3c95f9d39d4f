//! Waiting until what was asked for works, and saying why it doesn't.

use crate::cluster::Cluster;
use crate::daemons::admin_client::AdminClient;
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::{progress, progress_done};
use crate::usage::Failure;
use crate::wanted::{State, Wanted, supervisor};
use anyhow::Result;
use ember_fuse_kernel::mount::{Probe, probe_within};
use ember_rt::Rt;
use ember_types::{NodeKind, PublicState};
use ember_wire::admin::ClusterStatus;
use std::path::Path;
use std::time::Duration;

/// How long a start may take: recovery of large stores included.
const READY_LIMIT: Duration = Duration::from_secs(300);
/// How long the supervisor may take to show up.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(15);
/// How long replicas may take to join once all data are served; nobody needs to wait longer for them.
const REPLICAS_LIMIT: Duration = Duration::from_secs(5);
/// Pause between looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a mount may take to answer one look.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Waits until every chain has a serving member and every mount answers. `Err` says what stands in the way.
pub(crate) fn ready(dir: &DataDir, cluster: &Cluster, round: u64) -> Result<()> {
    let (dir, cluster) = (dir.clone(), cluster.clone());
    let options = ember_rt_uring::Options::default();
    let result = ember_rt_uring::run_reactor(&options, |rt| wait(rt, dir, cluster, round))?;
    progress_done();
    result
}

async fn wait(rt: Rt, dir: DataDir, cluster: Cluster, round: u64) -> Result<()> {
    let client = AdminClient::new(&rt, &dir, &cluster)?;
    let begun = rt.now();
    let limit = begun + READY_LIMIT;
    let mut served = None;
    let mut supervised = false;
    loop {
        let running = supervisor(&dir)?.is_some();
        if !running && (supervised || rt.now() > begun + SUPERVISOR_LIMIT) {
            let log = process::log_tail(&dir.logs().join("supervisor.log"), 5);
            return Err(Failure::refused(format!("the supervisor ended:\n{log}")));
        }
        supervised |= running;
        let state = State::load(&dir)?;
        if state.round >= round {
            refuse_ended(&dir, &state)?;
        }
        let acted = (state.round >= round).then_some(&state);
        let missing = missing(&client, &dir, &cluster, acted).await?;
        let missing = match missing {
            Some(missing) => missing,
            None if thin(&client).await => "all replicas".into(),
            None => return Ok(()),
        };
        if missing == "all replicas" && rt.now() > *served.get_or_insert(rt.now()) + REPLICAS_LIMIT {
            return Ok(());
        }
        progress(&format!("waiting for {missing}"));
        if rt.now() > limit {
            return Err(Failure::refused(format!(
                "not ready after {} s: waiting for {missing}; see {}",
                READY_LIMIT.as_secs(),
                dir.logs().display()
            )));
        }
        rt.sleep(PAUSE).await;
    }
}

/// A daemon that ended right after its start won't get better by waiting: its last words say why.
fn refuse_ended(dir: &DataDir, state: &State) -> Result<()> {
    for daemon in Wanted::load(dir)?.daemons() {
        let row = state.daemons.iter().find(|row| row.name == daemon.name());
        if let Some(how) = row.filter(|row| row.pid.is_none()).and_then(|row| row.ended.as_ref()) {
            let log = dir.log_file(&daemon);
            return Err(Failure::refused(format!(
                "{} ended ({how}); the end of {}:\n{}",
                daemon.title(),
                log.display(),
                process::log_tail(&log, 8)
            )));
        }
    }
    Ok(())
}

/// What is still missing; `None` if all is there.
async fn missing(
    client: &AdminClient,
    dir: &DataDir,
    cluster: &Cluster,
    acted: Option<&State>,
) -> Result<Option<String>> {
    let Some(state) = acted else {
        return Ok(Some("the supervisor".into()));
    };
    let Ok(status) = client.status(Duration::from_secs(1)).await else {
        return Ok(Some("mgmtd".into()));
    };
    if let Some(missing) = unready(&status, cluster, state) {
        return Ok(Some(missing));
    }
    for point in Wanted::load(dir)?.mounts {
        let served = process::find(dir, &Daemon::Mount(point.clone())).is_some();
        if !served || !mount_answers(&point) {
            return Ok(Some(format!("the mount on {}", point.display())));
        }
    }
    Ok(None)
}

/// Whether some chain has replicas that don't serve yet, though their nodes are there.
async fn thin(client: &AdminClient) -> bool {
    let Ok(status) = client.status(Duration::from_secs(1)).await else { return false };
    let thin = |chain: &ember_types::Chain| chain.serving().count() < chain.targets.len();
    status.chains.iter().any(thin)
}

/// Whether a mount point is served by a live daemon that answers.
pub(crate) fn mount_answers(point: &Path) -> bool {
    matches!(probe_within(point, PROBE_LIMIT), Ok(Probe::Alive))
}

/// What mgmtd doesn't know of yet. The lease of a process that died outlives it, so only those that run count.
fn unready(status: &ClusterStatus, cluster: &Cluster, state: &State) -> Option<String> {
    let runs = |pid: u32| state.daemons.iter().any(|daemon| daemon.pid == Some(pid));
    let registered =
        |kind: NodeKind| status.nodes.iter().filter(|n| n.kind == kind && n.alive && runs(n.pid)).count();
    let storage = registered(NodeKind::Storage);
    if storage < cluster.storage_nodes as usize {
        return Some(format!("storage nodes ({storage} of {})", cluster.storage_nodes));
    }
    if registered(NodeKind::Meta) == 0 {
        return Some("meta".into());
    }
    if status.chains.is_empty() {
        return Some("the first chains".into());
    }
    let serving = status.chains.iter().filter(|c| c.targets.iter().any(|t| t.state == PublicState::Serving));
    let serving = serving.count();
    (serving < status.chains.len()).then(|| format!("chains ({serving} of {} serve)", status.chains.len()))
}
