//! Messages of storage.

mod hot;

use crate::codec::cbor_body;
use crate::mgmtd::ScrubProgress;
use ember_types::{
    Capability, Chain, ChainVersion, ChunkId, ChunkVersion, DataId, Status, TargetId, WriterRecord, WriterTag,
};
use minicbor::{Decode, Encode};

pub use hot::{
    Address, ForwardRequest, READ_PENDING, ReadRequest, ReadResponse, UpdateKind, UpdateRequest,
    UpdateResponse,
};

/// The commit coming back, or why there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ForwardResponse {
    /// `Ok`: committed (or, from a syncing target, durable). `StaleRouting`, `NoSpace`, `Corrupt`, …
    #[n(0)]
    pub status: Status,
    /// The version that is committed at the answering replica.
    #[n(1)]
    pub version: ChunkVersion,
    /// Version of the chain at the replica.
    #[n(2)]
    pub chain_version: ChainVersion,
}

/// Every replica before the successor holds an update durably that was forwarded early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DurableRequest {
    /// The successor.
    #[n(0)]
    pub to: Address,
    /// The chunk.
    #[n(1)]
    pub chunk: ChunkId,
    /// The version.
    #[n(2)]
    pub version: ChunkVersion,
    /// As in [`ForwardRequest`].
    #[n(3)]
    pub epoch: u32,
}

/// Answer to [`DurableRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DurableResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Version of the chain at the replica.
    #[n(1)]
    pub chain_version: ChainVersion,
}

/// Drops a refused update along the chain (R13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct AbortRequest {
    /// The successor.
    #[n(0)]
    pub to: Address,
    /// The chunk.
    #[n(1)]
    pub chunk: ChunkId,
    /// The version to drop; late copies of it are refused.
    #[n(2)]
    pub version: ChunkVersion,
    /// As in [`ForwardRequest`].
    #[n(3)]
    pub epoch: u32,
}

/// Answer to [`AbortRequest`], once the drop is durable here and behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct AbortResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Version of the chain at the replica.
    #[n(1)]
    pub chain_version: ChainVersion,
}

/// Asks the tail which version is committed (R6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct VersionQuery {
    /// The tail.
    #[n(0)]
    pub to: Address,
    /// The chunk.
    #[n(1)]
    pub chunk: ChunkId,
}

/// Answer to [`VersionQuery`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct VersionAnswer {
    /// `Ok`; `StaleRouting`; `NoLease`; `NotServing`.
    #[n(0)]
    pub status: Status,
    /// The committed version (`NONE` if the chunk is absent).
    #[n(1)]
    pub version: ChunkVersion,
    /// Version of the chain at the tail.
    #[n(2)]
    pub chain_version: ChainVersion,
}

/// A new tail asks its predecessor whether it has applied this chain version (R6).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ConfirmChainRequest {
    /// The predecessor.
    #[n(0)]
    pub to: Address,
    /// The chain as the tail knows it: the predecessor applies it if it is newer than its own.
    #[n(1)]
    pub chain: Chain,
}

/// Answer to [`ConfirmChainRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ConfirmChainResponse {
    /// `Ok` if the chain versions are equal now.
    #[n(0)]
    pub status: Status,
    /// Version of the chain at the predecessor.
    #[n(1)]
    pub chain_version: ChainVersion,
}

/// What a replica holds of one chunk, without the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ChunkSummary {
    /// The chunk.
    #[n(0)]
    pub chunk: ChunkId,
    /// Committed version (`NONE` if there is none).
    #[n(1)]
    pub committed: ChunkVersion,
    /// Whether the committed version is a removal.
    #[n(2)]
    pub removed: bool,
    /// Length of the committed content, in bytes.
    #[n(3)]
    pub length: u32,
    /// CRC32C of the committed content.
    #[n(4)]
    pub checksum: u32,
    /// Pending version (`NONE` if there is none).
    #[n(5)]
    pub pending: ChunkVersion,
    /// The replica knows the content, but no replica had its bytes when it was installed here (R10).
    #[n(6)]
    pub lost: bool,
}

/// A page of a replica's chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ListRequest {
    /// The replica; `chain_version` 0 asks whatever the version (for comparison by tools).
    #[n(0)]
    pub to: Address,
    /// Chunks behind this one.
    #[n(1)]
    pub after: Option<ChunkId>,
    /// Most entries, at most 4096.
    #[n(2)]
    pub limit: u32,
}

/// Answer to [`ListRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ListResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Version of the chain at the replica.
    #[n(1)]
    pub chain_version: ChainVersion,
    /// The chunks, in order.
    #[n(2)]
    pub chunks: Vec<ChunkSummary>,
    /// Whether there are more.
    #[n(3)]
    pub more: bool,
    /// Chunks that the replica holds in all.
    #[n(4)]
    pub total: u64,
}

/// What a syncing target must hold of one chunk (R11). The payload is the committed content. Pending versions
/// reach it as forwards.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SyncRequest {
    /// The syncing target.
    #[n(0)]
    pub to: Address,
    /// The source.
    #[n(1)]
    pub from: TargetId,
    /// The state to install. `committed` = `NONE`: the target must hold nothing.
    #[n(2)]
    pub state: ChunkSummary,
    /// Records of the chunk's writers.
    #[n(3)]
    pub writers: Vec<WriterRecord>,
    /// CRC32C of each block of the payload.
    #[n(4)]
    pub checksums: Vec<u32>,
    /// No chunk: the comparison is complete, the target may report itself up to date (R6: void after a
    /// chain change).
    #[n(5)]
    pub done: bool,
    /// As in [`ForwardRequest`].
    #[n(6)]
    pub epoch: u32,
}

/// Answer to [`SyncRequest`], once the state is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SyncResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Version of the chain at the target.
    #[n(1)]
    pub chain_version: ChainVersion,
    /// Bytes per second that the target's disk takes from this source without hurting its clients; 0 is no limit.
    #[n(2)]
    #[cbor(default)]
    pub limit_bytes_per_s: u64,
    /// The source is to pause for so long: the target measures how fast its clients are served meanwhile.
    #[n(3)]
    #[cbor(default)]
    pub hold_ms: u32,
}

/// Asks for the last chunk of some data on one chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct QueryLastRequest {
    /// A serving replica.
    #[n(0)]
    pub to: Address,
    /// The data.
    #[n(1)]
    pub data: DataId,
    /// The right to read it.
    #[n(2)]
    pub capability: Capability,
}

/// Answer to [`QueryLastRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct QueryLastResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Index of the last chunk that is not empty, and its committed length; absent if there is none.
    #[n(1)]
    pub last: Option<(u32, u32)>,
    /// Chunks of the data on this chain.
    #[n(2)]
    pub chunks: u64,
    /// Version of the chain at the replica.
    #[n(3)]
    pub chain_version: ChainVersion,
}

/// Removes chunks of some data on one chain; sent to the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RemoveDataRequest {
    /// The head.
    #[n(0)]
    pub to: Address,
    /// The data.
    #[n(1)]
    pub data: DataId,
    /// Chunks from this index on are removed.
    #[n(2)]
    pub from_index: u32,
    /// Most chunks to remove in this call.
    #[n(3)]
    pub limit: u32,
    /// The right to remove.
    #[n(4)]
    pub capability: Capability,
    /// Exactly once (R12).
    #[n(5)]
    pub tag: WriterTag,
}

/// Answer to [`RemoveDataRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RemoveDataResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// Chunks removed.
    #[n(1)]
    pub removed: u32,
    /// Whether there are more: call again.
    #[n(2)]
    pub more: bool,
    /// Version of the chain at the replica.
    #[n(3)]
    pub chain_version: ChainVersion,
}

/// Space of a node's disks.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SpaceResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// A row a disk.
    #[n(1)]
    pub disks: Vec<DiskSpace>,
}

/// Space of a disk, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DiskSpace {
    /// Index of the disk on its node.
    #[n(0)]
    pub disk: u32,
    /// Identifies the file system, so that two disks on one are counted once.
    #[n(1)]
    pub file_system: u64,
    /// All.
    #[n(2)]
    pub total: u64,
    /// Free for EmberFS, the reserve taken off.
    #[n(3)]
    pub available: u64,
    /// Occupied by chunks.
    #[n(4)]
    pub used: u64,
}

/// Reads stored bytes of one exact version (or, with `NONE`, the committed one) from this very replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReadReplicaRequest {
    /// The replica; `chain_version` 0 asks whatever the version.
    #[n(0)]
    pub to: Address,
    /// The chunk.
    #[n(1)]
    pub chunk: ChunkId,
    /// The version.
    #[n(2)]
    pub version: ChunkVersion,
}

/// Answer to [`ReadReplicaRequest`]; the payload is the whole content.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ReadReplicaResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// The version that was read.
    #[n(1)]
    pub version: ChunkVersion,
    /// Version of the chain at the replica.
    #[n(2)]
    pub chain_version: ChainVersion,
    /// CRC32C of each block of the payload.
    #[n(3)]
    pub checksums: Vec<u32>,
}

/// Has a replica scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ScrubRequest {
    /// The replica; `chain_version` 0 asks whatever the version.
    #[n(0)]
    pub to: Address,
    /// Begin a round now; else only its progress is asked for.
    #[n(1)]
    pub start: bool,
}

/// Answer to [`ScrubRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ScrubResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// When a round was begun: it is finished when so many rounds are.
    #[n(1)]
    pub round: u64,
    /// How far it is.
    #[n(2)]
    pub progress: ScrubProgress,
}

cbor_body!(
    UpdateResponse,
    ForwardResponse,
    DurableRequest,
    DurableResponse,
    AbortRequest,
    AbortResponse,
    VersionQuery,
    VersionAnswer,
    ConfirmChainRequest,
    ConfirmChainResponse,
    ListRequest,
    ListResponse,
    SyncRequest,
    SyncResponse,
    QueryLastRequest,
    QueryLastResponse,
    RemoveDataRequest,
    RemoveDataResponse,
    SpaceResponse,
    ReadReplicaRequest,
    ReadReplicaResponse,
    ScrubRequest,
    ScrubResponse,
);
