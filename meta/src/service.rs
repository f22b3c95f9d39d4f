//! The request handler: what a request needs, in order, until it is answered.

use crate::config::MetaConfig;
use crate::cut::Cuts;
use crate::database::{Database, Times};
use crate::error::MetaError;
use crate::execute::{Call, Minter, Outcome, makes, may_only_read, refusal};
use crate::ids::{self, Ids};
use crate::queue::Queues;
use crate::seam::{Cluster, StorageOps};
use crate::totals::TotalsCache;
use ember_daemon::Metrics;
use ember_daemon::metrics::Counter;
use ember_kv::{Durability, Kv};
use ember_meta_store::Placement;
use ember_net::handshake::Peer;
use ember_net::server::{Handler, Request as NetRequest, Response as NetResponse};
use ember_rt::{LocalBoxFuture, Rt};
use ember_types::layout::Layout;
use ember_types::{CapabilityKey, ChainTableId, ChainTableVersion, Status};
use ember_wire::meta::{Answer, Operation, Request, Response};
use ember_wire::method::{MetaOp, Method};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of asking storage and running again that one request gets.
const ROUNDS: usize = 8;
/// Most opens renewed by one request.
const RENEWALS_MAX: usize = 4096;
/// Longest transaction, as the store allows it.
const TRANSACTION: Duration = Duration::from_secs(5);
/// Changing requests of one client that may be unanswered: the ring of stored answers has as many places.
const UNANSWERED_MAX: u64 = ember_meta_store::request::WINDOW;

/// What the service counts.
pub(crate) struct Stats {
    pub(crate) requests: Counter,
    pub(crate) transactions: Counter,
    pub(crate) retries: Counter,
    pub(crate) collected: Counter,
    pub(crate) settled: Counter,
    pub(crate) cuts: Counter,
}

impl Stats {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name: &str, help: &str| metrics.counter(name, help);
        Self {
            requests: counter("meta_requests", "Metadata requests"),
            transactions: counter("meta_transactions", "Transactions begun for changing requests"),
            retries: counter("meta_retries", "Transactions tried again after a conflict"),
            collected: counter("meta_collected", "Removed inodes and data collected"),
            settled: counter("meta_settled", "Sessions of dead writers settled"),
            cuts: counter("meta_cuts", "Truncations carried out on storage"),
        }
    }
}

/// The service on one reactor.
pub struct Service {
    pub(crate) rt: Rt,
    pub(crate) config: MetaConfig,
    pub(crate) database: Database,
    pub(crate) cluster: Rc<dyn Cluster>,
    pub(crate) storage: Rc<dyn StorageOps>,
    pub(crate) queues: Queues,
    pub(crate) cuts: Cuts,
    pub(crate) totals: TotalsCache,
    pub(crate) stats: Stats,
    key: CapabilityKey,
    boot: u64,
    ids: Ids,
    template: Layout,
    base: Cell<u32>,
    open: Cell<usize>,
    /// The placement's tables, as of a routing version.
    tables: RefCell<(ember_types::RoutingVersion, Placement)>,
}

impl Service {
    /// A service over a store. `boot` names this start of it.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        rt: Rt,
        config: MetaConfig,
        kv: Arc<dyn Kv>,
        cluster: Rc<dyn Cluster>,
        storage: Rc<dyn StorageOps>,
        key: CapabilityKey,
        boot: u64,
        metrics: &Metrics,
    ) -> Result<Rc<Self>, MetaError> {
        let durability = match config.durability.as_str() {
            "ordered" => Durability::Ordered,
            "strict" => Durability::Durable,
            other => {
                let what = format!("{other:?} is neither \"ordered\" nor \"strict\"");
                return Err(MetaError::Config { name: "durability", what });
            }
        };
        let (table, first) = (ChainTableId(config.chain_table), ChainTableVersion(1));
        let template = Layout::new(table, first, config.chunk_size, config.stripe, 0, 0);
        let Some(template) = template else {
            let what = format!("{} with a stripe of {}", config.chunk_size, config.stripe);
            return Err(MetaError::Config { name: "chunk_size", what });
        };
        let stats = Stats::new(metrics);
        let retries = stats.retries.clone();
        let database = Database::new(rt.clone(), kv, durability, config.attempts_max, retries);
        let (ids, base) = (Ids::new(config.id_range), Cell::new(rt.random_u64() as u32));
        Ok(Rc::new(Self {
            rt,
            database,
            cluster,
            storage,
            queues: Queues::default(),
            cuts: Cuts::default(),
            totals: TotalsCache::default(),
            stats,
            key,
            boot,
            ids,
            template,
            base,
            open: Cell::new(0),
            tables: RefCell::default(),
            config,
        }))
    }

    /// Makes the root directory of a new store.
    pub async fn format(&self) -> Result<(), MetaError> {
        let now = self.rt.unix_now();
        let times = || {
            let zero = Duration::ZERO;
            let cluster = ember_types::ClusterTime(0);
            Ok(Times { now, cluster, hold: zero, owner: self.boot, claim: zero })
        };
        let made = self.database.write(times, true, async move |s, t| s.format(t.now, None).await).await?;
        if made {
            tracing::info!("made the root directory");
        }
        Ok(())
    }

    /// Makes everything that was answered durable.
    pub(crate) async fn database_sync(&self) -> Result<(), MetaError> {
        self.database.sync().await
    }

    pub(crate) fn capability_life(&self) -> Duration {
        Duration::from_millis(self.config.capability_ms.clamp(1_000, 3_600_000))
    }

    /// Twice the error of cluster time: between two servers.
    pub(crate) fn bound(&self) -> Duration {
        Duration::from_millis(self.config.clock_error_ms) * 2
    }

    /// How long a server may cut before it claims again: every step of storage fits.
    pub(crate) fn claim(&self) -> Duration {
        Duration::from_millis(self.config.storage_timeout_ms) * 2
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// The times of a transaction that begins now. `NoLease` if this server must not serve.
    pub(crate) fn times(&self) -> Result<Times, MetaError> {
        let Some(cluster) = self.cluster.now() else {
            return Err(MetaError::not_now(Status::NoLease, "this metadata server has no lease"));
        };
        Ok(Times {
            now: self.rt.unix_now(),
            cluster,
            hold: self.capability_life() + self.bound() + TRANSACTION,
            owner: self.boot,
            claim: self.claim(),
        })
    }

    fn minter(&self) -> Result<Minter, MetaError> {
        let now = self.times()?.cluster;
        let epoch = self.cluster.view().revocation_epoch as u32;
        Ok(Minter { key: self.key.clone(), epoch, now, until: now + self.capability_life() })
    }

    /// Where the next new file goes: its chains start behind the last one's.
    fn placement(&self) -> Arc<Placement> {
        let view = self.cluster.view();
        let mut cached = self.tables.borrow_mut();
        if cached.0 != view.version || cached.1.default.is_none() {
            let newest = view.tables.keys().map(|key| (key.id, key.version)).collect();
            let default = Some(self.template);
            *cached = (view.version, Placement { tables: newest, default, base: 0, seed: 0 });
        }
        let base = self.base.get();
        self.base.set(base.wrapping_add(self.template.stripe()));
        Arc::new(Placement { base, seed: self.rt.random_u64(), ..cached.1.clone() })
    }

    /// Answers a request. The answer always exists: an error is one.
    pub async fn answer(self: &Rc<Self>, request: Request) -> Response {
        if self.open.get() >= self.config.requests_max {
            return refusal(Status::Busy, "too many metadata requests at once");
        }
        self.open.set(self.open.get() + 1);
        self.stats.requests.inc();
        tracing::trace!(client = %request.client, operation = ?request.operation, "asked");
        let answer = self.try_answer(request).await;
        self.open.set(self.open.get() - 1);
        match answer {
            Ok(response) => response,
            Err(error) => {
                let status = error.status();
                if !status.is_retryable() {
                    tracing::warn!(%error, "metadata request failed");
                }
                refusal(status, error.to_string())
            }
        }
    }

    fn admit(&self, request: &Request) -> Result<(), MetaError> {
        if self.cluster.view().ended_clients.contains(&request.client) {
            return Err(MetaError::not_now(Status::SessionEnded, "this client's session has ended"));
        }
        if matches!(&request.operation, Operation::Renew { opens, .. } if opens.len() > RENEWALS_MAX) {
            return Err(MetaError::not_now(Status::InvalidArgument, "too many renewals in one request"));
        }
        if request.sequence > request.answered.saturating_add(UNANSWERED_MAX - 1) {
            return Err(MetaError::not_now(Status::Busy, "too many unanswered requests of this client"));
        }
        Ok(())
    }

    async fn try_answer(self: &Rc<Self>, request: Request) -> Result<Response, MetaError> {
        self.admit(&request)?;
        if request.operation == Operation::StatFs {
            return self.stat_fs().await;
        }
        let request = Arc::new(request);
        let mut call = Call {
            request: request.clone(),
            ids: ids::NONE,
            placement: Arc::default(),
            minter: self.minter()?,
            found: None,
        };
        if may_only_read(&request.operation)
            && let Some(response) = self.try_read(call.clone()).await?
        {
            if matches!(request.operation, Operation::Sync { .. }) && response.status == Status::Ok {
                self.database.sync().await?;
            }
            return Ok(response);
        }
        if makes(&request.operation) {
            call.placement = self.placement();
        }
        for _ in 0..ROUNDS {
            if makes(&request.operation) {
                call.ids = self.ids.take(&self.database, || self.times()).await?;
            }
            call.minter = self.minter()?;
            match self.submit(call.clone()).await? {
                Outcome::Answered(response) => return self.complete(&request, *response).await,
                Outcome::Query(inode, query) => {
                    let length = self.storage.length(inode, query).await?;
                    call.found = Some(query.answer(length));
                }
                Outcome::Finish(inode) => self.complete_truncation(inode).await?,
            }
        }
        Err(MetaError::not_now(Status::Busy, "the file's length changes all the time"))
    }

    async fn try_read(&self, call: Call) -> Result<Option<Response>, MetaError> {
        let times = self.times()?;
        self.database.read(async move |space| call.try_read(space, &times).await).await
    }

    /// A request that cut a file is answered when the cut has been carried out (R19).
    async fn complete(
        self: &Rc<Self>,
        request: &Request,
        mut response: Response,
    ) -> Result<Response, MetaError> {
        let cuts = match &request.operation {
            Operation::Create { flags, .. } | Operation::Open { flags, .. } => flags.truncate,
            Operation::SetAttributes { set, .. } => set.length.is_some(),
            _ => false,
        };
        let attributes = match &mut response.result {
            Answer::Entry(attributes) | Answer::Opened { attributes, .. } => attributes,
            _ => return Ok(response),
        };
        if cuts && attributes.truncating_to.is_some() {
            let inode = attributes.inode;
            self.complete_truncation(inode).await?;
            let read = self.database.read(async move |space| space.get_attributes(inode).await);
            *attributes = read.await?;
        }
        Ok(response)
    }
}

/// The service as a server's handler.
pub struct Door(pub Rc<Service>);

impl Handler for Door {
    fn handle(&self, peer: &Peer, request: NetRequest) -> LocalBoxFuture<'static, NetResponse> {
        let service = self.0.clone();
        tracing::trace!(peer = %peer.address, method = ?request.method, "request");
        Box::pin(async move {
            if request.method != Method::MetaOp {
                return NetResponse::not_supported(request.method);
            }
            match request.decode::<MetaOp>() {
                Ok(body) => NetResponse::ok::<MetaOp>(&service.answer(body).await),
                Err(refused) => refused,
            }
        })
    }
}
