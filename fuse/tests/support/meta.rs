//! A metadata service in memory: enough of the semantics for what a mount asks.

use ember_types::file::{Attributes, Credentials, FileKind};
use ember_types::{
    Capability, ChainTableId, ChainTableVersion, ClusterTime, DataId, InodeId, Layout, Millis, SessionId,
    Status, UnixTime,
};
use ember_wire::meta::{
    Answer, DirectoryEntry, OpenFlags, Operation, RenewedOpen, Request, SetAttributes, SetTime, Totals,
    Written,
};
use std::collections::{BTreeMap, BTreeSet};

pub const CHUNK: u32 = 64 << 10;

pub struct Inode {
    pub attributes: Attributes,
    names: BTreeMap<Vec<u8>, (InodeId, u64)>,
    target: Vec<u8>,
    parent: InodeId,
}

/// Bytes of chunks, cut by truncation.
pub type Chunks = BTreeMap<(DataId, u32), Vec<u8>>;

#[derive(Default)]
pub struct Meta {
    pub inodes: BTreeMap<InodeId, Inode>,
    pub sessions: BTreeSet<SessionId>,
    pub syncs: u64,
    next: u64,
    clock: i64,
}

type Result<T> = std::result::Result<T, Status>;

fn allowed(who: &Credentials, attributes: &Attributes, mask: u32) -> Result<()> {
    let class = if who.uid == attributes.uid {
        6
    } else if who.gid == attributes.gid || who.groups.contains(&attributes.gid) {
        3
    } else {
        0
    };
    let granted = who.uid == 0 || (attributes.mode >> class) & mask == mask;
    if granted { Ok(()) } else { Err(Status::PermissionDenied) }
}

impl Meta {
    pub fn new() -> Self {
        let mut meta = Self { next: 1, ..Self::default() };
        let root = meta.make(&Credentials::default(), FileKind::Directory, 0o777);
        meta.inodes.get_mut(&root).unwrap().parent = root;
        meta
    }

    fn now(&mut self) -> UnixTime {
        self.clock += 1;
        UnixTime { seconds: 1_700_000_000 + self.clock, nanos: 0 }
    }

    fn make(&mut self, who: &Credentials, kind: FileKind, mode: u32) -> InodeId {
        let id = InodeId(self.next);
        self.next += 1;
        let now = self.now();
        let layout = Layout::new(ChainTableId(1), ChainTableVersion(1), CHUNK, 2, 0, id.0);
        let attributes = Attributes {
            inode: id,
            kind,
            mode,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            uid: who.uid,
            gid: who.gid,
            length: 0,
            accessed: now,
            modified: now,
            changed: now,
            device: 0,
            layout: layout.filter(|_| kind == FileKind::File),
            data: DataId(id.0 + 1_000_000),
            truncate_version: 0,
            content_version: 0,
            truncating_to: None,
        };
        let parent = InodeId(0);
        self.inodes.insert(id, Inode { attributes, names: BTreeMap::new(), target: Vec::new(), parent });
        id
    }

    fn inode(&mut self, id: InodeId) -> Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or(Status::Stale)
    }

    fn find(&mut self, parent: InodeId, name: &[u8]) -> Result<InodeId> {
        let directory = self.inode(parent)?;
        if name == b".." {
            return Ok(directory.parent);
        }
        directory.names.get(name).map(|&(id, _)| id).ok_or(Status::NotFound)
    }

    fn add(&mut self, parent: InodeId, name: Vec<u8>, id: InodeId) -> Result<()> {
        let now = self.now();
        self.next += 1;
        let cookie = self.next + 10;
        let directory = self.inode(parent)?;
        directory.names.insert(name, (id, cookie));
        directory.attributes.modified = now;
        let is_directory = self.inode(id)?.attributes.kind == FileKind::Directory;
        if is_directory {
            self.inode(id)?.parent = parent;
        }
        Ok(())
    }

    fn create(
        &mut self,
        who: &Credentials,
        at: (InodeId, Vec<u8>),
        kind: FileKind,
        mode: u32,
    ) -> Result<InodeId> {
        if self.find(at.0, &at.1).is_ok() {
            return Err(Status::Exists);
        }
        let id = self.make(who, kind, mode);
        self.add(at.0, at.1, id)?;
        Ok(id)
    }

    fn remove(&mut self, parent: InodeId, name: &[u8], directory: bool) -> Result<Attributes> {
        let id = self.find(parent, name)?;
        let inode = self.inode(id)?;
        match (directory, inode.attributes.kind == FileKind::Directory) {
            (true, false) => return Err(Status::NotDirectory),
            (false, true) => return Err(Status::IsDirectory),
            (true, true) if !inode.names.is_empty() => return Err(Status::NotEmpty),
            _ => {}
        }
        inode.attributes.links -= 1;
        let attributes = inode.attributes.clone();
        self.inode(parent)?.names.remove(name);
        Ok(attributes)
    }

    fn cut(&mut self, id: InodeId, length: u64, chunks: &mut Chunks) -> Result<()> {
        let now = self.now();
        let attributes = &mut self.inode(id)?.attributes;
        attributes.length = length;
        attributes.truncate_version += 1;
        attributes.content_version += 1;
        attributes.modified = now;
        let data = attributes.data;
        chunks.retain(|&(own, index), bytes| {
            let start = u64::from(index) * u64::from(CHUNK);
            if own == data {
                bytes.truncate(length.saturating_sub(start) as usize);
            }
            own != data || start < length
        });
        Ok(())
    }

    fn settle(&mut self, id: InodeId, written: Option<Written>) -> Result<Answer> {
        let attributes = &mut self.inode(id)?.attributes;
        if let Some(written) = written {
            if written.truncate_version == attributes.truncate_version {
                attributes.length = attributes.length.max(written.length);
            }
            attributes.modified = written.modified.unwrap_or(attributes.modified);
            attributes.content_version += 1;
        }
        Ok(Answer::Entry(attributes.clone()))
    }

    fn open(
        &mut self,
        who: &Credentials,
        id: InodeId,
        (flags, session, created): (OpenFlags, SessionId, bool),
        chunks: &mut Chunks,
    ) -> Result<Answer> {
        let mask = if flags.write { 2 } else { 0 } | if flags.read { 4 } else { 0 };
        if !created {
            allowed(who, &self.inode(id)?.attributes, mask)?;
        }
        if flags.truncate && !created {
            self.cut(id, 0, chunks)?;
        }
        self.sessions.insert(session);
        Ok(Answer::Opened {
            attributes: self.inode(id)?.attributes.clone(),
            capability: Capability::NONE,
            created,
            cluster_time: ClusterTime(1),
            capability_ms: Millis(60_000),
        })
    }

    fn set(
        &mut self,
        who: &Credentials,
        id: InodeId,
        set: SetAttributes,
        chunks: &mut Chunks,
    ) -> Result<Answer> {
        if let Some(length) = set.length {
            self.cut(id, length, chunks)?;
        }
        let now = self.now();
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(at) => at,
        };
        let in_group = |gid| who.uid == 0 || who.gid == gid || who.groups.contains(&gid);
        let attributes = &mut self.inode(id)?.attributes;
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        if let Some(mode) = set.mode {
            attributes.mode = if in_group(attributes.gid) { mode } else { mode & !0o2000 };
        }
        if set.clear_set_id && who.uid != 0 {
            attributes.mode &= !0o6000;
        }
        attributes.accessed = set.accessed.map_or(attributes.accessed, time);
        attributes.modified = set.modified.map_or(attributes.modified, time);
        attributes.changed = now;
        Ok(Answer::Entry(attributes.clone()))
    }

    fn list(&mut self, id: InodeId, after: u64, limit: u32, plus: bool) -> Result<Answer> {
        let directory = self.inodes.get(&id).ok_or(Status::Stale)?;
        let mut rows: Vec<_> = directory.names.iter().filter(|(_, (_, cookie))| *cookie > after).collect();
        rows.sort_by_key(|(_, (_, cookie))| *cookie);
        let more = rows.len() > limit as usize;
        let entries = rows.into_iter().take(limit as usize).map(|(name, &(inode, cookie))| {
            let attributes = &self.inodes[&inode].attributes;
            let kind = attributes.kind;
            let attributes = plus.then(|| attributes.clone());
            DirectoryEntry { name: name.clone(), inode, kind, cookie, attributes }
        });
        Ok(Answer::Entries { entries: entries.collect(), more })
    }

    fn rename(
        &mut self,
        from: (InodeId, Vec<u8>),
        to: (InodeId, Vec<u8>),
        flags: (bool, bool),
    ) -> Result<Answer> {
        let id = self.find(from.0, &from.1)?;
        let old = self.find(to.0, &to.1).ok();
        match (flags, old) {
            ((true, _), Some(_)) => return Err(Status::Exists),
            ((_, true), None) => return Err(Status::NotFound),
            _ => {}
        }
        self.inode(from.0)?.names.remove(&from.1);
        self.add(to.0, to.1, id)?;
        if let (true, Some(old)) = (flags.1, old) {
            self.add(from.0, from.1, old)?;
        }
        Ok(Answer::Removed { attributes: None })
    }

    pub fn apply(&mut self, request: Request, chunks: &mut Chunks) -> Result<Answer> {
        let who = &request.credentials;
        let entry = |meta: &mut Self, id| Ok(Answer::Entry(meta.inode(id)?.attributes.clone()));
        match request.operation {
            Operation::Lookup { parent, name } => {
                let id = self.find(parent, &name)?;
                entry(self, id)
            }
            Operation::GetAttributes { inode } | Operation::Access { inode, .. } => entry(self, inode),
            Operation::Create { parent, name, mode, exclusive, flags, session } => {
                match self.find(parent, &name) {
                    Ok(_) if exclusive => Err(Status::Exists),
                    Ok(id) => self.open(who, id, (flags, session, false), chunks),
                    Err(_) => {
                        let id = self.create(who, (parent, name), FileKind::File, mode)?;
                        self.open(who, id, (flags, session, true), chunks)
                    }
                }
            }
            Operation::Open { inode, flags, session } => {
                self.open(who, inode, (flags, session, false), chunks)
            }
            Operation::Close { inode, session, written } => {
                self.sessions.remove(&session);
                self.settle(inode, written)
            }
            Operation::Sync { inode, written } => {
                self.syncs += 1;
                self.settle(inode, written)
            }
            Operation::Settle { inode, written } => self.settle(inode, written),
            Operation::SetAttributes { inode, set } => self.set(who, inode, set, chunks),
            Operation::MakeDirectory { parent, name, mode } => {
                let id = self.create(who, (parent, name), FileKind::Directory, mode)?;
                entry(self, id)
            }
            Operation::MakeNode { parent, name, kind, mode, device } => {
                let id = self.create(who, (parent, name), kind, mode)?;
                self.inode(id)?.attributes.device = device;
                entry(self, id)
            }
            Operation::MakeSymlink { parent, name, target } => {
                let id = self.create(who, (parent, name), FileKind::Symlink, 0o777)?;
                let inode = self.inode(id)?;
                inode.attributes.length = target.len() as u64;
                inode.target = target;
                entry(self, id)
            }
            Operation::ReadSymlink { inode } => Ok(Answer::Link(self.inode(inode)?.target.clone())),
            Operation::MakeLink { inode, parent, name } => {
                self.add(parent, name, inode)?;
                self.inode(inode)?.attributes.links += 1;
                entry(self, inode)
            }
            Operation::Unlink { parent, name } => {
                Ok(Answer::Removed { attributes: Some(self.remove(parent, &name, false)?) })
            }
            Operation::RemoveDirectory { parent, name } => {
                Ok(Answer::Removed { attributes: Some(self.remove(parent, &name, true)?) })
            }
            Operation::Rename { parent, name, new_parent, new_name, no_replace, exchange } => {
                self.rename((parent, name), (new_parent, new_name), (no_replace, exchange))
            }
            Operation::ReadDirectory { inode, after, limit, attributes } => {
                self.list(inode, after, limit, attributes)
            }
            Operation::StatFs => Ok(totals(self.inodes.len() as u64)),
            Operation::Renew { opens, .. } => Ok(renewed(opens)),
        }
    }
}

fn totals(inodes: u64) -> Answer {
    Answer::Totals(Totals { bytes_total: 1 << 40, bytes_free: 1 << 39, inodes })
}

fn renewed(opens: Vec<(InodeId, SessionId)>) -> Answer {
    let renew = |(inode, session)| {
        let capability = Some(Capability::NONE);
        RenewedOpen { inode, session, status: Status::Ok, capability }
    };
    Answer::Renewed {
        opens: opens.into_iter().map(renew).collect(),
        cluster_time: ClusterTime(1),
        capability_ms: Millis(60_000),
    }
}
