//! Chains over an empty cluster.

use super::polish::polish;
use super::{Disk, NodeDisks, Placement, PlacementError, domains};
use ember_types::collections::FixedHashMap;

/// Most replicas of a chain.
const REPLICAS_MAX: u32 = 16;
/// Most targets of a cluster, which bounds time and memory of the choice.
const TARGETS_MAX: u64 = 4_000_000;
/// How many more targets than its fullest peer a node may have left and still be passed over: room to choose
/// in.
const SLACK_ROUNDS: u32 = 2;

struct Node {
    domain: usize,
    /// Targets still to be placed on each disk.
    left: Vec<u32>,
    total_left: u64,
    first_disk: usize,
}

struct Spread<'a> {
    nodes: &'a [NodeDisks],
    state: Vec<Node>,
    /// Targets still to be placed in each domain.
    domain_left: Vec<u64>,
    /// Chains that two nodes share.
    node_pairs: Vec<u32>,
    /// Chains that two disks share, only where there are any.
    disk_pairs: FixedHashMap<(u32, u32), u32>,
}

/// Places chains of `replicas` members so that every disk has exactly `targets_per_disk` targets. The number
/// must fit: see [`super::targets_per_disk`].
pub fn spread(
    nodes: &[NodeDisks],
    replicas: u32,
    targets_per_disk: u32,
) -> Result<Placement, PlacementError> {
    let nodes: Vec<NodeDisks> = nodes.iter().filter(|n| n.disks > 0).cloned().collect();
    if replicas == 0 || replicas > REPLICAS_MAX || targets_per_disk == 0 {
        return Err(PlacementError::Invalid("replicas must be 1 to 16, and targets per disk at least 1"));
    }
    if nodes.len() < replicas as usize {
        return Err(PlacementError::TooFewNodes { replicas, nodes: nodes.len() });
    }
    let disks: u64 = nodes.iter().map(|n| u64::from(n.disks)).sum();
    let targets = disks * u64::from(targets_per_disk);
    if targets > TARGETS_MAX || nodes.len() > 20_000 {
        return Err(PlacementError::Invalid("more targets than 4 million, or more nodes than 20,000"));
    }
    if !targets.is_multiple_of(u64::from(replicas)) {
        return Err(PlacementError::Invalid(
            "the targets can't all be in full chains: change targets per disk",
        ));
    }
    if let Some(node) = nodes.iter().find(|n| u64::from(n.disks) * u64::from(replicas) > disks) {
        return Err(PlacementError::Lopsided { node: node.node, replicas });
    }
    let mut spread = Spread::new(&nodes, replicas, targets_per_disk);
    let chains = targets / u64::from(replicas);
    let mut placement: Placement = (0..chains).map(|done| spread.chain(replicas, chains - done)).collect();
    polish(&mut placement, &nodes, replicas, targets_per_disk);
    Ok(placement)
}

impl<'a> Spread<'a> {
    fn new(nodes: &'a [NodeDisks], replicas: u32, per_disk: u32) -> Self {
        let domain = domains(nodes, replicas);
        let mut domain_left = vec![0; domain.iter().max().map_or(0, |d| d + 1)];
        let mut first_disk = 0;
        let mut state = Vec::new();
        for (node, domain) in nodes.iter().zip(domain) {
            let total_left = u64::from(node.disks) * u64::from(per_disk);
            domain_left[domain] += total_left;
            state.push(Node { domain, left: vec![per_disk; node.disks as usize], total_left, first_disk });
            first_disk += node.disks as usize;
        }
        let node_pairs = vec![0; nodes.len() * nodes.len()];
        Self { nodes, state, domain_left, node_pairs, disk_pairs: FixedHashMap::default() }
    }

    /// Places one chain; `chains_left` counts it and those after it.
    fn chain(&mut self, replicas: u32, chains_left: u64) -> Vec<Disk> {
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        for place in 0..replicas {
            let node = self.pick_node(&chosen, u64::from(replicas - place), chains_left);
            let disk = self.pick_disk(node, &chosen);
            chosen.push((node, disk));
            let (n, d) = (&mut self.state[node], node);
            n.left[disk] -= 1;
            n.total_left -= 1;
            self.domain_left[self.state[d].domain] -= 1;
        }
        self.note_pairs(&chosen);
        // The first pick is the fullest node's: turning the list spreads heads over all places.
        chosen.rotate_left((chains_left % u64::from(replicas)) as usize);
        chosen.into_iter().map(|(n, d)| Disk { node: self.nodes[n].node, disk: d as u32 }).collect()
    }

    fn note_pairs(&mut self, chosen: &[(usize, usize)]) {
        for (at, &(n, d)) in chosen.iter().enumerate() {
            for &(m, e) in &chosen[at + 1..] {
                let size = self.nodes.len();
                self.node_pairs[n * size + m] += 1;
                self.node_pairs[m * size + n] += 1;
                let (a, b) = (self.disk_index(n, d), self.disk_index(m, e));
                *self.disk_pairs.entry((a.min(b), a.max(b))).or_default() += 1;
            }
        }
    }

    fn disk_index(&self, node: usize, disk: usize) -> u32 {
        (self.state[node].first_disk + disk) as u32
    }

    /// A domain that has as many targets left as there are chains must be in each of them; such domains go
    /// first. Otherwise any node that isn't far behind the fullest one, with the fewest chains shared so far.
    fn pick_node(&self, chosen: &[(usize, usize)], picks_left: u64, chains_left: u64) -> usize {
        let taken = |domain: usize| chosen.iter().any(|(n, _)| self.state[*n].domain == domain);
        let open = |node: &Node| node.total_left > 0 && !taken(node.domain);
        let urgent = |node: &Node| self.domain_left[node.domain] >= chains_left;
        let urgent_domains = {
            let mut domains: Vec<usize> =
                self.state.iter().filter(|n| open(n) && urgent(n)).map(|n| n.domain).collect();
            domains.sort_unstable();
            domains.dedup();
            domains.len() as u64
        };
        let forced = urgent_domains >= picks_left;
        let most = self.state.iter().filter(|n| open(n)).map(|n| n.total_left).max().unwrap_or(0);
        let floor = most.saturating_sub(u64::from(SLACK_ROUNDS));
        let shared = |at: usize| -> (u32, u32) {
            let counts = chosen.iter().map(|(n, _)| self.node_pairs[n * self.nodes.len() + at]);
            counts.fold((0, 0), |(max, sum), c| (max.max(c), sum + c))
        };
        let candidates = self
            .state
            .iter()
            .enumerate()
            .filter(|(_, n)| open(n) && if forced { urgent(n) } else { n.total_left >= floor });
        let best = candidates.min_by_key(|(at, n)| {
            let ((max, sum), behind) = (shared(*at), u64::MAX - n.total_left);
            if chosen.is_empty() { (0, 0, behind, *at) } else { (max, sum, behind, *at) }
        });
        best.map_or(0, |(at, _)| at)
    }

    fn pick_disk(&self, node: usize, chosen: &[(usize, usize)]) -> usize {
        let left = &self.state[node].left;
        let shared = |disk: usize| -> u32 {
            let own = self.disk_index(node, disk);
            let with = |&(n, d): &(usize, usize)| {
                let other = self.disk_index(n, d);
                self.disk_pairs.get(&(own.min(other), own.max(other))).copied().unwrap_or(0)
            };
            chosen.iter().map(with).sum()
        };
        let open = (0..left.len()).filter(|d| left[*d] > 0);
        open.min_by_key(|d| (shared(*d), u32::MAX - left[*d], *d)).unwrap_or(0)
    }
}
