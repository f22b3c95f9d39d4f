//! Operations that change nothing: lookup, attributes, access, readlink, readdir. And the root directory.

use crate::access::{self, EXECUTE};
use crate::dentry::Place;
use crate::error::{Result, ensure};
use crate::record::{Dentry, Inode};
use crate::space::{Env, Space};
use ember_types::file::{Attributes, FileKind, NAME_MAX};
use ember_types::{DataId, InodeId, Layout, Status, UnixTime};

/// Most entries of one page.
pub const PAGE_MAX: u32 = 4096;

/// An entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// To go on behind it.
    pub cookie: u64,
    /// Attributes, if they were asked for.
    pub attributes: Option<Attributes>,
}

/// A page of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Listed>,
    /// Whether there are more.
    pub more: bool,
}

impl Space<'_> {
    /// Makes the root directory (mode 0755, owned by root) if the store has none. Whether it was made.
    pub async fn format(&mut self, now: UnixTime, template: Option<Layout>) -> Result<bool> {
        if self.find_inode(InodeId::ROOT).await?.is_some() {
            return Ok(false);
        }
        let root = Inode {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            length: 0,
            accessed: now,
            modified: now,
            changed: now,
            device: 0,
            layout: template,
            data: DataId(0),
            truncate_version: 0,
            content_version: 0,
            truncating_to: None,
            parent: InodeId::ROOT,
            target: Vec::new(),
            extent: 0,
            collecting: false,
        };
        self.put_inode(InodeId::ROOT, root);
        self.touch_dir(InodeId::ROOT, now);
        self.count_inodes(1);
        Ok(true)
    }

    /// Finds an entry; `.` and `..` too.
    pub async fn lookup(&mut self, env: &Env<'_>, parent: InodeId, name: &[u8]) -> Result<Attributes> {
        let directory = self.directory(parent).await?;
        access::check(env.who, &directory, EXECUTE)?;
        match name {
            b"." => self.attributes(parent, &directory).await,
            b".." => self.attributes_of(directory.parent).await,
            _ => {
                ensure(name.len() <= NAME_MAX, Status::NameTooLong)?;
                match self.find_entry(parent, name).await? {
                    Some(found) => self.attributes_of(found.entry.inode).await,
                    None => Err(Status::NotFound.into()),
                }
            }
        }
    }

    /// Attributes of an inode.
    pub async fn get_attributes(&mut self, inode: InodeId) -> Result<Attributes> {
        self.attributes_of(inode).await
    }

    /// Checks access as access(2) does: 4 read, 2 write, 1 execute, 0 existence.
    pub async fn check_access(&mut self, env: &Env<'_>, inode: InodeId, mask: u32) -> Result<Attributes> {
        ensure(mask <= 7, Status::InvalidArgument)?;
        let record = self.inode(inode).await?;
        access::check(env.who, &record, mask)?;
        self.attributes(inode, &record).await
    }

    /// Target of a symbolic link.
    pub async fn read_symlink(&mut self, inode: InodeId) -> Result<Vec<u8>> {
        let record = self.inode(inode).await?;
        ensure(record.kind == FileKind::Symlink, Status::InvalidArgument)?;
        Ok(record.target)
    }

    /// A page of at most `limit` entries (1 to [`PAGE_MAX`]) behind the cookie `after` (0: from the start).
    /// `.` and `..` are not among them. Permission was checked when the directory was opened.
    pub async fn read_directory(
        &mut self,
        inode: InodeId,
        after: u64,
        limit: u32,
        attributes: bool,
    ) -> Result<Page> {
        self.directory(inode).await?;
        let limit = limit.clamp(1, PAGE_MAX) as usize;
        let mut page = Page { entries: Vec::new(), more: true };
        let mut from = after;
        // Only a page of nothing but vacant places, of which a hash has one, goes round again.
        while page.more && page.entries.is_empty() {
            let (places, more) = self.list(inode, from, limit).await?;
            page.more = more;
            from = places.last().map_or(from, |p| p.position);
            for place in places {
                if place.entry.inode != InodeId(0) {
                    page.entries.push(self.listed(place, attributes).await?);
                }
            }
        }
        Ok(page)
    }

    async fn listed(&mut self, place: Place, attributes: bool) -> Result<Listed> {
        let id = place.entry.inode;
        let found = match attributes {
            true => self.find_inode(id).await?,
            false => None,
        };
        let attributes = match &found {
            Some(record) => Some(self.attributes(id, record).await?),
            None => None,
        };
        let Dentry { name, inode, kind, .. } = place.entry;
        Ok(Listed { name, inode, kind, cookie: place.position, attributes })
    }
}
