//! State of the cluster for people and programs: what `ember status` shows.

use crate::codec::cbor_body;
use crate::mgmtd::{ScrubProgress, SyncProgress, Timing};
use ember_types::{
    BootId, Chain, ClusterId, ClusterTime, Generation, LocalState, NodeId, NodeKind, PublicState,
    RoutingVersion, Status, TargetId,
};
use minicbor::{Decode, Encode};

/// The answer of the primary mgmtd.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ClusterStatus {
    /// `Ok` or `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// The cluster.
    #[n(1)]
    pub cluster: ClusterId,
    /// Who answers.
    #[n(2)]
    pub primary: NodeId,
    /// Version of the routing.
    #[n(3)]
    pub routing: RoutingVersion,
    /// Every registered node.
    #[n(4)]
    pub nodes: Vec<NodeStatus>,
    /// Every target.
    #[n(5)]
    pub targets: Vec<TargetStatus>,
    /// Every chain.
    #[n(6)]
    pub chains: Vec<Chain>,
    /// Live client sessions.
    #[n(7)]
    pub clients: Vec<ClientStatus>,
    /// Engine of the metadata store: `mem`, `local`, `fdb`.
    #[n(8)]
    pub kv_engine: String,
    /// Cluster time.
    #[n(9)]
    pub cluster_time: ClusterTime,
    /// The cluster's times.
    #[n(10)]
    pub timing: Timing,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct NodeStatus {
    /// Which node.
    #[n(0)]
    pub id: NodeId,
    /// What it does.
    #[n(1)]
    pub kind: NodeKind,
    /// Whether it holds a lease.
    #[n(2)]
    pub alive: bool,
    /// Where it listens.
    #[n(3)]
    pub addresses: Vec<String>,
    /// Its present start.
    #[n(4)]
    pub boot: BootId,
    /// Process id.
    #[n(5)]
    pub pid: u32,
    /// Data directory.
    #[n(6)]
    pub data_dir: String,
    /// Time since its last heartbeat.
    #[n(7)]
    pub silent_ms: u64,
    /// What it warns of.
    #[n(8)]
    pub warnings: Vec<String>,
    /// Release of the program.
    #[n(9)]
    pub release: String,
}

/// A target.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct TargetStatus {
    /// Which target.
    #[n(0)]
    pub id: TargetId,
    /// Its node.
    #[n(1)]
    pub node: NodeId,
    /// Its disk.
    #[n(2)]
    pub disk: u32,
    /// Valid generation.
    #[n(3)]
    pub generation: Generation,
    /// State in its chain.
    #[n(4)]
    pub public: PublicState,
    /// State that its node reports.
    #[n(5)]
    pub local: LocalState,
    /// Bytes that chunks occupy.
    #[n(6)]
    pub used_bytes: u64,
    /// Bytes that can still be written.
    #[n(7)]
    pub free_bytes: u64,
    /// How far its resync has come, if it is syncing.
    #[n(8)]
    pub sync: Option<SyncProgress>,
    /// What is wrong with it.
    #[n(9)]
    pub trouble: String,
    /// Bytes of its disk.
    #[n(10)]
    pub capacity_bytes: u64,
    /// Its scrub, as its node reports it.
    #[n(11)]
    pub scrub: Option<ScrubProgress>,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ClientStatus {
    /// Its id as text.
    #[n(0)]
    pub client: String,
    /// What it said of itself.
    #[n(1)]
    pub description: String,
    /// Time since it extended its session.
    #[n(2)]
    pub silent_ms: u64,
}

cbor_body!(ClusterStatus);
