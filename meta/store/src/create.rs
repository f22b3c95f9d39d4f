//! Operations that make entries: files, directories, special files, symbolic and hard links.

use crate::access::{self, EXECUTE, WRITE};
use crate::dentry::check_name;
use crate::error::{Result, ensure};
use crate::file::{OpenRequest, Opened};
use crate::record::Inode;
use crate::space::{Env, Space};
use crate::truncate::Progress;
use ember_types::file::{Attributes, FileKind, LINK_MAX, SYMLINK_MAX};
use ember_types::{ChainTableId, ChainTableVersion, DataId, InodeId, Layout, Status};
use std::collections::BTreeMap;

/// Ids for what an operation makes, from a durably reserved range (R3). Unused ones are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewIds {
    /// A new inode.
    pub inode: InodeId,
    /// New data: of the inode, or of a file that is cut to nothing.
    pub data: DataId,
}

/// How new files are laid out.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Placement {
    /// Newest version of each chain table.
    pub tables: BTreeMap<ChainTableId, ChainTableVersion>,
    /// For files whose directory has no template: table, chunk size and stripe count.
    pub default: Option<Layout>,
    /// Where this file's chains start, round robin per table.
    pub base: u32,
    /// Permutes this file's chains.
    pub seed: u64,
}

impl Placement {
    /// The layout of a new file; `None` if there is no such chain table (yet).
    pub fn place(&self, template: Option<&Layout>) -> Option<Layout> {
        let wanted = template.or(self.default.as_ref())?;
        let version = *self.tables.get(&wanted.table())?;
        Layout::new(wanted.table(), version, wanted.chunk_size(), wanted.stripe(), self.base, self.seed)
    }
}

/// What a new inode is, beyond what it inherits.
struct New {
    kind: FileKind,
    mode: u32,
    device: u64,
    target: Vec<u8>,
    layout: Option<Layout>,
}

impl New {
    fn of(kind: FileKind, mode: u32) -> Self {
        Self { kind, mode, device: 0, target: Vec::new(), layout: None }
    }
}

/// Kind, permission bits and device of a new special or regular file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRequest {
    /// Kind: not a directory nor a symbolic link.
    pub kind: FileKind,
    /// Permission bits, the umask already applied.
    pub mode: u32,
    /// Device number, of devices.
    pub device: u64,
}

impl Space<'_> {
    /// The directory in which a name may be made: searchable, writable, not removed, without that name.
    async fn room_for(&mut self, env: &Env<'_>, parent: InodeId, name: &[u8]) -> Result<Inode> {
        let directory = self.directory(parent).await?;
        access::check(env.who, &directory, EXECUTE)?;
        check_name(name)?;
        ensure(directory.links > 0, Status::NotFound)?;
        ensure(self.find_entry(parent, name).await?.is_none(), Status::Exists)?;
        access::check(env.who, &directory, WRITE)?;
        Ok(directory)
    }

    async fn make(
        &mut self,
        env: &Env<'_>,
        (parent, directory): (InodeId, &Inode),
        name: &[u8],
        ids: NewIds,
        new: New,
    ) -> Result<Inode> {
        let is_directory = new.kind == FileKind::Directory;
        let (mode, gid) = access::inherited(env.who, directory, new.mode, is_directory);
        let inode = Inode {
            kind: new.kind,
            mode,
            uid: env.who.uid,
            gid,
            links: 1,
            length: new.target.len() as u64,
            accessed: env.now,
            modified: env.now,
            changed: env.now,
            device: new.device,
            layout: new.layout,
            data: if new.kind == FileKind::File { ids.data } else { DataId(0) },
            truncate_version: 0,
            content_version: 0,
            truncating_to: None,
            parent: if is_directory { parent } else { InodeId(0) },
            target: new.target,
            extent: 0,
            collecting: false,
        };
        self.insert_entry(parent, name, ids.inode, new.kind).await?;
        self.put_inode(ids.inode, inode.clone());
        self.touch_dir(parent, env.now);
        if is_directory {
            self.touch_dir(ids.inode, env.now);
            self.add_subdirs(parent, 1);
        }
        self.count_inodes(1);
        Ok(inode)
    }

    /// Makes a regular file and opens it. An existing one is opened as [`Space::open`] does, unless
    /// `exclusive`. `Unavailable` if there is no chain table to lay it out on.
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        open: &OpenRequest,
        ids: NewIds,
        placement: &Placement,
    ) -> Result<Progress<Opened>> {
        let directory = self.directory(parent).await?;
        access::check(env.who, &directory, EXECUTE)?;
        check_name(name)?;
        if let Some(found) = self.find_entry(parent, name).await? {
            ensure(!exclusive, Status::Exists)?;
            ensure(found.entry.kind != FileKind::Directory, Status::IsDirectory)?;
            return self.open(env, found.entry.inode, open, ids.data).await;
        }
        ensure(directory.links > 0, Status::NotFound)?;
        access::check(env.who, &directory, WRITE)?;
        let layout = placement.place(directory.layout.as_ref());
        ensure(layout.is_some(), Status::Unavailable)?;
        let new = New { layout, ..New::of(FileKind::File, mode) };
        let inode = self.make(env, (parent, &directory), name, ids, new).await?;
        let attributes = self.attributes(ids.inode, &inode).await?;
        self.begin_session(ids.inode, open);
        Ok(Progress::Done(Opened { attributes, rights: open.flags.rights(), created: true }))
    }

    /// Makes a special file, or a regular file without opening it.
    pub async fn make_node(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
        node: NodeRequest,
        ids: NewIds,
        placement: &Placement,
    ) -> Result<Attributes> {
        let directory = self.room_for(env, parent, name).await?;
        let mut new = New::of(node.kind, node.mode);
        match node.kind {
            FileKind::Directory | FileKind::Symlink => return Err(Status::InvalidArgument.into()),
            FileKind::CharDevice | FileKind::BlockDevice => {
                ensure(access::is_root(env.who), Status::NotPermitted)?;
                new.device = node.device;
            }
            FileKind::File => {
                new.layout = placement.place(directory.layout.as_ref());
                ensure(new.layout.is_some(), Status::Unavailable)?;
            }
            FileKind::Fifo | FileKind::Socket => {}
        }
        let inode = self.make(env, (parent, &directory), name, ids, new).await?;
        self.attributes(ids.inode, &inode).await
    }

    /// Makes a directory.
    pub async fn make_directory(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        ids: NewIds,
    ) -> Result<Attributes> {
        let directory = self.room_for(env, parent, name).await?;
        let new = New { layout: directory.layout, ..New::of(FileKind::Directory, mode) };
        let inode = self.make(env, (parent, &directory), name, ids, new).await?;
        self.attributes(ids.inode, &inode).await
    }

    /// Makes a symbolic link.
    pub async fn make_symlink(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        ids: NewIds,
    ) -> Result<Attributes> {
        ensure(!target.is_empty(), Status::NotFound)?;
        ensure(target.len() <= SYMLINK_MAX, Status::NameTooLong)?;
        ensure(!target.contains(&0), Status::InvalidArgument)?;
        let directory = self.room_for(env, parent, name).await?;
        let new = New { target: target.to_vec(), ..New::of(FileKind::Symlink, 0o777) };
        let inode = self.make(env, (parent, &directory), name, ids, new).await?;
        self.attributes(ids.inode, &inode).await
    }

    /// Makes a hard link.
    pub async fn make_link(
        &mut self,
        env: &Env<'_>,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attributes> {
        let mut record = self.inode(inode).await?;
        self.room_for(env, parent, name).await?;
        ensure(!record.is_directory(), Status::NotPermitted)?;
        ensure(record.links > 0, Status::NotFound)?;
        ensure(record.links < LINK_MAX, Status::TooManyLinks)?;
        self.insert_entry(parent, name, inode, record.kind).await?;
        record.links += 1;
        record.changed = env.now;
        self.put_inode(inode, record.clone());
        self.touch_dir(parent, env.now);
        self.attributes(inode, &record).await
    }
}
