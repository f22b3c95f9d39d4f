//! Chains of targets and the states of their members.

use crate::id::{ChainId, ChainTableId, ChainTableVersion, ChainVersion, Generation, TargetId};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// State of a target in its chain, decided by mgmtd and valid for one chain version.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum PublicState {
    /// Holds every acknowledged write and answers requests.
    #[n(0)]
    Serving,
    /// Held every acknowledged write when the last serving member went: waits to be the first to return.
    #[n(1)]
    LastSrv,
    /// Receives live writes and is brought up to date by its predecessor.
    #[n(2)]
    Syncing,
    /// Up, waiting for its turn to sync.
    #[n(3)]
    Waiting,
    /// Down.
    #[n(4)]
    Offline,
}

/// State of a target as its own node sees it.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
pub enum LocalState {
    /// Holds everything that its chain acknowledged, as far as this chain version goes.
    #[n(0)]
    UpToDate,
    /// Usable, but may lack updates.
    #[n(1)]
    Online,
    /// Not usable.
    #[n(2)]
    Offline,
}

/// A member of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct ChainTarget {
    /// Which target.
    #[n(0)]
    pub target: TargetId,
    /// Which life of its content.
    #[n(1)]
    pub generation: Generation,
    /// Its state under this chain version.
    #[n(2)]
    pub state: PublicState,
}

/// A chain under one version. Members are ordered: serving ones first, head to tail, then syncing, then the
/// rest. Serving members never change order (R5).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct Chain {
    /// Which chain.
    #[n(0)]
    pub id: ChainId,
    /// Counts the changes; starts at 1.
    #[n(1)]
    pub version: ChainVersion,
    /// The members, head first.
    #[n(2)]
    pub targets: Vec<ChainTarget>,
    /// Whether mgmtd has durably noted that the tail may commit under `version` (R7).
    #[n(3)]
    pub in_use: bool,
    /// The newest version noted as in use, at most `version` (R7).
    #[n(4)]
    pub last_in_use: ChainVersion,
    /// Who was serving under `last_in_use`: each of them holds every acknowledged write (R7).
    #[n(5)]
    pub in_use_members: Vec<ChainTarget>,
}

impl Chain {
    /// Serving members, head to tail.
    pub fn serving(&self) -> impl DoubleEndedIterator<Item = &ChainTarget> {
        self.targets.iter().filter(|t| t.state == PublicState::Serving)
    }
    /// First serving member: numbers the writes.
    pub fn head(&self) -> Option<&ChainTarget> {
        self.serving().next()
    }
    /// Last serving member: commits (R6).
    pub fn tail(&self) -> Option<&ChainTarget> {
        self.serving().next_back()
    }
    /// The member that is syncing, if any.
    pub fn syncing(&self) -> Option<&ChainTarget> {
        self.targets.iter().find(|t| t.state == PublicState::Syncing)
    }
    /// The entry of `target`.
    pub fn member(&self, target: TargetId) -> Option<&ChainTarget> {
        self.targets.iter().find(|t| t.target == target)
    }
    /// Who receives forwards from `target`: the next serving member, or from the tail the syncing one.
    pub fn successor(&self, target: TargetId) -> Option<&ChainTarget> {
        let mut active =
            self.targets.iter().filter(|t| matches!(t.state, PublicState::Serving | PublicState::Syncing));
        active.find(|t| t.target == target)?;
        active.next()
    }
    /// Who forwards to `target`.
    pub fn predecessor(&self, target: TargetId) -> Option<&ChainTarget> {
        let active: Vec<_> = self
            .targets
            .iter()
            .filter(|t| matches!(t.state, PublicState::Serving | PublicState::Syncing))
            .collect();
        let at = active.iter().position(|t| t.target == target)?;
        at.checked_sub(1).and_then(|i| active.get(i).copied())
    }
}

/// One version of a chain table. Versions are never changed or deleted, since layouts name them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
pub struct ChainTable {
    /// Which table.
    #[n(0)]
    pub id: ChainTableId,
    /// Which version of it; starts at 1.
    #[n(1)]
    pub version: ChainTableVersion,
    /// The chains, in the order that layouts count in; never empty.
    #[n(2)]
    pub chains: Vec<ChainId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successor_of_the_tail_is_the_syncing_member() {
        let member = |id, state| ChainTarget { target: TargetId(id), generation: Generation(1), state };
        let chain = Chain {
            id: ChainId(1),
            version: ChainVersion(3),
            targets: vec![
                member(1, PublicState::Serving),
                member(2, PublicState::Serving),
                member(3, PublicState::Syncing),
                member(4, PublicState::Waiting),
            ],
            in_use: true,
            last_in_use: ChainVersion(3),
            in_use_members: vec![],
        };
        assert_eq!(chain.head().map(|t| t.target), Some(TargetId(1)));
        assert_eq!(chain.tail().map(|t| t.target), Some(TargetId(2)));
        assert_eq!(chain.successor(TargetId(2)).map(|t| t.target), Some(TargetId(3)));
        assert_eq!(chain.successor(TargetId(3)), None);
        assert_eq!(chain.successor(TargetId(4)), None);
        assert_eq!(chain.predecessor(TargetId(3)).map(|t| t.target), Some(TargetId(2)));
        assert_eq!(chain.predecessor(TargetId(1)), None);
    }
}
