//! The service on virtual time, with a storage that only takes notes.

mod background;
mod flows;
mod runtime;
mod wire_storage;

use crate::error::MetaError;
use crate::seam::{Cluster, Place, StorageOps};
use crate::{MetaConfig, Service};
use ember_kv::{Kv, MemKv};
use ember_meta_store::truncate::Query;
use ember_rt::{LocalBoxFuture, Rt};
use ember_types::file::{Attributes, Credentials};
use ember_types::{
    BootId, CapabilityKey, ChainId, ChainTable, ChainTableId, ChainTableVersion, ClientId, ClusterTime,
    DataId, InodeId, NodeId, NodeInfo, NodeKind, RoutingInfo, RoutingVersion, SessionId, Status,
};
use ember_wire::meta::{Answer, OpenFlags, Operation, Request, Response, Totals, Written};
use runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;
const CLIENT: ClientId = ClientId([5; 16]);
const BOOT: u64 = 77;
const KEY: [u8; 32] = [9; 32];

struct TestCluster {
    rt: Rt,
    lease: Cell<bool>,
    view: RefCell<Rc<RoutingInfo>>,
}

impl Cluster for TestCluster {
    fn view(&self) -> Rc<RoutingInfo> {
        self.view.borrow().clone()
    }
    fn now(&self) -> Option<ClusterTime> {
        self.lease.get().then(|| ClusterTime(1_000_000 + self.rt.now().0 / 1_000_000))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    data: DataId,
    from: u64,
    extent: u64,
}

struct TestStorage {
    rt: Rt,
    cuts: RefCell<Vec<Cut>>,
    lengths: RefCell<BTreeMap<DataId, u64>>,
    failing: Cell<bool>,
    takes: Cell<Duration>,
}

impl TestStorage {
    fn check(&self) -> Result<(), MetaError> {
        let what = "test".to_owned();
        if self.failing.get() { Err(MetaError::Storage { status: Status::Timeout, what }) } else { Ok(()) }
    }
}

impl StorageOps for TestStorage {
    fn cut(
        &self,
        place: Place,
        from: u64,
        extent: u64,
        _: ClusterTime,
    ) -> LocalBoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            self.rt.sleep(self.takes.get()).await;
            self.check()?;
            self.cuts.borrow_mut().push(Cut { data: place.data, from, extent });
            if let Some(length) = self.lengths.borrow_mut().get_mut(&place.data) {
                *length = (*length).min(from);
            }
            Ok(())
        })
    }
    fn length(&self, _: InodeId, query: Query) -> LocalBoxFuture<'_, Result<u64, MetaError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.lengths.borrow().get(&query.data).copied().unwrap_or(0))
        })
    }
    fn totals(&self) -> LocalBoxFuture<'_, Result<Totals, MetaError>> {
        Box::pin(async move {
            self.check()?;
            Ok(Totals { bytes_total: 300, bytes_free: 200, inodes: 0 })
        })
    }
}

/// A service with its surroundings.
struct Bench {
    rt: Rt,
    kv: MemKv,
    cluster: Rc<TestCluster>,
    storage: Rc<TestStorage>,
    service: Rc<Service>,
    sequence: Cell<u64>,
}

fn routing() -> RoutingInfo {
    let table = ChainTable {
        id: ChainTableId(1),
        version: ChainTableVersion(2),
        chains: (1..=6).map(ChainId).collect(),
    };
    let node = NodeInfo {
        id: NodeId(3),
        kind: NodeKind::Meta,
        addresses: Vec::new(),
        boot: BootId(BOOT),
        alive: true,
        tags: BTreeMap::new(),
    };
    let key = ember_types::routing::TableKey { id: table.id, version: table.version };
    RoutingInfo {
        version: RoutingVersion { term: 1, counter: 1 },
        nodes: [(node.id, node)].into(),
        tables: [(key, table)].into(),
        ..Default::default()
    }
}

impl Bench {
    async fn new(rt: Rt) -> Self {
        let kv = MemKv::new();
        let shared = Arc::new(kv.clone());
        Self::over(rt, kv, shared, MetaConfig::default(), BOOT).await
    }

    async fn over(rt: Rt, kv: MemKv, store: Arc<dyn Kv>, config: MetaConfig, boot: u64) -> Self {
        let view = RefCell::new(Rc::new(routing()));
        let cluster = Rc::new(TestCluster { rt: rt.clone(), lease: Cell::new(true), view });
        let storage = Rc::new(TestStorage {
            rt: rt.clone(),
            cuts: RefCell::default(),
            lengths: RefCell::default(),
            failing: Cell::new(false),
            takes: Cell::new(Duration::ZERO),
        });
        let key = CapabilityKey::new(&KEY);
        let service = Service::new(
            rt.clone(),
            config,
            store,
            cluster.clone(),
            storage.clone(),
            key,
            boot,
            &Default::default(),
        )
        .unwrap();
        service.format().await.unwrap();
        Self { rt, kv, cluster, storage, service, sequence: Cell::new(0) }
    }

    fn next(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }

    fn request(&self, sequence: u64, operation: Operation) -> Request {
        let credentials = Credentials::default();
        let answered = sequence.saturating_sub(1);
        Request { client: CLIENT, credentials, sequence, answered, repeat: false, operation }
    }

    async fn ask(&self, operation: Operation) -> Response {
        let request = self.request(self.next(), operation);
        self.service.answer(request).await
    }

    async fn entry(&self, operation: Operation) -> Attributes {
        let response = self.ask(operation).await;
        match response.result {
            Answer::Entry(attributes) => attributes,
            Answer::Removed { attributes: Some(attributes) } => attributes,
            Answer::Opened { attributes, .. } => attributes,
            other => panic!("{} {}: {other:?}", response.status, response.text),
        }
    }

    async fn stat(&self, inode: InodeId) -> Attributes {
        self.entry(Operation::GetAttributes { inode }).await
    }

    /// A file of that length, closed.
    async fn file(&self, name: &str, length: u64) -> Attributes {
        let made = self.entry(create(name, 1)).await;
        let data = made.data;
        self.storage.lengths.borrow_mut().insert(data, length);
        self.entry(Operation::Close { inode: made.inode, session: session(1), written: written(length, 0) })
            .await
    }
}

fn session(number: u128) -> SessionId {
    SessionId::from_u128(number)
}

fn written(length: u64, truncate_version: u64) -> Option<Written> {
    Some(Written { length, truncate_version, modified: None })
}

fn write_flags() -> OpenFlags {
    OpenFlags { write: true, ..Default::default() }
}

fn create(name: &str, number: u128) -> Operation {
    Operation::Create {
        parent: ROOT,
        name: name.as_bytes().to_vec(),
        mode: 0o644,
        exclusive: true,
        flags: OpenFlags { read: true, ..write_flags() },
        session: session(number),
    }
}

fn open(inode: InodeId, number: u128, flags: OpenFlags) -> Operation {
    Operation::Open { inode, flags, session: session(number) }
}

fn mkdir(name: &str) -> Operation {
    Operation::MakeDirectory { parent: ROOT, name: name.as_bytes().to_vec(), mode: 0o755 }
}

fn unlink(name: &str) -> Operation {
    Operation::Unlink { parent: ROOT, name: name.as_bytes().to_vec() }
}

fn lookup(name: &str) -> Operation {
    Operation::Lookup { parent: ROOT, name: name.as_bytes().to_vec() }
}

fn run<T>(test: impl AsyncFnOnce(Rt) -> T) -> T {
    let runtime = Runtime::new();
    let rt = runtime.rt();
    runtime.block_on(test(rt))
}
