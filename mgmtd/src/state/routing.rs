//! The view that everybody has of the cluster, and its changes (R9).

use super::State;
use crate::record::Batch;
use ember_types::routing::TableKey;
use ember_types::{ChainId, NodeId, RoutingDelta, RoutingInfo, RoutingVersion, TargetId, mutant};
use std::collections::{BTreeSet, VecDeque};

/// Changes that are remembered; who is further behind gets the whole view.
const HISTORY_MAX: usize = 4_096;

#[derive(Default)]
struct Change {
    counter: u64,
    nodes: Vec<NodeId>,
    targets: Vec<TargetId>,
    chains: Vec<ChainId>,
    tables: Vec<TableKey>,
}

/// The last changes of routing, by what they touched.
pub(crate) struct History {
    /// The counter before the first remembered change.
    base: u64,
    changes: VecDeque<Change>,
}

impl History {
    pub(crate) fn new(base: u64) -> Self {
        Self { base, changes: VecDeque::new() }
    }

    /// Notes what a batch changes.
    pub(crate) fn push(&mut self, counter: u64, batch: &Batch) {
        let tables = batch.tables.iter().map(|t| TableKey { id: t.id, version: t.version });
        self.add(Change {
            counter,
            nodes: batch.nodes.iter().map(|n| n.id).collect(),
            targets: batch.targets.iter().map(|t| t.id).collect(),
            chains: batch.chains.iter().map(|c| c.id).collect(),
            tables: tables.collect(),
        });
    }

    /// Notes that nodes came or went.
    pub(crate) fn push_nodes(&mut self, counter: u64, nodes: Vec<NodeId>) {
        self.add(Change { counter, nodes, ..Change::default() });
    }

    fn add(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() > HISTORY_MAX {
            if let Some(old) = self.changes.pop_front() {
                self.base = old.counter;
            }
        }
    }
}

impl State {
    /// The change from `have` to now; `None` if `have` is the newest view.
    pub(crate) fn delta(&self, term: u64, have: RoutingVersion) -> Option<RoutingDelta> {
        let version = RoutingVersion { term, counter: self.routing.counter };
        if have == version {
            return None;
        }
        let mut delta = RoutingDelta {
            base: have,
            version,
            revocation_epoch: self.routing.revocation_epoch,
            ended_clients: self.clients.ended(),
            ..RoutingDelta::default()
        };
        let foreign = have.term != term && !mutant!(r09_delta_over_another_term);
        if foreign || have.counter < self.history.base || have.counter > version.counter {
            delta.full = Some(self.view(version));
            return Some(delta);
        }
        let since = || self.history.changes.iter().filter(|c| c.counter > have.counter);
        let nodes: BTreeSet<NodeId> = since().flat_map(|c| c.nodes.iter().copied()).collect();
        let targets: BTreeSet<TargetId> = since().flat_map(|c| c.targets.iter().copied()).collect();
        let chains: BTreeSet<ChainId> = since().flat_map(|c| c.chains.iter().copied()).collect();
        let tables: BTreeSet<TableKey> = since().flat_map(|c| c.tables.iter().copied()).collect();
        let info = |id| self.nodes.get(&id).map(|n| n.record.info(n.seen.0));
        delta.nodes = nodes.into_iter().filter_map(info).collect();
        delta.targets = targets.iter().filter_map(|id| self.targets.get(id)).cloned().collect();
        delta.chains = chains.iter().filter_map(|id| self.chains.get(id)).cloned().collect();
        delta.tables = tables.iter().filter_map(|key| self.tables.get(key)).cloned().collect();
        Some(delta)
    }

    fn view(&self, version: RoutingVersion) -> RoutingInfo {
        RoutingInfo {
            version,
            nodes: self.nodes.iter().map(|(id, n)| (*id, n.record.info(n.seen.0))).collect(),
            targets: self.targets.clone(),
            chains: self.chains.clone(),
            tables: self.tables.clone(),
            revocation_epoch: self.routing.revocation_epoch,
            ended_clients: self.clients.ended(),
        }
    }
}
