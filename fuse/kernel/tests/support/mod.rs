//! A tiny file system in memory, served by as many threads as one likes.

use std::collections::BTreeMap;
use std::io::IoSlice;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ember_fuse_kernel::abi::*;
use ember_fuse_kernel::init::{Agreed, InitOptions, Negotiation, negotiate};
use ember_fuse_kernel::mount::{Mount, MountOptions, Unmount, mount};
use ember_fuse_kernel::{
    Channel, Cookie, Delivery, DevChannel, DirBuf, Errno, Error, Op, Pushed, Received, RecvBuffer, Reply,
    Request, Slot,
};

const S_IFDIR: u32 = 0o40000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;
const TTL: Duration = Duration::from_secs(3600);

/// One inode.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) mode: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) names: BTreeMap<Vec<u8>, u64>,
}

/// The file system and what the tests want to know of it.
#[derive(Default)]
pub(crate) struct MemFs {
    pub(crate) nodes: Mutex<BTreeMap<u64, Node>>,
    pub(crate) largest_read: AtomicU32,
    pub(crate) largest_write: AtomicU32,
    pub(crate) plus_entries: AtomicU32,
    meeting: Mutex<u32>,
    met: Condvar,
}

/// A mount of it; unmounts when dropped, so that a failing test leaves nothing behind.
pub(crate) struct Mounted {
    pub(crate) mount: Mount,
    pub(crate) fs: Arc<MemFs>,
    pub(crate) agreed: Agreed,
    pub(crate) first: DevChannel,
    threads: Vec<std::thread::JoinHandle<u32>>,
}

/// Why mounting can't be tried here.
pub(crate) fn skip_reason() -> Option<String> {
    if !std::path::Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse does not exist".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let dir = test_dir("try");
    let reason = match mount(&dir, &MountOptions::default()) {
        Ok((mounted, _channel)) => {
            mounted.unmount(Unmount::Now).unwrap();
            None
        }
        Err(error) => Some(error.to_string()),
    };
    std::fs::remove_dir(&dir).unwrap();
    reason
}

/// A fresh directory.
pub(crate) fn test_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ember-fuse-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::canonicalize(dir).unwrap()
}

impl MemFs {
    pub(crate) fn new() -> Arc<Self> {
        let fs = Self::default();
        fs.nodes.lock().unwrap().insert(ROOT_ID, Node { mode: S_IFDIR | 0o755, ..Node::default() });
        Arc::new(fs)
    }

    pub(crate) fn mount(self: Arc<Self>, name: &str, options: &MountOptions, threads: usize) -> Mounted {
        let (mount, first) = mount(&test_dir(name), options).unwrap();
        let agreed = answer_init(&first);
        let mut spawned = Vec::new();
        for _ in 0..threads {
            let (fs, channel) = (self.clone(), first.try_clone().unwrap());
            let thread = std::thread::Builder::new();
            spawned.push(thread.spawn(move || fs.serve(&channel, agreed.max_write)).unwrap());
        }
        Mounted { mount, fs: self, agreed, first, threads: spawned }
    }

    /// Serves until the mount ends; returns the number of requests.
    fn serve(&self, channel: &DevChannel, max_write: u32) -> u32 {
        let mut buffer = RecvBuffer::new(max_write);
        let mut count = 0;
        while channel.recv(&mut buffer).unwrap() == Received::Request {
            count += 1;
            let request = buffer.request().unwrap();
            if let Op::Write { data, .. } = &request.op {
                assert_eq!(data.as_ptr().addr() % rustix::param::page_size(), 0);
            }
            let wants_reply = request.wants_reply();
            let mut payload = Vec::new();
            let reply = self.handle(&request, &mut payload).unwrap_or_else(Reply::error);
            if wants_reply {
                let (left, right) = payload.split_at(payload.len() / 3);
                let parts = [IoSlice::new(left), IoSlice::new(right)];
                channel.reply(request.header.unique, &reply, &parts).unwrap();
            }
        }
        count
    }

    fn handle(&self, request: &Request<'_>, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        let id = request.header.nodeid;
        match &request.op {
            Op::Read(args) => return self.read(id, args, payload),
            Op::Readdirplus(args) | Op::Readdir(args) => {
                let plus = matches!(request.op, Op::Readdirplus(_));
                return self.list(id, args, plus, payload);
            }
            Op::Write { args, data } => return self.write(id, args, data),
            _ => {}
        }
        let mut nodes = self.nodes.lock().unwrap();
        let fresh = nodes.keys().next_back().unwrap() + 1;
        let make = |nodes: &mut BTreeMap<u64, Node>, name: &[u8], node: Node| {
            if nodes[&id].names.contains_key(name) {
                return Err(Errno::EXIST);
            }
            nodes.insert(fresh, node);
            nodes.get_mut(&id).unwrap().names.insert(name.to_vec(), fresh);
            Ok(entry(nodes, fresh))
        };
        let node = |mode| Node { mode, ..Node::default() };
        Ok(match &request.op {
            Op::Lookup { name } => match nodes[&id].names.get(*name) {
                Some(&child) => Reply::entry(&entry(&nodes, child)),
                None => Reply::error(Errno::NOENT),
            },
            Op::Getattr(_) => Reply::attr(&AttrOut::new(attr(&nodes, id), TTL)),
            Op::Setattr(args) => {
                set(nodes.get_mut(&id).ok_or(Errno::STALE)?, args);
                Reply::attr(&AttrOut::new(attr(&nodes, id), TTL))
            }
            Op::Mkdir { args, name } => Reply::entry(&make(&mut nodes, name, node(S_IFDIR | args.mode))?),
            Op::Symlink { name, target } => {
                let link = Node { data: target.to_vec(), ..node(S_IFLNK | 0o777) };
                Reply::entry(&make(&mut nodes, name, link)?)
            }
            Op::Readlink => {
                payload.extend_from_slice(&nodes[&id].data);
                Reply::data()
            }
            Op::Create { args, name } => {
                let made = make(&mut nodes, name, node(S_IFREG | args.mode & !args.umask & 0o7777))?;
                Reply::create(&made, &OpenOut { fh: fresh, ..OpenOut::default() })
            }
            Op::Open(args) | Op::Opendir(args) => {
                if args.flags & rustix::fs::OFlags::TRUNC.bits() != 0 {
                    nodes.get_mut(&id).ok_or(Errno::STALE)?.data.clear();
                }
                Reply::open(&OpenOut { fh: id, open_flags: fopen::KEEP_CACHE, backing_id: 0 })
            }
            Op::Unlink { name } | Op::Rmdir { name } => {
                nodes.get_mut(&id).unwrap().names.remove(*name).ok_or(Errno::NOENT)?;
                Reply::ok()
            }
            Op::Rename { newdir, name, newname, flags: 0 } => {
                let child = nodes.get_mut(&id).unwrap().names.remove(*name).ok_or(Errno::NOENT)?;
                nodes.get_mut(newdir).unwrap().names.insert(newname.to_vec(), child);
                Reply::ok()
            }
            Op::Lseek(args) => Reply::lseek(args.offset),
            Op::Statfs => Reply::statfs(&statfs()),
            Op::Release(_) | Op::Releasedir(_) | Op::Flush(_) | Op::Fsync(_) => Reply::ok(),
            _ => Reply::error(Errno::NOSYS),
        })
    }

    fn read(&self, id: u64, args: &ReadIn, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        self.largest_read.fetch_max(args.size, Ordering::Relaxed);
        let nodes = self.nodes.lock().unwrap();
        let data = nodes.get(&id).ok_or(Errno::STALE)?.data.clone();
        drop(nodes);
        if data == b"meet" {
            self.meet()?;
        }
        let start = (args.offset as usize).min(data.len());
        let end = (start + args.size as usize).min(data.len());
        payload.extend_from_slice(&data[start..end]);
        Ok(Reply::data())
    }

    /// Returns only once two requests are here at the same time.
    fn meet(&self) -> Result<(), Errno> {
        let mut here = self.meeting.lock().unwrap();
        *here += 1;
        self.met.notify_all();
        let timeout = Duration::from_secs(10);
        let (here, _) = self.met.wait_timeout_while(here, timeout, |here| *here < 2).unwrap();
        if *here < 2 { Err(Errno::TIMEDOUT) } else { Ok(()) }
    }

    fn write(&self, id: u64, args: &WriteIn, data: &[u8]) -> Result<Reply, Errno> {
        self.largest_write.fetch_max(args.size, Ordering::Relaxed);
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.get_mut(&id).ok_or(Errno::STALE)?;
        let end = args.offset as usize + data.len();
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[args.offset as usize..end].copy_from_slice(data);
        Ok(Reply::written(args.size))
    }

    fn list(&self, id: u64, args: &ReadIn, plus: bool, payload: &mut Vec<u8>) -> Result<Reply, Errno> {
        let nodes = self.nodes.lock().unwrap();
        let mut buffer = DirBuf::new(args.size);
        // The inode number of the entry is its cookie: new names come last, removed ones leave a gap.
        let mut children: Vec<_> = nodes[&id].names.iter().map(|(name, &child)| (child, name)).collect();
        children.sort_unstable();
        for (child, name) in children.into_iter().filter(|&(child, _)| child > args.offset) {
            let (next, kind) = (Cookie::new(child).unwrap(), nodes[&child].mode >> 12);
            let pushed = if plus {
                self.plus_entries.fetch_add(1, Ordering::Relaxed);
                buffer.push_plus(child, next, kind, name, &entry(&nodes, child))
            } else {
                buffer.push(child, next, kind, name)
            };
            if pushed.unwrap() == Pushed::Full {
                break;
            }
        }
        payload.extend_from_slice(buffer.as_slice());
        Ok(Reply::data())
    }
}

impl Mounted {
    /// Unmounts and returns how many requests each thread served.
    pub(crate) fn end(mut self) -> Vec<u32> {
        // RELEASE is sent after close has returned, and keeps the mount busy until then.
        let mut tries = 0;
        while let Err(error) = self.mount.unmount(Unmount::Now) {
            assert!(matches!(error, Error::Busy(_)) && tries < 100, "{error}");
            tries += 1;
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let counts = self.threads.drain(..).map(|thread| thread.join().unwrap()).collect();
        std::fs::remove_dir(self.mount.point()).unwrap();
        counts
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.mount.unmount(Unmount::Lazy);
        }
    }
}

/// Serves INIT, which must be the first request.
pub(crate) fn answer_init(channel: &DevChannel) -> Agreed {
    let mut buffer = RecvBuffer::new(1 << 20);
    assert_eq!(channel.recv(&mut buffer).unwrap(), Received::Request);
    let request = buffer.request().unwrap();
    let Op::Init(offer) = &request.op else { panic!("expected INIT, got {:?}", request.op) };
    let Negotiation::Done(out, agreed) = negotiate(offer, &InitOptions::default()).unwrap() else {
        panic!("the kernel speaks another major version")
    };
    let delivery = channel.reply(request.header.unique, &Reply::init(&out), &[]).unwrap();
    assert_eq!(delivery, Delivery::Done);
    agreed
}

fn attr(nodes: &BTreeMap<u64, Node>, id: u64) -> Attr {
    let node = &nodes[&id];
    Attr {
        ino: id,
        size: node.data.len() as u64,
        blocks: node.data.len().div_ceil(512) as u64,
        mode: node.mode,
        nlink: 1,
        blksize: 4096,
        ..Attr::default()
    }
}

fn entry(nodes: &BTreeMap<u64, Node>, id: u64) -> EntryOut {
    EntryOut::new(0, attr(nodes, id), TTL, TTL)
}

fn set(node: &mut Node, args: &SetattrIn) {
    if args.valid & fattr::SIZE != 0 {
        node.data.resize(args.size as usize, 0);
    }
    if args.valid & fattr::MODE != 0 {
        node.mode = args.mode;
    }
}

fn statfs() -> Kstatfs {
    Kstatfs { blocks: 77, bsize: 4096, frsize: 4096, namelen: 255, ..Kstatfs::default() }
}
