//! A reactor on virtual time: tasks in order of waking, timers, a network without a wire.
#![allow(unreachable_pub)]

use ember_net::mem::MemNet;
use ember_rt::disk::{Disk, Disks};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Task = Rc<RefCell<Option<LocalBoxFuture<'static, ()>>>>;

/// Polls at one moment of virtual time after which a test is stuck.
const POLLS_MAX: u32 = 200_000;

#[derive(Default)]
struct Ready(Mutex<VecDeque<u64>>);

struct Wakes(u64, Arc<Ready>);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        let mut queue = self.1.0.lock().expect("queue");
        if !queue.contains(&self.0) {
            queue.push_back(self.0);
        }
    }
}

#[derive(Default)]
struct World {
    now: Cell<u64>,
    seed: Cell<u64>,
    next: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    names: RefCell<BTreeMap<u64, &'static str>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    ready: Arc<Ready>,
}

impl World {
    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }
    fn start(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        let id = self.number();
        self.names.borrow_mut().insert(id, name);
        self.tasks.borrow_mut().insert(id, Rc::new(RefCell::new(Some(task))));
        self.ready.0.lock().expect("queue").push_back(id);
    }
    fn poll_ready(&self) {
        for polls in 0.. {
            let Some(id) = self.ready.0.lock().expect("queue").pop_front() else { return };
            let name = self.names.borrow().get(&id).copied();
            assert!(polls < POLLS_MAX, "task {name:?} runs in circles");
            let Some(slot) = self.tasks.borrow().get(&id).cloned() else { continue };
            let waker = Waker::from(Arc::new(Wakes(id, self.ready.clone())));
            let mut task = slot.borrow_mut();
            let Some(future) = task.as_mut() else { continue };
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                *task = None;
                self.tasks.borrow_mut().remove(&id);
            }
        }
    }
}

struct Seam(Rc<World>);

struct Sleep {
    world: Rc<World>,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.now.get() >= self.key.0 {
            return Poll::Ready(());
        }
        self.world.timers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.world.timers.borrow_mut().remove(&self.key);
    }
}

impl Clock for Seam {
    fn now(&self) -> Instant {
        Instant(self.0.now.get())
    }
    fn unix_now(&self) -> UnixTime {
        let now = self.0.now.get();
        UnixTime {
            seconds: 1_700_000_000 + (now / 1_000_000_000) as i64,
            nanos: (now % 1_000_000_000) as u32,
        }
    }
    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(Sleep { key: (at.0, self.0.number()), world: self.0.clone() })
    }
}

impl Spawn for Seam {
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.0.start(name, task);
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        self.0.start(name, task());
    }
}

impl Rng for Seam {
    fn next_u64(&self) -> u64 {
        let mut generator = ember_types::layout::SplitMix64(self.0.seed.get());
        let drawn = generator.next();
        self.0.seed.set(self.0.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        drawn
    }
}

impl Disks for Seam {
    fn open(&self, _: &Path) -> io::Result<Box<dyn Disk>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Runs `main` to its end on virtual time.
pub fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Rt) -> F) {
    let world = Rc::new(World::default());
    world.now.set(1_000_000_000);
    let seam = || Rc::new(Seam(world.clone()));
    let net = Rc::new(MemNet::default());
    let rt = Rt::new(RtParts { clock: seam(), spawn: seam(), net, disks: seam(), rng: seam() });
    let done = Rc::new(Cell::new(false));
    let (main, ended) = (main(rt), done.clone());
    world.start(
        "test",
        Box::pin(async move {
            main.await;
            ended.set(true);
        }),
    );
    while !done.get() {
        world.poll_ready();
        if done.get() {
            break;
        }
        let next = world.timers.borrow_mut().pop_first();
        let ((at, _), waker) = next.expect("the test waits for something that never comes");
        world.now.set(world.now.get().max(at));
        waker.wake();
    }
    world.tasks.borrow_mut().clear();
}
