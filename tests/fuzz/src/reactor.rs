//! The seam on one thread and virtual time, just enough to run a connection or an engine to its end:
//! random numbers count.

use ember_net::mem::MemNet;
use ember_rt::disk::{Disk, Disks};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Rounds of all tasks within one moment; more is a task that never rests.
const ROUNDS_MAX: usize = 100_000;

#[derive(Default)]
struct World {
    now: Cell<u64>,
    timers: RefCell<BTreeSet<u64>>,
    random: Cell<u64>,
    tasks: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
}

struct Moved(AtomicBool);

impl Wake for Moved {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Seam(Rc<World>);

impl Clock for Seam {
    fn now(&self) -> Instant {
        Instant(self.0.now.get())
    }
    fn unix_now(&self) -> UnixTime {
        UnixTime::default()
    }
    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        let world = self.0.clone();
        Box::pin(poll_fn(move |_| {
            if world.now.get() >= at.0 {
                return Poll::Ready(());
            }
            world.timers.borrow_mut().insert(at.0);
            Poll::Pending
        }))
    }
}

impl Spawn for Seam {
    fn spawn(&self, _: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.0.tasks.borrow_mut().push(task);
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        self.spawn(name, task());
    }
}

impl Rng for Seam {
    fn next_u64(&self) -> u64 {
        self.0.random.set(self.0.random.get() + 1);
        self.0.random.get()
    }
}

impl Disks for Seam {
    fn open(&self, _: &Path) -> std::io::Result<Box<dyn Disk>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// Tasks and time.
pub(crate) struct Reactor {
    world: Rc<World>,
    moved: Arc<Moved>,
    pub(crate) rt: Rt,
    pub(crate) net: MemNet,
}

impl Reactor {
    pub(crate) fn new() -> Self {
        let (world, net) = (Rc::<World>::default(), MemNet::default());
        let seam = Rc::new(Seam(world.clone()));
        let rt = Rt::new(RtParts {
            clock: seam.clone(),
            spawn: seam.clone(),
            net: Rc::new(net.clone()),
            disks: seam.clone(),
            rng: seam,
        });
        Self { world, moved: Arc::new(Moved(AtomicBool::new(false))), rt, net }
    }

    /// Runs a future that needs no time to pass.
    pub(crate) fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        self.rt.spawn("run", async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        self.rest();
        slot.borrow_mut().take().expect("it waits for something that never comes")
    }

    /// Polls everything until nothing moves any more at this moment.
    pub(crate) fn rest(&self) {
        let waker = Waker::from(self.moved.clone());
        let mut cx = Context::from_waker(&waker);
        for _ in 0..ROUNDS_MAX {
            self.moved.0.store(false, Ordering::Relaxed);
            let mut running = std::mem::take(&mut *self.world.tasks.borrow_mut());
            running.retain_mut(|task| task.as_mut().poll(&mut cx).is_pending());
            let mut spawned = std::mem::take(&mut *self.world.tasks.borrow_mut());
            let quiet = spawned.is_empty() && !self.moved.0.load(Ordering::Relaxed);
            running.append(&mut spawned);
            *self.world.tasks.borrow_mut() = running;
            if quiet {
                return;
            }
        }
        panic!("a task never rests");
    }

    /// Lets time pass to the next timer, `times` times.
    pub(crate) fn pass(&self, times: usize) {
        for _ in 0..times {
            let Some(at) = self.world.timers.borrow_mut().pop_first() else { return };
            self.world.now.set(self.world.now.get().max(at));
            self.rest();
        }
    }
}

impl Drop for Reactor {
    /// Tasks hold the runtime, and it them.
    fn drop(&mut self) {
        let tasks = std::mem::take(&mut *self.world.tasks.borrow_mut());
        drop(tasks);
        self.world.tasks.borrow_mut().clear();
    }
}
