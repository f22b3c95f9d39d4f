//! The wire's side of storage, against a node that keeps chunks in a map.

use super::*;
use crate::StorageClient;
use ember_net::handshake::Peer;
use ember_net::{
    Handler, Identity, Keys, Options, Pool, Request as NetRequest, Response as NetResponse, Server,
    ServerIdentity, ServerOptions,
};
use ember_rt::{Addr, watch};
use ember_types::{
    Capability, Chain, ChainTarget, ChainVersion, ChunkId, ChunkVersion, ClusterId, Generation, Layout,
    PublicState, Rights, TargetId, TargetInfo, WriterTag,
};
use ember_wire::handshake::Caller;
use ember_wire::method::{Method, QueryLast, RemoveData, StorageSpace, UpdateChunk};
use ember_wire::storage::{
    Address, DiskSpace, QueryLastResponse, RemoveDataResponse, SpaceResponse, UpdateKind, UpdateResponse,
};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const SECRET: [u8; 32] = [4; 32];
const SIZE: u64 = 1 << 20;
const CHAINS: u32 = 6;

struct Known;

impl Keys for Known {
    fn key(&self, _: &Caller, _: &str) -> Option<[u8; 32]> {
        Some(SECRET)
    }
}

/// A node with the only target of each chain.
struct Node {
    chunks: RefCell<BTreeMap<ChunkId, u32>>,
    version: Cell<u64>,
    /// Requests that are answered as if the node were starting.
    refusals: Cell<u32>,
    tags: RefCell<Vec<WriterTag>>,
    expired: Cell<bool>,
}

impl Node {
    fn check(&self, to: Address, capability: &Capability, rights: Rights) -> Status {
        assert!(CapabilityKey::new(&KEY).verify(capability));
        assert!(capability.rights().allows(rights));
        if self.expired.get() {
            return Status::BadCapability;
        }
        if self.refusals.get() > 0 {
            self.refusals.set(self.refusals.get() - 1);
            return Status::NotServing;
        }
        if to.chain_version.0 != self.version.get() { Status::StaleRouting } else { Status::Ok }
    }

    fn of(&self, to: Address, data: DataId) -> Vec<(ChunkId, u32)> {
        let chunks = self.chunks.borrow();
        let on = |c: &ChunkId| c.data == data && chain_of(c.index) == to.chain;
        chunks.iter().filter(|(c, _)| on(c)).map(|(c, l)| (*c, *l)).collect()
    }
}

/// The layout of the tests takes the table's first four chains as they are.
fn chain_of(index: u32) -> ChainId {
    layout().chains(&(1..=CHAINS).map(ChainId).collect::<Vec<_>>())[index as usize % 4]
}

fn layout() -> Layout {
    Layout::new(ChainTableId(1), ChainTableVersion(2), SIZE as u32, 4, 0, 3).unwrap()
}

impl Handler for Node {
    fn handle(&self, _: &Peer, request: NetRequest) -> LocalBoxFuture<'static, NetResponse> {
        let chain_version = ChainVersion(self.version.get());
        let response = match request.method {
            Method::RemoveData => {
                let body = request.decode::<RemoveData>().unwrap();
                let status = self.check(body.to, &body.capability, Rights::REMOVE);
                self.tags.borrow_mut().push(body.tag);
                let all: Vec<_> = self.of(body.to, body.data).into_iter().collect();
                let gone: Vec<_> = all.iter().filter(|(c, _)| c.index >= body.from_index).take(2).collect();
                let more = all.iter().filter(|(c, _)| c.index >= body.from_index).count() > 2;
                if status == Status::Ok {
                    gone.iter().for_each(|(c, _)| {
                        self.chunks.borrow_mut().remove(c);
                    });
                }
                let removed = gone.len() as u32;
                NetResponse::ok::<RemoveData>(&RemoveDataResponse { status, removed, more, chain_version })
            }
            Method::UpdateChunk => {
                let body = request.decode::<UpdateChunk>().unwrap();
                let status = self.check(body.to, &body.capability, Rights::REMOVE);
                let UpdateKind::Cut { length } = body.kind else { panic!("{body:?}") };
                assert_eq!(chain_of(body.chunk.index), body.to.chain);
                if let Some(own) = self.chunks.borrow_mut().get_mut(&body.chunk) {
                    *own = (*own).min(length);
                }
                let version = ChunkVersion::default();
                let answer = UpdateResponse { status, version, chunk_length: length, chain_version };
                NetResponse::ok::<UpdateChunk>(&answer)
            }
            Method::QueryLast => {
                let body = request.decode::<QueryLast>().unwrap();
                let status = self.check(body.to, &body.capability, Rights::READ);
                let own = self.of(body.to, body.data);
                let last = own.last().map(|(c, l)| (c.index, *l));
                let chunks = own.len() as u64;
                NetResponse::ok::<QueryLast>(&QueryLastResponse { status, last, chunks, chain_version })
            }
            Method::StorageSpace => {
                let disk = DiskSpace { disk: 0, file_system: 9, total: 99, available: 60, used: 20 };
                let space = SpaceResponse { status: Status::Ok, disks: vec![disk] };
                NetResponse::ok::<StorageSpace>(&space)
            }
            other => NetResponse::not_supported(other),
        };
        Box::pin(async move { response })
    }
}

fn storage_routing(address: &str, version: u64) -> RoutingInfo {
    let mut view = routing();
    let mut node = view.nodes[&NodeId(3)].clone();
    (node.id, node.kind, node.addresses) = (NodeId(8), NodeKind::Storage, vec![address.to_owned()]);
    view.nodes.insert(node.id, node);
    for id in 1..=CHAINS {
        let target = TargetId(u64::from(id));
        let state = PublicState::Serving;
        let member = ChainTarget { target, generation: Generation(1), state };
        let chain = Chain {
            id: ChainId(id),
            version: ChainVersion(version),
            targets: vec![member],
            in_use: true,
            last_in_use: ChainVersion(version),
            in_use_members: vec![member],
        };
        view.chains.insert(chain.id, chain);
        let info = TargetInfo {
            id: target,
            node: NodeId(8),
            disk: 0,
            generation: Generation(1),
            chain: ChainId(id),
            created: true,
            lane: 0,
        };
        view.targets.insert(target, info);
    }
    view
}

async fn with_node(rt: Rt) -> (Rc<Node>, Rc<TestCluster>, StorageClient) {
    let node = Rc::new(Node {
        chunks: RefCell::default(),
        version: Cell::new(5),
        refusals: Cell::new(0),
        tags: RefCell::default(),
        expired: Cell::new(false),
    });
    let address = "127.0.0.1:7";
    let addr: Addr = address.parse().unwrap();
    let listener = rt.net().listen(&addr).unwrap();
    let identity = ServerIdentity { cluster: CLUSTER, node: NodeId(8), keys: Rc::new(Known) };
    struct Shared(Rc<Node>);
    impl Handler for Shared {
        fn handle(&self, peer: &Peer, request: NetRequest) -> LocalBoxFuture<'static, NetResponse> {
            self.0.handle(peer, request)
        }
    }
    let server = Server::new(identity, Rc::new(Shared(node.clone())), ServerOptions::default());
    let (shutdown, receiver) = watch::channel(false);
    let own = rt.clone();
    rt.spawn("node", async move {
        server.serve(&own, listener, receiver).await;
        drop(shutdown);
    });
    let identity = Identity {
        cluster: CLUSTER,
        caller: Caller::Node(NodeId(3)),
        user: String::new(),
        key: SECRET,
        lane: 0,
    };
    let pool = Pool::new(&rt, identity, Options::default());
    let view = RefCell::new(Rc::new(storage_routing(address, 5)));
    let cluster = Rc::new(TestCluster { rt: rt.clone(), lease: Cell::new(true), view });
    let key = CapabilityKey::new(&KEY);
    let timeout = Duration::from_secs(5);
    let storage = StorageClient::new(rt, pool, cluster.clone(), key, CLIENT, timeout);
    (node, cluster, storage)
}

fn fill(node: &Node, data: DataId, chunks: u32) {
    for index in 0..chunks {
        node.chunks.borrow_mut().insert(ChunkId::new(data, index), SIZE as u32);
    }
}

fn place(data: DataId) -> Place {
    Place { inode: InodeId(20), data, layout: layout() }
}

#[test]
fn cuts_remove_whole_chunks_and_shorten_the_last() {
    run(async |rt| {
        let (node, cluster, storage) = with_node(rt).await;
        let until = cluster.now().unwrap() + Duration::from_secs(10);
        let (data, other) = (DataId(1), DataId(2));
        fill(&node, data, 30);
        fill(&node, other, 3);
        storage.cut(place(data), 10 * SIZE + 77, u64::MAX, until).await.unwrap();
        let left = |data| {
            let chunks = node.chunks.borrow();
            chunks.iter().filter(|(c, _)| c.data == data).map(|(c, l)| (c.index, *l)).collect::<Vec<_>>()
        };
        assert_eq!(left(data).len(), 11);
        assert_eq!(left(data)[10], (10, 77));
        storage.cut(place(data), 4 * SIZE, 11 * SIZE, until).await.unwrap();
        assert_eq!(left(data).last(), Some(&(3, SIZE as u32)));
        storage.cut(place(data), 0, 4 * SIZE, until).await.unwrap();
        assert!(left(data).is_empty());
        assert_eq!(left(other).len(), 3);
        // One outstanding request per channel, numbers that only grow.
        let mut last: BTreeMap<_, u64> = BTreeMap::new();
        for tag in node.tags.borrow().iter() {
            let own = last.entry(tag.channel).or_default();
            assert!(tag.sequence.0 > *own);
            *own = tag.sequence.0;
        }
        let asked = node.tags.borrow().len();
        storage.cut(place(other), 0, 1, until).await.unwrap();
        assert_eq!(node.tags.borrow().len(), asked + 1, "only the chain of its one chunk is asked");
    });
}

#[test]
fn lengths_come_from_all_chains_and_refusals_are_waited_out() {
    run(async |rt| {
        let (node, cluster, storage) = with_node(rt.clone()).await;
        let data = DataId(1);
        let query = Query { data, layout: layout(), truncate_version: 0 };
        assert_eq!(storage.length(InodeId(1), query).await.unwrap(), 0);
        fill(&node, data, 6);
        node.chunks.borrow_mut().insert(ChunkId::new(data, 5), 9);
        node.refusals.set(5);
        assert_eq!(storage.length(InodeId(1), query).await.unwrap(), 5 * SIZE + 9);
        node.version.set(6);
        let stale = storage.length(InodeId(1), query).await.unwrap_err();
        assert_eq!(stale.status(), Status::StaleRouting);
        *cluster.view.borrow_mut() = Rc::new(storage_routing("127.0.0.1:7", 6));
        assert_eq!(storage.length(InodeId(1), query).await.unwrap(), 5 * SIZE + 9);
        let totals = storage.totals().await.unwrap();
        assert_eq!((totals.bytes_total, totals.bytes_free), (80, 60));
        let unknown = Layout::new(ChainTableId(7), ChainTableVersion(1), SIZE as u32, 1, 0, 0).unwrap();
        let unknown = Query { layout: unknown, ..query };
        assert!(storage.length(InodeId(1), unknown).await.unwrap_err().status().is_retryable());
    });
}

#[test]
fn a_cut_that_outlasts_its_rights_may_go_on_under_the_next_claim() {
    run(async |rt| {
        let (node, cluster, storage) = with_node(rt).await;
        fill(&node, DataId(1), 9);
        node.expired.set(true);
        let until = cluster.now().unwrap() + Duration::from_secs(10);
        let ended = storage.cut(place(DataId(1)), 0, u64::MAX, until).await.unwrap_err();
        assert!(ended.status().is_retryable(), "{ended}");
        node.expired.set(false);
        storage.cut(place(DataId(1)), 0, u64::MAX, until).await.unwrap();
        assert!(node.chunks.borrow().is_empty());
    });
}
