//! The processes of a cluster: the daemons' own code, with the seam of the world.

use super::kv::SimKv;
use super::ledger::{Ledger, ledger_worker};
use super::workload::{CHUNK_SIZE, Stage, chunk_worker, name_worker};
use crate::process::{Crash, ProcessId};
use crate::world::World;
use ember_client::mgmtd::{Mgmtd, NodeIdentity, RoutingCache, SessionState, keep_session};
use ember_client::{Client, ClientConfig, Shared};
use ember_kv::Kv;
use ember_net::{Identity, Keys, Options, Pool, ServerIdentity};
use ember_rt::select::{join_all, select};
use ember_rt::{Addr, LocalBoxFuture, Rt, watch};
use ember_types::layout::SplitMix64;
use ember_types::{BootId, CapabilityKey, ClientId, ClusterId, NodeId, NodeKind, Status};
use ember_wire::handshake::Caller;
use ember_wire::method::ReplaceTarget;
use ember_wire::mgmtd::ReplaceTargetRequest;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The cluster's secret: nodes prove it, and it signs capabilities.
pub const SECRET: [u8; 32] = [7; 32];
const TOKEN: [u8; 32] = [9; 32];
const USER: &str = "root";
/// Node ids of mgmtd servers, meta servers and storage nodes count from these.
const MGMTD: u32 = 1;
const META: u32 = 11;
const STORAGE: u32 = 101;
/// The node that checks and setup speak as.
const OPERATOR: NodeId = NodeId(999);
/// A daemon that ends by itself is started again after this long.
const RESTART_NS: u64 = 1_000_000_000;

/// How many there are of each, and how they are set.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// mgmtd servers.
    pub mgmtd: u32,
    /// Meta servers.
    pub meta: u32,
    /// Storage nodes.
    pub storage: u32,
    /// Client processes.
    pub clients: u32,
    /// Meta answers only what is durable.
    pub strict: bool,
    /// Replicas of each chunk.
    pub replicas: u32,
    /// Targets on each disk.
    pub targets_per_disk: u32,
    /// Clients work on names and on files with ledgers too.
    pub names: bool,
    /// Everything stored is read and checked once in this time, in seconds.
    pub scrub_period_s: u64,
    /// Bytes per second of a resync; 0 is no limit.
    pub resync_bytes_per_s: u64,
}

impl Plan {
    /// A cluster of everything, for all kinds of faults.
    pub fn full(strict: bool) -> Self {
        Self {
            mgmtd: 2,
            meta: 2,
            storage: 5,
            clients: 3,
            strict,
            replicas: 3,
            targets_per_disk: 3,
            names: true,
            scrub_period_s: 20,
            resync_bytes_per_s: 0,
        }
    }
    /// As little as storage and its clients need, for faults of disks. A resync takes its time, so that it can be
    /// struck.
    pub fn storage(replicas: u32) -> Self {
        Self {
            mgmtd: 1,
            meta: 1,
            storage: replicas,
            clients: 2,
            strict: true,
            replicas,
            targets_per_disk: 2,
            names: false,
            scrub_period_s: 10,
            resync_bytes_per_s: 60_000,
        }
    }
}

fn cluster_id() -> ClusterId {
    ClusterId::from_u128(0xe3be)
}

struct SimKeys;

impl Keys for SimKeys {
    fn key(&self, caller: &Caller, user: &str) -> Option<[u8; 32]> {
        match caller {
            Caller::Node(_) => Some(SECRET),
            Caller::Client(_) => (user == USER).then_some(TOKEN),
        }
    }
}

fn address(node: u32) -> String {
    format!("10.0.{}.{}:7000", node / 100, node % 100 + 1)
}

fn mgmtd_addresses(plan: &Plan) -> Vec<Addr> {
    (0..plan.mgmtd).filter_map(|i| address(MGMTD + i).parse().ok()).collect()
}

fn server(node: u32) -> ServerIdentity {
    ServerIdentity { cluster: cluster_id(), node: NodeId(node), keys: Rc::new(SimKeys) }
}

fn pool(rt: &Rt, caller: Caller) -> Pool {
    let (user, key) = match caller {
        Caller::Node(_) => (String::new(), SECRET),
        Caller::Client(_) => (USER.to_owned(), TOKEN),
    };
    Pool::new(rt, Identity { cluster: cluster_id(), caller, user, key, lane: 0 }, Options::default())
}

fn node_identity(rt: &Rt, node: u32, kind: NodeKind) -> NodeIdentity {
    NodeIdentity {
        node: NodeId(node),
        kind,
        boot: BootId(rt.random_u64()),
        addresses: Vec::new(),
        tags: BTreeMap::new(),
        disks: 0,
        pid: node,
        data_dir: format!("/node{node}"),
        release: "sim".into(),
    }
}

/// A daemon as a process: started again when it ends by itself.
fn daemon(
    world: &World,
    name: &str,
    run: impl Fn(Rt, watch::Receiver<bool>) -> LocalBoxFuture<'static, Result<(), String>> + 'static,
) -> ProcessId {
    let id = Rc::new(Cell::new(ProcessId::HARNESS));
    let (own, again, run) = (id.clone(), world.clone(), Rc::new(run));
    let process = world.add_process(name, move |rt: Rt| {
        let (own, again, run) = (own.clone(), again.clone(), run.clone());
        async move {
            // Never told to stop: processes of a world are killed.
            let (keep, shutdown) = watch::channel(false);
            let ended = run(rt.clone(), shutdown).await;
            drop(keep);
            again.trace().count("daemons that ended by themselves", 1);
            if again.trace().is_logged() {
                eprintln!("{:>14} {} ended: {ended:?}", again.now_ns(), again.process_name(own.get()));
            }
            let process = own.get();
            again.after(RESTART_NS, move |world| {
                world.kill(process, Crash::Kill);
                world.start(process);
            });
        }
    });
    id.set(process);
    process
}

/// mgmtd servers.
pub fn mgmtd(world: &World, plan: Plan, kv: &SimKv) -> Vec<ProcessId> {
    let start = |i: u32| {
        let store = kv.handle();
        daemon(world, &format!("mgmtd{i}"), move |rt, shutdown| {
            let node = MGMTD + i;
            let config = ember_mgmtd::Config {
                listen: vec![address(node)],
                node_lease_ms: 2_000,
                heartbeat_ms: 200,
                drift_ms: 100,
                primary_lease_ms: 900,
                primary_poll_ms: 150,
                evaluate_ms: 50,
                client_session_ms: 10_000,
                capability_ms: 5_000,
                sync_stall_ms: 20_000,
                ..ember_mgmtd::Config::default()
            };
            let parts = ember_mgmtd::Parts {
                kv: store.clone(),
                identity: server(node),
                boot: BootId(rt.random_u64()),
                pid: node,
                data_dir: String::new(),
                release: "sim".into(),
            };
            Box::pin(
                async move { ember_mgmtd::run(rt, config, parts, shutdown).await.map_err(|e| e.to_string()) },
            )
        })
    };
    (0..plan.mgmtd).map(start).collect()
}

/// Meta servers.
pub fn meta(world: &World, plan: Plan, kv: &SimKv) -> Vec<ProcessId> {
    let start = |i: u32| {
        let store = kv.handle();
        daemon(world, &format!("meta{i}"), move |rt, shutdown| {
            let kv: std::sync::Arc<dyn Kv> = store.clone();
            Box::pin(async move {
                let node = META + i;
                let config = ember_meta::MetaConfig {
                    listen: vec![address(node)],
                    durability: if plan.strict { "strict" } else { "ordered" }.to_owned(),
                    capability_ms: 5_000,
                    clock_error_ms: 500,
                    chunk_size: CHUNK_SIZE,
                    stripe: 2,
                    id_range: 64,
                    sweep_period_ms: 2_000,
                    storage_timeout_ms: 3_000,
                    ..ember_meta::MetaConfig::default()
                };
                let pool = pool(&rt, Caller::Node(NodeId(node)));
                let mgmtd = Mgmtd::new(&rt, pool.clone(), mgmtd_addresses(&plan));
                let parts = ember_meta::Parts {
                    kv,
                    server: server(node),
                    routing: RoutingCache::start(&rt, mgmtd),
                    pool,
                    node: node_identity(&rt, node, NodeKind::Meta),
                    key: CapabilityKey::new(&SECRET),
                    metrics: ember_daemon::Metrics::default(),
                };
                ember_meta::run(rt, config, parts, shutdown).await.map_err(|e| e.to_string())
            })
        })
    };
    (0..plan.meta).map(start).collect()
}

/// Storage nodes, each with one disk.
pub fn storage(world: &World, plan: Plan) -> Vec<ProcessId> {
    let start = |i: u32| {
        daemon(world, &format!("storage{i}"), move |rt, shutdown| {
            Box::pin(async move {
                let node = STORAGE + i;
                let config = ember_storage::StorageConfig {
                    listen: vec![address(node)],
                    disks: vec!["/disk".into()],
                    forward_timeout_ms: 1_500,
                    scrub_period_s: plan.scrub_period_s,
                    resync_bytes_per_s: plan.resync_bytes_per_s,
                    ..ember_storage::StorageConfig::default()
                };
                let pool = pool(&rt, Caller::Node(NodeId(node)));
                let mgmtd = Mgmtd::new(&rt, pool.clone(), mgmtd_addresses(&plan));
                let parts = ember_storage::Parts {
                    server: server(node),
                    routing: RoutingCache::start(&rt, mgmtd),
                    pool,
                    node: node_identity(&rt, node, NodeKind::Storage),
                    key: CapabilityKey::new(&SECRET),
                };
                ember_storage::run(rt, config, parts, shutdown).await.map_err(|e| e.to_string())
            })
        })
    };
    (0..plan.storage).map(start).collect()
}

/// A client of the cluster; `None` if it has no session in time.
pub async fn connect(rt: &Rt, plan: Plan, limit: Duration) -> Option<(Client, Guard)> {
    let id = ClientId::from_u128(rt.random_u128());
    let pool = pool(rt, Caller::Client(id));
    let mgmtd = Mgmtd::new(rt, pool.clone(), mgmtd_addresses(&plan));
    let routing = RoutingCache::start(rt, mgmtd.clone());
    let (stop, shutdown) = watch::channel(false);
    let clock = routing.clock().clone();
    let mut session = keep_session(rt, mgmtd, id, "sim".into(), clock, shutdown);
    let open = async {
        routing.ready().await;
        while !matches!(*session.borrow(), SessionState::Open(_)) {
            if session.changed().await.is_err() {
                return;
            }
        }
    };
    rt.timeout(limit, open).await.ok()?;
    let config = ClientConfig {
        operation_timeout_ms: 9_000,
        read_attempt_ms: 800,
        attempt_ms: 1_500,
        ..ClientConfig::default()
    };
    let client = Client::new(rt.clone(), config, Shared::new(id), routing, pool);
    Some((client, Guard { _stop: stop, session }))
}

/// Keeps a client's session; dropped, it ends.
pub struct Guard {
    _stop: watch::Sender<bool>,
    session: watch::Receiver<SessionState>,
}

impl Guard {
    /// Waits until mgmtd has ended the session.
    pub async fn ended(mut self) {
        while *self.session.borrow() != SessionState::Ended {
            if self.session.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Client processes with their workers.
pub fn clients(world: &World, plan: Plan, stage: &Rc<Stage>, ledger: &Rc<Ledger>) -> Vec<ProcessId> {
    let start = |i: u32| {
        let (stage, ledger) = (stage.clone(), ledger.clone());
        world.add_process(&format!("client{i}"), move |rt: Rt| {
            let (stage, ledger) = (stage.clone(), ledger.clone());
            async move {
                while !stage.stop.get() {
                    let Some((client, guard)) = connect(&rt, plan, Duration::from_secs(30)).await else {
                        continue;
                    };
                    rt.spawn("capabilities", client.clone().keep_capabilities());
                    let rng = || SplitMix64(rt.random_u64());
                    let mut workers: Vec<LocalBoxFuture<'static, ()>> = vec![
                        Box::pin(chunk_worker(client.clone(), stage.clone(), rng())),
                        Box::pin(chunk_worker(client.clone(), stage.clone(), rng())),
                    ];
                    if plan.names {
                        workers.push(Box::pin(name_worker(client.clone(), stage.clone(), rng())));
                        let (stage, ledger) = (stage.clone(), ledger.clone());
                        workers.push(Box::pin(ledger_worker(client.clone(), stage, ledger, rng())));
                    }
                    select(join_all(workers), guard.ended()).await;
                }
            }
        })
    };
    (0..plan.clients).map(start).collect()
}

/// What an operator does when a storage node got an empty disk: gives each of its targets a new generation.
pub async fn replace_targets(rt: Rt, routing: RoutingCache, number: usize) {
    let node = NodeId(STORAGE + number as u32);
    let targets: Vec<_> = routing.view().targets.values().filter(|t| t.node == node).map(|t| t.id).collect();
    for target in targets {
        loop {
            let request = ReplaceTargetRequest { target };
            let limit = Duration::from_secs(3);
            let answer = routing.mgmtd().call::<ReplaceTarget>(&request, limit).await;
            if answer.is_ok_and(|answer| answer.status == Status::Ok) {
                break;
            }
            rt.sleep(Duration::from_millis(300)).await;
        }
    }
}

/// The number of a storage node among the storage nodes.
pub fn storage_number(node: NodeId) -> Option<usize> {
    node.0.checked_sub(STORAGE).map(|number| number as usize)
}

/// Connections and routing for setup and checks, outside every process and never cut off.
pub fn operator(rt: &Rt, plan: Plan) -> (Pool, RoutingCache) {
    let pool = pool(rt, Caller::Node(OPERATOR));
    let mgmtd = Mgmtd::new(rt, pool.clone(), mgmtd_addresses(&plan));
    (pool, RoutingCache::start(rt, mgmtd))
}
