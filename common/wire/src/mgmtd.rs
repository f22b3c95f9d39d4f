//! Messages of the cluster manager.

use crate::codec::cbor_body;
use ember_types::{
    BootId, Chain, ChainId, ChainTableId, ChainTableVersion, ChainVersion, ClientId, ClusterTime, Generation,
    LocalState, Millis, NodeId, NodeKind, PublicState, RoutingDelta, RoutingVersion, Status, TargetId,
};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// A node makes itself known. A node that restarts registers again with another boot id.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RegisterRequest {
    /// Its id.
    #[n(0)]
    pub node: NodeId,
    /// What it does.
    #[n(1)]
    pub kind: NodeKind,
    /// This start of it.
    #[n(2)]
    pub boot: BootId,
    /// Where it listens.
    #[n(3)]
    pub addresses: Vec<String>,
    /// Failure domains.
    #[n(4)]
    pub tags: BTreeMap<String, String>,
    /// Number of disks that it offers targets on (storage nodes).
    #[n(5)]
    pub disks: u32,
    /// Process id, for `ember status`.
    #[n(6)]
    pub pid: u32,
    /// Data directory, for `ember status`.
    #[n(7)]
    pub data_dir: String,
    /// Release of the program.
    #[n(8)]
    pub release: String,
}

/// Answer to [`RegisterRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RegisterResponse {
    /// `Ok`, or why not (`NotPrimary`, `InvalidArgument`).
    #[n(0)]
    pub status: Status,
    /// With `NotPrimary`: where the primary listens, if known.
    #[n(1)]
    pub primary: Vec<String>,
    /// Lengths of leases.
    #[n(2)]
    pub timing: Timing,
    /// For people.
    #[n(3)]
    pub text: String,
}

/// The cluster's times, the same for everybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Timing {
    /// How long a node's lease lasts after the heartbeat that it was granted on was sent.
    #[n(0)]
    pub node_lease_ms: Millis,
    /// How often a node sends heartbeats.
    #[n(1)]
    pub heartbeat_ms: Millis,
    /// Bound on how far two clocks drift apart during a lease (R8).
    #[n(2)]
    pub drift_ms: Millis,
    /// How long a client's session lasts after its last extension.
    #[n(3)]
    pub client_session_ms: Millis,
    /// How long a capability lasts.
    #[n(4)]
    pub capability_ms: Millis,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            node_lease_ms: Millis(5_000),
            heartbeat_ms: Millis(500),
            drift_ms: Millis(250),
            client_session_ms: Millis(60_000),
            capability_ms: Millis(60_000),
        }
    }
}

/// What a node says of one of its targets.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct TargetReport {
    /// Which target.
    #[n(0)]
    pub target: TargetId,
    /// The generation that its disk holds.
    #[n(1)]
    pub generation: Generation,
    /// Its local state. After a restart a target is `UpToDate` if its recovery is complete and it was not in the
    /// middle of a sync, else `Online`. A syncing target is `Online` from the moment it applies the chain version
    /// that made it so, and `UpToDate` under exactly that version when its sync is done (R6). A target that was
    /// reported `Offline` doesn't serve again before it has applied a higher chain version.
    #[n(2)]
    pub state: LocalState,
    /// The highest chain version that it has applied: under it the local state holds (R1).
    #[n(3)]
    pub chain_version: ChainVersion,
    /// The highest chain version that it ever served under, from its disk (R2).
    #[n(4)]
    pub served_version: ChainVersion,
    /// Bytes that chunks occupy.
    #[n(5)]
    pub used_bytes: u64,
    /// Bytes that can still be written.
    #[n(6)]
    pub free_bytes: u64,
    /// Resync of this target as its source sees it, if it is a source.
    #[n(7)]
    pub sync: Option<SyncProgress>,
    /// Why it is offline or limping; empty if all is well.
    #[n(8)]
    pub trouble: String,
    /// Bytes of the disk.
    #[n(9)]
    pub capacity_bytes: u64,
    /// A damaged target asks for a new generation: its old content has been set aside.
    #[n(10)]
    pub wants_replacement: bool,
    /// It has been told under `chain_version` that it isn't serving, and won't serve before a higher one (R1).
    #[n(11)]
    pub stopped: bool,
    /// Its disk is too full for what it lacks: it isn't to be brought up to date before it has room (R10).
    #[n(12)]
    #[cbor(default)]
    pub no_room: bool,
    /// Its scrub; absent while it isn't open.
    #[n(13)]
    pub scrub: Option<ScrubProgress>,
    /// Its disk is too slow: it had better not serve while the rest of its chain is well (R10).
    #[n(14)]
    #[cbor(default)]
    pub slow: bool,
}

/// How far the scrub of a target has come: it reads all that is stored and repairs what is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct ScrubProgress {
    /// Whether a round is on its way.
    #[n(0)]
    pub running: bool,
    /// Chunks looked at in that round.
    #[n(1)]
    pub chunks_done: u64,
    /// Chunks of that round in all, as far as known.
    #[n(2)]
    pub chunks_total: u64,
    /// Bytes read in that round.
    #[n(3)]
    pub bytes_done: u64,
    /// Rounds finished since the target was opened.
    #[n(4)]
    pub rounds: u64,
    /// Cluster time at which the last one was finished, in milliseconds; 0 if none was.
    #[n(5)]
    pub finished_ms: u64,
    /// Chunks looked at in the last finished round.
    #[n(6)]
    pub last_chunks: u64,
    /// Bytes read in it.
    #[n(7)]
    pub last_bytes: u64,
    /// Damaged chunks and files that it found.
    #[n(8)]
    pub last_found: u64,
    /// How many of them were repaired, and read again afterwards.
    #[n(9)]
    pub last_repaired: u64,
    /// Damaged chunks and files that scrubs found since the target was opened.
    #[n(10)]
    pub found: u64,
    /// Chunks repaired since the target was opened, whoever noticed.
    #[n(11)]
    pub repaired: u64,
    /// Slots whose bytes were bad: not used again before a restart.
    #[n(12)]
    pub quarantined: u64,
}

/// How far a resync has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct SyncProgress {
    /// Chunks compared or sent.
    #[n(0)]
    pub chunks_done: u64,
    /// Chunks in all, as far as known.
    #[n(1)]
    pub chunks_total: u64,
    /// Bytes sent.
    #[n(2)]
    pub bytes_sent: u64,
    /// Bytes sent a second, of late.
    #[n(3)]
    #[cbor(default)]
    pub bytes_per_s: u64,
    /// Seconds until it is done, at the pace of late; absent if that can't be told.
    #[n(4)]
    pub eta_s: Option<u64>,
}

/// Renews the node's lease.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct HeartbeatRequest {
    /// Who.
    #[n(0)]
    pub node: NodeId,
    /// In which start.
    #[n(1)]
    pub boot: BootId,
    /// Counts heartbeats of this start; an older one is ignored.
    #[n(2)]
    pub sequence: u64,
    /// Every target of the node.
    #[n(3)]
    pub targets: Vec<TargetReport>,
    /// The routing that it has applied.
    #[n(4)]
    pub routing: RoutingVersion,
    /// Warnings for `ember status` (e.g. a disk without O_DIRECT).
    #[n(5)]
    pub warnings: Vec<String>,
}

/// Public state of one target of the asking node (R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct TargetOrder {
    /// Which target.
    #[n(0)]
    pub target: TargetId,
    /// Its chain.
    #[n(1)]
    pub chain: ChainId,
    /// The chain's version.
    #[n(2)]
    pub chain_version: ChainVersion,
    /// Its state under that version.
    #[n(3)]
    pub state: PublicState,
}

/// Answer to [`HeartbeatRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct HeartbeatResponse {
    /// `Ok`; `NotPrimary`; `NotFound`: register first.
    #[n(0)]
    pub status: Status,
    /// Whether the lease is renewed; withheld from a node that has not confirmed a chain change (R1).
    #[n(1)]
    pub granted: bool,
    /// Every target of the node, to be applied before the lease is counted (R1).
    #[n(2)]
    pub orders: Vec<TargetOrder>,
    /// The chains of those targets that the node's routing lacks or has older.
    #[n(3)]
    pub chains: Vec<Chain>,
    /// The routing's version now.
    #[n(4)]
    pub routing: RoutingVersion,
    /// Cluster time when the answer was made (R20).
    #[n(5)]
    pub cluster_time: ClusterTime,
    /// With `NotPrimary`: where the primary listens, if known.
    #[n(6)]
    pub primary: Vec<String>,
}

/// Waits up to `wait_ms` for routing newer than `have`.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RoutingRequest {
    /// The asker's view; zero if it has none.
    #[n(0)]
    pub have: RoutingVersion,
    /// How long to wait for a change.
    #[n(1)]
    pub wait_ms: Millis,
}

/// Answer to [`RoutingRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RoutingResponse {
    /// `Ok` or `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// The change; absent if nothing is newer.
    #[n(1)]
    pub delta: Option<RoutingDelta>,
    /// With `NotPrimary`: where the primary listens, if known.
    #[n(2)]
    pub primary: Vec<String>,
    /// Cluster time when the answer was made.
    #[n(3)]
    pub cluster_time: ClusterTime,
}

/// A tail asks that its chain version be noted as in use (R7).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct NoteInUseRequest {
    /// Which chain.
    #[n(0)]
    pub chain: ChainId,
    /// Which version.
    #[n(1)]
    pub version: ChainVersion,
    /// Who asks.
    #[n(2)]
    pub target: TargetId,
}

/// Answer to [`NoteInUseRequest`], sent once the note is durable.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct NoteInUseResponse {
    /// `Ok`; `StaleRouting` if the chain has moved on; `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// The chain as it is now.
    #[n(1)]
    pub chain: Option<Chain>,
}

/// A replica has had no answer from its successor for the time of R10.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct UnresponsiveRequest {
    /// Which chain.
    #[n(0)]
    pub chain: ChainId,
    /// Under which version.
    #[n(1)]
    pub version: ChainVersion,
    /// Who accuses.
    #[n(2)]
    pub accuser: TargetId,
    /// Whom.
    #[n(3)]
    pub accused: TargetId,
    /// Whether the accused answered with device errors (else it didn't answer).
    #[n(4)]
    pub device_error: bool,
}

/// Opens or extends a client's session.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ExtendClientRequest {
    /// Who.
    #[n(0)]
    pub client: ClientId,
    /// For people: host name, process id, what it is.
    #[n(1)]
    pub description: String,
}

/// Answer to [`ExtendClientRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ExtendClientResponse {
    /// `Ok`; `SessionEnded`: start with a new client id; `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// The cluster's times.
    #[n(1)]
    pub timing: Timing,
    /// Cluster time when the answer was made.
    #[n(2)]
    pub cluster_time: ClusterTime,
    /// With `NotPrimary`: where the primary listens, if known.
    #[n(3)]
    pub primary: Vec<String>,
}

/// Ends a client's session.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct EndClientRequest {
    /// Who.
    #[n(0)]
    pub client: ClientId,
}

/// Makes the first chains, over all registered storage nodes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct CreateChainsRequest {
    /// The table to make.
    #[n(0)]
    pub table: ChainTableId,
    /// Members of each chain.
    #[n(1)]
    pub replicas: u32,
    /// Targets on each disk.
    #[n(2)]
    pub targets_per_disk: u32,
    /// Number of storage nodes that must have registered.
    #[n(3)]
    pub storage_nodes: u32,
}

/// Answer to [`CreateChainsRequest`]. Asked again, an existing table is left as it is and named.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct CreateChainsResponse {
    /// `Ok`; `Exists`; `Busy`: not enough nodes yet; `InvalidArgument`.
    #[n(0)]
    pub status: Status,
    /// The table's newest version.
    #[n(1)]
    pub version: ChainTableVersion,
    /// For people.
    #[n(2)]
    pub text: String,
}

/// Gives a target a new generation.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReplaceTargetRequest {
    /// Which target.
    #[n(0)]
    pub target: TargetId,
}

/// Answer to [`ReplaceTargetRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReplaceTargetResponse {
    /// `Ok`; `NotFound`; `Busy`: it is serving, or no other member holds everything.
    #[n(0)]
    pub status: Status,
    /// Its generation now.
    #[n(1)]
    pub generation: Generation,
    /// For people.
    #[n(2)]
    pub text: String,
}

/// Cluster time.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ClusterClockResponse {
    /// `Ok` or `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// The cluster's times.
    #[n(1)]
    pub timing: Timing,
    /// Cluster time when the answer was made.
    #[n(2)]
    pub cluster_time: ClusterTime,
}

/// Live client sessions.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ListClientsResponse {
    /// `Ok` or `NotPrimary`.
    #[n(0)]
    pub status: Status,
    /// Who has a session.
    #[n(1)]
    pub clients: Vec<ClientId>,
    /// `false` while a new primary doesn't know all of them yet: nobody may be taken for dead (R8).
    #[n(2)]
    pub complete: bool,
}

cbor_body!(
    RegisterRequest,
    RegisterResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    RoutingRequest,
    RoutingResponse,
    NoteInUseRequest,
    NoteInUseResponse,
    UnresponsiveRequest,
    ExtendClientRequest,
    ExtendClientResponse,
    EndClientRequest,
    CreateChainsRequest,
    CreateChainsResponse,
    ReplaceTargetRequest,
    ReplaceTargetResponse,
    ClusterClockResponse,
    ListClientsResponse,
);
