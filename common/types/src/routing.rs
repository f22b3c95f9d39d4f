//! Routing information: who serves what, where. mgmtd makes it; everybody else applies deltas to a copy.

use crate::chain::{Chain, ChainTable};
use crate::id::{BootId, ChainId, ChainTableId, ChainTableVersion, Generation, InodeId, NodeId, TargetId};
use crate::layout::Layout;
use crate::mutant;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Orders views of the routing: first by the primary's term, then by a counter within it (R9).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
pub struct RoutingVersion {
    /// Grows with each change of primary.
    #[n(0)]
    pub term: u64,
    /// Grows with each change of routing.
    #[n(1)]
    pub counter: u64,
}

/// What a node does.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Cluster manager.
    #[n(0)]
    Mgmtd,
    /// Metadata service.
    #[n(1)]
    Meta,
    /// Storage service.
    #[n(2)]
    Storage,
}

/// A registered node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Which node.
    #[n(0)]
    pub id: NodeId,
    /// What it does.
    #[n(1)]
    pub kind: NodeKind,
    /// Where it listens: `host:port` or `unix:/path`, in the order to try.
    #[n(2)]
    pub addresses: Vec<String>,
    /// The start of the process that registered last.
    #[n(3)]
    pub boot: BootId,
    /// Whether it holds a lease as far as mgmtd knows.
    #[n(4)]
    pub alive: bool,
    /// Failure domains, e.g. `rack`.
    #[n(5)]
    pub tags: BTreeMap<String, String>,
}

/// A target and where it lives.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct TargetInfo {
    /// Which target.
    #[n(0)]
    pub id: TargetId,
    /// Node that holds it.
    #[n(1)]
    pub node: NodeId,
    /// Index of the disk on that node.
    #[n(2)]
    pub disk: u32,
    /// Which life of its content is the valid one (R7).
    #[n(3)]
    pub generation: Generation,
    /// Chain that it belongs to.
    #[n(4)]
    pub chain: ChainId,
    /// Whether the node has reported this generation as created: from then on a missing directory is a
    /// fault and is never made anew unasked.
    #[n(5)]
    pub created: bool,
    /// Lane of the node that owns the target's disk.
    #[n(6)]
    pub lane: u32,
}

/// The whole view.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RoutingInfo {
    /// Version of this view.
    #[n(0)]
    pub version: RoutingVersion,
    /// Every registered node.
    #[n(1)]
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// Every target.
    #[n(2)]
    pub targets: BTreeMap<TargetId, TargetInfo>,
    /// Every chain.
    #[n(3)]
    pub chains: BTreeMap<ChainId, Chain>,
    /// Every version of every chain table.
    #[n(4)]
    pub tables: BTreeMap<TableKey, ChainTable>,
    /// Capabilities of older epochs are refused (R20).
    #[n(5)]
    pub revocation_epoch: u64,
    /// Client sessions that ended lately: storage drops their writer records and refuses them (R12).
    #[n(6)]
    pub ended_clients: Vec<crate::ClientId>,
}

/// A chain table at a version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct TableKey {
    /// Which table.
    #[n(0)]
    pub id: ChainTableId,
    /// Which version.
    #[n(1)]
    pub version: ChainTableVersion,
}

impl RoutingInfo {
    /// The chains of a file's layout in stripe order; `None` if this view lacks the table version.
    pub fn layout_chains(&self, layout: &Layout) -> Option<Vec<ChainId>> {
        let key = TableKey { id: layout.table(), version: layout.table_version() };
        self.tables.get(&key).map(|table| layout.chains(&table.chains))
    }
    /// The newest version of a table.
    pub fn newest_table(&self, id: ChainTableId) -> Option<&ChainTable> {
        self.tables
            .range(..=TableKey { id, version: ChainTableVersion(u32::MAX) })
            .next_back()
            .map(|(_, table)| table)
            .filter(|table| table.id == id)
    }
    /// The node that holds `target`.
    pub fn node_of(&self, target: TargetId) -> Option<&NodeInfo> {
        self.targets.get(&target).and_then(|t| self.nodes.get(&t.node))
    }
    /// Alive meta nodes in order of preference for a directory (rendezvous hashing).
    pub fn meta_nodes_for(&self, directory: InodeId) -> Vec<&NodeInfo> {
        let mut nodes: Vec<_> = self.nodes.values().filter(|n| n.kind == NodeKind::Meta).collect();
        nodes.sort_by_key(|n| {
            let seed = directory.0 ^ (u64::from(n.id.0) << 32);
            (!n.alive, crate::layout::SplitMix64(seed).next())
        });
        nodes
    }
    /// Applies `delta`; `false` (and no change) if it is not based on this view. A chain is replaced only by
    /// a higher chain version (R9), or by the same one with `in_use` noted since.
    pub fn apply(&mut self, delta: &RoutingDelta) -> bool {
        if let Some(full) = &delta.full {
            let older: Vec<Chain> = full
                .chains
                .values()
                .filter_map(|new| self.chains.get(&new.id).filter(|own| own.version > new.version).cloned())
                .collect();
            *self = full.clone();
            self.chains.extend(older.into_iter().map(|chain| (chain.id, chain)));
            return true;
        }
        let fits = delta.base.term == self.version.term && delta.base.counter <= self.version.counter;
        if !fits && !mutant!(r09_delta_without_its_base) {
            return false;
        }
        for node in &delta.nodes {
            self.nodes.insert(node.id, node.clone());
        }
        for target in &delta.targets {
            self.targets.insert(target.id, target.clone());
        }
        for chain in &delta.chains {
            let newer = self.chains.get(&chain.id).is_none_or(|own| chain.version >= own.version);
            if newer || mutant!(r09_chain_goes_back) {
                self.chains.insert(chain.id, chain.clone());
            }
        }
        for table in &delta.tables {
            self.tables.insert(TableKey { id: table.id, version: table.version }, table.clone());
        }
        self.revocation_epoch = self.revocation_epoch.max(delta.revocation_epoch);
        self.ended_clients.clone_from(&delta.ended_clients);
        self.version = self.version.max(delta.version);
        true
    }
}

/// A change of the view, sent by long poll.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RoutingDelta {
    /// The view that the changes start from; ignored if `full` is present.
    #[n(0)]
    pub base: RoutingVersion,
    /// The view after the changes.
    #[n(1)]
    pub version: RoutingVersion,
    /// The whole view, when the base is unknown or of another term (R9).
    #[n(2)]
    pub full: Option<RoutingInfo>,
    /// Nodes added or changed.
    #[n(3)]
    pub nodes: Vec<NodeInfo>,
    /// Targets added or changed.
    #[n(4)]
    pub targets: Vec<TargetInfo>,
    /// Chains added or changed.
    #[n(5)]
    pub chains: Vec<Chain>,
    /// Chain table versions added.
    #[n(6)]
    pub tables: Vec<ChainTable>,
    /// As in [`RoutingInfo`].
    #[n(7)]
    pub revocation_epoch: u64,
    /// As in [`RoutingInfo`]: the whole list.
    #[n(8)]
    pub ended_clients: Vec<crate::ClientId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChainVersion;

    fn at(term: u64, counter: u64) -> RoutingVersion {
        RoutingVersion { term, counter }
    }
    fn chain(version: u64) -> Chain {
        Chain {
            id: ChainId(1),
            version: ChainVersion(version),
            targets: Vec::new(),
            in_use: false,
            last_in_use: ChainVersion(0),
            in_use_members: Vec::new(),
        }
    }
    fn delta(base: RoutingVersion, version: RoutingVersion, chain: Chain) -> RoutingDelta {
        RoutingDelta { base, version, chains: vec![chain], ..RoutingDelta::default() }
    }

    #[test]
    fn r09_a_delta_needs_its_base() {
        let view = RoutingInfo { version: at(2, 5), ..RoutingInfo::default() };
        for base in [at(1, 5), at(3, 5), at(2, 6)] {
            let mut next = view.clone();
            assert!(!next.apply(&delta(base, at(3, 9), chain(1))), "{base:?}");
            assert_eq!(next, view);
        }
        let mut next = view.clone();
        assert!(next.apply(&delta(at(2, 4), at(2, 6), chain(1))), "repeated changes do no harm");
        assert_eq!((next.version, next.chains.len()), (at(2, 6), 1));
    }

    #[test]
    fn r09_a_chain_is_replaced_by_higher_versions_only() {
        let mut view = RoutingInfo { version: at(2, 5), ..RoutingInfo::default() };
        view.chains.insert(ChainId(1), chain(7));
        assert!(view.apply(&delta(at(2, 5), at(2, 6), chain(6))));
        assert_eq!(view.chains[&ChainId(1)].version, ChainVersion(7));
        let full = RoutingInfo { version: at(3, 1), chains: [(ChainId(1), chain(6))].into(), ..view.clone() };
        assert!(view.apply(&RoutingDelta { full: Some(full), ..RoutingDelta::default() }));
        assert_eq!((view.version, view.chains[&ChainId(1)].version), (at(3, 1), ChainVersion(7)));
        assert!(view.apply(&delta(at(3, 1), at(3, 2), chain(8))));
        assert_eq!(view.chains[&ChainId(1)].version, ChainVersion(8));
    }
}
