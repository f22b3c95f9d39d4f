//! What goes into a replica and what comes out.

use crate::state::{Change, Content, Summary};
use ember_types::{
    Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, Generation, Instant, Status, TargetId,
    WriterRecord, WriterTag,
};

/// Names a request that waits for its [`Output::Reply`] or [`Output::Read`]. The shell keeps what came with it
/// (the payload) until then.
pub type Token = u64;
/// Names a message sent by [`Output::Send`] or a page asked by [`Output::FetchPage`].
pub type SendId = u64;

/// To whom a request is addressed (R18).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// The chain.
    pub chain: ChainId,
    /// Its version as the asker knows it.
    pub chain_version: ChainVersion,
    /// The target.
    pub target: TargetId,
    /// Its generation.
    pub generation: Generation,
}

/// An update on its way along the chain.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Forward {
    /// The chunk.
    pub chunk: ChunkId,
    /// What to do.
    pub change: Change,
    /// Largest length that the chunk may have, in bytes.
    pub chunk_size: u32,
    /// The committed version that it applies to (R5).
    pub base: ChunkVersion,
    /// What the chunk becomes; every replica must arrive at this very checksum (R14).
    pub result: Content,
    /// Whose update it is (R12).
    pub tag: WriterTag,
    /// Records of the chunk's other writers, with a whole chunk (R12).
    pub writers: Vec<WriterRecord>,
    /// Some replica before the receiver is still storing it: it may be committed after [`Message::Durable`] alone.
    pub early: bool,
}

/// State of one chunk, or the end of a comparison (R11).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SyncItem {
    /// What the syncing target must hold of the chunk. `NONE`: nothing.
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// Its committed content.
        content: Content,
        /// Records of its writers.
        writers: Vec<WriterRecord>,
    },
    /// The comparison is complete.
    Done,
}

/// How the peer answered a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// It answered.
    Reply {
        /// How it ended.
        status: Status,
        /// The version that it speaks of.
        version: ChunkVersion,
        /// Version of the chain at the peer.
        chain_version: ChainVersion,
    },
    /// No answer: connection lost or deadline passed. The message may still arrive.
    Lost,
    /// The message was not sent: the stored bytes that belong into it can't be read, or the peer doesn't know early
    /// forwards.
    Unreadable,
}

/// Why the store could not do something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Failure {
    /// No space; nothing was changed.
    NoSpace,
    /// The base or the payload fails its checksum, here and wherever else it was sought; nothing was changed.
    Corrupt,
    /// The store can't be used any more.
    Device,
}

/// What happens to a replica.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// The chain as mgmtd (or a peer) says; older ones are ignored.
    Chain(Chain),
    /// [`Output::StoreVersion`] is durable.
    VersionStored(ChainVersion),
    /// The node may serve until then (R8).
    Lease {
        /// End of the lease on this node's clock.
        until: Instant,
    },
    /// Thresholds of the disk.
    Space {
        /// Whether updates that take space are taken.
        writable: bool,
        /// Whether new chunks are made.
        creatable: bool,
    },
    /// All client sessions that ended lately (R12).
    EndedClients(Vec<ClientId>),
    /// A client's update. The shell has checked the capability; `expires` is when it ends (R18).
    Update {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The chunk.
        chunk: ChunkId,
        /// What to do.
        change: Change,
        /// Largest length that the chunk may have, in bytes.
        chunk_size: u32,
        /// Exactly once.
        tag: WriterTag,
        /// End of the capability on this node's clock.
        expires: Instant,
    },
    /// A client's read.
    Read {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The chunk.
        chunk: ChunkId,
        /// Whether pending data will do.
        relaxed: bool,
    },
    /// A replica asks which version is committed.
    Query {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The successor asks whether this chain version is in force here.
    Confirm {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The chain as the asker knows it.
        chain: Chain,
    },
    /// The predecessor passes an update on.
    Forward {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// Who forwards.
        from: TargetId,
        /// The sender's epoch: lower than one seen before means late.
        epoch: u32,
        /// The update.
        forward: Forward,
    },
    /// Every replica before this one holds an update durably that was forwarded early.
    Durable {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The sender's epoch.
        epoch: u32,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// The predecessor drops a refused update (R13).
    Abort {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// The sender's epoch.
        epoch: u32,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// The predecessor brings a chunk up to date.
    Sync {
        /// Who waits.
        token: Token,
        /// To whom.
        to: Address,
        /// Who sends.
        from: TargetId,
        /// The sender's epoch.
        epoch: u32,
        /// The state.
        item: SyncItem,
    },
    /// A peer answered [`Output::Send`].
    Answered {
        /// Which message.
        id: SendId,
        /// What it said.
        answer: Answer,
    },
    /// [`Output::FetchPage`] has ended; `None` if the page couldn't be had.
    Page {
        /// Which page.
        id: SendId,
        /// The page.
        page: Option<Page>,
    },
    /// The turn that [`Output::SyncTurn`] asked for has come.
    SyncTurn {
        /// The chunk.
        chunk: ChunkId,
    },
    /// What [`Output::Prepare`] of the head makes is known, and not durable yet; need not come.
    Built {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// Length of the chunk under it.
        length: u32,
        /// CRC32C of the chunk under it.
        checksum: u32,
    },
    /// [`Output::Prepare`] is durable.
    Prepared {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// Length of the chunk under it.
        length: u32,
        /// CRC32C of the chunk under it.
        checksum: u32,
    },
    /// [`Output::Prepare`] or [`Output::Install`] failed.
    Failed {
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        failure: Failure,
    },
    /// [`Output::Commit`] is logged.
    Committed {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// [`Output::Drop`] is durable.
    Dropped {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// [`Output::Install`] is durable.
    Installed {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Somebody found bad bytes of a committed version.
    RepairWanted {
        /// The chunk.
        chunk: ChunkId,
        /// The version that was read.
        version: ChunkVersion,
    },
    /// [`Output::Repair`] has ended, well or not.
    Repaired {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The store can't be used any more.
    DeviceFailed,
    /// Time has passed; to be given every 20 to 100 ms.
    Tick,
}

/// One page of the source's chunks and the syncing target's, both behind the same chunk.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Page {
    /// The source's.
    pub local: Vec<Summary>,
    /// Whether the source has more.
    pub local_more: bool,
    /// The syncing target's.
    pub remote: Vec<Summary>,
    /// Whether the syncing target has more.
    pub remote_more: bool,
    /// Chunks of the source in all.
    pub total: u64,
}

/// Where the bytes of a message come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Payload {
    /// None.
    Empty,
    /// What came with that request.
    Request(Token),
    /// The stored content of this exact version.
    Stored(ChunkVersion),
}

/// A message to a peer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// To the successor.
    Forward {
        /// Epoch of this sender.
        epoch: u32,
        /// The update.
        forward: Forward,
        /// Its bytes.
        payload: Payload,
    },
    /// To the successor: every replica before it holds durably what was forwarded early.
    Durable {
        /// Epoch of this sender.
        epoch: u32,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// To the successor.
    Abort {
        /// Epoch of this sender.
        epoch: u32,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// To the tail.
    Query {
        /// The chunk.
        chunk: ChunkId,
    },
    /// To the predecessor: the chain as this replica knows it.
    Confirm {
        /// The chain.
        chain: Chain,
    },
    /// To the syncing successor.
    Sync {
        /// Epoch of this sender.
        epoch: u32,
        /// The state; its bytes are the stored content of its version, if it isn't absent.
        item: SyncItem,
    },
}

/// What a replica wants done. The store's operations on one chunk are never more than one at a time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// Store the chain version durably before serving under it (R2); answered by [`Input::VersionStored`].
    StoreVersion(ChainVersion),
    /// Make an update durable as pending.
    Prepare {
        /// The chunk.
        chunk: ChunkId,
        /// The version that it applies to: the committed one.
        base: ChunkVersion,
        /// The version that it makes.
        version: ChunkVersion,
        /// What to do.
        change: Change,
        /// Largest length that the chunk may have, in bytes.
        chunk_size: u32,
        /// The writer's record; it belongs into the same log record.
        record: WriterRecord,
        /// All records that the chunk keeps once this is committed, `record` among them.
        writers: Vec<WriterRecord>,
        /// The bytes.
        payload: Payload,
    },
    /// Make the pending version the committed one.
    Commit {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Drop the pending version durably.
    Drop {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Replace everything of a chunk by a committed content, durably.
    Install {
        /// The chunk.
        chunk: ChunkId,
        /// What it becomes; `NONE`: nothing.
        content: Content,
        /// Records of its writers.
        writers: Vec<WriterRecord>,
        /// Largest length that the chunk may have, in bytes; 0 if unknown.
        chunk_size: u32,
        /// The bytes.
        payload: Payload,
    },
    /// Fetch the bytes of this very version from another replica and rewrite them; answered by
    /// [`Input::Repaired`].
    Repair {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Send a message; answered by [`Input::Answered`].
    Send {
        /// Which message.
        id: SendId,
        /// To whom.
        to: Address,
        /// What.
        message: Message,
    },
    /// Get the next page of both sides' chunks; answered by [`Input::Page`].
    FetchPage {
        /// Which page.
        id: SendId,
        /// The syncing target.
        to: Address,
        /// Chunks behind this one.
        after: Option<ChunkId>,
    },
    /// A chunk is to be brought to the syncing successor: say when, by [`Input::SyncTurn`]. How fast a resync may go
    /// is decided here, before the chunk's place is taken, so that no update waits for it.
    SyncTurn {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Answer a request (other than a read that goes well). The token is free afterwards.
    Reply {
        /// Which request.
        token: Token,
        /// How it ended.
        status: Status,
        /// The version that it made or asked for.
        version: ChunkVersion,
        /// Length of the chunk under it.
        length: u32,
    },
    /// Answer a read with the bytes of this exact version. The token is free afterwards.
    Read {
        /// Which request.
        token: Token,
        /// What to read; if it is absent, say so.
        content: Content,
    },
    /// Ask mgmtd to note that this chain version is in use (R7).
    NoteInUse(ChainVersion),
    /// Tell mgmtd that the successor doesn't answer or can't store (R10).
    Accuse {
        /// The successor.
        target: TargetId,
        /// Whether it answered, but can't store.
        device: bool,
    },
    /// A peer knows a newer chain: refresh routing.
    Refresh(ChainVersion),
}
