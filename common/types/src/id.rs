//! Identifiers. Each is a newtype over an integer; zero is never a valid id unless said otherwise.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
        )]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(#[n(0)] pub $int);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

        impl $name {
            /// Builds the id from 128 random bits.
            pub fn from_u128(bits: u128) -> Self {
                Self(bits.to_be_bytes())
            }
            /// The id as one integer (big-endian bytes).
            pub fn as_u128(self) -> u128 {
                u128::from_be_bytes(self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.as_u128())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map(Self::from_u128)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A process of the cluster (mgmtd, meta, storage). Chosen when the node is created, kept on its disk.
    NodeId(u32)
);
id!(
    /// One replica store on one disk of one storage node.
    TargetId(u64)
);
id!(
    /// Counts the lives of a target's content: a replaced, emptied or damaged disk gets the next one and
    /// comes back only through a full sync (R7).
    Generation(u32)
);
id!(
    /// Drawn at random by each start of a process; two starts never share one (R7).
    BootId(u64)
);
id!(
    /// A replication chain.
    ChainId(u32)
);
id!(
    /// Counts the changes of one chain; never goes back (R2).
    ChainVersion(u64)
);
id!(
    /// An ordered list of chains that layouts refer to.
    ChainTableId(u32)
);
id!(
    /// A version of a chain table; old ones stay valid for layouts made under them.
    ChainTableVersion(u32)
);
id!(
    /// A file, directory or symbolic link. 1 is the root directory.
    InodeId(u64)
);
id!(
    /// The data of a file: what chunk ids carry. An inode names its data id.
    DataId(u64)
);
id!(
    /// One ordered stream of writes of a client: one request outstanding at a time (R12).
    ChannelId(u32)
);
id!(
    /// Position in a channel; starts at 1 and grows by one with each new request (R12).
    Sequence(u64)
);
id!(
    /// Matches a response to its request on one connection.
    RequestId(u64)
);
uuid!(
    /// Names a cluster; a node or data directory of another one is refused.
    ClusterId
);
uuid!(
    /// One run of one client process; a restarted or forked client has another one.
    ClientId
);
uuid!(
    /// One open-for-write of one inode by one client.
    SessionId
);

impl InodeId {
    /// The root directory, also the FUSE root node id.
    pub const ROOT: Self = Self(1);
}

/// A chunk: `index` is its position in the file's data. On the wire and on disk it is followed by four
/// reserved zero bytes (16 bytes in all, little-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
pub struct ChunkId {
    /// Whose data it is.
    #[n(0)]
    pub data: DataId,
    /// Which piece: chunk `i` holds bytes `[i * chunk_size, (i + 1) * chunk_size)`.
    #[n(1)]
    pub index: u32,
}

impl ChunkId {
    /// Builds a chunk id.
    pub const fn new(data: DataId, index: u32) -> Self {
        Self { data, index }
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.data.0, self.index)
    }
}
