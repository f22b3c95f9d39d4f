//! A mount from start to end.

use crate::config::FuseConfig;
use crate::error::Error;
use crate::fs::Common;
use crate::known::Known;
use crate::mounted::{self, Mounted};
use crate::worker::{self, WorkerParts};
use ember_client::Client;
use ember_daemon::{Counter, Gauge, Metrics};
use ember_fuse_kernel::mount::{Mount, Probe, Unmount, probe};
use ember_fuse_kernel::{DevChannel, Error as KernelError, PointProblem};
use ember_rt::select::{Either, Either3, select, select3};
use ember_rt::sync::{mpsc, oneshot};
use ember_rt::{LocalBoxFuture, Rt, watch};
use ember_rt_uring::{Options, spawn_reactor};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Makes a client on a reactor. It is called once on each thread of a mount; all clients share one
/// [`ember_client::Shared`].
pub type Connect = Arc<dyn Fn(Rt) -> LocalBoxFuture<'static, ember_client::Result<Client>> + Send + Sync>;

/// What a mount needs beyond its settings.
#[derive(Clone)]
pub struct Parts {
    /// Makes the clients.
    pub connect: Connect,
    /// Where counters go.
    pub metrics: Metrics,
}

/// How often the state of a mount that should change is looked at.
const PERIOD: Duration = Duration::from_millis(50);
/// How long a busy mount is waited for before it is detached: RELEASE comes after close(2) has returned.
const BUSY: Duration = Duration::from_secs(1);

/// Counters of one mount.
pub(crate) struct MountMetrics {
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    pub(crate) read: Counter,
    pub(crate) written: Counter,
    pub(crate) in_progress: Gauge,
}

impl MountMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counter("fuse_requests", "Requests of the kernel"),
            failures: metrics.counter("fuse_failures", "Requests answered with an error, ENOENT included"),
            read: metrics.counter("fuse_read_bytes", "Bytes read by the kernel"),
            written: metrics.counter("fuse_written_bytes", "Bytes written by the kernel"),
            in_progress: metrics.gauge("fuse_requests_in_progress", "Requests not answered yet"),
        }
    }
}

/// Mounts the cluster on `point` and serves until `shutdown` turns true or somebody unmounts it. `ready` is
/// called once the mounted root answers. When it returns, nothing is mounted any more.
pub async fn run(
    rt: Rt,
    point: &Path,
    config: FuseConfig,
    parts: Parts,
    shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(&Path),
) -> Result<(), Error> {
    let mounted = mount(&rt, point, &config).await?;
    let mount = mounted.mount.clone();
    tracing::info!(point = %mount.point().display(), threads = config.threads(), "mounted");
    let mut crew = match Crew::start(&rt, mounted, &config, &parts) {
        Ok(crew) => crew,
        Err(error) => {
            detach(&rt, &mount, Unmount::Lazy).await;
            return Err(error);
        }
    };
    let (unmounted, served) = match serve(&rt, &mount, &config, &mut crew, shutdown, ready).await {
        Ok(Served::Unmounted) => (true, Ok(())),
        Ok(Served::ShutDown) => (false, Ok(())),
        Err(error) => (false, Err(error)),
    };
    // Where somebody has unmounted it there may be another mount by now.
    if !unmounted {
        take_away(&rt, &mount).await;
    }
    let ended = end(&rt, &config, &mut crew).await;
    tracing::info!(point = %mount.point().display(), "unmounted");
    served.and(ended)
}

async fn mount(rt: &Rt, point: &Path, config: &FuseConfig) -> Result<Mounted, Error> {
    let (point, config) = (point.to_owned(), config.clone());
    let mounted = rt.blocking("fuse mount", move || async move { mounted::start(&point, &config) });
    mounted.await.map_err(std::io::Error::other)?
}

/// The threads of a mount.
struct Crew {
    stops: Vec<oneshot::Sender<()>>,
    ended: mpsc::Receiver<Result<(), Error>>,
    running: usize,
}

impl Crew {
    fn start(rt: &Rt, mounted: Mounted, config: &FuseConfig, parts: &Parts) -> Result<Self, Error> {
        let threads = config.threads();
        let mut channels = Vec::with_capacity(threads);
        for _ in 1..threads {
            channels.push(mounted.channel.try_clone()?);
        }
        let notify = Arc::new(mounted.channel.try_clone()?);
        channels.push(mounted.channel);
        let common = Arc::new(Common {
            config: config.clone(),
            known: Known::default(),
            interrupts: Arc::default(),
            notify,
            metrics: MountMetrics::new(&parts.metrics),
        });
        let (sender, ended) = mpsc::channel(threads);
        let mut crew = Self { stops: Vec::new(), ended, running: 0 };
        for (index, channel) in channels.into_iter().enumerate() {
            crew.add(rt, index, channel, mounted.agreed.max_write, &common, parts, sender.clone())?;
        }
        Ok(crew)
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        rt: &Rt,
        index: usize,
        channel: DevChannel,
        max_write: u32,
        common: &Arc<Common>,
        parts: &Parts,
        ended: mpsc::Sender<Result<(), Error>>,
    ) -> Result<(), Error> {
        channel.set_nonblocking(true)?;
        let (stopper, stop) = oneshot::channel();
        let (connect, common) = (parts.connect.clone(), common.clone());
        let parts = WorkerParts { channel, max_write, connect, common, stop, first: index == 0 };
        let name = format!("fuse-{index}");
        let thread = spawn_reactor(&name, Options::default(), move |rt| worker::run(rt, parts))?;
        self.stops.push(stopper);
        self.running += 1;
        rt.spawn("fuse thread", async move {
            let result = thread.finished().await.map_err(Error::from).and_then(|result| result);
            // Nobody listens any more if the mount was given up.
            let _ = ended.send(result).await;
        });
        Ok(())
    }

    /// Waits for a thread to end; `None` when all have.
    async fn next_end(&mut self) -> Option<Result<(), Error>> {
        if self.running == 0 {
            return None;
        }
        let ended = self.ended.recv().await;
        self.running -= 1;
        ended
    }

    /// Waits for all threads; the first failure counts.
    async fn all_ended(&mut self) -> Result<(), Error> {
        let mut all = Ok(());
        while let Some(ended) = self.next_end().await {
            all = all.and(ended);
        }
        all
    }

    fn stop(&mut self) {
        for stop in self.stops.drain(..) {
            // A thread that has ended needs no stop.
            let _ = stop.send(());
        }
    }
}

/// Why a mount is to end.
enum Served {
    ShutDown,
    Unmounted,
}

/// Waits until the mount is ready, and then until it is to end.
async fn serve(
    rt: &Rt,
    mount: &Mount,
    config: &FuseConfig,
    crew: &mut Crew,
    mut shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(&Path),
) -> Result<Served, Error> {
    let unmounted = |ended: Option<Result<(), Error>>| ended.unwrap_or(Ok(())).map(|()| Served::Unmounted);
    let answers = wait_until_alive(rt, mount, config.start_timeout_ms);
    match select3(until_true(&mut shutdown), crew.next_end(), answers).await {
        Either3::First(()) => return Ok(Served::ShutDown),
        Either3::Second(ended) => return unmounted(ended),
        Either3::Third(alive) => alive?,
    }
    ready(mount.point());
    match select(until_true(&mut shutdown), crew.next_end()).await {
        Either::Left(()) => Ok(Served::ShutDown),
        Either::Right(ended) => unmounted(ended),
    }
}

async fn until_true(value: &mut watch::Receiver<bool>) {
    while !*value.borrow() {
        if value.changed().await.is_err() {
            // Nobody can ask for the end any more.
            std::future::pending::<()>().await;
        }
    }
}

async fn wait_until_alive(rt: &Rt, mount: &Mount, timeout_ms: u64) -> Result<(), Error> {
    let deadline = rt.now() + Duration::from_millis(timeout_ms);
    loop {
        let point = mount.point().to_owned();
        let probed = rt.blocking("fuse probe", move || async move { probe(&point) }).await;
        match probed.map_err(std::io::Error::other)?? {
            Probe::Alive => return Ok(()),
            Probe::NotFuse => return Err(Error::Unmounted(mount.point().to_owned())),
            Probe::Stale | Probe::Hung => {}
        }
        if rt.now() >= deadline {
            return Err(Error::NotReady { point: mount.point().to_owned(), timeout_ms });
        }
        rt.sleep(PERIOD).await;
    }
}

/// Unmounts; a mount in use is detached after a moment.
async fn take_away(rt: &Rt, mount: &Mount) {
    let begun = rt.now();
    let mut how = Unmount::Now;
    while !detach(rt, mount, how).await {
        let waited = rt.now().since(begun);
        if waited >= BUSY && how == Unmount::Now {
            tracing::warn!(point = %mount.point().display(), "the mount is in use: detached");
            how = Unmount::Lazy;
        }
        if waited >= BUSY * 3 {
            return;
        }
        rt.sleep(PERIOD).await;
    }
}

/// Lets the threads end.
async fn end(rt: &Rt, config: &FuseConfig, crew: &mut Crew) -> Result<(), Error> {
    let grace = Duration::from_millis(config.shutdown_grace_ms);
    if let Ok(ended) = rt.timeout(grace, crew.all_ended()).await {
        return ended;
    }
    tracing::warn!("programs still use the mount: what they do there fails from now on");
    crew.stop();
    crew.all_ended().await
}

/// Unmounts; false if that has to be tried again.
async fn detach(rt: &Rt, mount: &Mount, how: Unmount) -> bool {
    let own = mount.clone();
    match rt.blocking("fuse unmount", move || async move { own.unmount(how) }).await {
        Ok(Ok(())) => true,
        Ok(Err(KernelError::MountPoint { problem: PointProblem::NotMounted, .. })) => true,
        Ok(Err(KernelError::Busy(_))) => false,
        Ok(Err(error)) => {
            tracing::warn!(%error, "unmount");
            false
        }
        Err(elapsed) => {
            tracing::warn!(%elapsed, "unmount");
            false
        }
    }
}
