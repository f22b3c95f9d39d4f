//! A reactor of one thread and a disk that loses what was not flushed.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod crash;
pub mod disk;
pub mod loss;
pub mod model;
pub mod pages;

use disk::{DiskState, FaultDisk};
use ember_engine::{Engine, EngineConfig, Identity, Recovery};
use ember_rt::disk::{Disk, DiskQueue, Disks, Priority};
use ember_rt::net::{Addr, Listener, Net, Stream};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::{
    ChainVersion, ChunkId, ChunkVersion, ClusterId, DataId, Generation, Instant, TargetId, UnixTime,
};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

pub const DIR: &str = "targets/7";
pub const IDENTITY: Identity =
    Identity { cluster: ClusterId([1; 16]), target: TargetId(7), generation: Generation(3) };

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

struct Nothing(Cell<u64>);

impl Clock for Nothing {
    fn now(&self) -> Instant {
        Instant(self.0.get())
    }
    fn unix_now(&self) -> UnixTime {
        UnixTime::default()
    }
    fn sleep_until(&self, _: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
impl Rng for Nothing {
    fn next_u64(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}
impl Net for Nothing {
    fn connect(&self, _: &Addr) -> LocalBoxFuture<'static, std::io::Result<Stream>> {
        Box::pin(async { Err(std::io::Error::other("no network here")) })
    }
    fn listen(&self, _: &Addr) -> std::io::Result<Box<dyn Listener>> {
        Err(std::io::Error::other("no network here"))
    }
}
impl Disks for Nothing {
    fn open(&self, _: &Path) -> std::io::Result<Box<dyn Disk>> {
        Err(std::io::Error::other("no such disk"))
    }
}

/// One machine: tasks and a disk.
pub struct World {
    tasks: Rc<Tasks>,
    pub disk: Rc<RefCell<DiskState>>,
    pub rt: Rt,
}

impl World {
    pub fn new(disk: DiskState) -> Self {
        let tasks = Rc::new(Tasks::default());
        let nothing = Rc::new(Nothing(Cell::new(0)));
        let rt = Rt::new(RtParts {
            clock: nothing.clone(),
            spawn: tasks.clone(),
            net: nothing.clone(),
            disks: nothing.clone(),
            rng: nothing,
        });
        Self { tasks, disk: Rc::new(RefCell::new(disk)), rt }
    }
    pub fn queue(&self) -> DiskQueue {
        DiskQueue::start(&self.rt, Box::new(FaultDisk(self.disk.clone())), 16)
    }

    fn poll_tasks(&self, cx: &mut Context<'_>) {
        let mut running = std::mem::take(&mut *self.tasks.0.borrow_mut());
        running.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        let mut tasks = self.tasks.0.borrow_mut();
        running.append(&mut tasks);
        *tasks = running;
    }

    /// Runs `future` to its end; `None` if the machine lost power before.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = 0;
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return Some(value);
            }
            let before = self.tasks.0.borrow().len();
            self.poll_tasks(&mut cx);
            let moved = self.disk.borrow_mut().step() || before != self.tasks.0.borrow().len();
            idle = if moved { 0 } else { idle + 1 };
            if idle > 20 {
                assert!(self.disk.borrow().is_dead(), "the engine hangs");
                return None;
            }
        }
    }
    /// Like [`World::run`] on a machine that keeps its power.
    pub fn must<T>(&self, future: impl Future<Output = T>) -> T {
        self.run(future).expect("the power failed")
    }
    /// Lets background work end.
    pub fn settle(&self) {
        let mut rounds = 0;
        self.must(std::future::poll_fn(|_| {
            rounds += 1;
            let quiet = rounds > 5 && self.disk.borrow().is_idle();
            if quiet { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    /// Power fails and comes back: what the disk holds then.
    pub fn crash(self) -> Self {
        let disk = self.disk.borrow_mut().after_power_loss();
        self.tasks.0.borrow_mut().clear();
        Self::new(disk)
    }
    /// The process is killed: the operating system keeps what was written.
    pub fn kill(self) -> Self {
        let disk = self.disk.borrow_mut().after_kill();
        self.tasks.0.borrow_mut().clear();
        Self::new(disk)
    }

    /// The disk of a machine that was switched off.
    pub fn into_disk(self) -> DiskState {
        self.disk.replace(DiskState::new(0))
    }

    pub async fn open(&self, config: EngineConfig) -> ember_engine::Result<(Engine, Recovery)> {
        let expected = (IDENTITY.cluster, IDENTITY.target);
        let opening = |is| (self.disk.borrow_mut().opening, self.disk.borrow_mut().finding) = (is, is);
        opening(true);
        let opened = Engine::open(&self.rt, &self.queue(), DIR, expected, config).await;
        opening(false);
        opened
    }
    pub async fn create(&self, config: EngineConfig) -> ember_engine::Result<Engine> {
        Engine::create(&self.rt, &self.queue(), DIR, &IDENTITY, config).await
    }
}

pub fn config() -> EngineConfig {
    EngineConfig { min_free_bytes: 1 << 20, extents_max: 8, compact_pieces: 1, ..EngineConfig::default() }
}
pub fn chunk(i: u64) -> ChunkId {
    ChunkId::new(DataId(1 + i / 4), (i % 4) as u32)
}
pub fn version(number: u64) -> ChunkVersion {
    if number == 0 {
        return ChunkVersion::NONE;
    }
    ChunkVersion { number, chain_version: ChainVersion(1), attempt: 0 }
}
pub const FOREGROUND: Priority = Priority::Foreground;
