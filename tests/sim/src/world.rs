//! The world: virtual time, the queue of events, the tasks, and the processes. One thread, one seed.

use crate::net::NetState;
use crate::process::{ProcessId, ProcessState};
use crate::task::{Ready, TaskId, Tasks};
use crate::trace::{Entry, Trace};
use ember_types::layout::SplitMix64;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

/// Polls without a step of time after which a run counts as stuck in a loop.
const POLLS_WITHOUT_TIME_MAX: u64 = 3_000_000;

/// What happens at a point in time.
pub(crate) enum Event {
    Wake(Waker),
    Call(Box<dyn FnOnce(&World)>),
}

/// Names an event so that it can be cancelled: its time and its place among those of that time.
pub(crate) type EventKey = (u64, u64);

pub(crate) struct Core {
    pub(crate) seed: u64,
    now: Cell<u64>,
    next_event: Cell<u64>,
    events: RefCell<BTreeMap<EventKey, Event>>,
    pub(crate) ready: Arc<Ready>,
    pub(crate) tasks: RefCell<Tasks>,
    pub(crate) processes: RefCell<Vec<Rc<ProcessState>>>,
    pub(crate) net: RefCell<NetState>,
    pub(crate) trace: Trace,
    pub(crate) net_rng: RefCell<SplitMix64>,
    pub(crate) disk_rng: RefCell<SplitMix64>,
    failure: RefCell<Option<String>>,
    polls: Cell<u64>,
}

/// A handle on the world; cheap to clone.
#[derive(Clone)]
pub struct World(pub(crate) Rc<Core>);

impl World {
    /// A new world. Everything random in it follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Core {
            seed,
            now: Cell::new(0),
            next_event: Cell::new(0),
            events: RefCell::default(),
            ready: Arc::default(),
            tasks: RefCell::default(),
            processes: RefCell::default(),
            net: RefCell::default(),
            trace: Trace::default(),
            net_rng: RefCell::new(stream(seed, 1)),
            disk_rng: RefCell::new(stream(seed, 2)),
            failure: RefCell::default(),
            polls: Cell::new(0),
        }))
    }
    /// The seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }
    /// An independent stream of random numbers of this seed. `0..16` and those of process numbers are taken.
    pub fn rng(&self, purpose: u64) -> SplitMix64 {
        stream(self.0.seed, purpose)
    }
    /// Virtual nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.0.now.get()
    }
    /// Hash and counters of the run.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }
    /// Number of polls of tasks so far: what the run cost.
    pub fn polls(&self) -> u64 {
        self.0.polls.get()
    }
    /// Records that a property does not hold; the run ends there. The first one stays.
    pub fn fail(&self, property: &str, detail: &str) {
        self.0.failure.borrow_mut().get_or_insert_with(|| format!("{property}: {detail}"));
    }
    /// The property that does not hold.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.borrow().clone()
    }
    pub(crate) fn record(&self, entry: Entry, words: &[u64]) {
        self.0.trace.add(self.now_ns(), entry, words);
    }

    pub(crate) fn schedule(&self, at: u64, event: Event) -> EventKey {
        let key = (at.max(self.now_ns()), self.0.next_event.get());
        self.0.next_event.set(key.1 + 1);
        self.0.events.borrow_mut().insert(key, event);
        key
    }
    pub(crate) fn reschedule_waker(&self, key: EventKey, waker: &Waker) -> bool {
        match self.0.events.borrow_mut().get_mut(&key) {
            Some(Event::Wake(own)) => {
                own.clone_from(waker);
                true
            }
            _ => false,
        }
    }
    pub(crate) fn cancel(&self, key: EventKey) {
        // Dropped outside the borrow: an event may own things whose destructors schedule others.
        let cancelled = self.0.events.borrow_mut().remove(&key);
        drop(cancelled);
    }
    /// Runs `call` after `delay_ns` of virtual time.
    pub fn after(&self, delay_ns: u64, call: impl FnOnce(&World) + 'static) {
        self.schedule(self.now_ns().saturating_add(delay_ns), Event::Call(Box::new(call)));
    }

    /// Runs until `until_ns`, until a property fails, or until nothing is left to happen.
    pub fn run_until(&self, until_ns: u64) {
        self.run_while(until_ns, || true);
    }

    /// Runs a future outside any process until it is done, at most until `until_ns`; `None` if it isn't done
    /// then or a property failed.
    pub fn block_on<T: 'static>(
        &self,
        until_ns: u64,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        self.spawn_task(
            ProcessId::HARNESS,
            0,
            "harness",
            Box::pin(async move {
                let value = future.await;
                *result.borrow_mut() = Some(value);
            }),
        );
        let done = slot.clone();
        self.run_while(until_ns, || done.borrow().is_none());
        slot.borrow_mut().take()
    }

    fn run_while(&self, until_ns: u64, goes_on: impl Fn() -> bool) {
        let mut polls = 0_u64;
        while goes_on() && self.0.failure.borrow().is_none() {
            if let Some(task) = self.0.ready.pop() {
                self.poll_task(task);
                polls += 1;
                if polls > POLLS_WITHOUT_TIME_MAX {
                    let name = self.0.tasks.borrow().name(task).unwrap_or("a task that has ended");
                    self.fail("progress", &format!("time stands still while {name} and others run"));
                }
                continue;
            }
            let next = self.0.events.borrow().first_key_value().map(|(&key, _)| key);
            let Some(key) = next.filter(|key| key.0 <= until_ns) else {
                self.0.now.set(self.now_ns().max(until_ns));
                return;
            };
            if key.0 > self.now_ns() {
                self.0.now.set(key.0);
                self.0.polls.set(self.polls() + polls);
                polls = 0;
            }
            let event = self.0.events.borrow_mut().remove(&key);
            match event {
                Some(Event::Wake(waker)) => waker.wake(),
                Some(Event::Call(call)) => call(self),
                None => {}
            }
        }
        self.0.polls.set(self.polls() + polls);
    }

    fn poll_task(&self, id: TaskId) {
        let Some((process, incarnation)) = self.0.tasks.borrow().owner(id) else { return };
        if let Some(state) = self.process_state(process) {
            if state.incarnation.get() != incarnation || !state.alive.get() {
                return;
            }
            if state.paused.get() {
                state.deferred.borrow_mut().push(id);
                return;
            }
        }
        let Some((mut future, waker)) = self.0.tasks.borrow_mut().take(id) else { return };
        let mut context = std::task::Context::from_waker(&waker);
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(()) => {
                self.0.tasks.borrow_mut().end(id);
                drop(future);
            }
            std::task::Poll::Pending => {
                let rest = self.0.tasks.borrow_mut().put_back(id, future);
                // The task killed its own process while it ran.
                drop(rest);
            }
        }
    }

    pub(crate) fn process_state(&self, id: ProcessId) -> Option<Rc<ProcessState>> {
        self.0.processes.borrow().get(id.index()?).cloned()
    }

    /// Drops every task, connection and event, so that nothing of the world stays in memory.
    pub fn tear_down(&self) {
        let ids: Vec<_> = (0..self.0.processes.borrow().len()).map(ProcessId::from_index).collect();
        for id in ids {
            self.kill(id, crate::process::Crash::Kill);
        }
        // Bounded: destructors may start tasks, but those of dead processes are refused.
        for _ in 0..8 {
            let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            drop(tasks);
            let events = std::mem::take(&mut *self.0.events.borrow_mut());
            drop(events);
            let net = std::mem::take(&mut *self.0.net.borrow_mut());
            drop(net);
            self.0.ready.clear();
        }
        self.0.processes.borrow_mut().clear();
    }
}

/// A stream of random numbers that depends on nothing but its two parameters.
pub(crate) fn stream(seed: u64, purpose: u64) -> SplitMix64 {
    let mut mixer = SplitMix64(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93));
    mixer.next();
    SplitMix64(mixer.next())
}

/// A number in `low..=high`.
pub(crate) fn between(rng: &mut SplitMix64, low: u64, high: u64) -> u64 {
    low + rng.below(high.saturating_sub(low).saturating_add(1))
}
