//! The mount: threads that serve it, and the faults of its disk.

use crate::store::{Loss, Store};
use ember_fuse_kernel::init::{InitOptions, KillPriv, Negotiation, Readdirplus, negotiate};
use ember_fuse_kernel::mount::{Mount, MountOptions, Unmount, mount};
use ember_fuse_kernel::{Channel, DevChannel, Errno, Error, Op, Received, RecvBuffer, Reply, Request, Slot};
use ember_types::layout::SplitMix64;
use std::io::IoSlice;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that serve a mount.
const THREADS: usize = 4;
/// Tries to unmount, and the pause between them: RELEASE comes after close has returned.
const UNMOUNT: (u32, Duration) = (200, Duration::from_millis(20));

/// A request that hangs, and the queue that brought it.
struct Parked {
    message: Vec<u8>,
    channel: Arc<DevChannel>,
    unique: u64,
}

#[derive(Default)]
struct Faults {
    /// Without power everything fails.
    off: bool,
    /// Files below this hang.
    hangs: Option<String>,
    parked: Vec<Parked>,
    /// Changes of files below this fail.
    fails: Option<String>,
}

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
}

/// A file system in memory that can lose what was not flushed.
#[derive(Clone)]
pub struct LossyFs(Arc<Inner>);

/// A mount of it.
pub struct Mounted {
    mount: Mount,
    threads: Vec<JoinHandle<()>>,
}

/// What is held is whole whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LossyFs {
    /// An empty file system that holds so many bytes.
    pub fn new(capacity_bytes: u64) -> Self {
        let store = Mutex::new(Store::new(capacity_bytes));
        Self(Arc::new(Inner { store, faults: Mutex::default() }))
    }

    /// Mounts it on an empty directory.
    pub fn mount(&self, point: &Path) -> Result<Mounted, Error> {
        let options = MountOptions {
            fsname: "ember-lossy".to_owned(),
            subtype: "lossy".to_owned(),
            allow_other: true,
            dev: true,
            ..MountOptions::default()
        };
        let (mount, first) = mount(point, &options)?;
        let wanted = InitOptions {
            readdirplus: Readdirplus::Off,
            killpriv: KillPriv::Kernel,
            // What is written reaches the server with the call that writes it.
            writeback_cache: false,
            ..InitOptions::default()
        };
        let max_write = answer_init(&first, &wanted)?;
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let (fs, channel) = (self.clone(), Arc::new(first.try_clone()?));
            threads.push(std::thread::spawn(move || fs.serve(&channel, max_write)));
        }
        Ok(Mounted { mount, threads })
    }

    /// Files below this path, relative to the root, are durable at once: logs that people want to read afterwards.
    pub fn spare(&self, path: &str) {
        lock(&self.0.store).spared.push(path.to_owned());
    }
    /// Flushes of files and directories whose paths contain `part` are answered without doing anything, as a bad
    /// disk's are; `None` ends that.
    pub fn lie(&self, part: Option<&str>) {
        lock(&self.0.store).lies = part.map(str::to_owned);
    }
    /// Pages that a power loss may forget, of files whose paths contain `part`.
    pub fn unflushed(&self, part: &str) -> usize {
        lock(&self.0.store).unflushed(part)
    }

    /// Reads, writes, flushes and allocations of files whose paths contain `part` don't end from now on.
    pub fn hang(&self, part: &str) {
        lock(&self.0.faults).hangs = Some(part.to_owned());
    }
    /// Requests that hang.
    pub fn hung(&self) -> usize {
        lock(&self.0.faults).parked.len()
    }
    /// What hangs is done now, late as it is.
    pub fn let_go(&self) {
        let parked = {
            let mut faults = lock(&self.0.faults);
            faults.hangs = None;
            std::mem::take(&mut faults.parked)
        };
        for Parked { message, channel, .. } in parked {
            if let Ok(request) = Request::parse(&message) {
                self.answer(&request, &channel);
            }
        }
    }
    /// Writes, flushes and allocations of files whose paths contain `part` fail with EIO; `None` ends that.
    pub fn fail(&self, part: Option<&str>) {
        lock(&self.0.faults).fails = part.map(str::to_owned);
    }

    /// Power fails: from now on nothing is read, written or flushed any more, everything is answered with EIO.
    pub fn power_off(&self) {
        let parked = {
            // The lock keeps requests that are being served from ending after this.
            let _store = lock(&self.0.store);
            let mut faults = lock(&self.0.faults);
            faults.off = true;
            faults.hangs = None;
            std::mem::take(&mut faults.parked)
        };
        for parked in parked {
            // A mount that is gone has nobody to tell.
            let _ = parked.channel.reply(parked.unique, &Reply::error(Errno::IO), &[]);
        }
    }
    /// Power is back, without what was not flushed; `seed` says how much of it is gone. It must not be mounted: the
    /// kernel has its own memory of what was written.
    pub fn power_on(&self, seed: u64) -> Loss {
        let loss = lock(&self.0.store).lose_power(&mut SplitMix64(seed));
        *lock(&self.0.faults) = Faults::default();
        loss
    }

    fn serve(&self, channel: &Arc<DevChannel>, max_write: u32) {
        let mut buffer = RecvBuffer::new(max_write);
        while let Ok(Received::Request) = channel.recv(&mut buffer) {
            match buffer.request() {
                Ok(request) if self.park(&request, buffer.message(), channel) => {}
                Ok(request) => self.answer(&request, channel),
                Err(malformed) => {
                    if let Some(unique) = malformed.wants_reply() {
                        let _ = channel.reply(unique, &Reply::error(Errno::IO), &[]);
                    }
                }
            }
        }
    }

    /// Keeps a request that hangs.
    fn park(&self, request: &Request<'_>, message: &[u8], channel: &Arc<DevChannel>) -> bool {
        if !touches_the_disk(&request.op) || lock(&self.0.faults).hangs.is_none() {
            return false;
        }
        let path = lock(&self.0.store).path(request.header.nodeid);
        let mut faults = lock(&self.0.faults);
        let hangs = faults.hangs.as_ref().is_some_and(|part| path.contains(part.as_str()));
        if hangs {
            let (message, channel, unique) = (message.to_vec(), channel.clone(), request.header.unique);
            faults.parked.push(Parked { message, channel, unique });
        }
        hangs
    }

    fn answer(&self, request: &Request<'_>, channel: &DevChannel) {
        let mut payload = Vec::new();
        let reply = {
            let mut store = lock(&self.0.store);
            let fault = self.fault(request, &store);
            fault.map_or_else(|| store.handle(request, &mut payload), Err).unwrap_or_else(Reply::error)
        };
        if request.wants_reply() {
            // A request that was interrupted, or a mount that is gone, has nobody who waits.
            let _ = channel.reply(request.header.unique, &reply, &[IoSlice::new(&payload)]);
        }
    }

    fn fault(&self, request: &Request<'_>, store: &Store) -> Option<Errno> {
        let faults = lock(&self.0.faults);
        if faults.off {
            return Some(Errno::IO);
        }
        let part = faults.fails.as_ref()?;
        let changes = touches_the_disk(&request.op) && !matches!(request.op, Op::Read(_));
        (changes && store.path(request.header.nodeid).contains(part.as_str())).then_some(Errno::IO)
    }
}

/// Whether a real disk is asked: names are taken from memory.
fn touches_the_disk(op: &Op<'_>) -> bool {
    matches!(op, Op::Read(_) | Op::Write { .. } | Op::Fsync(_) | Op::Fallocate(_))
}

/// Serves INIT, the first request; returns the largest write.
fn answer_init(channel: &DevChannel, wanted: &InitOptions) -> Result<u32, Error> {
    let broken =
        |what: &str| Error::Io { what: what.to_owned(), source: std::io::ErrorKind::InvalidData.into() };
    let mut buffer = RecvBuffer::new(wanted.max_write);
    loop {
        if channel.recv(&mut buffer)? != Received::Request {
            return Err(broken("the mount ended before its first request"));
        }
        let request = buffer.request().map_err(|error| broken(&error.to_string()))?;
        let Op::Init(offer) = &request.op else { return Err(broken("the first request is not INIT")) };
        let unique = request.header.unique;
        match negotiate(offer, wanted)? {
            Negotiation::Done(out, agreed) => {
                let _ = channel.reply(unique, &Reply::init(&out), &[])?;
                return Ok(agreed.max_write);
            }
            Negotiation::Again(out) => {
                let _ = channel.reply(unique, &Reply::init(&out), &[])?;
            }
        }
    }
}

impl Mounted {
    /// Unmounts, when nobody has anything open on it any more.
    pub fn unmount(mut self) -> Result<(), Error> {
        let mut tries = 0;
        while let Err(error) = self.mount.unmount(Unmount::Now) {
            if tries == UNMOUNT.0 || !matches!(error, Error::Busy(_)) {
                return Err(error);
            }
            tries += 1;
            std::thread::sleep(UNMOUNT.1);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // Threads end with the mount.
            let _ = self.mount.unmount(Unmount::Force);
        }
    }
}
