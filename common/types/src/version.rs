//! What identifies the content of a chunk, and the record that makes a write happen once.

use crate::id::{ChainVersion, ChannelId, ClientId, Sequence};
use crate::status::Status;
use minicbor::{Decode, Encode};

/// The full version of a chunk's content (R5): equal numbers alone do not mean equal bytes. All three parts
/// are compared, with the checksum, wherever two replicas meet.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct ChunkVersion {
    /// Counts the chunk's updates from 1; a removal is an update, and a re-creation goes on counting.
    #[n(0)]
    pub number: u64,
    /// The chain version under which the head numbered it.
    #[n(1)]
    pub chain_version: ChainVersion,
    /// Tells apart two tries of the head at one number under one chain version (after an abort, R13).
    #[n(2)]
    pub attempt: u32,
}

impl ChunkVersion {
    /// The version of a chunk that was never written.
    pub const NONE: Self = Self { number: 0, chain_version: ChainVersion(0), attempt: 0 };

    /// Whether the chunk was never written.
    pub fn is_none(&self) -> bool {
        self.number == 0
    }
}

/// Who asked for an update: the key of exactly-once (R12).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct WriterTag {
    /// The client's run.
    #[n(0)]
    pub client: ClientId,
    /// Its channel.
    #[n(1)]
    pub channel: ChannelId,
    /// Position in the channel.
    #[n(2)]
    pub sequence: Sequence,
}

/// What a replica remembers of the last update of one channel on one chunk (R12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct WriterRecord {
    /// Which update.
    #[n(0)]
    pub tag: WriterTag,
    /// The version it made.
    #[n(1)]
    pub version: ChunkVersion,
    /// Length of the chunk after it, in bytes.
    #[n(2)]
    pub length: u32,
    /// How it ended.
    #[n(3)]
    pub status: Status,
}
