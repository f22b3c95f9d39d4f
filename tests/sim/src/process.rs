//! Processes: groups of tasks that live and die together, each with its own clock, network identity,
//! randomness and disks.

use crate::disk::SimFs;
use crate::net::SimNet;
use crate::task::TaskId;
use crate::trace::{Entry, name_digest};
use crate::world::{Event, EventKey, World, between, stream};
use ember_rt::disk::{Disk, Disks};
use ember_rt::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
use ember_types::layout::SplitMix64;
use ember_types::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// One process of a world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProcessId(u32);

impl ProcessId {
    /// Tasks of nobody: workloads, fault injectors, checks. Never killed or paused.
    pub const HARNESS: Self = Self(u32::MAX);

    pub(crate) fn index(self) -> Option<usize> {
        (self != Self::HARNESS).then_some(self.0 as usize)
    }
    pub(crate) fn from_index(index: usize) -> Self {
        Self(index as u32)
    }
    pub(crate) fn number(self) -> u64 {
        u64::from(self.0)
    }
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// kill -9: what it wrote is with the operating system; peers see their connections close.
    Kill,
    /// The machine loses power: unsynced writes are lost or torn, peers see nothing.
    PowerLoss,
}

/// Wall-clock time at the start of every world, in seconds since 1970.
const EPOCH_SECONDS: i64 = 1_700_000_000;
/// Largest deviation of a process' clock from true time, in millionths.
pub const CLOCK_DRIFT_PPM_MAX: u64 = 2_000;

type Main = Rc<dyn Fn(Rt) -> LocalBoxFuture<'static, ()>>;

pub(crate) struct ProcessState {
    pub(crate) id: ProcessId,
    pub(crate) name: String,
    pub(crate) alive: Cell<bool>,
    pub(crate) powered: Cell<bool>,
    pub(crate) paused: Cell<bool>,
    pub(crate) incarnation: Cell<u32>,
    pub(crate) deferred: RefCell<Vec<TaskId>>,
    boot_offset: Cell<u64>,
    drift_ppm: Cell<i64>,
    rng: RefCell<SplitMix64>,
    main: Main,
    disks: RefCell<BTreeMap<PathBuf, Rc<SimFs>>>,
}

impl ProcessState {
    fn local(&self, world_ns: u64) -> u64 {
        let rate = (1_000_000 + self.drift_ppm.get()) as u64;
        self.boot_offset.get() + world_ns / 1_000_000 * rate + world_ns % 1_000_000 * rate / 1_000_000
    }
    /// The first point of true time at which the local clock shows at least `local_ns`.
    fn world(&self, local_ns: u64) -> u64 {
        let rate = (1_000_000 + self.drift_ppm.get()) as u64;
        let since = local_ns.saturating_sub(self.boot_offset.get());
        let mut at = since / rate * 1_000_000 + since % rate * 1_000_000 / rate;
        while self.local(at) < local_ns && at < u64::MAX / 2 {
            at += 1;
        }
        at
    }
}

impl World {
    /// Adds a process. `main` runs at each start, with the same disks. It isn't started yet.
    pub fn add_process<F>(&self, name: &str, main: impl Fn(Rt) -> F + 'static) -> ProcessId
    where
        F: Future<Output = ()> + 'static,
    {
        let id = ProcessId::from_index(self.0.processes.borrow().len());
        let mut rng = stream(self.0.seed, 1000 + id.number());
        let drift = between(&mut rng, 0, 2 * CLOCK_DRIFT_PPM_MAX) as i64 - CLOCK_DRIFT_PPM_MAX as i64;
        let state = ProcessState {
            id,
            name: name.to_owned(),
            alive: Cell::new(false),
            powered: Cell::new(true),
            paused: Cell::new(false),
            incarnation: Cell::new(0),
            deferred: RefCell::default(),
            boot_offset: Cell::new(between(&mut rng, 1_000_000_000, 1_000_000_000_000)),
            drift_ppm: Cell::new(drift),
            rng: RefCell::new(rng),
            main: Rc::new(move |rt| Box::pin(main(rt))),
            disks: RefCell::default(),
        };
        self.0.processes.borrow_mut().push(Rc::new(state));
        id
    }

    /// Starts a process that isn't running.
    pub fn start(&self, id: ProcessId) {
        let Some(state) = self.process_state(id).filter(|s| !s.alive.get()) else { return };
        state.alive.set(true);
        state.powered.set(true);
        state.paused.set(false);
        state.incarnation.set(state.incarnation.get() + 1);
        self.record(Entry::Process, &[1, id.number(), name_digest(&state.name)]);
        let rt = self.rt(&state);
        let main = state.main.clone();
        self.spawn_task(id, state.incarnation.get(), "main", Box::pin(async move { main(rt).await }));
    }

    /// Ends a process at once: its tasks are dropped, its connections and listeners are gone.
    pub fn kill(&self, id: ProcessId, crash: Crash) {
        let Some(state) = self.process_state(id) else { return };
        if state.alive.get() {
            self.record(Entry::Process, &[2, id.number(), crash as u64]);
        }
        state.alive.set(false);
        state.paused.set(false);
        state.incarnation.set(state.incarnation.get() + 1);
        state.deferred.borrow_mut().clear();
        self.close_process(id, crash);
        let futures = self.0.tasks.borrow_mut().remove_process(id);
        drop(futures);
        for fs in state.disks.borrow().values() {
            fs.close_all(self, crash);
        }
        if crash == Crash::PowerLoss {
            state.powered.set(false);
            let mut rng = state.rng.borrow_mut();
            state.boot_offset.set(between(&mut rng, 1_000_000_000, 1_000_000_000_000));
        }
    }

    /// Stops a process where it stands (SIGSTOP); its connections stay.
    pub fn pause(&self, id: ProcessId) {
        if let Some(state) = self.process_state(id).filter(|s| s.alive.get() && !s.paused.get()) {
            self.record(Entry::Process, &[3, id.number()]);
            state.paused.set(true);
        }
    }

    /// Lets a stopped process go on.
    pub fn resume(&self, id: ProcessId) {
        if let Some(state) = self.process_state(id).filter(|s| s.paused.get()) {
            self.record(Entry::Process, &[4, id.number()]);
            state.paused.set(false);
            for task in state.deferred.take() {
                self.requeue(task);
            }
        }
    }

    /// Whether a process runs (or is stopped).
    pub fn is_alive(&self, id: ProcessId) -> bool {
        self.process_state(id).is_some_and(|s| s.alive.get())
    }
    /// Whether a process is stopped.
    pub fn is_paused(&self, id: ProcessId) -> bool {
        self.process_state(id).is_some_and(|s| s.paused.get())
    }
    /// Name of a process.
    pub fn process_name(&self, id: ProcessId) -> String {
        self.process_state(id).map_or_else(|| "harness".to_owned(), |s| s.name.clone())
    }
    /// Sets how fast a process' clock runs: millionths above true time.
    pub fn set_drift(&self, id: ProcessId, ppm: i64) {
        let Some(state) = self.process_state(id) else { return };
        // The clock keeps its reading at the moment of the change.
        let reading = state.local(self.now_ns());
        state.drift_ppm.set(ppm);
        let jump = state.local(self.now_ns()) - state.boot_offset.get();
        state.boot_offset.set(reading.saturating_sub(jump));
    }
    /// A disk of a process, made when it is first asked for.
    pub fn disk(&self, id: ProcessId, root: &Path) -> Option<Rc<SimFs>> {
        let state = self.process_state(id)?;
        let mut disks = state.disks.borrow_mut();
        Some(disks.entry(root.to_owned()).or_insert_with(|| Rc::new(SimFs::new(id))).clone())
    }
    /// All disks of a process.
    pub fn disks_of(&self, id: ProcessId) -> Vec<(PathBuf, Rc<SimFs>)> {
        let disks = self.process_state(id).map(|s| s.disks.borrow().clone()).unwrap_or_default();
        disks.into_iter().collect()
    }
    /// Puts an empty disk in the place of one.
    pub fn replace_disk(&self, id: ProcessId, root: &Path) {
        if let Some(state) = self.process_state(id) {
            state.disks.borrow_mut().insert(root.to_owned(), Rc::new(SimFs::new(id)));
        }
    }
    /// A seam for tasks of the harness: true time, and a network identity of its own that is never cut off.
    pub fn harness_rt(&self) -> Rt {
        let state = ProcessState {
            id: ProcessId::HARNESS,
            name: "harness".to_owned(),
            alive: Cell::new(true),
            powered: Cell::new(true),
            paused: Cell::new(false),
            incarnation: Cell::new(0),
            deferred: RefCell::default(),
            boot_offset: Cell::new(0),
            drift_ppm: Cell::new(0),
            rng: RefCell::new(stream(self.0.seed, 3)),
            main: Rc::new(|_| Box::pin(async {})),
            disks: RefCell::default(),
        };
        self.rt(&Rc::new(state))
    }

    fn rt(&self, state: &Rc<ProcessState>) -> Rt {
        let own =
            Rc::new(Own { world: self.clone(), incarnation: state.incarnation.get(), state: state.clone() });
        Rt::new(RtParts {
            clock: own.clone(),
            spawn: own.clone(),
            net: Rc::new(SimNet::new(self.clone(), state.id)),
            disks: own.clone(),
            rng: own,
        })
    }
}

/// One run of one process, as its seam sees it.
struct Own {
    world: World,
    state: Rc<ProcessState>,
    incarnation: u32,
}

impl Own {
    fn is_current(&self) -> bool {
        self.state.alive.get() && self.state.incarnation.get() == self.incarnation
    }
}

impl Clock for Own {
    fn now(&self) -> Instant {
        Instant(self.state.local(self.world.now_ns()))
    }
    fn unix_now(&self) -> UnixTime {
        let ns = self.world.now_ns();
        UnixTime { seconds: EPOCH_SECONDS + (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }
    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(Sleep { world: self.world.clone(), state: self.state.clone(), at, event: None })
    }
}

impl Spawn for Own {
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        if self.is_current() {
            self.world.spawn_task(self.state.id, self.incarnation, name, task);
        }
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        if !self.is_current() {
            return;
        }
        let delay = between(&mut self.state.rng.borrow_mut(), 5_000, 50_000);
        let at = Instant(self.state.local(self.world.now_ns() + delay));
        let wait = self.sleep_until(at);
        let body = Box::pin(async move {
            wait.await;
            task().await;
        });
        self.world.spawn_task(self.state.id, self.incarnation, name, body);
    }
}

impl Rng for Own {
    fn next_u64(&self) -> u64 {
        let value = self.state.rng.borrow_mut().next();
        self.world.record(Entry::Random, &[self.state.id.number(), value]);
        value
    }
}

impl Disks for Own {
    fn open(&self, root: &Path) -> io::Result<Box<dyn Disk>> {
        let fs = self
            .state
            .disks
            .borrow_mut()
            .entry(root.to_owned())
            .or_insert_with(|| Rc::new(SimFs::new(self.state.id)))
            .clone();
        Ok(fs.open(&self.world))
    }
}

struct Sleep {
    world: World,
    state: Rc<ProcessState>,
    at: Instant,
    event: Option<EventKey>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.local(self.world.now_ns()) >= self.at.0 {
            return Poll::Ready(());
        }
        if let Some(event) = self.event
            && self.world.reschedule_waker(event, cx.waker())
        {
            return Poll::Pending;
        }
        let at = self.state.world(self.at.0).max(self.world.now_ns() + 1);
        self.event = Some(self.world.schedule(at, Event::Wake(cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(event) = self.event {
            self.world.cancel(event);
        }
    }
}
