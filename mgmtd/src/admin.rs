//! What operators and `ember` ask for: chains, new generations, the state of the cluster.

use crate::primary::Primary;
use crate::record::{self, Batch};
use crate::service::{Service, status_of};
use ember_chain::placement::{Disk, NodeDisks, RACK_TAG, spread, targets_per_disk};
use ember_net::Peer;
use ember_types::{
    ChainId, ChainTable, ChainTableVersion, ClusterTime, Generation, Instant, PublicState, RoutingVersion,
    Status, TargetId, TargetInfo,
};
use ember_wire::admin::{ClientStatus, ClusterStatus, NodeStatus, TargetStatus};
use ember_wire::mgmtd::{
    CreateChainsRequest, CreateChainsResponse, ReplaceTargetRequest, ReplaceTargetResponse,
};
use std::collections::BTreeMap;

/// Most targets on one disk.
const TARGETS_PER_DISK_MAX: u32 = 4_096;

impl Service {
    /// Places chains over all storage nodes, once.
    pub(crate) async fn create_chains(&self, request: &CreateChainsRequest) -> CreateChainsResponse {
        let answer = |status, version, text: String| CreateChainsResponse { status, version, text };
        let failed = |status, text: String| answer(status, ChainTableVersion(0), text);
        let Some(primary) = self.server.acting() else { return failed(Status::NotPrimary, String::new()) };
        let leave = match primary.leave().await {
            Ok(leave) => leave,
            Err(error) => return failed(status_of(&error), error.to_string()),
        };
        let planned = {
            let state = primary.state.borrow();
            let known = state.tables.values().rev().find(|t| t.id == request.table).map(|t| t.version);
            if let Some(version) = known {
                return answer(Status::Exists, version, "the table exists and stays as it is".into());
            }
            if !state.chains.is_empty() {
                let text = "every disk has its targets already: chains can't be made twice";
                return failed(Status::InvalidArgument, text.into());
            }
            plan(&state.storage_nodes(primary.rt.now()), request)
        };
        let batch = match planned {
            Ok(batch) => batch,
            Err((status, text)) => return failed(status, text),
        };
        let text = format!("{} chains over {} targets", batch.chains.len(), batch.targets.len());
        match leave.commit(batch).await {
            Ok(()) => {
                tracing::info!(table = %request.table, replicas = request.replicas, "chains made: {text}");
                answer(Status::Ok, ChainTableVersion(1), text)
            }
            Err(error) => failed(status_of(&error), error.to_string()),
        }
    }

    /// Gives a target that is out of service a new, empty generation.
    pub(crate) async fn replace_target(&self, request: &ReplaceTargetRequest) -> ReplaceTargetResponse {
        let answer = |status, generation, text: String| ReplaceTargetResponse { status, generation, text };
        let failed = |status, text: String| answer(status, Generation(0), text);
        let Some(primary) = self.server.acting() else { return failed(Status::NotPrimary, String::new()) };
        let leave = match primary.leave().await {
            Ok(leave) => leave,
            Err(error) => return failed(status_of(&error), error.to_string()),
        };
        let batch = {
            let state = primary.state.borrow();
            let Some(info) = state.targets.get(&request.target) else {
                return failed(Status::NotFound, format!("there is no target {}", request.target));
            };
            let replaced = state.chains.get(&info.chain).and_then(|chain| state.replace(chain, info));
            let Some((target, chain)) = replaced else {
                let text = format!(
                    "target {} is serving, or no other member of chain {} serves: stop its node first, \
                     and wait until another member serves",
                    info.id, info.chain
                );
                return answer(Status::Busy, info.generation, text);
            };
            Batch { targets: vec![target], chains: vec![chain], ..Batch::default() }
        };
        let generation = batch.targets.first().map_or(Generation(0), |t| t.generation);
        match leave.commit(batch).await {
            Ok(()) => answer(Status::Ok, generation, "it will be made anew by a full sync".into()),
            Err(error) => failed(status_of(&error), error.to_string()),
        }
    }

    pub(crate) fn cluster_status(&self, _: &Peer) -> ClusterStatus {
        match self.server.acting() {
            Some(primary) => self.full_status(&primary),
            None => ClusterStatus {
                status: Status::NotPrimary,
                cluster: self.server.own.cluster,
                primary: Default::default(),
                routing: RoutingVersion::default(),
                nodes: Vec::new(),
                targets: Vec::new(),
                chains: Vec::new(),
                clients: Vec::new(),
                kv_engine: self.server.store.engine().to_owned(),
                cluster_time: ClusterTime(0),
                timing: self.server.config.timing(),
            },
        }
    }

    fn full_status(&self, primary: &Primary) -> ClusterStatus {
        let now = primary.rt.now();
        let state = primary.state.borrow();
        let clients = state.clients.live(now).map(|(id, description, silent)| ClientStatus {
            client: id.to_string(),
            description: description.to_owned(),
            silent_ms: silent.as_millis() as u64,
        });
        ClusterStatus {
            status: Status::Ok,
            cluster: self.server.own.cluster,
            primary: primary.own.node,
            routing: RoutingVersion { term: primary.own.term, counter: state.routing.counter },
            nodes: node_status(primary, now),
            targets: target_status(primary),
            chains: state.chains.values().cloned().collect(),
            clients: clients.collect(),
            kv_engine: primary.store.engine().to_owned(),
            cluster_time: primary.time(now),
            timing: self.server.config.timing(),
        }
    }
}

fn node_status(primary: &Primary, now: Instant) -> Vec<NodeStatus> {
    let state = primary.state.borrow();
    let nodes = state.nodes.values().map(|node| {
        let own = node.record.id == primary.own.node;
        NodeStatus {
            id: node.record.id,
            kind: node.record.kind,
            alive: own || node.alive(now, &state.config),
            addresses: node.record.addresses.clone(),
            boot: node.record.boot,
            pid: node.record.pid,
            data_dir: node.record.data_dir.clone(),
            silent_ms: if own { 0 } else { state.silence(node, now).as_millis() as u64 },
            warnings: node.warnings.clone(),
            release: node.record.release.clone(),
        }
    });
    nodes.collect()
}

fn target_status(primary: &Primary) -> Vec<TargetStatus> {
    let state = primary.state.borrow();
    let targets = state.targets.values().map(|info| {
        let report = state.report(info.id);
        let chain = state.chains.get(&info.chain);
        let public = chain.and_then(|c| c.member(info.id)).map_or(PublicState::Offline, |m| m.state);
        TargetStatus {
            id: info.id,
            node: info.node,
            disk: info.disk,
            generation: info.generation,
            public,
            local: report.map_or(ember_types::LocalState::Offline, |r| r.state),
            used_bytes: report.map_or(0, |r| r.used_bytes),
            free_bytes: report.map_or(0, |r| r.free_bytes),
            sync: chain.and_then(|c| state.sync_progress(c, info.id)),
            trouble: report.map_or_else(String::new, |r| r.trouble.clone()),
            capacity_bytes: report.map_or(0, |r| r.capacity_bytes),
            scrub: report.and_then(|r| r.scrub),
        }
    });
    targets.collect()
}

/// Targets, chains and the table over these nodes.
fn plan(nodes: &[&record::Node], request: &CreateChainsRequest) -> Result<Batch, (Status, String)> {
    let invalid = |text: String| (Status::InvalidArgument, text);
    if request.table.0 == 0 || request.targets_per_disk > TARGETS_PER_DISK_MAX {
        return Err(invalid("a table id must not be 0, and a disk has at most 4096 targets".into()));
    }
    if nodes.len() < request.storage_nodes as usize {
        let text = format!("{} of {} storage nodes are here", nodes.len(), request.storage_nodes);
        return Err((Status::Busy, text));
    }
    let disks =
        nodes.iter().map(|n| NodeDisks { node: n.id, disks: n.disks, rack: n.tags.get(RACK_TAG).cloned() });
    let disks: Vec<NodeDisks> = disks.collect();
    let total = disks.iter().map(|n| u64::from(n.disks)).sum();
    let per_disk = targets_per_disk(total, request.replicas, request.targets_per_disk);
    let placement = spread(&disks, request.replicas, per_disk).map_err(|e| invalid(e.to_string()))?;
    let mut batch = Batch::default();
    let mut on_disk: BTreeMap<Disk, u32> = BTreeMap::new();
    for (members, number) in placement.iter().zip(1..) {
        let chain = ChainId(number);
        let mut targets = Vec::new();
        for disk in members {
            let place = on_disk.entry(*disk).or_default();
            *place += 1;
            let id = target_id(*disk, *place);
            targets.push((id, Generation(1)));
            batch.targets.push(TargetInfo {
                id,
                node: disk.node,
                disk: disk.disk,
                generation: Generation(1),
                chain,
                created: false,
                lane: 0,
            });
        }
        batch.chains.push(ember_chain::new_chain(chain, &targets));
    }
    let chains = batch.chains.iter().map(|c| c.id).collect();
    batch.tables.push(ChainTable { id: request.table, version: ChainTableVersion(1), chains });
    Ok(batch)
}

/// Readable ids: node, disk, place on the disk.
fn target_id(disk: Disk, place: u32) -> TargetId {
    TargetId((u64::from(disk.node.0) << 32) | (u64::from(disk.disk) << 16) | u64::from(place & 0xffff))
}
