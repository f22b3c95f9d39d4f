//! Reactors: a thread, its runtime and the handle that tasks on it use.

use crate::clock::{SystemClock, SystemRng};
use crate::disk::UringDisks;
use crate::net::UringNet;
use crate::panics::{Panics, catch, message};
use crate::{blocking, probe};
use ember_rt::select::{Either, select};
use ember_rt::sync::oneshot;
use ember_rt::{LocalBoxFuture, Rt, RtParts, SendTask, Spawn};
use std::future::Future;
use std::io;
use std::rc::Rc;

/// How a reactor is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The CPU that the thread is bound to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// Entries of the submission queue for streams.
    pub ring_entries: u32,
    /// Operations that each disk has in flight at most; the rest wait by priority.
    pub disk_depth: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { cpu: None, ring_entries: 1024, disk_depth: 128 }
    }
}

struct LocalTasks(Panics);

impl Spawn for LocalTasks {
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        tokio_uring::spawn(self.0.clone().guard(name, task));
    }
    fn spawn_blocking(&self, name: &'static str, task: SendTask) {
        blocking::submit(name, task);
    }
}

fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("CPU {cpu} does not exist")));
    }
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|err| {
        let err = io::Error::from(err);
        io::Error::new(err.kind(), format!("cannot bind a thread to CPU {cpu}: {err}"))
    })
}

/// Runs a reactor on this thread until the future that `main` makes has ended; tasks that still run then are
/// dropped. Fails if the kernel refuses io_uring (see [`probe`](crate::probe())) or the CPU.
///
/// # Panics
/// With the panic of any task of this reactor.
pub fn run_reactor<T, M, F>(options: &Options, main: M) -> io::Result<T>
where
    M: FnOnce(Rt) -> F,
    F: Future<Output = T>,
{
    if let Some(cpu) = options.cpu {
        pin_to(cpu)?;
    }
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    let mut builder = tokio_uring::builder();
    builder.entries(options.ring_entries).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(|err| {
        let text = probe().err().unwrap_or_else(|| format!("cannot start a reactor: {err}"));
        io::Error::new(err.kind(), text)
    })?;
    let panics = Panics::default();
    let rt = Rt::new(RtParts {
        clock: Rc::new(SystemClock),
        spawn: Rc::new(LocalTasks(panics.clone())),
        net: Rc::new(UringNet),
        disks: Rc::new(UringDisks { depth: options.disk_depth }),
        rng: Rc::new(SystemRng),
    });
    let ended = runtime.block_on(async { select(main(rt), panics.wait()).await });
    drop(runtime);
    match ended {
        Either::Left(value) => Ok(value),
        Either::Right(payload) => std::panic::resume_unwind(payload),
    }
}

/// A reactor on a thread of its own.
pub struct ReactorThread<T> {
    name: String,
    thread: std::thread::JoinHandle<()>,
    result: oneshot::Receiver<io::Result<T>>,
}

impl<T> ReactorThread<T> {
    /// Waits on another reactor until this one has ended. `Err` if it couldn't start or panicked.
    pub async fn finished(self) -> io::Result<T> {
        let name = self.name;
        self.result.await.unwrap_or_else(|_| Err(io::Error::other(format!("thread {name} panicked"))))
    }

    /// Blocks this thread until the reactor has ended. `Err` if it couldn't start or panicked.
    pub fn join(mut self) -> io::Result<T> {
        let ended = self.thread.join();
        match self.result.try_recv() {
            Ok(result) => result,
            Err(_) => {
                let why = ended.err().map_or_else(String::new, |payload| message(&payload).to_owned());
                Err(io::Error::other(format!("thread {} panicked: {why}", self.name)))
            }
        }
    }
}

/// Starts a reactor on a thread of its own, a lane. `main` is called there. The thread ends with the future
/// that `main` makes; it isn't stopped by dropping the handle.
pub fn spawn_reactor<T, M, F>(name: &str, options: Options, main: M) -> io::Result<ReactorThread<T>>
where
    T: Send + 'static,
    M: FnOnce(Rt) -> F + Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (answer, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = answer.send(run_reactor(&options, main));
    })?;
    Ok(ReactorThread { name: name.to_owned(), thread, result })
}

/// Runs one blocking task on this thread's small runtime and says whether it panicked.
pub(crate) fn run_task(runtime: &tokio::runtime::Runtime, name: &'static str, task: SendTask) {
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(runtime, catch(async move { task().await }));
    if let Err(payload) = ended {
        tracing::error!(task = name, "blocking task panicked: {}", message(&payload));
    }
}
