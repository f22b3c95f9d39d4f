//! The seam on virtual time: tasks in order, time that jumps to the next timer.

use ember_net::mem::MemNet;
use ember_rt::disk::{Disk, Disks};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::layout::SplitMix64;
use ember_types::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn flag() -> Arc<Flag> {
    Arc::new(Flag(AtomicBool::new(true)))
}

type Task = (LocalBoxFuture<'static, ()>, Arc<Flag>);

#[derive(Default)]
struct State {
    new: RefCell<Vec<Task>>,
    now: Cell<u64>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    count: Cell<u64>,
    random: RefCell<Option<SplitMix64>>,
}

#[derive(Clone)]
struct Seam(Rc<State>);

pub(super) struct Runtime(Rc<State>);

struct Timer {
    state: Rc<State>,
    at: u64,
    id: u64,
}

impl Future for Timer {
    type Output = ();
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.now.get() >= self.at {
            return Poll::Ready(());
        }
        self.state.timers.borrow_mut().insert((self.at, self.id), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.state.timers.borrow_mut().remove(&(self.at, self.id));
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
        self.0.count.set(self.0.count.get() + 1);
        Box::pin(Timer { state: self.0.clone(), at: at.0, id: self.0.count.get() })
    }
}

impl Spawn for Seam {
    fn spawn(&self, _: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.0.new.borrow_mut().push((task, flag()));
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        // Other tasks run before the answer, as with real threads.
        let pause = self.sleep_until(Instant(self.0.now.get() + 20_000));
        self.spawn(
            name,
            Box::pin(async move {
                pause.await;
                task().await;
            }),
        );
    }
}

impl Rng for Seam {
    fn next_u64(&self) -> u64 {
        self.0.random.borrow_mut().get_or_insert(SplitMix64(1)).next()
    }
}

impl Disks for Seam {
    fn open(&self, _: &Path) -> io::Result<Box<dyn Disk>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Runtime {
    pub(super) fn new() -> Self {
        Self(Rc::default())
    }

    pub(super) fn rt(&self) -> Rt {
        let seam = Rc::new(Seam(self.0.clone()));
        Rt::new(RtParts {
            clock: seam.clone(),
            spawn: seam.clone(),
            net: Rc::new(MemNet::default()),
            disks: seam.clone(),
            rng: seam,
        })
    }

    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut main = pin!(future);
        let main_flag = flag();
        let mut tasks: Vec<Task> = Vec::new();
        loop {
            if main_flag.0.swap(false, Ordering::SeqCst) {
                let waker = Waker::from(main_flag.clone());
                if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return value;
                }
            }
            tasks.append(&mut self.0.new.borrow_mut());
            let mut ran = false;
            tasks.retain_mut(|(task, flag)| {
                if !flag.0.swap(false, Ordering::SeqCst) {
                    return true;
                }
                ran = true;
                let waker = Waker::from(flag.clone());
                task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
            });
            let idle = !ran && self.0.new.borrow().is_empty() && !main_flag.0.load(Ordering::SeqCst);
            if idle {
                let next = self.0.timers.borrow_mut().pop_first();
                let Some(((at, _), waker)) = next else { panic!("everything waits for ever") };
                self.0.now.set(self.0.now.get().max(at));
                waker.wake();
            }
        }
    }
}
