//! Named checks over the state of a cluster. Pure.

use crate::cluster::Cluster;
use ember_types::{Chain, NodeKind, PublicState};
use ember_wire::admin::{ClusterStatus, TargetStatus};
use ember_wire::mgmtd::SyncProgress;
use serde::Serialize;

/// Share of a disk below which free space is a warning, in percent.
const FREE_WARN_PERCENT: u64 = 10;
/// Share of a disk below which free space is an error, in percent.
const FREE_ERR_PERCENT: u64 = 3;

/// What helps a target whose trouble says so; it comes back by itself then.
const REMEDIES: [(&str, &str); 5] = [
    ("no space", "delete files, or give the disk more room: it is brought up to date then"),
    (" hangs: ", "it comes back by itself when the disk answers; if it doesn't, replace the disk"),
    ("No space left on device", "give the disk room: it comes back by itself"),
    ("Read-only file system", "make its file system writable: it comes back by itself"),
    (" is in use by ", "stop the other process: it comes back by itself"),
];

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; no action is needed.
    Note,
    /// Redundancy or comfort is missing; data are served.
    Warn,
    /// Some data are not served.
    Err,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Note => "NOTE",
            Self::Warn => "WARN",
            Self::Err => "ERR",
        })
    }
}

impl Level {
    /// Notes don't change the health.
    pub(crate) fn at_least_ok(self) -> Self {
        if self == Self::Note { Self::Ok } else { self }
    }
}

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) remedy: String,
}

/// What this machine knows without asking the cluster.
pub(crate) struct Local {
    /// Whether the supervisor runs.
    pub(crate) supervisor: bool,
    /// Daemons that run.
    pub(crate) running: usize,
    /// Storage processes that should run and don't.
    pub(crate) stopped: Vec<String>,
    /// Mount points that should work and don't.
    pub(crate) dead_mounts: Vec<String>,
    /// Data directory.
    pub(crate) data: String,
}

fn check(name: &'static str, level: Level, text: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level, text: text.into(), remedy: remedy.into() }
}

/// The checks when mgmtd doesn't answer.
pub(crate) fn unreachable(why: &str, local: &Local) -> Vec<Check> {
    if local.running == 0 && !local.supervisor {
        let remedy = format!("`ember up --data {}` starts it", local.data);
        return vec![check("processes", Level::Err, "the cluster is stopped", remedy)];
    }
    let remedy = format!("a supervisor starts it again after 5 s; see {}/logs/control.log", local.data);
    let mut checks = vec![check("mgmtd", Level::Err, format!("mgmtd doesn't answer: {why}"), remedy)];
    checks.extend(supervision(local));
    checks
}

/// All checks; those that are well say so in one row each.
pub(crate) fn checks(status: &ClusterStatus, cluster: &Cluster, local: &Local) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(nodes(status, cluster, local));
    checks.extend(chains(status, local));
    checks.extend(targets(status, local));
    checks.extend(space(status));
    checks.extend(warnings(status));
    checks.extend(supervision(local));
    if cluster.replicas > 1 {
        let text = "all replicas are on this machine: its loss is the loss of the data";
        checks.push(check("failure domains", Level::Note, text, ""));
    }
    checks
}

fn nodes(status: &ClusterStatus, cluster: &Cluster, local: &Local) -> Vec<Check> {
    let mut checks = Vec::new();
    for node in status.nodes.iter().filter(|node| !node.alive) {
        let kind = format!("{:?}", node.kind).to_lowercase();
        let level = if node.kind == NodeKind::Storage { Level::Warn } else { Level::Err };
        let silent = node.silent_ms as f64 / 1000.0;
        let text = format!("{kind} node {} (process {}) is silent for {silent:.1} s", node.id, node.pid);
        let remedy = format!("`ember up --data {}` starts what is missing; see {0}/logs", local.data);
        checks.push(check("nodes", level, text, remedy));
    }
    let storage = status.nodes.iter().filter(|n| n.kind == NodeKind::Storage).count();
    if storage < cluster.storage_nodes as usize {
        let text = format!("{storage} of {} storage nodes have registered", cluster.storage_nodes);
        checks.push(check("nodes", Level::Warn, text, format!("see {}/logs", local.data)));
    }
    if checks.is_empty() {
        checks.push(check("nodes", Level::Ok, format!("{} nodes hold a lease", status.nodes.len()), ""));
    }
    checks
}

fn chain_trouble(chain: &Chain) -> Option<(Level, String)> {
    let serving = chain.serving().count();
    if serving == chain.targets.len() {
        return None;
    }
    let others = chain.targets.iter().filter(|t| t.state != PublicState::Serving);
    let others = others.map(|t| format!("target {} is {:?}", t.target, t.state).to_lowercase());
    let others = others.collect::<Vec<_>>().join(", ");
    let level = if serving == 0 { Level::Err } else { Level::Warn };
    Some((
        level,
        format!("chain {}: {serving} of {} replicas serve; {others}", chain.id, chain.targets.len()),
    ))
}

fn chains(status: &ClusterStatus, local: &Local) -> Vec<Check> {
    let troubles: Vec<_> = status.chains.iter().filter_map(chain_trouble).collect();
    if status.chains.is_empty() {
        return vec![check("chains", Level::Err, "there are no chains yet", "wait for the storage nodes")];
    }
    if troubles.is_empty() {
        let text = format!("{} chains have all their replicas", status.chains.len());
        return vec![check("chains", Level::Ok, text, "")];
    }
    let remedy = format!(
        "replicas come back by themselves when their processes run; `ember up --data {}` starts what is missing",
        local.data
    );
    troubles.into_iter().map(|(level, text)| check("chains", level, text, remedy.clone())).collect()
}

fn targets(status: &ClusterStatus, local: &Local) -> Vec<Check> {
    let troubled = status.targets.iter().filter(|target| !target.trouble.is_empty());
    let remedy = |target: &TargetStatus| {
        let known = REMEDIES.iter().find(|(says, _)| target.trouble.contains(says));
        let (id, data) = (target.id, &local.data);
        let replace = || format!("`ember target replace {id} --data {data}` fills it anew from its replicas");
        known.map_or_else(replace, |(_, remedy)| (*remedy).to_owned())
    };
    troubled
        .map(|t| check("targets", Level::Warn, format!("target {}: {}", t.id, t.trouble), remedy(t)))
        .chain(resyncs(status))
        .chain(damage(&status.targets, &status.chains, local))
        .collect()
}

/// What the last scrub of each target found damaged and could not repair. Where the others of the chain serve, they
/// don't have it either.
fn damage(targets: &[TargetStatus], chains: &[Chain], local: &Local) -> Vec<Check> {
    let left = |target: &TargetStatus| {
        let scrub = target.scrub.as_ref()?;
        Some(scrub.last_found.saturating_sub(scrub.last_repaired)).filter(|left| *left > 0)
    };
    let thin = |target: &TargetStatus| {
        let chain = chains.iter().find(|chain| chain.member(target.id).is_some());
        chain.is_some_and(|chain| chain.serving().count() < chain.targets.len())
    };
    let row = |(target, left): (&TargetStatus, u64)| {
        let (id, data) = (target.id, &local.data);
        let again = format!("`ember target scrub {id} --wait --data {data}` looks again");
        let (level, remedy) = match thin(target) {
            true => (Level::Warn, format!("when its chain has all its replicas, {again}")),
            false => {
                let names = format!("{}/logs names the chunks", local.data);
                (
                    Level::Err,
                    format!("no replica has them: {names}; restore or delete their files, then {again}"),
                )
            }
        };
        let text =
            format!("target {id}: {left} damaged chunks or files that its last scrub could not repair");
        check("damage", level, text, remedy)
    };
    targets.iter().filter_map(|target| Some((target, left(target)?))).map(row).collect()
}

/// One row for everything that is being brought up to date: how far, how fast, how long still.
fn resyncs(status: &ClusterStatus) -> Option<Check> {
    let running: Vec<&SyncProgress> = status.targets.iter().filter_map(|t| t.sync.as_ref()).collect();
    let sum = |pick: fn(&SyncProgress) -> u64| running.iter().map(|s| pick(s)).sum::<u64>();
    let (done, total) = (sum(|s| s.chunks_done), sum(|s| s.chunks_total));
    let speed = sum(|s| s.bytes_per_s) as f64 / f64::from(1 << 20);
    // They run side by side: the slowest is the last.
    let left = running.iter().map(|s| s.eta_s).max().flatten();
    let left = left.map_or(String::new(), |seconds| format!(", about {seconds} s left"));
    let text = format!("{} targets: {done} of {total} chunks, {speed:.0} MiB/s{left}", running.len());
    (!running.is_empty()).then(|| check("resync", Level::Note, text, ""))
}

fn space(status: &ClusterStatus) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for target in status.targets.iter().filter(|t| t.capacity_bytes > 0) {
        if !seen.insert((target.node, target.disk)) {
            continue;
        }
        let percent = target.free_bytes.saturating_mul(100) / target.capacity_bytes;
        let level = match percent {
            _ if percent < FREE_ERR_PERCENT => Level::Err,
            _ if percent < FREE_WARN_PERCENT => Level::Warn,
            _ => continue,
        };
        let text = format!("disk {} of node {} has {percent} % free", target.disk, target.node);
        checks.push(check("space", level, text, "delete files, or give the disk more room"));
    }
    if checks.is_empty() {
        // Of a disk whose targets are not open nothing is known.
        let unknown = status.targets.iter().any(|t| t.capacity_bytes == 0);
        let text = if unknown { "every disk that is in use has room" } else { "every disk has room" };
        checks.push(check("space", Level::Ok, text, ""));
    }
    checks
}

fn warnings(status: &ClusterStatus) -> Vec<Check> {
    let rows = status.nodes.iter().flat_map(|node| node.warnings.iter().map(move |text| (node.id, text)));
    rows.map(|(node, text)| check("warnings", Level::Warn, format!("node {node}: {text}"), "")).collect()
}

fn supervision(local: &Local) -> Vec<Check> {
    let mut checks = Vec::new();
    if !local.supervisor {
        let remedy = format!("`ember up --data {}` starts one", local.data);
        checks.push(check("supervisor", Level::Warn, "no supervisor restarts what dies", remedy));
    }
    for process in &local.stopped {
        let remedy = format!(
            "a supervisor starts it again after 5 s, unless told not to; `ember up --data {}` does at once",
            local.data
        );
        checks.push(check("processes", Level::Warn, format!("{process} is not running"), remedy));
    }
    for point in &local.dead_mounts {
        let remedy = format!("`ember up --data {} --mount {point}` mounts it again", local.data);
        checks.push(check("mounts", Level::Err, format!("{point} doesn't answer"), remedy));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_types::{ChainId, ChainTarget, ChainVersion, Generation, TargetId};
    use ember_wire::mgmtd::ScrubProgress;

    fn chain(states: &[PublicState]) -> Chain {
        let member = |(i, &state): (usize, &PublicState)| ChainTarget {
            target: TargetId(i as u64 + 1),
            generation: Generation(1),
            state,
        };
        Chain {
            id: ChainId(1),
            version: ChainVersion(1),
            targets: states.iter().enumerate().map(member).collect(),
            in_use: false,
            last_in_use: ChainVersion(0),
            in_use_members: Vec::new(),
        }
    }

    #[test]
    fn a_chain_without_a_serving_member_is_an_error_and_a_thin_one_a_warning() {
        use PublicState::{LastSrv, Offline, Serving, Syncing};
        assert_eq!(chain_trouble(&chain(&[Serving, Serving])), None);
        let (level, text) = chain_trouble(&chain(&[Serving, Syncing])).unwrap();
        assert_eq!(level, Level::Warn);
        assert!(text.contains("1 of 2 replicas serve; target 2 is syncing"), "{text}");
        assert_eq!(chain_trouble(&chain(&[LastSrv, Offline])).unwrap().0, Level::Err);
    }

    #[test]
    fn a_stopped_cluster_says_how_to_start_it() {
        let local =
            Local { supervisor: false, running: 0, stopped: vec![], dead_mounts: vec![], data: "/d".into() };
        let checks = unreachable("refused", &local);
        assert_eq!(checks[0].level, Level::Err);
        assert!(checks[0].remedy.contains("ember up --data /d"));
    }

    #[test]
    fn damage_that_is_left_is_named_and_an_error_where_nobody_else_can_have_it() {
        use PublicState::{Offline, Serving};
        let local =
            Local { supervisor: true, running: 4, stopped: vec![], dead_mounts: vec![], data: "/d".into() };
        let rows = |states: &[PublicState], last_found, last_repaired| {
            let target = TargetStatus {
                id: TargetId(1),
                node: ember_types::NodeId(101),
                disk: 0,
                generation: Generation(1),
                public: Serving,
                local: ember_types::LocalState::UpToDate,
                used_bytes: 0,
                free_bytes: 0,
                sync: None,
                trouble: String::new(),
                capacity_bytes: 0,
                scrub: Some(ScrubProgress { last_found, last_repaired, ..ScrubProgress::default() }),
            };
            damage(&[target], &[chain(states)], &local)
        };
        assert_eq!(rows(&[Serving, Serving], 3, 3), []);
        let [found] = &rows(&[Serving, Serving], 5, 2)[..] else { panic!("one row") };
        assert_eq!(found.level, Level::Err);
        assert!(found.text.contains("target 1: 3 damaged"), "{}", found.text);
        assert!(found.remedy.contains("ember target scrub 1 --wait --data /d"), "{}", found.remedy);
        let [found] = &rows(&[Serving, Offline], 1, 0)[..] else { panic!("one row") };
        assert_eq!(found.level, Level::Warn);
    }

    #[test]
    fn notes_leave_the_health_alone() {
        assert_eq!(Level::Note.at_least_ok(), Level::Ok);
        assert!(Level::Err > Level::Warn && Level::Warn > Level::Note);
    }
}
