//! What the primary knows: a copy of what is stored, and what nodes and clients said since it took over. No
//! I/O and no clock: every method that needs the time takes it.

mod clients;
mod gray;
mod heartbeat;
mod routing;

#[cfg(test)]
mod tests;

pub(crate) use clients::Extension;

use crate::config::Config;
use crate::record::{self, Batch, Image};
use clients::Clients;
use ember_chain::{Accusation, Observation, Report};
use ember_types::routing::TableKey;
use ember_types::{
    Chain, ChainId, ChainTable, Instant, LocalState, NodeId, NodeKind, PublicState, TargetId, TargetInfo,
    mutant,
};
use ember_wire::mgmtd::{SyncProgress, TargetReport, UnresponsiveRequest};
use gray::Gray;
use routing::History;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long making a target for the first time may take before it counts as failed.
const MAKING_MAX: Duration = Duration::from_secs(10);

/// A registered node, and what it said in its present boot.
pub(crate) struct Node {
    pub(crate) record: record::Node,
    /// When the last lease was granted by this primary.
    granted: Option<Instant>,
    /// An earlier primary may have granted a lease up to then (R8).
    assumed: Option<Instant>,
    /// When it was last heard of.
    pub(crate) heard: Option<Instant>,
    sequence: u64,
    pub(crate) reports: BTreeMap<TargetId, TargetReport>,
    pub(crate) warnings: Vec<String>,
    /// Is shown as alive, may hold a lease: as last looked at.
    seen: (bool, bool),
    /// A registration of another boot is being written: no grants meanwhile.
    replaced: bool,
}

/// The primary's knowledge.
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) own: NodeId,
    pub(crate) routing: record::Routing,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) targets: BTreeMap<TargetId, TargetInfo>,
    pub(crate) chains: BTreeMap<ChainId, Chain>,
    pub(crate) tables: BTreeMap<TableKey, ChainTable>,
    pub(crate) clients: Clients,
    pub(crate) history: History,
    gray: Gray,
    by_node: BTreeMap<NodeId, BTreeSet<TargetId>>,
    /// Targets whose removal from service is being written: their nodes get no lease until they confirm.
    stopping: BTreeSet<TargetId>,
    /// Targets that are being made for the first time, and since when: that they are not there is no failure.
    young: BTreeMap<TargetId, Instant>,
    /// Chains to evaluate.
    dirty: BTreeSet<ChainId>,
}

impl Node {
    fn new(record: record::Node, assumed: Option<Instant>) -> Self {
        Self {
            record,
            granted: None,
            assumed,
            heard: None,
            sequence: 0,
            reports: BTreeMap::new(),
            warnings: Vec::new(),
            seen: (assumed.is_some(), assumed.is_some()),
            replaced: false,
        }
    }

    /// It holds a lease from this primary (R7).
    pub(crate) fn alive(&self, now: Instant, config: &Config) -> bool {
        self.granted.is_some_and(|at| now < at + config.node_lease()) && !self.replaced
    }

    /// It may count on a lease, from this primary or an earlier one (R1, R8).
    fn may_hold_lease(&self, now: Instant, config: &Config) -> bool {
        let last = self.granted.max(self.assumed);
        last.is_some_and(|at| now <= at + config.node_lease() + config.drift()) && !self.replaced
    }
}

impl State {
    /// Takes what is stored. Leases of an earlier primary may have been granted until `now` (R8).
    pub(crate) fn new(config: Config, own: NodeId, image: Image, now: Instant) -> Self {
        let mut state = Self {
            own,
            routing: image.routing,
            nodes: BTreeMap::new(),
            targets: BTreeMap::new(),
            chains: image.chains.into_iter().map(|c| (c.id, c)).collect(),
            tables: BTreeMap::new(),
            clients: Clients::new(image.clients, now),
            history: History::new(image.routing.counter),
            gray: Gray::new(Duration::from_millis(config.sync_stall_ms)),
            by_node: BTreeMap::new(),
            stopping: BTreeSet::new(),
            young: BTreeMap::new(),
            dirty: BTreeSet::new(),
            config,
        };
        for node in image.nodes {
            let assumed = (!mutant!(r08_new_primary_knows_no_leases)).then_some(now);
            state.nodes.insert(node.id, Node::new(node, assumed));
        }
        for target in image.targets {
            state.insert_target(target, now);
        }
        for table in image.tables {
            state.tables.insert(TableKey { id: table.id, version: table.version }, table);
        }
        state.dirty = state.chains.keys().copied().collect();
        state
    }

    fn insert_target(&mut self, target: TargetInfo, now: Instant) {
        if target.created {
            self.young.remove(&target.id);
        } else {
            self.young.insert(target.id, now);
        }
        self.by_node.entry(target.node).or_default().insert(target.id);
        self.targets.insert(target.id, target);
    }

    pub(crate) fn targets_of(&self, node: NodeId) -> impl Iterator<Item = TargetId> + '_ {
        self.by_node.get(&node).into_iter().flatten().copied()
    }

    /// What the node of `target` said of it in its present boot.
    pub(crate) fn report(&self, target: TargetId) -> Option<&TargetReport> {
        report_of(&self.targets, &self.nodes, target)
    }

    /// A chain's targets as they are known now.
    pub(crate) fn observe(&self, chain: &Chain, now: Instant) -> BTreeMap<TargetId, Observation> {
        let known =
            |m: &ember_types::ChainTarget| Some((m.target, self.observe_target(chain, m.target, now)?));
        chain.targets.iter().filter_map(known).collect()
    }

    fn observe_target(&self, chain: &Chain, target: TargetId, now: Instant) -> Option<Observation> {
        let info = self.targets.get(&target)?;
        let Some(node) = self.nodes.get(&info.node) else {
            return Some(Observation::absent(info.generation));
        };
        let report = node.reports.get(&target);
        // Without room a target is neither brought up to date nor begun with, until it has some (R10).
        let no_room = report.is_some_and(|r| r.no_room) && !mutant!(r10_full_target_is_admitted);
        Some(Observation {
            alive: node.alive(now, &self.config),
            may_serve: self.may_hold_lease(node, now) && !self.has_stopped(chain, target),
            report: report.map(|r| Report {
                generation: r.generation,
                local: r.state,
                applied: r.chain_version,
                served: r.served_version,
            }),
            generation: info.generation,
            shunned: no_room || self.is_too_slow(chain, target, now) || self.gray.is_shunned(target, now),
            stalled: no_room || self.gray.is_stalled(chain, target, now),
        })
    }

    fn may_hold_lease(&self, node: &Node, now: Instant) -> bool {
        let missed = Duration::from_millis(3 * self.config.heartbeat_ms);
        let silent = node.heard.is_none_or(|heard| now.since(heard) > missed);
        node.may_hold_lease(now, &self.config) && !(mutant!(r01_taken_out_under_lease) && silent)
    }

    /// Whether `target`'s node says that it has stopped: on mgmtd's order under the chain's present
    /// version, or because its disk failed.
    fn has_stopped(&self, chain: &Chain, target: TargetId) -> bool {
        let Some(report) = self.report(target) else { return false };
        let failed = report.state == LocalState::Offline && !self.young.contains_key(&target);
        failed || (report.stopped && report.chain_version == chain.version)
    }

    /// Whether a serving member other than `target` has a live lease.
    fn spared(&self, chain: &Chain, target: TargetId, now: Instant) -> bool {
        chain.serving().filter(|m| m.target != target).any(|m| {
            let usable = self.report(m.target).is_some_and(|r| r.state != LocalState::Offline);
            usable && self.alive_target(m.target, now)
        })
    }

    /// Whether `target`'s disk is too slow for its chain, which is well without it: every other member serves, none
    /// of them is on a slow disk, and there are two at least. Speed is never bought with the last spare replica.
    fn is_too_slow(&self, chain: &Chain, target: TargetId, now: Instant) -> bool {
        let well = |target: TargetId| {
            let report = self.report(target).filter(|r| r.state != LocalState::Offline && !r.slow);
            report.is_some() && self.alive_target(target, now)
        };
        let others = || chain.targets.iter().filter(|m| m.target != target);
        self.gray.is_slow(target, now)
            && others().count() >= 2
            && others().all(|m| m.state == PublicState::Serving && well(m.target))
    }

    fn alive_target(&self, target: TargetId, now: Instant) -> bool {
        let node = self.targets.get(&target).and_then(|t| self.nodes.get(&t.node));
        node.is_some_and(|n| n.alive(now, &self.config))
    }

    /// Whether `target` is to stop serving before its chain can be changed (R1).
    fn must_stop(&self, chain: &Chain, target: TargetId, now: Instant) -> bool {
        let serving = chain.member(target).is_some_and(|m| m.state == PublicState::Serving);
        let shunned = || self.gray.is_shunned(target, now) && self.spared(chain, target, now);
        serving && (self.stopping.contains(&target) || shunned() || self.is_too_slow(chain, target, now))
    }

    /// Whether a chain waits to be evaluated.
    pub(crate) fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn mark(&mut self, chain: ChainId) {
        self.dirty.insert(chain);
    }

    pub(crate) fn mark_node(&mut self, node: NodeId) {
        let chains: Vec<ChainId> =
            self.targets_of(node).filter_map(|t| self.targets.get(&t)).map(|t| t.chain).collect();
        self.dirty.extend(chains);
    }

    /// Looks for leases that ran out and syncs that stand still. `true` if routing changed.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        let mut changed = Vec::new();
        for (id, node) in &mut self.nodes {
            let own = *id == self.own;
            let may_hold = node.may_hold_lease(now, &self.config);
            // Nobody is declared dead for what a new primary hasn't heard yet (R8).
            let unheard = node.granted.is_none() && may_hold;
            let seen = (own || unheard || node.alive(now, &self.config), may_hold);
            if seen != node.seen {
                changed.push((*id, seen.0 != node.seen.0));
                node.seen = seen;
            }
        }
        for (id, _) in &changed {
            self.mark_node(*id);
        }
        let grown = |(t, since): (&TargetId, &Instant)| (now.since(*since) >= MAKING_MAX).then_some(*t);
        let grown: Vec<TargetId> = self.young.iter().filter_map(grown).collect();
        for target in grown {
            self.young.remove(&target);
            self.dirty.extend(self.targets.get(&target).map(|t| t.chain));
        }
        let stalled = self.gray.due(now);
        self.dirty.extend(stalled);
        let slow = self.gray.slow().filter_map(|target| self.targets.get(&target)).map(|target| target.chain);
        self.dirty.extend(slow.collect::<Vec<_>>());
        let nodes: Vec<NodeId> = changed.into_iter().filter(|(_, alive)| *alive).map(|(id, _)| id).collect();
        if nodes.is_empty() {
            return false;
        }
        self.routing.counter += 1;
        self.history.push_nodes(self.routing.counter, nodes);
        true
    }

    /// The next versions of at most `limit` chains that have something to change; the rest stays marked. What
    /// leaves service gets no lease from here on, until the change is installed.
    pub(crate) fn evaluate(&mut self, now: Instant, limit: usize) -> Vec<Chain> {
        let mut next = Vec::new();
        while next.len() < limit {
            let Some(id) = self.dirty.pop_first() else { break };
            let Some(chain) = self.chains.get(&id) else { continue };
            let observations = self.observe(chain, now);
            let (targets, nodes) = (&self.targets, &self.nodes);
            self.gray.watch_sync(chain, now, |t| report_of(targets, nodes, t));
            if let Some(changed) = ember_chain::transition(chain, &observations) {
                self.hold_back(&changed);
                next.push(changed);
            }
        }
        next
    }

    /// Marks the serving members that `next` takes out.
    pub(crate) fn hold_back(&mut self, next: &Chain) {
        let Some(old) = self.chains.get(&next.id) else { return };
        let still = |t: TargetId| next.serving().any(|m| m.target == t);
        let leaving: Vec<TargetId> = old.serving().map(|m| m.target).filter(|t| !still(*t)).collect();
        self.stopping.extend(leaving);
    }

    /// Targets that were made since they were ordered, and damaged ones that another member can replace
    /// (R10).
    pub(crate) fn repairs(&self, now: Instant) -> Batch {
        let mut batch = Batch::default();
        for (node, report) in self.nodes.values().flat_map(|n| n.reports.values().map(move |r| (n, r))) {
            let Some(info) = self.targets.get(&report.target).filter(|t| t.node == node.record.id) else {
                continue;
            };
            let made = !info.created && report.generation == info.generation;
            if made && report.state != LocalState::Offline {
                batch.targets.push(TargetInfo { created: true, ..info.clone() });
            } else if report.wants_replacement && report.generation == info.generation {
                let chain = self.chains.get(&info.chain).filter(|c| self.spared(c, info.id, now));
                let chain = chain.filter(|c| batch.chains.iter().all(|other| other.id != c.id));
                if let Some((target, chain)) = chain.and_then(|c| self.replace(c, info)) {
                    batch.targets.push(target);
                    batch.chains.push(chain);
                }
            }
        }
        batch
    }

    /// `info`'s next generation, with its chain; `None` if it is in service or nobody else holds everything.
    pub(crate) fn replace(&self, chain: &Chain, info: &TargetInfo) -> Option<(TargetInfo, Chain)> {
        let generation = ember_types::Generation(info.generation.0.checked_add(1)?);
        let chain = ember_chain::accept_generation(chain, info.id, generation).ok()?;
        Some((TargetInfo { generation, created: false, ..info.clone() }, chain))
    }

    /// Takes over what has been committed under `counter`.
    pub(crate) fn install(&mut self, batch: Batch, counter: u64, now: Instant) {
        if counter > self.routing.counter {
            self.history.push(counter, &batch);
            self.routing.counter = counter;
        }
        for node in batch.nodes {
            let same = self.nodes.get(&node.id).is_some_and(|n| n.record.boot == node.boot);
            match self.nodes.get_mut(&node.id) {
                Some(known) if same => {
                    known.record = node;
                    known.replaced = false;
                }
                _ => {
                    self.nodes.insert(node.id, Node::new(node, None));
                }
            }
        }
        for target in batch.targets {
            self.mark(target.chain);
            self.insert_target(target, now);
        }
        for chain in batch.chains {
            for member in &chain.targets {
                self.stopping.remove(&member.target);
                if member.state != PublicState::Serving {
                    self.gray.demoted(member.target);
                }
            }
            self.mark(chain.id);
            self.chains.insert(chain.id, chain);
        }
        for table in batch.tables {
            self.tables.insert(TableKey { id: table.id, version: table.version }, table);
        }
        for (id, client) in batch.clients {
            self.clients.install(id, client, now);
        }
    }

    /// How far the sync of `target` has come, if it is syncing.
    pub(crate) fn sync_progress(&self, chain: &Chain, target: TargetId) -> Option<SyncProgress> {
        let syncing = chain.syncing().is_some_and(|m| m.target == target);
        if syncing { gray::sync_progress(chain, |t| self.report(t)) } else { None }
    }

    /// Storage nodes with disks that hold a lease.
    pub(crate) fn storage_nodes(&self, now: Instant) -> Vec<&record::Node> {
        let ready = |n: &&Node| n.record.kind == NodeKind::Storage && n.alive(now, &self.config);
        self.nodes.values().filter(ready).map(|n| &n.record).filter(|r| r.disks > 0).collect()
    }

    /// Takes an accusation (R10). `true` if a member is to go.
    pub(crate) fn accuse(&mut self, request: &UnresponsiveRequest, now: Instant) -> bool {
        let Some(chain) = self.chains.get(&request.chain).filter(|c| c.version == request.version) else {
            return false;
        };
        let successor = chain.successor(request.accuser).map(|m| m.target);
        let node = |t: TargetId| self.targets.get(&t).map(|t| t.node);
        let (Some(accuser), Some(accused)) = (node(request.accuser), node(request.accused)) else {
            return false;
        };
        if successor != Some(request.accused) || accuser == accused {
            return false;
        }
        let recent =
            self.gray.accuse(Accusation { accuser, accused, device_error: request.device_error }, now);
        let pair = ((request.accuser, accuser), (request.accused, accused));
        let Some(target) = ember_chain::blame(chain, pair.0, pair.1, &recent) else { return false };
        tracing::warn!(chain = %chain.id, %target, "a member does not answer (R10)");
        self.gray.shun(chain, target, now);
        self.dirty.insert(chain.id);
        true
    }

    /// Time since a node was last heard of by this primary.
    pub(crate) fn silence(&self, node: &Node, now: Instant) -> Duration {
        let since = node.heard.max(node.assumed);
        since.map_or(Duration::ZERO, |at| now.since(at))
    }
}

fn report_of<'a>(
    targets: &BTreeMap<TargetId, TargetInfo>,
    nodes: &'a BTreeMap<NodeId, Node>,
    target: TargetId,
) -> Option<&'a TargetReport> {
    let info = targets.get(&target)?;
    nodes.get(&info.node)?.reports.get(&target)
}
