//! The daemon: listens, joins the cluster, serves until it is told to stop.

use crate::config::MetaConfig;
use crate::error::MetaError;
use crate::seam::Cluster;
use crate::service::{Door, Service};
use crate::storage::StorageClient;
use ember_client::mgmtd::{
    ClusterClock, Mgmtd, NodeAgent, NodeIdentity, RoutingCache, SessionState, keep_session,
};
use ember_daemon::Metrics;
use ember_kv::Kv;
use ember_net::{Pool, Server, ServerIdentity, ServerOptions};
use ember_rt::select::{join_all, select};
use ember_rt::{Addr, Rt, watch};
use ember_types::{CapabilityKey, ClientId, ClusterTime, RoutingInfo};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What the daemon is made of.
pub struct Parts {
    /// The store.
    pub kv: Arc<dyn Kv>,
    /// Who it is to those who call it.
    pub server: ServerIdentity,
    /// Connections to others, under its own identity.
    pub pool: Pool,
    /// Routing; it names the mgmtd servers too.
    pub routing: RoutingCache,
    /// Who it is to mgmtd. Its addresses are replaced by those that it listens on.
    pub node: NodeIdentity,
    /// Signs capabilities.
    pub key: CapabilityKey,
    /// Where its counters are shown.
    pub metrics: Metrics,
}

/// The cluster as the node's agent knows it.
struct Member {
    rt: Rt,
    routing: RoutingCache,
    agent: NodeAgent,
    error: Duration,
}

impl Cluster for Member {
    fn view(&self) -> Rc<RoutingInfo> {
        self.routing.view()
    }

    fn now(&self) -> Option<ClusterTime> {
        let now = self.rt.now();
        if !self.agent.lease().valid(now) {
            return None;
        }
        let clock = self.routing.clock();
        let (earliest, latest) = (clock.earliest(now)?, clock.latest(now)?);
        (earliest + self.error >= latest).then_some(earliest)
    }
}

/// Runs the service until `shutdown` turns true.
pub async fn run(
    rt: Rt,
    config: MetaConfig,
    parts: Parts,
    shutdown: watch::Receiver<bool>,
) -> Result<(), MetaError> {
    let Parts { kv, server, pool, routing, mut node, key, metrics } = parts;
    let mut listeners = Vec::new();
    node.addresses.clear();
    for text in &config.listen {
        let refused = |what: String| MetaError::Listen { address: text.clone(), what };
        let addr: Addr = text.parse().map_err(refused)?;
        let listener = rt.net().listen(&addr).map_err(|e| refused(e.to_string()))?;
        node.addresses.push(listener.local_addr().to_string());
        listeners.push(listener);
    }
    if listeners.is_empty() {
        let what = "no address is given".to_owned();
        return Err(MetaError::Config { name: "listen", what });
    }
    let client = ClientId::from_u128(rt.random_u128());
    let description = format!("meta node {}", node.node);
    let (mgmtd, clock) = (routing.mgmtd().clone(), routing.clock().clone());
    let boot = node.boot.0;
    let agent = NodeAgent::start(&rt, routing.clone(), node, Rc::new(()), shutdown.clone());
    let error = Duration::from_millis(config.clock_error_ms);
    let cluster: Rc<dyn Cluster> = Rc::new(Member { rt: rt.clone(), routing, agent, error });
    let timeout = Duration::from_millis(config.storage_timeout_ms.max(100));
    let storage = StorageClient::new(rt.clone(), pool, cluster.clone(), key.clone(), client, timeout);
    let storage = Rc::new(storage);
    let sessions =
        keep_sessions(rt.clone(), mgmtd, clock, description, (storage.clone(), client), shutdown.clone());
    rt.spawn("meta sessions", sessions);
    let service = Service::new(rt.clone(), config, kv, cluster, storage, key, boot, &metrics)?;
    service.format().await?;
    rt.spawn("meta collector", until(shutdown.clone(), service.clone().collect()));
    rt.spawn("meta sweeper", until(shutdown.clone(), service.clone().sweep()));
    let server = Server::new(server, Rc::new(Door(service.clone())), ServerOptions::default());
    let serving = listeners.into_iter().map(|l| server.clone().serve(&rt, l, shutdown.clone()));
    join_all(serving).await;
    service.database_sync().await
}

/// Keeps a session for what this server asks of storage: when mgmtd has ended one, as the server was cut off for
/// too long, another follows.
async fn keep_sessions(
    rt: Rt,
    mgmtd: Mgmtd,
    clock: Rc<ClusterClock>,
    description: String,
    (storage, mut client): (Rc<StorageClient>, ClientId),
    shutdown: watch::Receiver<bool>,
) {
    loop {
        let (mgmtd, clock, stop) = (mgmtd.clone(), clock.clone(), shutdown.clone());
        let mut session = keep_session(&rt, mgmtd, client, description.clone(), clock, stop);
        while *session.borrow() != SessionState::Ended {
            if session.changed().await.is_err() {
                return;
            }
        }
        client = ClientId::from_u128(rt.random_u128());
        storage.set_client(client);
    }
}

/// Runs a task until `shutdown` turns true or its sender is gone.
async fn until(mut shutdown: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    let stop = async {
        while !*shutdown.borrow() {
            if shutdown.changed().await.is_err() {
                return;
            }
        }
    };
    select(stop, task).await;
}
