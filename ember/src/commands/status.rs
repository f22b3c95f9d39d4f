//! `ember status`: health with named checks, nodes, targets, chains.

use crate::cluster::Cluster;
use crate::commands::scrub::Scrubbed;
use crate::commands::wait::mount_answers;
use crate::daemons::admin_client::AdminClient;
use crate::health::{self, Check, Level, Local};
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::line;
use crate::usage;
use crate::wanted::{Wanted, supervisor};
use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use ember_rt::Rt;
use ember_types::{NodeKind, TargetId};
use ember_wire::admin::{ClusterStatus, NodeStatus, TargetStatus};
use serde::Serialize;
use std::time::Duration;

/// How long mgmtd may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Everything that is shown; `--json` prints it as it is.
#[derive(Serialize)]
struct Report {
    health: Level,
    cluster: String,
    checks: Vec<Check>,
    nodes: Vec<NodeRow>,
    targets: Vec<TargetRow>,
    chains: Vec<ChainRow>,
    mounts: Vec<MountRow>,
    capacity: Capacity,
    kv_engine: String,
    supervisor_pid: Option<u32>,
}

#[derive(Serialize)]
struct NodeRow {
    id: u32,
    role: NodeKind,
    alive: bool,
    pid: u32,
    data_dir: String,
    addresses: Vec<String>,
    silent_ms: u64,
    warnings: Vec<String>,
    release: String,
}

#[derive(Serialize)]
struct TargetRow {
    id: u64,
    node: u32,
    disk: u32,
    generation: u32,
    public_state: ember_types::PublicState,
    local_state: ember_types::LocalState,
    used_bytes: u64,
    free_bytes: u64,
    capacity_bytes: u64,
    resync: Option<Resync>,
    scrub: Option<Scrubbed>,
    trouble: String,
}

#[derive(Serialize)]
struct Resync {
    chunks_done: u64,
    chunks_total: u64,
    bytes_sent: u64,
    bytes_per_s: u64,
    eta_s: Option<u64>,
}

#[derive(Serialize)]
struct ChainRow {
    id: u32,
    version: u64,
    targets: Vec<ChainMember>,
}

#[derive(Serialize)]
struct ChainMember {
    target: u64,
    state: ember_types::PublicState,
}

#[derive(Serialize)]
struct MountRow {
    point: String,
    pid: Option<u32>,
    answers: bool,
}

#[derive(Serialize, Default)]
struct Capacity {
    /// Bytes of data that fit, replicas counted.
    total_bytes: u64,
    /// Bytes of data that still fit.
    free_bytes: u64,
    /// Bytes that chunks occupy, in all replicas.
    used_bytes: u64,
}

/// Prints the state of the cluster; the exit code is its health.
pub(crate) fn run(dir: &DataDir, json: bool) -> Result<u8> {
    let report = ask(dir)?;
    if json {
        line(&serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(match report.health {
        Level::Ok | Level::Note => usage::OK,
        Level::Warn => usage::WARN,
        Level::Err => usage::ERR,
    })
}

fn ask(dir: &DataDir) -> Result<Report> {
    let cluster = Cluster::require(dir)?;
    let (asked, id) = (dir.clone(), cluster.clone());
    let options = ember_rt_uring::Options::default();
    let status = ember_rt_uring::run_reactor(&options, |rt| async move {
        AdminClient::new(&rt, &asked, &id)?.status(LIMIT).await
    })?;
    gather(dir, &cluster, status)
}

/// Prints the checks that have failed, for `up`: a cluster may be ready and yet take no data.
pub(crate) fn say_errors(dir: &DataDir) -> Result<()> {
    let mut report = ask(dir)?;
    report.checks.retain(|check| check.level == Level::Err);
    print_checks(&report.checks);
    Ok(())
}

/// Health in one line, for `up` in the foreground.
pub(crate) async fn one_line(rt: &Rt, dir: &DataDir) -> String {
    let gathered = async {
        let cluster = Cluster::require(dir)?;
        let status = AdminClient::new(rt, dir, &cluster)?.status(LIMIT).await;
        gather(dir, &cluster, status)
    };
    match gathered.await {
        Ok(report) => {
            let alive = report.nodes.iter().filter(|n| n.alive && n.role == NodeKind::Storage).count();
            let worst = report.checks.iter().find(|c| c.level == report.health && c.level >= Level::Warn);
            format!(
                "{}  {alive} storage nodes, {} chains, {} free  {}",
                report.health,
                report.chains.len(),
                bytes(report.capacity.free_bytes),
                worst.map_or("", |check| check.text.as_str())
            )
        }
        Err(error) => format!("{error:#}"),
    }
}

fn gather(dir: &DataDir, cluster: &Cluster, status: Result<ClusterStatus>) -> Result<Report> {
    let wanted = Wanted::load(dir)?;
    let supervisor_pid = supervisor(dir)?;
    let mounts: Vec<MountRow> = wanted.mounts.iter().map(|point| mount_row(dir, point)).collect();
    let local = Local {
        supervisor: supervisor_pid.is_some(),
        running: wanted.daemons().iter().filter(|d| process::find(dir, d).is_some()).count(),
        stopped: stopped(dir, &wanted),
        dead_mounts: mounts.iter().filter(|m| !m.answers).map(|m| m.point.clone()).collect(),
        data: dir.root().display().to_string(),
    };
    let checks = match &status {
        Ok(status) => health::checks(status, cluster, &local),
        Err(error) => health::unreachable(&format!("{error:#}"), &local),
    };
    let health = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok).at_least_ok();
    let status = status.ok();
    let rows = |pick: fn(&ClusterStatus) -> usize| status.as_ref().map_or(0, pick);
    let mut report = Report {
        health,
        cluster: cluster.cluster.to_string(),
        checks,
        nodes: Vec::with_capacity(rows(|s| s.nodes.len())),
        targets: Vec::with_capacity(rows(|s| s.targets.len())),
        chains: Vec::with_capacity(rows(|s| s.chains.len())),
        mounts,
        capacity: Capacity::default(),
        kv_engine: status.as_ref().map_or_else(|| "unknown".into(), |s| s.kv_engine.clone()),
        supervisor_pid,
    };
    if let Some(status) = status {
        report.nodes.extend(status.nodes.into_iter().map(node_row));
        report.capacity = capacity(&status.targets, cluster.replicas);
        let now = status.cluster_time.0;
        report.targets.extend(status.targets.into_iter().map(|target| target_row(target, now)));
        report.chains.extend(status.chains.iter().map(|chain| ChainRow {
            id: chain.id.0,
            version: chain.version.0,
            targets:
                chain.targets.iter().map(|t| ChainMember { target: t.target.0, state: t.state }).collect(),
        }));
    }
    Ok(report)
}

/// Storage processes that should run and don't: seen here before mgmtd misses their heartbeats.
fn stopped(dir: &DataDir, wanted: &Wanted) -> Vec<String> {
    let storage = wanted.daemons().into_iter().filter(|daemon| matches!(daemon, Daemon::Storage(_)));
    let dead = storage.filter(|daemon| !process::find(dir, daemon).is_some_and(process::is_alive));
    dead.map(|daemon| daemon.title()).collect()
}

fn mount_row(dir: &DataDir, point: &std::path::Path) -> MountRow {
    let pid = process::find(dir, &Daemon::Mount(point.to_owned()));
    MountRow { point: point.display().to_string(), pid, answers: pid.is_some() && mount_answers(point) }
}

fn node_row(node: NodeStatus) -> NodeRow {
    NodeRow {
        id: node.id.0,
        role: node.kind,
        alive: node.alive,
        pid: node.pid,
        data_dir: node.data_dir,
        addresses: node.addresses,
        silent_ms: node.silent_ms,
        warnings: node.warnings,
        release: node.release,
    }
}

fn target_row(target: TargetStatus, now_ms: u64) -> TargetRow {
    let TargetId(id) = target.id;
    TargetRow {
        id,
        node: target.node.0,
        disk: target.disk,
        generation: target.generation.0,
        public_state: target.public,
        local_state: target.local,
        used_bytes: target.used_bytes,
        free_bytes: target.free_bytes,
        capacity_bytes: target.capacity_bytes,
        resync: target.sync.map(|s| Resync {
            chunks_done: s.chunks_done,
            chunks_total: s.chunks_total,
            bytes_sent: s.bytes_sent,
            bytes_per_s: s.bytes_per_s,
            eta_s: s.eta_s,
        }),
        scrub: target.scrub.map(|scrub| Scrubbed::new(&scrub, now_ms)),
        trouble: target.trouble,
    }
}

/// Targets of one disk share its space: a disk counts once.
fn capacity(targets: &[TargetStatus], replicas: u32) -> Capacity {
    let mut disks = std::collections::BTreeMap::new();
    for target in targets {
        disks.insert((target.node, target.disk), (target.capacity_bytes, target.free_bytes));
    }
    let sum =
        |pick: fn(&(u64, u64)) -> u64| disks.values().map(pick).sum::<u64>() / u64::from(replicas.max(1));
    Capacity {
        total_bytes: sum(|disk| disk.0),
        free_bytes: sum(|disk| disk.1),
        used_bytes: targets.iter().map(|t| t.used_bytes).sum(),
    }
}

fn print_checks(checks: &[Check]) {
    for check in checks {
        line(&format!("  {:<4} {}: {}", check.level, check.name, check.text));
        if !check.remedy.is_empty() {
            line(&format!("       {}", check.remedy));
        }
    }
}

fn print(report: &Report) {
    line(&format!("health   {}", report.health));
    line(&format!("cluster  {}", report.cluster));
    print_checks(&report.checks);
    let capacity = &report.capacity;
    let (total, free) = (bytes(capacity.total_bytes), bytes(capacity.free_bytes));
    line(&format!("space    {free} free of {total}, metadata in KV engine {}", report.kv_engine));
    let mut nodes = table(&["node", "role", "alive", "pid", "silent", "data"]);
    for node in &report.nodes {
        let role = format!("{:?}", node.role).to_lowercase();
        let silent = format!("{:.1} s", node.silent_ms as f64 / 1000.0);
        let alive = if node.alive { "yes" } else { "no" };
        nodes.add_row([
            node.id.to_string(),
            role,
            alive.into(),
            node.pid.to_string(),
            silent,
            node.data_dir.clone(),
        ]);
    }
    line(&nodes.to_string());
    let mut targets =
        table(&["target", "node", "gen", "public", "local", "used", "resync", "scrub", "trouble"]);
    for target in &report.targets {
        let resync = target.resync.as_ref().map_or(String::new(), progress);
        targets.add_row([
            target.id.to_string(),
            target.node.to_string(),
            target.generation.to_string(),
            format!("{:?}", target.public_state).to_lowercase(),
            format!("{:?}", target.local_state).to_lowercase(),
            bytes(target.used_bytes),
            resync,
            target.scrub.as_ref().map_or(String::new(), Scrubbed::cell),
            target.trouble.clone(),
        ]);
    }
    line(&targets.to_string());
    let mut chains = table(&["chain", "version", "head to tail"]);
    for chain in &report.chains {
        let members = chain.targets.iter().map(|t| format!("{} {:?}", t.target, t.state).to_lowercase());
        let members = members.collect::<Vec<_>>().join(", ");
        chains.add_row([chain.id.to_string(), chain.version.to_string(), members]);
    }
    line(&chains.to_string());
    for mount in &report.mounts {
        let pid = mount.pid.map_or_else(|| "not running".into(), |pid| format!("process {pid}"));
        line(&format!("mount    {} ({pid}{})", mount.point, if mount.answers { "" } else { ", no answer" }));
    }
}

/// Progress of a resync, for people.
fn progress(sync: &Resync) -> String {
    let (sent, speed) = (bytes(sync.bytes_sent), bytes(sync.bytes_per_s));
    let left = sync.eta_s.map_or(String::new(), |s| format!(", {} left", duration(s)));
    format!("{}/{} chunks, {sent} at {speed}/s{left}", sync.chunks_done, sync.chunks_total)
}

/// A number of seconds for people.
fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().copied());
    table
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_what_is_done_the_speed_and_the_time_left() {
        let (bytes_sent, bytes_per_s) = (5 << 20, 1 << 20);
        let sync = |eta_s| Resync { chunks_done: 5, chunks_total: 20, bytes_sent, bytes_per_s, eta_s };
        assert_eq!(progress(&sync(Some(15))), "5/20 chunks, 5.0 MiB at 1.0 MiB/s, 15 s left");
        assert_eq!(progress(&sync(None)), "5/20 chunks, 5.0 MiB at 1.0 MiB/s");
        assert_eq!([duration(61), duration(7_260)], ["1 min 1 s", "2 h 1 min"]);
    }
}
