//! One transaction seen as the namespace: typed reads and writes of records. Inodes are decoded once.

use crate::codec::{counter, decode, encode};
use crate::error::{Result, ensure};
use crate::record::{Dentry, DirTimes, Inode, Session};
use crate::table;
use ember_kv::{Durability, KeyRange, RangeOptions, ReadMode, Tx};
use ember_types::collections::FixedHashMap;
use ember_types::file::{Attributes, Credentials};
use ember_types::{ClusterTime, InodeId, SessionId, Status, UnixTime};
use minicbor::Encode;
use std::time::Duration;

/// Sessions of one inode that are looked at; more count as "many".
const SESSIONS_SEEN: usize = 1024;

/// What an operation needs to know of the world.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    /// On whose behalf.
    pub who: &'a Credentials,
    /// Wall clock, for file times.
    pub now: UnixTime,
    /// Cluster time (R20), read before the transaction's first read.
    pub cluster: ClusterTime,
    /// Longest life of a capability plus twice the error of cluster time plus the longest transaction: data
    /// that lost their last name now may go after this (R18).
    pub hold: Duration,
    /// Boot id of this server, which owns the truncations it starts.
    pub owner: u64,
    /// How long this server may cut before it must claim a truncation again.
    pub claim: Duration,
}

/// A transaction seen as the namespace. Several operations may run in it one after the other; each sees the
/// effects of those before it.
pub struct Space<'t> {
    pub(crate) tx: &'t mut dyn Tx,
    mode: ReadMode,
    inodes: FixedHashMap<InodeId, Option<Inode>>,
}

impl<'t> Space<'t> {
    /// A transaction that will be committed.
    pub fn new(tx: &'t mut dyn Tx) -> Self {
        Self { tx, mode: ReadMode::Serializable, inodes: FixedHashMap::default() }
    }

    /// A transaction that only reads one consistent state.
    pub fn read_only(tx: &'t mut dyn Tx) -> Self {
        Self { tx, mode: ReadMode::Snapshot, inodes: FixedHashMap::default() }
    }

    /// What is done here must survive a power failure before anybody acts on it (R3, R18).
    pub(crate) fn require_durable(&mut self) {
        self.tx.set_durability(Durability::Durable);
    }

    pub(crate) async fn value(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.tx.get(key, self.mode).await?)
    }

    pub(crate) async fn scan(&mut self, range: KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let options = RangeOptions { limit, reverse: false, mode: self.mode };
        Ok(self.tx.get_range(range, options).await?)
    }

    pub(crate) fn put<T: Encode<()>>(&mut self, key: &[u8], value: &T) {
        self.tx.set(key, &encode(value));
    }

    /// The inode record, if there is one.
    pub async fn find_inode(&mut self, id: InodeId) -> Result<Option<Inode>> {
        if let Some(known) = self.inodes.get(&id) {
            return Ok(known.clone());
        }
        let key = table::inode(id);
        let inode = match self.value(&key).await? {
            Some(bytes) => Some(decode::<Inode>(table::INODE.name, &key, &bytes)?),
            None => None,
        };
        self.inodes.insert(id, inode.clone());
        Ok(inode)
    }

    /// The inode, `Stale` if it is gone (R3).
    pub async fn inode(&mut self, id: InodeId) -> Result<Inode> {
        match self.find_inode(id).await? {
            Some(inode) => Ok(inode),
            None => Err(Status::Stale.into()),
        }
    }

    /// The directory, `NotDirectory` if it is something else.
    pub(crate) async fn directory(&mut self, id: InodeId) -> Result<Inode> {
        let inode = self.inode(id).await?;
        ensure(inode.is_directory(), Status::NotDirectory)?;
        Ok(inode)
    }

    pub(crate) fn put_inode(&mut self, id: InodeId, inode: Inode) {
        self.put(&table::inode(id), &inode);
        self.inodes.insert(id, Some(inode));
    }

    pub(crate) fn clear_inode(&mut self, id: InodeId) {
        self.tx.clear(&table::inode(id));
        self.inodes.insert(id, None);
    }

    pub(crate) async fn dir_times(&mut self, id: InodeId) -> Result<DirTimes> {
        let key = table::times(id);
        match self.value(&key).await? {
            Some(bytes) => decode(table::TIMES.name, &key, &bytes),
            None => Ok(DirTimes::default()),
        }
    }

    pub(crate) fn put_dir_times(&mut self, id: InodeId, times: DirTimes) {
        self.put(&table::times(id), &times);
    }

    /// Notes that entries of a directory changed, without reading it.
    pub(crate) fn touch_dir(&mut self, id: InodeId, now: UnixTime) {
        self.put_dir_times(id, DirTimes { modified: now, changed: now });
    }

    /// Changes the number of sub-directories, without reading it.
    pub(crate) fn add_subdirs(&mut self, id: InodeId, delta: i64) {
        self.tx.atomic_add(&table::subdirs(id), delta);
    }

    pub(crate) fn count_inodes(&mut self, delta: i64) {
        self.tx.atomic_add(&table::counter(INODES), delta);
    }

    /// Number of inodes, for statfs.
    pub async fn inode_count(&mut self) -> Result<u64> {
        let key = table::counter(INODES);
        let value = self.value(&key).await?;
        counter(table::COUNTER.name, &key, value.as_deref())
    }

    /// What `stat` shows.
    pub async fn attributes(&mut self, id: InodeId, inode: &Inode) -> Result<Attributes> {
        let mut attributes = Attributes {
            inode: id,
            kind: inode.kind,
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            length: inode.length,
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
            device: inode.device,
            layout: inode.layout,
            data: inode.data,
            truncate_version: inode.truncate_version,
            content_version: inode.content_version,
            truncating_to: inode.truncating_to,
        };
        if inode.is_directory() {
            let times = self.dir_times(id).await?;
            attributes.modified = times.modified;
            attributes.changed = times.changed;
            let key = table::subdirs(id);
            let value = self.value(&key).await?;
            let subdirs = counter(table::SUBDIRS.name, &key, value.as_deref())?;
            let links = subdirs.saturating_add(2).min(u64::from(u32::MAX)) as u32;
            attributes.links = if inode.links == 0 { 0 } else { links };
        }
        Ok(attributes)
    }

    /// The inode's attributes, by id.
    pub(crate) async fn attributes_of(&mut self, id: InodeId) -> Result<Attributes> {
        let inode = self.inode(id).await?;
        self.attributes(id, &inode).await
    }

    pub(crate) async fn find_session(
        &mut self,
        inode: InodeId,
        session: SessionId,
    ) -> Result<Option<Session>> {
        let key = table::session(inode, session);
        match self.value(&key).await? {
            Some(bytes) => Ok(Some(decode(table::SESSION.name, &key, &bytes)?)),
            None => Ok(None),
        }
    }

    /// Open sessions of an inode.
    pub(crate) async fn sessions(&mut self, inode: InodeId) -> Result<Vec<(SessionId, Session)>> {
        let mut sessions = Vec::new();
        for (key, value) in self.scan(table::sessions(inode), SESSIONS_SEEN).await? {
            if let Some((_, id)) = table::session_ids(&key) {
                sessions.push((id, decode(table::SESSION.name, &key, &value)?));
            }
        }
        Ok(sessions)
    }

    pub(crate) fn put_dentry(&mut self, directory: InodeId, position: u64, entry: &Dentry) {
        self.put(&table::dentry(directory, position), entry);
    }
}

/// Counter of inodes.
pub(crate) const INODES: &str = "inodes";
