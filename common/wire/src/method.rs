//! Methods: number, class of credits, request and response.

use crate::codec::Body;

/// Classes of credits (R15): each can drain when the lower ones are full.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Leases, version queries, commits: answered from memory.
    Control,
    /// Forwards along a chain.
    Forward,
    /// Client writes and metadata operations.
    Write,
    /// Client reads and long polls.
    Read,
    /// Resync and scrub.
    Background,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Self; 5] = [Self::Control, Self::Forward, Self::Write, Self::Read, Self::Background];
}

/// A remote procedure: ties a method to its bodies.
pub trait Rpc {
    /// The method.
    const METHOD: Method;
    /// Body of the request.
    type Request: Body;
    /// Body of the response.
    type Response: Body;
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident, $request:ty => $response:ty;)*) => {
        /// Every method. Numbers never change meaning.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Method { $($(#[$doc])* $name = $number,)* }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// Reads a wire number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
            /// The wire number.
            pub const fn number(self) -> u16 { self as u16 }
            /// Its class of credits.
            pub const fn class(self) -> Class { match self { $(Self::$name => Class::$class,)* } }
        }

        $($(#[$doc])* #[derive(Clone, Copy, Debug)] pub struct $name;
        impl Rpc for $name {
            const METHOD: Method = Method::$name;
            type Request = $request;
            type Response = $response;
        })*
    };
}

use crate::codec::Empty;
use crate::{admin, handshake, meta, mgmtd, ranks, storage};

methods! {
    /// The listener's first frame; its "response" is the hello.
    Greet = 1, Control, handshake::Challenge => handshake::Hello;
    /// Ends the handshake.
    Admit = 2, Control, handshake::Welcome => Empty;
    /// Is anybody there?
    Ping = 3, Control, Empty => Empty;

    /// A node makes itself known.
    RegisterNode = 100, Control, mgmtd::RegisterRequest => mgmtd::RegisterResponse;
    /// A node renews its lease and reports its targets.
    Heartbeat = 101, Control, mgmtd::HeartbeatRequest => mgmtd::HeartbeatResponse;
    /// Waits for routing newer than the asker's.
    GetRouting = 102, Read, mgmtd::RoutingRequest => mgmtd::RoutingResponse;
    /// A tail asks that its chain version be noted as in use (R7).
    NoteInUse = 103, Control, mgmtd::NoteInUseRequest => mgmtd::NoteInUseResponse;
    /// A replica accuses its successor (R10).
    ReportUnresponsive = 104, Control, mgmtd::UnresponsiveRequest => Empty;
    /// A client opens or extends its session.
    ExtendClient = 105, Control, mgmtd::ExtendClientRequest => mgmtd::ExtendClientResponse;
    /// A client ends its session.
    EndClient = 106, Control, mgmtd::EndClientRequest => Empty;
    /// Makes targets, chains and a chain table over the registered storage nodes.
    CreateChains = 107, Write, mgmtd::CreateChainsRequest => mgmtd::CreateChainsResponse;
    /// Gives a target a new generation: its content is to be made anew by a full sync.
    ReplaceTarget = 108, Write, mgmtd::ReplaceTargetRequest => mgmtd::ReplaceTargetResponse;
    /// State of the cluster for people and programs.
    ClusterStatus = 109, Read, Empty => admin::ClusterStatus;
    /// Cluster time and lengths of leases.
    ClusterClock = 110, Control, Empty => mgmtd::ClusterClockResponse;
    /// Which clients have a live session.
    ListClients = 111, Read, Empty => mgmtd::ListClientsResponse;

    /// Every metadata operation.
    MetaOp = 200, Write, meta::Request => meta::Response;

    /// Reads bytes of one chunk.
    ReadChunk = 300, Read, storage::ReadRequest => storage::ReadResponse;
    /// Writes, cuts or removes one chunk; sent to the head.
    UpdateChunk = 301, Write, storage::UpdateRequest => storage::UpdateResponse;
    /// Passes an update to the successor; the response is the commit coming back.
    ForwardChunk = 302, Forward, storage::ForwardRequest => storage::ForwardResponse;
    /// Every replica before the successor holds an update durably that was forwarded early.
    DurableChunk = 313, Control, storage::DurableRequest => storage::DurableResponse;
    /// Drops a refused update along the chain (R13).
    AbortChunk = 303, Control, storage::AbortRequest => storage::AbortResponse;
    /// Which version of a chunk is committed; sent to the tail (R6).
    QueryVersion = 304, Control, storage::VersionQuery => storage::VersionAnswer;
    /// A new tail asks its predecessor to confirm the chain version (R6).
    ConfirmChain = 305, Control, storage::ConfirmChainRequest => storage::ConfirmChainResponse;
    /// A page of a replica's chunks, for resync and comparison.
    ListChunks = 306, Background, storage::ListRequest => storage::ListResponse;
    /// The whole state of one chunk, sent to a syncing target in the chunk's order (R11).
    SyncChunk = 307, Background, storage::SyncRequest => storage::SyncResponse;
    /// Length of a file's data as storage knows it: the last chunk on one chain.
    QueryLast = 308, Read, storage::QueryLastRequest => storage::QueryLastResponse;
    /// Removes a run of chunks of one data id on one chain; asked by meta.
    RemoveData = 309, Write, storage::RemoveDataRequest => storage::RemoveDataResponse;
    /// Space of a node's disks.
    StorageSpace = 310, Read, Empty => storage::SpaceResponse;
    /// Reads the stored bytes of one exact version of a chunk on this replica, for repair and comparison.
    ReadReplica = 311, Background, storage::ReadReplicaRequest => storage::ReadReplicaResponse;
    /// Has a replica read and checked at once, or asks how far that is.
    ScrubTarget = 312, Background, storage::ScrubRequest => storage::ScrubResponse;

    /// A part of a message from one rank of a training job to another.
    SendPart = 400, Write, ranks::PartRequest => Empty;
}
