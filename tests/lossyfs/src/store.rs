//! What the file system holds, and what each request does with it. One lock is held around all of it, so a flush is
//! over when it is answered.

use crate::content::{Content, PAGE};
use crate::names::Names;
use ember_fuse_kernel::abi::*;
use ember_fuse_kernel::{Cookie, DirBuf, Errno, Op, Pushed, Reply, Request};
use ember_types::layout::SplitMix64;
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// How long the kernel may keep names: nobody else changes them.
const ENTRY_TTL: Duration = Duration::from_secs(3600);
const ATTR_TTL: Duration = Duration::from_secs(1);
/// Longest name.
const NAME_MAX: usize = 255;
/// rename only if the new name is free.
const RENAME_NOREPLACE: u32 = 1;
const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 16;

/// An inode. Its attributes count as durable: what a power loss does to them is not modelled.
struct Inode {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    content: Content,
    opens: u64,
    changed: Duration,
}

/// What a power loss took.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Loss {
    /// Files that had bytes which were not flushed.
    pub files: u64,
    /// Pages that are not what was written last.
    pub pages: u64,
    /// Changes of names that are forgotten.
    pub names: u64,
}

/// The file system's state.
pub(crate) struct Store {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    next: u64,
    capacity_pages: u64,
    pages: u64,
    /// Flushes of files and directories below this are answered and do nothing.
    pub(crate) lies: Option<String>,
    /// Files below these paths are durable at once.
    pub(crate) spared: Vec<String>,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Store {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        let root = Inode::new(S_IFDIR | 0o755, &InHeader::default(), 0);
        Self {
            inodes: BTreeMap::from([(ROOT_ID, root)]),
            names: Names::default(),
            next: ROOT_ID + 1,
            capacity_pages: capacity_bytes / PAGE as u64,
            pages: 0,
            lies: None,
            spared: Vec::new(),
        }
    }

    /// The path of an inode, relative to the root.
    pub(crate) fn path(&self, inode: u64) -> String {
        self.names.path(inode)
    }
    /// Pages of files below `part` that a power loss may forget.
    pub(crate) fn unflushed(&self, part: &str) -> usize {
        let below = |(inode, _): &(&u64, &Inode)| self.path(**inode).contains(part);
        self.inodes.iter().filter(below).map(|(_, inode)| inode.content.unflushed()).sum()
    }

    /// Power is lost. Nothing may have anything open any more.
    pub(crate) fn lose_power(&mut self, rng: &mut SplitMix64) -> Loss {
        let spared: Vec<u64> = self.inodes.keys().copied().filter(|&inode| self.is_spared(inode)).collect();
        let mut loss = Loss { names: self.names.lose_power(rng), ..Loss::default() };
        for (number, inode) in &mut self.inodes {
            inode.opens = 0;
            if spared.contains(number) {
                inode.content.flush();
            }
            loss.files += u64::from(inode.content.unflushed() > 0);
            loss.pages += inode.content.lose_power(rng);
        }
        self.drop_unnamed();
        self.pages = self.inodes.values().map(|inode| inode.content.pages()).sum();
        loss
    }

    fn is_spared(&self, inode: u64) -> bool {
        let path = self.path(inode);
        self.spared.iter().any(|spared| path.starts_with(spared.as_str()))
    }

    fn lies_about(&self, inode: u64) -> bool {
        self.lies.as_ref().is_some_and(|part| self.path(inode).contains(part.as_str()))
    }

    fn drop_unnamed(&mut self) {
        let named = self.names.inodes();
        self.inodes.retain(|number, inode| *number == ROOT_ID || inode.opens > 0 || named.contains(number));
    }

    fn inode(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&number).ok_or(Errno::STALE)
    }
    fn inode_mut(&mut self, number: u64) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&number).ok_or(Errno::STALE)
    }
    fn child(&self, dir: u64, name: &[u8]) -> Result<u64, Errno> {
        self.names.get(dir, name).ok_or(Errno::NOENT)
    }
    fn attr(&self, number: u64) -> Result<Attr, Errno> {
        let inode = self.inode(number)?;
        let (seconds, nanos) = (inode.changed.as_secs(), inode.changed.subsec_nanos());
        Ok(Attr {
            ino: number,
            size: inode.content.len(),
            blocks: inode.content.pages() * (PAGE as u64 / 512),
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            atimensec: nanos,
            mtimensec: nanos,
            ctimensec: nanos,
            mode: inode.mode,
            nlink: u32::from(number == ROOT_ID || self.names.is_named(number)),
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            blksize: PAGE as u32,
            flags: 0,
        })
    }
    fn entry(&self, number: u64) -> Result<EntryOut, Errno> {
        Ok(EntryOut::new(0, self.attr(number)?, ENTRY_TTL, ATTR_TTL))
    }

    /// Does what a request asks; the payload of the answer goes to `payload`.
    pub(crate) fn handle(&mut self, request: &Request<'_>, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        let (head, id) = (&request.header, request.header.nodeid);
        match &request.op {
            Op::Lookup { name } => Ok(Reply::entry(&self.entry(self.child(id, name)?)?)),
            Op::Getattr(_) => Ok(Reply::attr(&AttrOut::new(self.attr(id)?, ATTR_TTL))),
            Op::Setattr(args) => self.setattr(id, args),
            Op::Mkdir { args, name } => {
                let made = self.make(id, name, Inode::new(S_IFDIR | args.mode & !args.umask, head, 0))?;
                Ok(Reply::entry(&self.entry(made)?))
            }
            Op::Mknod { args, name } => {
                let made = self.make(id, name, Inode::new(args.mode & !args.umask, head, args.rdev))?;
                Ok(Reply::entry(&self.entry(made)?))
            }
            Op::Symlink { name, target } => {
                let mut link = Inode::new(S_IFLNK | 0o777, head, 0);
                link.content.write(0, target);
                link.content.flush();
                let made = self.make(id, name, link)?;
                Ok(Reply::entry(&self.entry(made)?))
            }
            Op::Readlink => {
                payload.extend(self.inode(id)?.content.read(0, usize::MAX));
                Ok(Reply::data())
            }
            Op::Create { args, name } => self.create(id, args, name, head),
            Op::Unlink { name } => self.remove(id, name, false),
            Op::Rmdir { name } => self.remove(id, name, true),
            Op::Rename { newdir, flags, name, newname } => {
                self.rename((id, name), (*newdir, newname), *flags)
            }
            Op::Statfs => Ok(Reply::statfs(&self.statfs())),
            Op::Readdir(args) => self.list(id, args, payload),
            op => self.file(id, op, payload),
        }
    }

    fn file(&mut self, id: u64, op: &Op<'_>, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        match op {
            Op::Open(args) => {
                let inode = self.inode_mut(id)?;
                inode.opens += 1;
                if args.flags & OFlags::TRUNC.bits() != 0 {
                    inode.content.set_len(0);
                }
                Ok(Reply::open(&opened(id)))
            }
            Op::Opendir(_) => {
                self.inode_mut(id)?.opens += 1;
                Ok(Reply::open(&OpenOut::default()))
            }
            Op::Release(_) | Op::Releasedir(_) => {
                let inode = self.inode_mut(id)?;
                inode.opens = inode.opens.saturating_sub(1);
                if inode.opens == 0 && id != ROOT_ID && !self.names.inodes().contains(&id) {
                    self.inodes.remove(&id);
                }
                Ok(Reply::ok())
            }
            Op::Read(args) => {
                payload.extend(self.inode(id)?.content.read(args.offset, args.size as usize));
                Ok(Reply::data())
            }
            Op::Write { args, data } => self.write(id, args.offset, data),
            Op::Fallocate(args) => self.fallocate(id, args),
            Op::Flush(_) | Op::Access { .. } => Ok(Reply::ok()),
            Op::Fsync(_) => {
                if !self.lies_about(id) {
                    self.inode_mut(id)?.content.flush();
                }
                Ok(Reply::ok())
            }
            Op::Fsyncdir(_) => {
                if !self.lies_about(id) {
                    self.names.flush(id);
                    self.drop_unnamed();
                }
                Ok(Reply::ok())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    /// Changes the bytes of a file, if there is room for as many more pages.
    fn change(&mut self, id: u64, more: u64, change: impl FnOnce(&mut Content)) -> Result<(), Errno> {
        if self.pages + more > self.capacity_pages {
            return Err(Errno::NOSPC);
        }
        let inode = self.inodes.get_mut(&id).ok_or(Errno::STALE)?;
        let before = inode.content.pages();
        change(&mut inode.content);
        inode.changed = now();
        self.pages = self.pages + inode.content.pages() - before;
        Ok(())
    }

    fn write(&mut self, id: u64, offset: u64, data: &[u8]) -> Result<Reply, Errno> {
        let more = (data.len() as u64).div_ceil(PAGE as u64) + 1;
        self.change(id, more, |content| content.write(offset, data))?;
        Ok(Reply::written(data.len() as u32))
    }

    fn fallocate(&mut self, id: u64, args: &FallocateIn) -> Result<Reply, Errno> {
        let end = args.offset.checked_add(args.length).ok_or(Errno::FBIG)?;
        let zeroes = args.mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0;
        if args.mode & !(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        self.change(id, 0, |content| {
            if zeroes {
                content.zero(args.offset, args.length);
            }
            if args.mode & FALLOC_KEEP_SIZE == 0 {
                content.set_len(content.len().max(end));
            }
        })?;
        Ok(Reply::ok())
    }

    fn setattr(&mut self, id: u64, args: &SetattrIn) -> Result<Reply, Errno> {
        if args.valid & fattr::SIZE != 0 {
            self.change(id, 0, |content| content.set_len(args.size))?;
        }
        let inode = self.inode_mut(id)?;
        let set = |flag: u32, field: &mut u32, value: u32| {
            if args.valid & flag != 0 {
                *field = value;
            }
        };
        let kind = inode.mode & S_IFMT;
        set(fattr::MODE, &mut inode.mode, kind | args.mode & !S_IFMT);
        set(fattr::UID, &mut inode.uid, args.uid);
        set(fattr::GID, &mut inode.gid, args.gid);
        inode.changed = now();
        Ok(Reply::attr(&AttrOut::new(self.attr(id)?, ATTR_TTL)))
    }

    fn make(&mut self, dir: u64, name: &[u8], inode: Inode) -> Result<u64, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if self.names.get(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        self.inode(dir)?;
        let number = self.next;
        self.next += 1;
        self.inodes.insert(number, inode);
        self.names.change(vec![((dir, name.to_vec()), Some(number))]);
        Ok(number)
    }

    fn create(&mut self, dir: u64, args: &CreateIn, name: &[u8], head: &InHeader) -> Result<Reply, Errno> {
        let number = match self.names.get(dir, name) {
            Some(_) if args.flags & OFlags::EXCL.bits() != 0 => return Err(Errno::EXIST),
            Some(number) => number,
            None => {
                let mode = S_IFREG | args.mode & !args.umask & !S_IFMT;
                self.make(dir, name, Inode::new(mode, head, 0))?
            }
        };
        let inode = self.inode_mut(number)?;
        inode.opens += 1;
        if args.flags & OFlags::TRUNC.bits() != 0 {
            inode.content.set_len(0);
        }
        Ok(Reply::create(&self.entry(number)?, &opened(number)))
    }

    fn is_empty_dir(&self, number: u64) -> bool {
        self.names.list(number).next().is_none()
    }
    fn is_dir(&self, number: u64) -> Result<bool, Errno> {
        Ok(self.inode(number)?.mode & S_IFMT == S_IFDIR)
    }

    fn remove(&mut self, dir: u64, name: &[u8], dirs: bool) -> Result<Reply, Errno> {
        let number = self.child(dir, name)?;
        match self.is_dir(number)? {
            true if !dirs => return Err(Errno::ISDIR),
            false if dirs => return Err(Errno::NOTDIR),
            true if !self.is_empty_dir(number) => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        // The bytes stay until the removal is durable: a power loss may bring the name back.
        self.names.change(vec![((dir, name.to_vec()), None)]);
        Ok(Reply::ok())
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<Reply, Errno> {
        let number = self.child(from.0, from.1)?;
        if to.1.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        match self.names.get(to.0, to.1) {
            _ if flags & !RENAME_NOREPLACE != 0 => return Err(Errno::INVAL),
            Some(_) if flags != 0 => return Err(Errno::EXIST),
            Some(old) if old == number => return Ok(Reply::ok()),
            Some(old) => match (self.is_dir(number)?, self.is_dir(old)?) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.is_empty_dir(old) => return Err(Errno::NOTEMPTY),
                _ => {}
            },
            None => {}
        }
        let (gone, new) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        self.names.change(vec![(gone, None), (new, Some(number))]);
        Ok(Reply::ok())
    }

    /// The inode number of an entry is its cookie: new names come last, removed ones leave a gap.
    fn list(&self, dir: u64, args: &ReadIn, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        let mut buffer = DirBuf::new(args.size);
        let mut entries: Vec<(u64, &[u8])> =
            self.names.list(dir).map(|(name, number)| (number, name)).collect();
        entries.sort_unstable();
        for (number, name) in entries.into_iter().filter(|(number, _)| *number > args.offset) {
            let kind = self.inode(number)?.mode >> 12;
            let next = Cookie::new(number).ok_or(Errno::OVERFLOW)?;
            match buffer.push(number, next, kind, name) {
                Ok(Pushed::Added) => {}
                Ok(Pushed::Full) => break,
                Err(_) => return Err(Errno::IO),
            }
        }
        payload.extend_from_slice(buffer.as_slice());
        Ok(Reply::data())
    }

    fn statfs(&self) -> Kstatfs {
        let free = self.capacity_pages.saturating_sub(self.pages);
        Kstatfs {
            blocks: self.capacity_pages,
            bfree: free,
            bavail: free,
            files: 1 << 20,
            ffree: 1 << 20,
            bsize: PAGE as u32,
            namelen: NAME_MAX as u32,
            frsize: PAGE as u32,
            ..Kstatfs::default()
        }
    }
}

/// Files stay cached, since nobody else changes them; direct writes run side by side.
fn opened(number: u64) -> OpenOut {
    let open_flags = fopen::KEEP_CACHE | fopen::PARALLEL_DIRECT_WRITES;
    OpenOut { fh: number, open_flags, backing_id: 0 }
}

impl Inode {
    fn new(mode: u32, head: &InHeader, rdev: u32) -> Self {
        let (uid, gid) = (head.uid, head.gid);
        Self { mode, uid, gid, rdev, content: Content::default(), opens: 0, changed: now() }
    }
}
