//! A cluster manager of one chain: leases, demotion, lastsrv, resync, the note "in use".

use ember_types::{Chain, ChainId, ChainTarget, ChainVersion, Generation, PublicState, TargetId};

pub const LEASE: u64 = 500;
pub const DRIFT: u64 = 50;

/// What mgmtd knows of a node.
#[derive(Clone, Copy, Default, Debug)]
pub struct Node {
    /// Counts the starts that it has heard of.
    pub boot: u64,
    /// The start that was last taken account of in the chain.
    pub boot_seen: u64,
    /// End of the last lease granted.
    pub lease: u64,
    /// The comparison was reported complete under this version.
    pub synced: ChainVersion,
}

pub struct Mgmtd {
    pub chain: Chain,
    pub nodes: Vec<Node>,
}

impl Mgmtd {
    pub fn new(nodes: usize) -> Self {
        let member = |i: usize| ChainTarget {
            target: TargetId(i as u64),
            generation: Generation(1),
            state: PublicState::Serving,
        };
        let targets: Vec<_> = (0..nodes).map(member).collect();
        let chain = Chain {
            id: ChainId(1),
            version: ChainVersion(1),
            in_use_members: targets.clone(),
            targets,
            in_use: false,
            last_in_use: ChainVersion(0),
        };
        Self { chain, nodes: vec![Node { boot: 1, boot_seen: 1, ..Node::default() }; nodes] }
    }

    fn node(&self, target: TargetId) -> &Node {
        &self.nodes[target.0 as usize]
    }

    pub fn note_in_use(&mut self, version: ChainVersion) {
        if version == self.chain.version && !self.chain.in_use {
            self.chain.in_use = true;
            self.chain.last_in_use = version;
            self.chain.in_use_members = self.chain.serving().copied().collect();
        }
    }

    /// One round of the state table. `true` if the chain changed.
    pub fn round(&mut self, now: u64) -> bool {
        use PublicState::{LastSrv, Offline, Serving, Syncing, Waiting};
        let alive = |m: &Self, t: &ChainTarget| now <= m.node(t.target).lease + DRIFT;
        let same_boot = |m: &Self, t: &ChainTarget| m.node(t.target).boot == m.node(t.target).boot_seen;
        let old = self.chain.targets.clone();
        let keeps = |m: &Self, t: &ChainTarget| alive(m, t) && same_boot(m, t);
        let any_serving = old.iter().any(|t| t.state == Serving && keeps(self, t));
        let had_serving = old.iter().any(|t| t.state == Serving);
        let mut new = old.clone();
        let mut returned = false;
        for target in &mut new {
            let (up, synced) = (alive(self, target), self.node(target.target).synced == self.chain.version);
            let held_all = self.chain.in_use_members.iter().any(|m| m.target == target.target);
            target.state = match target.state {
                Serving if any_serving && !keeps(self, target) => Offline,
                Serving if any_serving => Serving,
                // Nobody is left: whoever served under the last version in use holds everything (R7).
                _ if had_serving && !any_serving && held_all => LastSrv,
                Serving => Offline,
                LastSrv if any_serving || returned => Offline,
                LastSrv if up => {
                    returned = true;
                    Serving
                }
                LastSrv => LastSrv,
                Syncing if !keeps(self, target) => Offline,
                Syncing if synced && any_serving => Serving,
                Syncing if any_serving => Syncing,
                Syncing => Waiting,
                Waiting | Offline if up => Waiting,
                Waiting | Offline => Offline,
            };
        }
        for target in &mut new {
            if target.state == LastSrv && returned {
                target.state = Offline;
            }
        }
        if any_serving
            && !new.iter().any(|t| t.state == Syncing)
            && let Some(next) = new.iter_mut().find(|t| t.state == Waiting)
        {
            next.state = Syncing;
            // What it held is overwritten from now on: it proves nothing any more.
            let target = next.target;
            self.chain.in_use_members.retain(|m| m.target != target);
        }
        for target in new.iter().filter(|t| t.state == Serving) {
            // A member that completed its sync holds what the last version in use acknowledged.
            if !self.chain.in_use_members.iter().any(|m| m.target == target.target) {
                self.chain.in_use_members.push(*target);
            }
        }
        new.sort_by_key(|t| t.state);
        for target in &old {
            let node = &mut self.nodes[target.target.0 as usize];
            node.boot_seen = node.boot;
        }
        if new == old {
            return false;
        }
        self.chain.targets = new;
        self.chain.version.0 += 1;
        self.chain.in_use = false;
        true
    }
}
