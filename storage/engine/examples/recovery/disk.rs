//! A reactor of one thread, and a disk whose operations end where they are submitted: slower than the product's
//! driver, so what is measured on it is an upper bound.
#![allow(unreachable_pub)]

use ember_rt::disk::{Completion, Disk, Disks, FileId, Op, OpKind, OpenMode, Space};
use ember_rt::net::{Addr, Listener, Net, Stream};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::{Instant as Moment, UnixTime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// O_DIRECT.
const DIRECT: i32 = if cfg!(target_arch = "aarch64") { 0x10000 } else { 0x4000 };

#[derive(Default)]
struct Tasks(RefCell<Vec<LocalBoxFuture<'static, ()>>>);

impl Spawn for Tasks {
    fn spawn(&self, _: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.0.borrow_mut().push(task);
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        self.spawn(name, task());
    }
}

struct Nothing;

impl Clock for Nothing {
    fn now(&self) -> Moment {
        Moment(0)
    }
    fn unix_now(&self) -> UnixTime {
        UnixTime::default()
    }
    fn sleep_until(&self, _: Moment) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
impl Rng for Nothing {
    fn next_u64(&self) -> u64 {
        1
    }
}
impl Net for Nothing {
    fn connect(&self, _: &Addr) -> LocalBoxFuture<'static, io::Result<Stream>> {
        Box::pin(async { Err(io::Error::other("no network here")) })
    }
    fn listen(&self, _: &Addr) -> io::Result<Box<dyn Listener>> {
        Err(io::Error::other("no network here"))
    }
}
impl Disks for Nothing {
    fn open(&self, _: &Path) -> io::Result<Box<dyn Disk>> {
        Err(io::Error::other("no such disk"))
    }
}

thread_local! {
    /// Time spent in reads, writes and flushes.
    static IO: Rc<Cell<Duration>> = Rc::default();
}

fn io_time() -> Rc<Cell<Duration>> {
    IO.with(Rc::clone)
}

/// Polls tasks in turn.
pub struct Reactor {
    tasks: Rc<Tasks>,
    rt: Rt,
    turns: RefCell<Vec<Duration>>,
}

impl Reactor {
    pub fn new() -> Self {
        let (tasks, nothing) = (Rc::new(Tasks::default()), Rc::new(Nothing));
        let rt = Rt::new(RtParts {
            clock: nothing.clone(),
            spawn: tasks.clone(),
            net: nothing.clone(),
            disks: nothing.clone(),
            rng: nothing,
        });
        Self { tasks, rt, turns: RefCell::default() }
    }
    pub fn rt(&self) -> &Rt {
        &self.rt
    }
    /// How long tasks ran, turn by turn, without their reads and writes; the shortest first.
    pub fn turns(&self) -> Vec<Duration> {
        let mut turns = self.turns.take();
        turns.sort_unstable();
        turns
    }
    fn timed<T>(&self, turn: impl FnOnce() -> T) -> T {
        let (io, begin) = (io_time().get(), Instant::now());
        let value = turn();
        let took = begin.elapsed().saturating_sub(io_time().get() - io);
        self.turns.borrow_mut().push(took);
        value
    }
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = self.timed(|| future.as_mut().poll(&mut cx)) {
                return value;
            }
            let mut running = std::mem::take(&mut *self.tasks.0.borrow_mut());
            running.retain_mut(|task| self.timed(|| task.as_mut().poll(&mut cx)).is_pending());
            let mut tasks = self.tasks.0.borrow_mut();
            running.append(&mut tasks);
            *tasks = running;
        }
    }
}

/// A directory.
pub struct FsDisk {
    root: PathBuf,
    files: RefCell<BTreeMap<u32, File>>,
    next: Cell<u32>,
    ended: RefCell<Vec<Completion>>,
}

impl FsDisk {
    pub fn new(root: &Path) -> Self {
        let (files, ended) = (RefCell::default(), RefCell::default());
        Self { root: root.to_owned(), files, next: Cell::new(1), ended }
    }
    pub fn time(&self) -> Rc<Cell<Duration>> {
        io_time()
    }
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
    fn with<T>(&self, file: FileId, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let files = self.files.borrow();
        work(files.get(&file.0).ok_or_else(|| io::Error::other("no such file"))?)
    }
    fn read(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], offset + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }
}

impl Disk for FsDisk {
    fn submit(&self, op: Op) {
        let begin = Instant::now();
        let mut read = None;
        let result = self.with(op.file, |file| match op.kind {
            OpKind::Read { offset, len, mut buf } => {
                let done = Self::read(file, offset, &mut buf.whole_mut()[..len]);
                read = Some(buf);
                done
            }
            OpKind::Write { offset, data } => file.write_all_at(&data, offset).map(|()| data.len()),
            OpKind::Sync => file.sync_data().map(|()| 0),
            // Holes will do.
            OpKind::Allocate { offset, len } => {
                let end = file.metadata()?.len().max(offset + len);
                file.set_len(end).map(|()| 0)
            }
            OpKind::Punch { .. } => Ok(0),
        });
        let io = io_time();
        io.set(io.get() + begin.elapsed());
        self.ended.borrow_mut().push(Completion { token: op.token, result, buf: read });
    }
    fn poll(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.ended.borrow_mut());
    }
    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(poll_fn(|_| if self.ended.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) }))
    }
    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(mode.create).create_new(mode.exclusive).custom_flags(flags);
            options.open(self.path(name))
        };
        let file = match open(if mode.direct { DIRECT } else { 0 }) {
            // Not every file system can.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(0)?,
            opened => opened?,
        };
        let id = self.next.replace(self.next.get() + 1);
        self.files.borrow_mut().insert(id, file);
        Ok(FileId(id))
    }
    fn close_file(&self, file: FileId) {
        self.files.borrow_mut().remove(&file.0);
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        self.with(file, |file| Ok(file.metadata()?.len()))
    }
    fn set_file_len(&self, file: FileId, len: u64) -> io::Result<()> {
        self.with(file, |file| file.set_len(len))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path(dir))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.path(dir))
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(name))
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        std::fs::write(self.path(name), content)
    }
    fn lock(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        Ok(Space { total: 1 << 50, available: 1 << 50, file_system: 0 })
    }
    fn overwrites_in_place(&self) -> bool {
        true
    }
    fn written(&self, file: FileId, from: u64) -> io::Result<Vec<Range<u64>>> {
        // As if all of it had been.
        let end = self.file_len(file)?;
        Ok((from < end).then_some(from..end).into_iter().collect())
    }
    fn warnings(&self) -> Vec<&'static str> {
        Vec::new()
    }
}
