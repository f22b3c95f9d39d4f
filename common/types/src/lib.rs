//! The nouns of EmberFS: ids, units, layouts, chains, routing information, leases, capabilities, status codes.
//!
//! Pure: no clock, randomness, I/O or async. Every type here is data that two services agree on; what they
//! *do* with it lives elsewhere. Invariants: ids are newtypes and never mix; a [`Layout`] that exists is valid;
//! placement arithmetic ([`layout`]) is fixed for ever by golden tests.
#![forbid(unsafe_code)]

pub mod capability;
pub mod chain;
pub mod checksum;
pub mod collections;
pub mod config;
pub mod file;
pub mod id;
pub mod layout;
pub mod mutants;
pub mod routing;
pub mod status;
pub mod time;
pub mod version;

pub use capability::{Capability, CapabilityKey, Rights};
pub use chain::{Chain, ChainTable, ChainTarget, LocalState, PublicState};
pub use checksum::{BLOCK_SIZE, block_checksums};
pub use id::{
    BootId, ChainId, ChainTableId, ChainTableVersion, ChainVersion, ChannelId, ChunkId, ClientId, ClusterId,
    DataId, Generation, InodeId, NodeId, RequestId, Sequence, SessionId, TargetId,
};
pub use layout::Layout;
pub use routing::{NodeInfo, NodeKind, RoutingDelta, RoutingInfo, RoutingVersion, TargetInfo};
pub use status::Status;
pub use time::{ClusterTime, Instant, Millis, UnixTime};
pub use version::{ChunkVersion, WriterRecord, WriterTag};
