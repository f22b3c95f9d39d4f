//! Keys. Every key of this crate starts with `m` and the table's letter; integers are big-endian.
//! `docs/design/meta.md` has the byte boxes.

use ember_kv::KeyRange;
use ember_kv::key::{KeyReader, KeyWriter};
use ember_types::{ClientId, ClusterTime, DataId, InodeId, SessionId};

/// First byte of every key of the namespace.
pub const SPACE: u8 = b'm';

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $letter:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Table = Table { letter: $letter, name: $text };)*
        /// Every table.
        pub const ALL: &[Table] = &[$($name),*];
    };
}

/// A table: its letter in keys and its name in messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Second byte of its keys.
    pub letter: u8,
    /// For people.
    pub name: &'static str,
}

tables! {
    /// inode → [`Inode`](crate::record::Inode).
    INODE = b'I', "inode";
    /// directory → [`DirTimes`](crate::record::DirTimes), set without being read.
    TIMES = b'T', "directory times";
    /// directory → number of sub-directories, kept by atomic adds.
    SUBDIRS = b'L', "sub-directories";
    /// directory, position → [`Dentry`](crate::record::Dentry).
    DENTRY = b'D', "dentry";
    /// inode, session → [`Session`](crate::record::Session).
    SESSION = b'S', "session";
    /// inode → cluster time in ms until which its data stay (R18), a little-endian u64.
    HOLD = b'H', "hold";
    /// due time, inode, data → [`Garbage`](crate::record::Garbage).
    GARBAGE = b'G', "garbage";
    /// inode → [`Intent`](crate::record::Intent) of a truncation (R19).
    INTENT = b'C', "truncation";
    /// client, slot → [`RequestRecord`](crate::record::RequestRecord).
    REQUEST = b'R', "request";
    /// name → counter, a little-endian u64.
    COUNTER = b'N', "counter";
}

impl Table {
    fn key(self) -> KeyWriter {
        KeyWriter::table(SPACE).u8(self.letter)
    }

    /// Every key of the table.
    pub fn range(self) -> KeyRange {
        self.key().range()
    }

    /// Goes past the table's prefix of `key`.
    pub(crate) fn reader(self, key: &[u8]) -> Option<KeyReader<'_>> {
        let mut reader = KeyReader::new(key);
        reader.table(SPACE)?;
        reader.table(self.letter)?;
        Some(reader)
    }
}

/// Key of an inode.
pub fn inode(id: InodeId) -> Vec<u8> {
    INODE.key().u64(id.0).finish()
}

/// Key of a directory's times.
pub fn times(id: InodeId) -> Vec<u8> {
    TIMES.key().u64(id.0).finish()
}

/// Key of a directory's number of sub-directories.
pub fn subdirs(id: InodeId) -> Vec<u8> {
    SUBDIRS.key().u64(id.0).finish()
}

/// Key of a directory entry.
pub fn dentry(directory: InodeId, position: u64) -> Vec<u8> {
    DENTRY.key().u64(directory.0).u64(position).finish()
}

/// Keys of a directory's entries.
pub fn dentries(directory: InodeId) -> KeyRange {
    DENTRY.key().u64(directory.0).range()
}

/// Position in the key of a directory entry.
pub fn dentry_position(key: &[u8]) -> Option<u64> {
    let mut reader = DENTRY.reader(key)?;
    reader.u64()?;
    reader.u64()
}

/// Key of a session.
pub fn session(inode: InodeId, session: SessionId) -> Vec<u8> {
    SESSION.key().u64(inode.0).raw(&session.0).finish()
}

/// Keys of an inode's sessions.
pub fn sessions(inode: InodeId) -> KeyRange {
    SESSION.key().u64(inode.0).range()
}

/// Inode and session in the key of a session.
pub fn session_ids(key: &[u8]) -> Option<(InodeId, SessionId)> {
    let mut reader = SESSION.reader(key)?;
    let inode = InodeId(reader.u64()?);
    Some((inode, SessionId::from_u128(reader.u128()?)))
}

/// Key of the time until which an unlinked inode's data stay.
pub fn hold(inode: InodeId) -> Vec<u8> {
    HOLD.key().u64(inode.0).finish()
}

/// Key of an item of garbage.
pub fn garbage(due: ClusterTime, inode: InodeId, data: DataId) -> Vec<u8> {
    GARBAGE.key().u64(due.0).u64(inode.0).u64(data.0).finish()
}

/// Keys of garbage that is due at `now`.
pub fn garbage_due(now: ClusterTime) -> KeyRange {
    KeyRange::new(GARBAGE.key().finish(), GARBAGE.key().u64(now.0.saturating_add(1)).finish())
}

/// Due time, inode and data in the key of an item of garbage.
pub fn garbage_ids(key: &[u8]) -> Option<(ClusterTime, InodeId, DataId)> {
    let mut reader = GARBAGE.reader(key)?;
    Some((ClusterTime(reader.u64()?), InodeId(reader.u64()?), DataId(reader.u64()?)))
}

/// Key of a truncation.
pub fn intent(inode: InodeId) -> Vec<u8> {
    INTENT.key().u64(inode.0).finish()
}

/// Inode in the key of a truncation.
pub fn intent_inode(key: &[u8]) -> Option<InodeId> {
    INTENT.reader(key)?.u64().map(InodeId)
}

/// Key of a client's request record.
pub fn request(client: ClientId, slot: u16) -> Vec<u8> {
    REQUEST.key().raw(&client.0).u16(slot).finish()
}

/// Keys of a client's request records.
pub fn requests(client: ClientId) -> KeyRange {
    REQUEST.key().raw(&client.0).range()
}

/// Key of a counter.
pub fn counter(name: &str) -> Vec<u8> {
    COUNTER.key().raw(name.as_bytes()).finish()
}
