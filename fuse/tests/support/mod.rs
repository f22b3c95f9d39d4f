//! A cluster in one thread of the test process: real connections and messages, services in memory. And mounts
//! of it.

pub mod meta;

use ember_client::mgmtd::{Mgmtd, RoutingCache};
use ember_client::{Client, ClientConfig, Shared};
use ember_daemon::Metrics;
use ember_fuse::{Connect, FuseConfig, Parts};
use ember_net::{
    Handler, Identity, Keys, Options as NetOptions, Peer, Pool, Request, Response, Server, ServerIdentity,
    ServerOptions,
};
use ember_rt::{Addr, LocalBoxFuture, Rt, SharedBuf, watch};
use ember_rt_uring::{Options, spawn_reactor};
use ember_types::chain::ChainTable;
use ember_types::routing::TableKey;
use ember_types::{
    BootId, Chain, ChainId, ChainTableId, ChainTableVersion, ChainTarget, ChainVersion, ChunkVersion,
    ClientId, ClusterId, ClusterTime, Generation, NodeId, NodeInfo, NodeKind, PublicState, RoutingDelta,
    RoutingInfo, RoutingVersion, Status, TargetId, TargetInfo, block_checksums,
};
use ember_wire::codec::Empty;
use ember_wire::handshake::Caller;
use ember_wire::meta::{Answer, Response as MetaResponse};
use ember_wire::method::{EndClient, ExtendClient, GetRouting, MetaOp, Method, ReadChunk, UpdateChunk};
use ember_wire::mgmtd::{ExtendClientResponse, RoutingResponse, Timing};
use ember_wire::storage::{ReadResponse, UpdateKind, UpdateResponse};
use meta::{Chunks, Meta};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const BLOCK: usize = 4096;
const CLUSTER: u128 = 77;
const CHAINS: [u32; 2] = [1, 2];
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Why no mount can be made here.
pub fn skip_reason() -> Option<&'static str> {
    match Path::new("/dev/fuse").exists() {
        false => Some("/dev/fuse does not exist"),
        true if !rustix::process::geteuid().is_root() => Some("not root"),
        true => None,
    }
}

/// Faults that a test switches on.
#[derive(Default)]
pub struct Faults {
    /// Storage doesn't answer for this inode's data.
    pub stalled_data: AtomicU64,
    /// Meta doesn't answer.
    pub meta_stalled: AtomicBool,
    /// Updates of chunks that were served.
    pub updates: AtomicU64,
    /// Reads of chunks that were served.
    pub reads: AtomicU64,
}

/// What the services hold; the test may look.
pub struct World {
    pub meta: Meta,
    pub chunks: Chunks,
}

pub struct Cluster {
    addr: String,
    pub faults: Arc<Faults>,
    pub world: Arc<Mutex<World>>,
}

struct Services {
    rt: Rt,
    world: Arc<Mutex<World>>,
    faults: Arc<Faults>,
    addr: String,
}

struct OneKey;

impl Keys for OneKey {
    fn key(&self, _: &Caller, _: &str) -> Option<[u8; 32]> {
        Some([1; 32])
    }
}

impl Cluster {
    pub fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("ember-fuse-{}-{number}.sock", std::process::id()));
        let addr = format!("unix:{}", socket.display());
        let faults = Arc::new(Faults::default());
        let world = Arc::new(Mutex::new(World { meta: Meta::new(), chunks: Chunks::new() }));
        let (own_addr, own_faults, own_world) = (addr.clone(), faults.clone(), world.clone());
        let (sender, listening) = mpsc::channel();
        spawn_reactor("cluster", Options::default(), move |rt| async move {
            let listener = rt.net().listen(&own_addr.parse::<Addr>().unwrap()).unwrap();
            let services = Services { rt: rt.clone(), world: own_world, faults: own_faults, addr: own_addr };
            let cluster = ClusterId::from_u128(CLUSTER);
            let identity = ServerIdentity { cluster, node: NodeId(1), keys: Rc::new(OneKey) };
            let server = Server::new(identity, Rc::new(Service(Rc::new(services))), ServerOptions::default());
            let (_keep, shutdown) = watch::channel(false);
            sender.send(()).unwrap();
            server.serve(&rt, listener, shutdown).await;
        })
        .unwrap();
        listening.recv().unwrap();
        Self { addr, faults, world }
    }

    /// A way to make clients of one process.
    fn connect(&self) -> Connect {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = ClientId::from_u128((u128::from(number) + 1) << 64);
        let shared = Shared::new(id);
        let addr: Addr = self.addr.parse().unwrap();
        Arc::new(move |rt: Rt| {
            let (shared, addr) = (shared.clone(), addr.clone());
            Box::pin(async move {
                let identity = Identity {
                    cluster: ClusterId::from_u128(CLUSTER),
                    caller: Caller::Client(shared.id()),
                    user: "root".into(),
                    key: [1; 32],
                    lane: 0,
                };
                let pool = Pool::new(&rt, identity, NetOptions::default());
                let routing = RoutingCache::start(&rt, Mgmtd::new(&rt, pool.clone(), vec![addr]));
                let config = ClientConfig { operation_timeout_ms: 20_000, ..ClientConfig::default() };
                Ok(Client::new(rt, config, shared, routing, pool))
            })
        })
    }

    /// Mounts and waits until it is ready.
    pub fn mount(&self, config: FuseConfig) -> Mounted {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let point = std::env::temp_dir().join(format!("ember-mnt-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&point).unwrap();
        let point = std::fs::canonicalize(point).unwrap();
        let parts = Parts { connect: self.connect(), metrics: Metrics::default() };
        let (ready, is_ready) = mpsc::channel();
        let (stopper, stop) = ember_rt::sync::oneshot::channel::<()>();
        let own = point.clone();
        let thread = spawn_reactor("mount", Options::default(), move |rt| async move {
            let (sender, shutdown) = watch::channel(false);
            rt.spawn("stop", async move {
                let _ = stop.await;
                sender.send(true);
                std::future::pending::<()>().await;
            });
            let told = ready.clone();
            let ended =
                ember_fuse::run(rt, &own, config, parts, shutdown, |_| told.send(Ok(())).unwrap()).await;
            if let Err(error) = &ended {
                let _ = ready.send(Err(error.to_string()));
            }
            ended.map_err(|error| error.to_string())
        })
        .unwrap();
        is_ready.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        Mounted { point, stop: Some(stopper), thread: Some(thread) }
    }
}

pub struct Mounted {
    pub point: PathBuf,
    stop: Option<ember_rt::sync::oneshot::Sender<()>>,
    thread: Option<ember_rt_uring::ReactorThread<Result<(), String>>>,
}

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }
    /// Shuts the mount down and waits for its end.
    pub fn end(mut self) -> Result<(), String> {
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join().unwrap();
        std::fs::remove_dir(&self.point).unwrap();
        ended
    }
    /// Waits for an end that came from elsewhere.
    pub fn ended(mut self) -> Result<(), String> {
        let ended = self.thread.take().unwrap().join().unwrap();
        std::fs::remove_dir(&self.point).unwrap();
        ended
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A failed test must not leave a mount behind.
        if self.thread.is_some() {
            let _ = ember_fuse_kernel::mount::unmount(&self.point, ember_fuse_kernel::mount::Unmount::Force);
        }
    }
}

struct Service(Rc<Services>);

impl Handler for Service {
    fn handle(&self, _: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        let services = self.0.clone();
        Box::pin(async move { services.answer(request).await })
    }
}

impl Services {
    async fn answer(&self, request: Request) -> Response {
        match request.method {
            Method::GetRouting => self.routing(request).await,
            Method::ExtendClient => Response::ok::<ExtendClient>(&ExtendClientResponse {
                status: Status::Ok,
                timing: Timing::default(),
                cluster_time: ClusterTime(1),
                primary: Vec::new(),
            }),
            Method::EndClient => Response::ok::<EndClient>(&Empty::default()),
            Method::MetaOp => self.meta(request).await,
            Method::ReadChunk => self.read(request).await,
            Method::UpdateChunk => self.update(request).await,
            other => Response::not_supported(other),
        }
    }

    async fn routing(&self, request: Request) -> Response {
        let body = request.decode::<GetRouting>().unwrap();
        let version = RoutingVersion { term: 1, counter: 1 };
        let delta = (body.have != version).then(|| RoutingDelta {
            version,
            full: Some(self.view(version)),
            ..RoutingDelta::default()
        });
        if delta.is_none() {
            self.rt.sleep(body.wait_ms.into()).await;
        }
        let (status, primary) = (Status::Ok, Vec::new());
        Response::ok::<GetRouting>(&RoutingResponse { status, delta, primary, cluster_time: ClusterTime(1) })
    }

    fn view(&self, version: RoutingVersion) -> RoutingInfo {
        let mut view = RoutingInfo { version, ..RoutingInfo::default() };
        for (id, kind) in [(1, NodeKind::Meta), (2, NodeKind::Storage)] {
            let node = NodeInfo {
                id: NodeId(id),
                kind,
                addresses: vec![self.addr.clone()],
                boot: BootId(1),
                alive: true,
                tags: Default::default(),
            };
            view.nodes.insert(node.id, node);
        }
        for id in CHAINS {
            let (target, chain, generation) = (TargetId(id.into()), ChainId(id), Generation(1));
            let member = ChainTarget { target, generation, state: PublicState::Serving };
            let info = TargetInfo {
                id: target,
                node: NodeId(2),
                disk: 0,
                generation,
                chain,
                created: true,
                lane: 0,
            };
            view.targets.insert(target, info);
            let version = ChainVersion(1);
            let chain = Chain {
                id: chain,
                version,
                targets: vec![member],
                in_use: true,
                last_in_use: version,
                in_use_members: vec![member],
            };
            view.chains.insert(chain.id, chain);
        }
        let (id, version) = (ChainTableId(1), ChainTableVersion(1));
        let table = ChainTable { id, version, chains: CHAINS.map(ChainId).to_vec() };
        view.tables.insert(TableKey { id, version }, table);
        view
    }

    async fn meta(&self, request: Request) -> Response {
        let body = request.decode::<MetaOp>().unwrap();
        while self.faults.meta_stalled.load(Ordering::SeqCst) {
            self.rt.sleep(Duration::from_millis(5)).await;
        }
        let world = &mut *self.world.lock().unwrap();
        let done = world.meta.apply(body, &mut world.chunks);
        let (status, result) = match done {
            Ok(answer) => (Status::Ok, answer),
            Err(status) => (status, Answer::Nothing),
        };
        Response::ok::<MetaOp>(&MetaResponse { status, text: String::new(), result })
    }

    async fn unstalled(&self, data: u64) {
        while self.faults.stalled_data.load(Ordering::SeqCst) == data {
            self.rt.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn read(&self, request: Request) -> Response {
        let body = request.decode::<ReadChunk>().unwrap();
        self.unstalled(body.chunk.data.0).await;
        self.faults.reads.fetch_add(1, Ordering::SeqCst);
        let world = self.world.lock().unwrap();
        let chunk = world.chunks.get(&(body.chunk.data, body.chunk.index));
        let mut response = ReadResponse {
            status: if chunk.is_some() { Status::Ok } else { Status::NotFound },
            chunk_length: 0,
            version: ChunkVersion::NONE,
            chain_version: ChainVersion(1),
            checksums: Vec::new(),
        };
        let mut payload = SharedBuf::default();
        if let Some(chunk) = chunk {
            response.chunk_length = chunk.len() as u32;
            let from = (body.offset as usize / BLOCK * BLOCK).min(chunk.len());
            let to = (body.offset + body.length) as usize;
            let to = to.next_multiple_of(BLOCK).min(chunk.len());
            let bytes = &chunk[from..to.max(from)];
            response.checksums = block_checksums(bytes);
            payload = SharedBuf::from(bytes);
        }
        Response::with_payload::<ReadChunk>(&response, payload)
    }

    async fn update(&self, request: Request) -> Response {
        let body = request.decode::<UpdateChunk>().unwrap();
        self.unstalled(body.chunk.data.0).await;
        self.faults.updates.fetch_add(1, Ordering::SeqCst);
        assert_eq!(body.checksums, block_checksums(&request.payload));
        let UpdateKind::Write { offset } = body.kind else {
            return Response::error(Status::NotSupported, "only writes");
        };
        let mut world = self.world.lock().unwrap();
        let chunk = world.chunks.entry((body.chunk.data, body.chunk.index)).or_default();
        let end = offset as usize + request.payload.len();
        chunk.resize(chunk.len().max(end), 0);
        chunk[offset as usize..end].copy_from_slice(&request.payload);
        Response::ok::<UpdateChunk>(&UpdateResponse {
            status: Status::Ok,
            version: ChunkVersion::NONE,
            chunk_length: chunk.len() as u32,
            chain_version: ChainVersion(1),
        })
    }
}

/// Logs to standard error if `RUST_LOG` asks for it.
pub fn logs() {
    if let Ok(level) = std::env::var("RUST_LOG") {
        ember_daemon::start_logs(&ember_daemon::LogConfig { level, colour: false }).unwrap();
    }
}
