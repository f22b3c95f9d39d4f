//! Messages of the metadata service: one request type with an operation in it, so that what all share
//! (credentials, exactly-once) stands once.

use crate::codec::cbor_body;
use ember_types::file::{Attributes, Credentials, FileKind};
use ember_types::{Capability, ClientId, ClusterTime, InodeId, Millis, SessionId, Status, UnixTime};
use minicbor::{Decode, Encode};

/// A metadata request.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Request {
    /// Whose client.
    #[n(0)]
    pub client: ClientId,
    /// On whose behalf.
    #[n(1)]
    pub credentials: Credentials,
    /// Counts this client's changing requests; a repeat has the same number and gets the stored answer.
    /// 0 for operations that change nothing.
    #[n(2)]
    pub sequence: u64,
    /// Changing requests of this client up to this number have been answered: their records may go.
    #[n(3)]
    pub answered: u64,
    /// What to do.
    #[n(4)]
    pub operation: Operation,
    /// An earlier copy of this request may still be on its way: a refusal is stored too, so that the copy can't
    /// be carried out after the client has heard of it.
    #[n(5)]
    pub repeat: bool,
}

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Encode, Decode)]
#[cbor(map)]
pub struct OpenFlags {
    /// Data will be read.
    #[n(0)]
    pub read: bool,
    /// Data will be written: opens a session.
    #[n(1)]
    pub write: bool,
    /// Cut to nothing first.
    #[n(2)]
    pub truncate: bool,
    /// Execute permission is what is asked for (with `read`).
    #[n(3)]
    pub execute: bool,
}

/// What to do with the time of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum SetTime {
    /// The server's now.
    #[n(0)]
    Now,
    /// This time.
    #[n(1)]
    At(#[n(0)] UnixTime),
}

/// Attributes to change.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SetAttributes {
    /// Permission bits.
    #[n(0)]
    pub mode: Option<u32>,
    /// Owner.
    #[n(1)]
    pub uid: Option<u32>,
    /// Group.
    #[n(2)]
    pub gid: Option<u32>,
    /// Length in bytes: truncates or extends.
    #[n(3)]
    pub length: Option<u64>,
    /// Time of last access.
    #[n(4)]
    pub accessed: Option<SetTime>,
    /// Time of last change of content.
    #[n(5)]
    pub modified: Option<SetTime>,
    /// The session through which a length is set (ftruncate): its open is the permission.
    #[n(6)]
    pub session: Option<SessionId>,
    /// Clear set-user-id and set-group-id as a write does.
    #[n(7)]
    pub clear_set_id: bool,
}

/// What a writer knows of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Written {
    /// The file is at least this long, in bytes: the end of what was written.
    #[n(0)]
    pub length: u64,
    /// Truncate version under which that was written (R19).
    #[n(1)]
    pub truncate_version: u64,
    /// When data were last written; absent if none were.
    #[n(2)]
    pub modified: Option<UnixTime>,
}

/// A metadata operation. Names are single components: no `/`, no NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Operation {
    /// Finds an entry. Answer: `Entry`. The name `..` finds the parent.
    #[n(0)]
    Lookup {
        /// The directory.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Attributes of an inode. Answer: `Entry`.
    #[n(1)]
    GetAttributes {
        /// The inode.
        #[n(0)]
        inode: InodeId,
    },
    /// Makes a regular file and opens it; an existing one is opened unless `exclusive`. Answer: `Opened`.
    #[n(2)]
    Create {
        /// The directory.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Permission bits, the umask already applied.
        #[n(2)]
        mode: u32,
        /// Fail if it exists.
        #[n(3)]
        exclusive: bool,
        /// How to open it.
        #[n(4)]
        flags: OpenFlags,
        /// Names the open, so that a handle can be rebuilt.
        #[n(5)]
        session: SessionId,
    },
    /// Opens a file. Answer: `Opened`.
    #[n(3)]
    Open {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// How.
        #[n(1)]
        flags: OpenFlags,
        /// Names the open.
        #[n(2)]
        session: SessionId,
    },
    /// Ends an open and settles the length. Answer: `Entry`.
    #[n(4)]
    Close {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// The open.
        #[n(1)]
        session: SessionId,
        /// What was written through it.
        #[n(2)]
        written: Option<Written>,
    },
    /// Settles the length of a file that stays open and makes the metadata durable. Answer: `Entry`.
    #[n(5)]
    Sync {
        /// The inode: a file or directory.
        #[n(0)]
        inode: InodeId,
        /// What was written.
        #[n(1)]
        written: Option<Written>,
    },
    /// Changes attributes. Answer: `Entry`.
    #[n(6)]
    SetAttributes {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// Which.
        #[n(1)]
        set: SetAttributes,
    },
    /// Makes a directory. Answer: `Entry`.
    #[n(7)]
    MakeDirectory {
        /// The parent.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Permission bits.
        #[n(2)]
        mode: u32,
    },
    /// Makes a special file, or a regular file without opening it. Answer: `Entry`.
    #[n(8)]
    MakeNode {
        /// The directory.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Its kind.
        #[n(2)]
        kind: FileKind,
        /// Permission bits.
        #[n(3)]
        mode: u32,
        /// Device number.
        #[n(4)]
        device: u64,
    },
    /// Makes a symbolic link. Answer: `Entry`.
    #[n(9)]
    MakeSymlink {
        /// The directory.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Where it points.
        #[cbor(n(2), with = "minicbor::bytes")]
        target: Vec<u8>,
    },
    /// Where a symbolic link points. Answer: `Link`.
    #[n(10)]
    ReadSymlink {
        /// The inode.
        #[n(0)]
        inode: InodeId,
    },
    /// Makes a hard link. Answer: `Entry`.
    #[n(11)]
    MakeLink {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// The directory of the new name.
        #[n(1)]
        parent: InodeId,
        /// The new name.
        #[cbor(n(2), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Removes an entry that is no directory. Answer: `Removed`.
    #[n(12)]
    Unlink {
        /// The directory.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Removes an empty directory. Answer: `Removed`.
    #[n(13)]
    RemoveDirectory {
        /// The parent.
        #[n(0)]
        parent: InodeId,
        /// The name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Moves an entry. Answer: `Removed` with the inode that was replaced, if any.
    #[n(14)]
    Rename {
        /// The old directory.
        #[n(0)]
        parent: InodeId,
        /// The old name.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// The new directory.
        #[n(2)]
        new_parent: InodeId,
        /// The new name.
        #[cbor(n(3), with = "minicbor::bytes")]
        new_name: Vec<u8>,
        /// Fail if the new name exists (RENAME_NOREPLACE).
        #[n(4)]
        no_replace: bool,
        /// Swap the two entries (RENAME_EXCHANGE).
        #[n(5)]
        exchange: bool,
    },
    /// A page of a directory. Answer: `Entries`.
    #[n(15)]
    ReadDirectory {
        /// The directory.
        #[n(0)]
        inode: InodeId,
        /// Entries behind this cookie; 0 from the start.
        #[n(1)]
        after: u64,
        /// Most entries.
        #[n(2)]
        limit: u32,
        /// Whether attributes are wanted too.
        #[n(3)]
        attributes: bool,
    },
    /// Totals. Answer: `Totals`.
    #[n(16)]
    StatFs,
    /// Renews capabilities at half-life (R20). Answer: `Renewed`.
    #[n(17)]
    Renew {
        /// The opens whose capabilities go on.
        #[n(0)]
        opens: Vec<(InodeId, SessionId)>,
        /// Those of them that are for writing: if the server has forgotten one (the client was away for longer
        /// than a capability lasts), it is recorded anew.
        #[n(1)]
        writers: Vec<SessionId>,
    },
    /// Checks access as access(2) does. Answer: `Entry`.
    #[n(18)]
    Access {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// 4 read, 2 write, 1 execute.
        #[n(1)]
        mask: u32,
    },
    /// Settles the length of a file that stays open, as close(2) promises it to those who open the file next.
    /// Unlike `Sync` it waits for no flush. Answer: `Entry`.
    #[n(19)]
    Settle {
        /// The inode.
        #[n(0)]
        inode: InodeId,
        /// What was written.
        #[n(1)]
        written: Option<Written>,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Response {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// For people, where the status alone says too little.
    #[n(1)]
    pub text: String,
    /// The result.
    #[n(2)]
    pub result: Answer,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DirectoryEntry {
    /// The name.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// The inode.
    #[n(1)]
    pub inode: InodeId,
    /// Its kind.
    #[n(2)]
    pub kind: FileKind,
    /// To go on behind this entry; greater than 2 and grows along the listing.
    #[n(3)]
    pub cookie: u64,
    /// Attributes, if they were asked for.
    #[n(4)]
    pub attributes: Option<Attributes>,
}

/// Totals of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Totals {
    /// Bytes of data that fit, replicas counted.
    #[n(0)]
    pub bytes_total: u64,
    /// Bytes of data that still fit.
    #[n(1)]
    pub bytes_free: u64,
    /// Inodes in use.
    #[n(2)]
    pub inodes: u64,
}

/// A capability with its inode's session.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RenewedOpen {
    /// The inode.
    #[n(0)]
    pub inode: InodeId,
    /// The open.
    #[n(1)]
    pub session: SessionId,
    /// `Ok`, or `Stale`: the open is unknown or the inode is gone (R3).
    #[n(2)]
    pub status: Status,
    /// The new capability.
    #[n(3)]
    pub capability: Option<Capability>,
}

/// Result of an operation.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// Nothing: the status is an error.
    #[n(0)]
    Nothing,
    /// An inode.
    #[n(1)]
    Entry(#[n(0)] Attributes),
    /// An open file.
    #[n(2)]
    Opened {
        /// The inode.
        #[n(0)]
        attributes: Attributes,
        /// The right to its data.
        #[n(1)]
        capability: Capability,
        /// Whether the file was made.
        #[n(2)]
        created: bool,
        /// Cluster time when the capability was minted.
        #[n(3)]
        cluster_time: ClusterTime,
        /// How long the capability lasts.
        #[n(4)]
        capability_ms: Millis,
    },
    /// An entry went.
    #[n(3)]
    Removed {
        /// The inode it named, if any, with its attributes afterwards.
        #[n(0)]
        attributes: Option<Attributes>,
    },
    /// Target of a symbolic link.
    #[n(4)]
    Link(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// A page of a directory.
    #[n(5)]
    Entries {
        /// The entries.
        #[n(0)]
        entries: Vec<DirectoryEntry>,
        /// Whether there are more.
        #[n(1)]
        more: bool,
    },
    /// Totals of the file system.
    #[n(6)]
    Totals(#[n(0)] Totals),
    /// Renewed capabilities.
    #[n(7)]
    Renewed {
        /// One row an open.
        #[n(0)]
        opens: Vec<RenewedOpen>,
        /// Cluster time when they were minted.
        #[n(1)]
        cluster_time: ClusterTime,
        /// How long they last.
        #[n(2)]
        capability_ms: Millis,
    },
}

cbor_body!(Request, Response);
