//! Whole servers over a store in memory: election, registration, chains, sessions, with the client's own
//! side.

mod common;

use ember_client::mgmtd::{
    ClusterClock, Lease, Mgmtd, NodeAgent, NodeIdentity, NodeState, RoutingCache, SessionState, keep_session,
};
use ember_kv::{Kv, MemKv};
use ember_mgmtd::{Config, Parts};
use ember_net::{Identity, Keys, Options, Pool, ServerIdentity};
use ember_rt::{Addr, Rt, watch};
use ember_types::{
    BootId, Chain, ChainTableId, ChainTableVersion, ChainVersion, ClientId, ClusterId, LocalState, NodeId,
    NodeKind, PublicState, RoutingInfo, Status, TargetId,
};
use ember_wire::codec::Empty;
use ember_wire::handshake::Caller;
use ember_wire::method::{ClusterStatus, CreateChains, NoteInUse, ReplaceTarget};
use ember_wire::mgmtd::{
    CreateChainsRequest, NoteInUseRequest, ReplaceTargetRequest, TargetOrder, TargetReport,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const CLUSTER: u128 = 77;
const KEY: [u8; 32] = [7; 32];
const LIMIT: Duration = Duration::from_secs(10);

struct Known;

impl Keys for Known {
    fn key(&self, _: &Caller, _: &str) -> Option<[u8; 32]> {
        Some(KEY)
    }
}

fn addr(id: u32) -> Addr {
    format!("10.0.0.{id}:7000").parse().expect("address")
}

fn servers() -> Vec<Addr> {
    vec![addr(1), addr(2)]
}

/// Starts a mgmtd; it ends when the sender is told so. Dropping what it needs to be graceful stands for a
/// crash.
fn mgmtd(rt: &Rt, kv: &Arc<dyn Kv>, id: u32) -> watch::Sender<bool> {
    let (shutdown, receiver) = watch::channel(false);
    let config = Config { listen: vec![addr(id).to_string()], ..Config::default() };
    let identity =
        ServerIdentity { cluster: ClusterId::from_u128(CLUSTER), node: NodeId(id), keys: Rc::new(Known) };
    let parts = Parts {
        kv: kv.clone(),
        identity,
        boot: BootId(rt.random_u64()),
        pid: id,
        data_dir: "/data".into(),
        release: "test".into(),
    };
    let own = rt.clone();
    rt.spawn("mgmtd", async move {
        ember_mgmtd::run(own, config, parts, receiver).await.expect("mgmtd");
    });
    shutdown
}

fn pool(rt: &Rt, caller: Caller, user: &str) -> Pool {
    let cluster = ClusterId::from_u128(CLUSTER);
    let identity = Identity { cluster, caller, user: user.into(), key: KEY, lane: 0 };
    Pool::new(rt, identity, Options::default())
}

fn admin(rt: &Rt) -> Mgmtd {
    Mgmtd::new(rt, pool(rt, Caller::Client(ClientId::from_u128(1)), "root"), servers())
}

/// A storage node in name only: it obeys, and every sync is done at once.
#[derive(Default)]
struct Fake {
    routing: RefCell<Option<RoutingCache>>,
    reports: RefCell<BTreeMap<TargetId, TargetReport>>,
    node: NodeId,
}

impl NodeState for Fake {
    fn targets(&self) -> Vec<TargetReport> {
        self.learn();
        self.reports.borrow().values().cloned().collect()
    }
    fn warnings(&self) -> Vec<String> {
        vec!["only a fake".into()]
    }
    fn obey(&self, orders: &[TargetOrder], _: &[Chain]) {
        for order in orders {
            if let Some(report) = self.reports.borrow_mut().get_mut(&order.target) {
                report.chain_version = order.chain_version;
                report.stopped = order.state != PublicState::Serving;
                report.state = LocalState::UpToDate;
                if order.state == PublicState::Serving {
                    report.served_version = order.chain_version;
                }
            }
        }
    }
}

impl Fake {
    /// Makes the targets that routing names, in the generation that it names.
    fn learn(&self) {
        let Some(view) = self.routing.borrow().as_ref().map(RoutingCache::view) else { return };
        for target in view.targets.values().filter(|t| t.node == self.node) {
            let fresh = TargetReport {
                target: target.id,
                generation: target.generation,
                state: LocalState::Online,
                chain_version: ChainVersion(0),
                served_version: ChainVersion(0),
                used_bytes: 10,
                free_bytes: 90,
                sync: None,
                trouble: String::new(),
                capacity_bytes: 100,
                wants_replacement: false,
                stopped: false,
                no_room: false,
                slow: false,
                scrub: None,
            };
            let mut reports = self.reports.borrow_mut();
            let known = reports.entry(target.id).or_insert_with(|| fresh.clone());
            if known.generation != target.generation {
                *known = fresh;
            }
        }
    }
}

struct Node {
    agent: NodeAgent,
    routing: RoutingCache,
    stop: watch::Sender<bool>,
}

impl Node {
    fn lease(&self) -> &Lease {
        self.agent.lease()
    }
}

fn node(rt: &Rt, id: u32) -> Node {
    let (stop, stopped) = watch::channel(false);
    let routing = RoutingCache::start(rt, Mgmtd::new(rt, pool(rt, Caller::Node(NodeId(id)), ""), servers()));
    let state = Rc::new(Fake { node: NodeId(id), ..Fake::default() });
    *state.routing.borrow_mut() = Some(routing.clone());
    let identity = NodeIdentity {
        node: NodeId(id),
        kind: NodeKind::Storage,
        boot: BootId(rt.random_u64() | 1),
        addresses: vec![addr(id).to_string()],
        tags: BTreeMap::new(),
        disks: 1,
        pid: id,
        data_dir: format!("/data/{id}"),
        release: "test".into(),
    };
    let agent = NodeAgent::start(rt, routing.clone(), identity, state, stopped);
    Node { agent, routing, stop }
}

async fn until(rt: &Rt, what: &str, limit_ms: u64, check: impl Fn() -> bool) -> u64 {
    let begun = rt.now();
    while !check() {
        let passed = rt.now().since(begun).as_millis() as u64;
        assert!(passed < limit_ms, "{what}: not within {limit_ms} ms");
        rt.sleep(Duration::from_millis(10)).await;
    }
    rt.now().since(begun).as_millis() as u64
}

fn serving(view: &RoutingInfo) -> usize {
    view.chains.values().map(|c| c.serving().count()).sum()
}

async fn make_chains(rt: &Rt, mgmtd: &Mgmtd) {
    let request =
        CreateChainsRequest { table: ChainTableId(1), replicas: 3, targets_per_disk: 2, storage_nodes: 3 };
    for attempt in 0.. {
        let answer = mgmtd.call::<CreateChains>(&request, LIMIT).await.expect("an answer");
        match answer.status {
            Status::Busy if attempt < 100 => rt.sleep(Duration::from_millis(50)).await,
            Status::Ok => break,
            other => panic!("{other}: {}", answer.text),
        }
    }
    let again = mgmtd.call::<CreateChains>(&request, LIMIT).await.expect("an answer");
    assert_eq!((again.status, again.version), (Status::Exists, ChainTableVersion(1)));
}

#[test]
fn a_cluster_starts_loses_a_node_and_heals() {
    common::run(|rt| async move {
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let _mgmtd = mgmtd(&rt, &kv, 1);
        let nodes: Vec<Node> = (11..=13).map(|id| node(&rt, id)).collect();
        let admin = admin(&rt);
        make_chains(&rt, &admin).await;
        let view = || nodes[0].routing.view();
        until(&rt, "chains are known", 1_000, || serving(&view()) == 6).await;
        until(&rt, "targets are made", 2_000, || view().targets.values().all(|t| t.created)).await;
        assert!(nodes.iter().all(|n| n.lease().valid(rt.now())));

        nodes[2].stop.send(true);
        let gap = until(&rt, "the dead node is out", 10_000, || serving(&view()) == 4).await;
        assert!((4_500..7_000).contains(&gap), "{gap} ms");
        assert!(!view().nodes[&NodeId(13)].alive);
        let version = view().version;

        let back = node(&rt, 13);
        until(&rt, "everything serves again", 5_000, || serving(&view()) == 6).await;
        assert!(view().version > version);
        until(&rt, "its own view follows", 200, || serving(&back.routing.view()) == 6).await;

        let status = admin.call::<ClusterStatus>(&Empty {}, LIMIT).await.expect("status");
        assert_eq!(status.status, Status::Ok);
        assert_eq!((status.nodes.len(), status.targets.len(), status.chains.len()), (4, 6, 2));
        assert!(status.nodes.iter().all(|n| n.alive));
        assert!(status.targets.iter().all(|t| t.capacity_bytes == 100 && t.public == PublicState::Serving));
        assert_eq!(status.kv_engine, "mem");
    });
}

#[test]
fn r08_a_change_of_primary_stops_no_lease_and_time_goes_on() {
    common::run(|rt| async move {
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let first = mgmtd(&rt, &kv, 1);
        rt.sleep(Duration::from_millis(500)).await;
        let _second = mgmtd(&rt, &kv, 2);
        let nodes: Vec<Node> = (11..=13).map(|id| node(&rt, id)).collect();
        make_chains(&rt, &admin(&rt)).await;
        until(&rt, "leases", 2_000, || nodes.iter().all(|n| n.lease().valid(rt.now()))).await;
        let term = nodes[0].routing.view().version.term;
        let before = nodes[0].routing.clock().latest(rt.now()).expect("time");
        first.send(true);
        let mut worst = Duration::MAX;
        for _ in 0..600 {
            rt.sleep(Duration::from_millis(10)).await;
            for node in &nodes {
                worst = worst.min(node.lease().until().since(rt.now()));
            }
        }
        assert!(worst > Duration::ZERO, "no lease ran out");
        let view = nodes[0].routing.view();
        assert!(view.version.term > term);
        assert!(view.chains.values().all(|c| c.version == ChainVersion(1) && c.serving().count() == 3));
        assert!(nodes[0].routing.clock().earliest(rt.now()).expect("time") > before);
    });
}

#[test]
fn r07_a_note_of_use_is_durable_and_only_the_tails() {
    common::run(|rt| async move {
        let kv = Arc::new(MemKv::new());
        let shared: Arc<dyn Kv> = kv.clone();
        let _mgmtd = mgmtd(&rt, &shared, 1);
        let nodes: Vec<Node> = (11..=13).map(|id| node(&rt, id)).collect();
        make_chains(&rt, &admin(&rt)).await;
        let view = || nodes[0].routing.view();
        until(&rt, "chains are known", 1_000, || serving(&view()) == 6).await;
        let chain = view().chains.values().next().expect("a chain").clone();
        let (tail, head) = (chain.tail().expect("tail").target, chain.head().expect("head").target);
        let ask = |target, version| {
            let mgmtd = nodes[0].routing.mgmtd().clone();
            let request = NoteInUseRequest { chain: chain.id, version, target };
            async move { mgmtd.call::<NoteInUse>(&request, LIMIT).await.expect("an answer") }
        };
        assert_eq!(ask(head, chain.version).await.status, Status::StaleRouting);
        assert_eq!(ask(tail, ChainVersion(9)).await.status, Status::StaleRouting);
        let noted = ask(tail, chain.version).await;
        assert_eq!(noted.status, Status::Ok);
        assert!(noted.chain.is_some_and(|c| c.in_use && c.last_in_use == chain.version));
        // Power fails, and everything that was not durable is gone.
        kv.power_loss(|durable, _| durable);
        let key = ember_mgmtd::record::chain_key(chain.id);
        let stored =
            kv.begin().get(&key, ember_kv::ReadMode::Snapshot).await.expect("read").expect("a record");
        assert!(ember_mgmtd::record::decode::<Chain>(&key, &stored).expect("whole").in_use);
        until(&rt, "the note is pushed", 200, || view().chains[&chain.id].in_use).await;
    });
}

#[test]
fn r12_sessions_open_end_and_stay_ended() {
    common::run(|rt| async move {
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let first = mgmtd(&rt, &kv, 1);
        let id = ClientId::from_u128(5);
        let mgmtd_of = |id| Mgmtd::new(&rt, pool(&rt, Caller::Client(id), "root"), servers());
        let (stop, stopped) = watch::channel(false);
        let clock: Rc<ClusterClock> = Rc::default();
        let session = keep_session(&rt, mgmtd_of(id), id, "test".into(), clock.clone(), stopped);
        let open = |s: &watch::Receiver<SessionState>| matches!(*s.borrow(), SessionState::Open(_));
        until(&rt, "the session opens", 2_000, || open(&session)).await;
        let routing = RoutingCache::start(&rt, mgmtd_of(ClientId::from_u128(6)));
        routing.ready().await;
        // Another primary knows the session.
        first.send(true);
        rt.sleep(Duration::from_secs(1)).await;
        let _second = mgmtd(&rt, &kv, 2);
        rt.sleep(Duration::from_secs(70)).await;
        assert!(open(&session));
        stop.send(true);
        until(&rt, "the end is announced", 1_000, || routing.view().ended_clients == [id]).await;
        let (_stop, stopped) = watch::channel(false);
        let again = keep_session(&rt, mgmtd_of(id), id, "test".into(), clock, stopped);
        until(&rt, "an ended id is refused", 2_000, || *again.borrow() == SessionState::Ended).await;
    });
}

#[test]
fn a_replaced_target_gets_a_new_generation_and_resyncs() {
    common::run(|rt| async move {
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let _mgmtd = mgmtd(&rt, &kv, 1);
        let mut nodes: Vec<Node> = (11..=13).map(|id| node(&rt, id)).collect();
        let admin = admin(&rt);
        make_chains(&rt, &admin).await;
        let routing = nodes[0].routing.clone();
        let view = || routing.view();
        until(&rt, "targets are made", 3_000, || {
            serving(&view()) == 6 && view().targets.values().all(|t| t.created)
        })
        .await;
        let target = view().targets.values().find(|t| t.node == NodeId(13)).expect("a target").id;
        let request = ReplaceTargetRequest { target };
        let refused = admin.call::<ReplaceTarget>(&request, LIMIT).await.expect("an answer");
        assert_eq!(refused.status, Status::Busy, "{}", refused.text);
        nodes.pop().expect("node").stop.send(true);
        until(&rt, "its node is out", 10_000, || serving(&view()) == 4).await;
        let done = admin.call::<ReplaceTarget>(&request, LIMIT).await.expect("an answer");
        assert_eq!((done.status, done.generation.0), (Status::Ok, 2), "{}", done.text);
        let _back = node(&rt, 13);
        until(&rt, "it serves again", 5_000, || serving(&view()) == 6).await;
        let info = view().targets[&target].clone();
        assert!(info.generation.0 == 2 && info.created);
    });
}

#[test]
fn callers_may_speak_for_themselves_only() {
    common::run(|rt| async move {
        let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
        let _mgmtd = mgmtd(&rt, &kv, 1);
        rt.sleep(Duration::from_millis(200)).await;
        let alice = pool(&rt, Caller::Client(ClientId::from_u128(3)), "alice");
        let client = Mgmtd::new(&rt, alice, vec![addr(1)]);
        let request = CreateChainsRequest {
            table: ChainTableId(1),
            replicas: 1,
            targets_per_disk: 1,
            storage_nodes: 1,
        };
        let refused = client.attempt::<CreateChains>(&request, LIMIT).await.expect_err("refused");
        assert_eq!(refused.status(), Status::PermissionDenied, "{refused}");
        let note = NoteInUseRequest {
            chain: ember_types::ChainId(1),
            version: ChainVersion(1),
            target: TargetId(1),
        };
        let refused = client.attempt::<NoteInUse>(&note, LIMIT).await.expect_err("refused");
        assert_eq!(refused.status(), Status::PermissionDenied, "{refused}");
    });
}
