//! Which disks share a chain: replicas in different failure domains, equally many targets on every disk, and
//! pairs of disks that share a chain spread as evenly as possible, so that one disk's failure spreads its
//! read traffic over all others.
//!
//! The nearest to a balanced incomplete block design that a greedy choice finds: chain after chain takes the
//! domains that have most left, and among equals the disks that share the fewest chains with those already
//! chosen.

mod grow;
mod polish;
mod quality;
mod spread;

pub use grow::{Move, grow};
pub use quality::{Quality, quality};
pub use spread::spread;

use ember_types::NodeId;
use std::collections::BTreeMap;

/// The tag that names a node's rack.
pub const RACK_TAG: &str = "rack";

/// A storage node that offers disks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeDisks {
    /// Which node.
    pub node: NodeId,
    /// Number of its disks; they are numbered from 0.
    pub disks: u32,
    /// Its rack, if a tag names one.
    pub rack: Option<String>,
}

/// A disk of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Disk {
    /// Its node.
    pub node: NodeId,
    /// Its number on the node.
    pub disk: u32,
}

/// Chains as lists of disks, the head's first.
pub type Placement = Vec<Vec<Disk>>;

/// Why chains can't be placed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// A parameter is zero or too large.
    #[error("{0}")]
    Invalid(&'static str),
    /// Fewer failure domains than replicas.
    #[error(
        "{replicas} replicas need as many storage nodes; there are {nodes}: add nodes or lower the replicas"
    )]
    TooFewNodes {
        /// Replicas asked for.
        replicas: u32,
        /// Nodes with disks.
        nodes: usize,
    },
    /// One node has so many of all disks that its targets can't all find partners on others.
    #[error(
        "node {node} holds more than 1/{replicas} of all disks: spread the disks over the nodes more evenly"
    )]
    Lopsided {
        /// The node.
        node: NodeId,
        /// Replicas asked for.
        replicas: u32,
    },
}

/// The fewest targets a disk can have, `at_least` or more, so that every disk has the same number and every
/// chain is full.
pub fn targets_per_disk(disks: u64, replicas: u32, at_least: u32) -> u32 {
    let replicas = replicas.max(1);
    (at_least.max(1)..at_least.saturating_add(replicas))
        .find(|t| (disks * u64::from(*t)).is_multiple_of(u64::from(replicas)))
        .unwrap_or(at_least)
}

/// Assigns each node a failure domain: its rack if there are at least `replicas` racks and every node has
/// one, else itself.
fn domains(nodes: &[NodeDisks], replicas: u32) -> Vec<usize> {
    let mut racks: BTreeMap<&str, usize> = BTreeMap::new();
    for rack in nodes.iter().filter_map(|n| n.rack.as_deref()) {
        let next = racks.len();
        racks.entry(rack).or_insert(next);
    }
    let of_rack = |n: &NodeDisks| n.rack.as_deref().and_then(|r| racks.get(r)).copied();
    let by_rack: Option<Vec<usize>> = nodes.iter().map(of_rack).collect();
    let largest = |by: &[usize]| {
        let mut disks: BTreeMap<usize, u64> = BTreeMap::new();
        for (node, domain) in nodes.iter().zip(by) {
            *disks.entry(*domain).or_default() += u64::from(node.disks);
        }
        disks.into_values().max().unwrap_or(0)
    };
    let total: u64 = nodes.iter().map(|n| u64::from(n.disks)).sum();
    match by_rack {
        Some(by) if racks.len() >= replicas as usize && largest(&by) * u64::from(replicas) <= total => by,
        _ => (0..nodes.len()).collect(),
    }
}
