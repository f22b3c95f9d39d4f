//! The node: its disks, its targets, its place in the cluster.

use crate::config::StorageConfig;
use crate::error::StorageError;
use crate::health::{self, Failures, Speed};
use crate::late::LateDisk;
use crate::remove::Removals;
use crate::resync::Resyncs;
use crate::server::Door;
use crate::slots::Slot;
use crate::target::Target;
use ember_client::mgmtd::{Lease, NodeAgent, NodeIdentity, NodeState, RoutingCache};
use ember_craq::{Input, Replica, Role};
use ember_net::{Pool, Server, ServerIdentity, ServerOptions};
use ember_rt::disk::{DiskQueue, Space};
use ember_rt::net::Listener;
use ember_rt::select::{Either, Either3, join_all, select, select3};
use ember_rt::sync::Notify;
use ember_rt::{Addr, Rt, watch};
use ember_types::{
    CapabilityKey, Chain, ClientId, Instant, LocalState, NodeId, PublicState, TargetId, TargetInfo,
};
use ember_wire::mgmtd::{TargetOrder, TargetReport};
use ember_wire::storage::DiskSpace;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How often replicas look at the clock.
const TICK: Duration = Duration::from_millis(50);
/// How often space is looked at and engines are flushed.
const UPKEEP: Duration = Duration::from_millis(1000);
/// Tombstones forgotten and slots given back at once.
const UPKEEP_MAX: usize = 256;

/// What the daemon is made of.
pub struct Parts {
    /// Who it is to those who call it.
    pub server: ServerIdentity,
    /// Connections to others, under its own identity.
    pub pool: Pool,
    /// Routing; it names the mgmtd servers too.
    pub routing: RoutingCache,
    /// Who it is to mgmtd. Its addresses and number of disks are replaced by the real ones.
    pub node: NodeIdentity,
    /// Checks capabilities.
    pub key: CapabilityKey,
}

/// What every target of the node needs.
pub(crate) struct NodeContext {
    pub(crate) rt: Rt,
    pub(crate) config: StorageConfig,
    pub(crate) routing: RoutingCache,
    pub(crate) pool: Pool,
    agent: OnceCell<NodeAgent>,
    no_lease: Lease,
    pub(crate) resyncs: Resyncs,
}

impl NodeContext {
    /// The node's lease; before it has joined, one that never holds.
    pub(crate) fn lease(&self) -> &Lease {
        self.agent.get().map_or(&self.no_lease, NodeAgent::lease)
    }
    /// Sends a heartbeat soon: something changed.
    pub(crate) fn nudge(&self) {
        if let Some(agent) = self.agent.get() {
            agent.nudge();
        }
    }
    /// Cluster time in milliseconds, 0 if unknown.
    pub(crate) fn cluster_ms(&self) -> u64 {
        self.routing.clock().earliest(self.rt.now()).map_or(0, |time| time.0)
    }
}

/// A storage node.
pub(crate) struct Node {
    pub(crate) context: Rc<NodeContext>,
    pub(crate) id: NodeId,
    pub(crate) cluster: ember_types::ClusterId,
    pub(crate) key: CapabilityKey,
    pub(crate) disks: Vec<DiskQueue>,
    pub(crate) slots: RefCell<BTreeMap<TargetId, Slot>>,
    pub(crate) failures: RefCell<BTreeMap<TargetId, Failures>>,
    /// Of each disk.
    pub(crate) speeds: RefCell<Vec<Speed>>,
    /// When this process last began to run, after its start or after it stood still.
    pub(crate) awake_since: Cell<Instant>,
    pub(crate) removals: Removals,
    /// Somebody asked for a scrub.
    pub(crate) scrub_wanted: Notify,
}

impl Node {
    /// A target in service.
    pub(crate) fn target(&self, id: TargetId) -> Option<Rc<Target>> {
        match self.slots.borrow().get(&id) {
            Some(Slot::Running(target)) => Some(target.clone()),
            _ => None,
        }
    }
    /// Every target in service.
    pub(crate) fn running(&self) -> Vec<Rc<Target>> {
        let slots = self.slots.borrow();
        slots
            .values()
            .filter_map(|slot| if let Slot::Running(t) = slot { Some(t.clone()) } else { None })
            .collect()
    }
    /// Targets that routing places on this node.
    pub(crate) fn assigned(&self) -> Vec<TargetInfo> {
        let view = self.context.routing.view();
        view.targets.values().filter(|target| target.node == self.id).cloned().collect()
    }

    /// Space of each disk.
    pub(crate) fn disk_space(&self) -> Vec<DiskSpace> {
        let running = self.running();
        let rows = self.disks.iter().enumerate().map(|(i, queue)| {
            let disk = i as u32;
            // A disk that hangs might not even tell its space.
            let known = self.hangs(disk).is_none();
            let space = if known { queue.disk().space().unwrap_or_default() } else { Space::default() };
            let used = running.iter().filter(|t| t.disk == disk).filter_map(|t| t.engine.space().ok());
            DiskSpace {
                disk,
                file_system: space.file_system,
                total: space.total,
                available: space.available.saturating_sub(self.context.config.reserve_bytes),
                used: used.map(|space| space.used).sum(),
            }
        });
        rows.collect()
    }

    /// Gives every target the newest chain, and opens, makes or drops targets as routing says.
    pub(crate) fn follow_routing(self: &Rc<Self>) {
        let view = self.context.routing.view();
        for target in self.running() {
            let chain = target.replica().identity().chain;
            if let Some(chain) = view.chains.get(&chain) {
                target.learn_chain(chain);
            }
            target.input(Input::EndedClients(view.ended_clients.clone()));
        }
        for info in self.assigned() {
            self.place(&info);
        }
    }

    async fn follow(self: Rc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut routing = self.context.routing.watch();
        while !*shutdown.borrow() {
            match select3(shutdown.changed(), routing.changed(), self.context.rt.sleep(TICK)).await {
                Either3::First(_) => {}
                Either3::Second(_) => {
                    let before = self.reported();
                    self.follow_routing();
                    if self.reported() != before {
                        self.context.nudge();
                    }
                }
                Either3::Third(()) => {
                    let before = self.reported();
                    for target in self.running() {
                        target.tick();
                    }
                    if self.reported() != before {
                        self.context.nudge();
                    }
                }
            }
        }
    }

    /// What a change of calls for a heartbeat before its time.
    fn reported(&self) -> Vec<(TargetId, LocalState, u64)> {
        let states = self.running().into_iter().map(|target| {
            let replica = target.replica();
            (target.id, state_of(&replica), replica.chain_version().0)
        });
        states.collect()
    }

    async fn upkeep(self: Rc<Self>, shutdown: watch::Receiver<bool>) {
        let mut forgotten: Vec<ClientId> = Vec::new();
        let mut told = self.reported();
        while !*shutdown.borrow() {
            self.context.rt.sleep(UPKEEP).await;
            self.retry_broken();
            let ended = self.context.routing.view().ended_clients.clone();
            for target in self.running() {
                target.look_at_space();
                let engine = &target.engine;
                if engine.failure().is_none() && self.hangs(target.disk).is_none() {
                    // It says so itself if it stops.
                    let _ = engine.check_names();
                }
                if ended != forgotten {
                    engine.forget_clients(&ended);
                }
                engine.expire_tombstones(self.context.rt.now(), UPKEEP_MAX);
                let flushed = if engine.needs_flush() { engine.flush().await } else { Ok(()) };
                let trimmed = engine.trim(UPKEEP_MAX).await;
                if let Some(error) = flushed.err().or(trimmed.err()) {
                    tracing::error!(target = %target.id, %error, "upkeep failed");
                }
            }
            forgotten = ended;
            let now = self.reported();
            if now != told {
                told = now;
                self.context.nudge();
            }
        }
    }

    async fn close(&self) {
        for target in self.running() {
            if let Err(error) = target.engine.close().await {
                tracing::error!(target = %target.id, %error, "not closed cleanly; recovery will do");
            }
        }
    }
}

/// The node's word to mgmtd. Holds the node by a handle of its own.
struct Word(Rc<Node>);

impl NodeState for Word {
    fn targets(&self) -> Vec<TargetReport> {
        let node = &*self.0;
        node.running().iter().for_each(|target| target.note_reported());
        node.assigned().iter().map(|info| node.report(info)).collect()
    }
    fn warnings(&self) -> Vec<String> {
        self.0.disk_warnings()
    }
    fn obey(&self, orders: &[TargetOrder], _: &[Chain]) {
        // The chains of the answer are in the routing already.
        let view = self.0.context.routing.view();
        for order in orders {
            if let (Some(target), Some(chain)) = (self.0.target(order.target), view.chains.get(&order.chain))
            {
                target.learn_chain(chain);
                let member = chain.member(order.target).map(|m| m.state);
                let serves = member == Some(PublicState::Serving) && order.state != PublicState::Serving;
                if serves && chain.version == order.chain_version {
                    target.hold(chain.version);
                }
            }
        }
        self.0.running().iter().for_each(|target| target.note_heard());
    }
}

impl Node {
    fn report(&self, info: &TargetInfo) -> TargetReport {
        let mut report = TargetReport {
            target: info.id,
            generation: info.generation,
            state: LocalState::Offline,
            chain_version: ember_types::ChainVersion(0),
            served_version: ember_types::ChainVersion(0),
            used_bytes: 0,
            free_bytes: 0,
            sync: None,
            trouble: String::new(),
            capacity_bytes: 0,
            wants_replacement: false,
            stopped: true,
            no_room: false,
            slow: self.is_too_slow(info.disk),
            scrub: None,
        };
        match self.slots.borrow().get(&info.id) {
            Some(Slot::Running(target)) => {
                let replica = target.replica();
                report.generation = replica.identity().generation;
                report.state = state_of(&replica);
                report.stopped = replica.role() != Role::Serving || target.is_held();
                report.chain_version = replica.chain_version();
                report.served_version = target.engine.chain_version();
                report.trouble = target.failure().or_else(|| target.lacks_room()).unwrap_or_default();
                report.scrub = Some(target.scrub_progress());
                report.sync = target.sync_progress();
                report.no_room = target.has_no_room();
                if let Ok(space) = target.engine.space() {
                    report.used_bytes = space.used;
                    report.free_bytes = space.available;
                    report.capacity_bytes = space.total;
                }
            }
            Some(Slot::Broken { generation, trouble, wants_replacement, .. }) => {
                report.generation = *generation;
                // How long it has hung changes all the time.
                report.trouble = self.hangs(info.disk).unwrap_or_else(|| trouble.clone());
                report.wants_replacement = *wants_replacement;
            }
            Some(Slot::Opening) | None => report.trouble = "is being opened".into(),
        }
        report
    }
}

/// The local state to report. A target without a part in its chain was opened, so its recovery is complete: if
/// it is lastsrv it may serve again (R7).
fn state_of(replica: &Replica) -> LocalState {
    match (replica.local_state(), replica.role()) {
        (LocalState::Online, Role::Idle) => LocalState::UpToDate,
        (state, _) => state,
    }
}

fn open_disks(rt: &Rt, config: &StorageConfig) -> Result<Vec<DiskQueue>, StorageError> {
    if config.disks.is_empty() {
        let what = "no directory is given".to_owned();
        return Err(StorageError::Config { name: "disks", what });
    }
    config.durability()?;
    let open = |path: &String| {
        let disk = Box::new(LateDisk::new(rt, Path::new(path).to_owned()));
        DiskQueue::start(rt, disk, config.disk_depth.max(1))
    };
    Ok(config.disks.iter().map(open).collect())
}

fn listen(rt: &Rt, config: &StorageConfig) -> Result<Vec<Box<dyn Listener>>, StorageError> {
    if config.listen.is_empty() {
        let what = "no address is given".to_owned();
        return Err(StorageError::Config { name: "listen", what });
    }
    let listen = |text: &String| {
        let refused = |what: String| StorageError::Listen { address: text.clone(), what };
        let addr: Addr = text.parse().map_err(refused)?;
        rt.net().listen(&addr).map_err(|error| refused(error.to_string()))
    };
    config.listen.iter().map(listen).collect()
}

/// Runs the service until `shutdown` turns true.
pub async fn run(
    rt: Rt,
    config: StorageConfig,
    parts: Parts,
    shutdown: watch::Receiver<bool>,
) -> Result<(), StorageError> {
    let Parts { server, pool, routing, node: mut identity, key } = parts;
    let listeners = listen(&rt, &config)?;
    let disks = open_disks(&rt, &config)?;
    identity.addresses = listeners.iter().map(|listener| listener.local_addr().to_string()).collect();
    identity.disks = disks.len() as u32;
    let connections_max = config.connections_max;
    let speeds = vec![Speed::default(); disks.len()];
    let context = Rc::new(NodeContext {
        rt: rt.clone(),
        config,
        routing: routing.clone(),
        pool,
        agent: OnceCell::new(),
        no_lease: Lease::default(),
        resyncs: Resyncs::new(disks.len()),
    });
    let node = Rc::new(Node {
        context: context.clone(),
        id: identity.node,
        cluster: server.cluster,
        key,
        disks,
        slots: RefCell::default(),
        failures: RefCell::default(),
        speeds: RefCell::new(speeds),
        awake_since: Cell::default(),
        removals: Removals::default(),
        scrub_wanted: Notify::new(),
    });
    if let Either::Left(()) = select(ended(shutdown.clone()), routing.ready()).await {
        return Ok(());
    }
    rt.spawn("watch disks", health::watch(Rc::downgrade(&node)));
    // Everything that is here is opened before the first word to mgmtd, so that nothing is taken for missing.
    node.open_all().await?;
    let word = Rc::new(Word(node.clone()));
    let agent = NodeAgent::start(&rt, routing, identity, word, shutdown.clone());
    let _ = context.agent.set(agent);
    rt.spawn("follow routing", node.clone().follow(shutdown.clone()));
    rt.spawn("upkeep", node.clone().upkeep(shutdown.clone()));
    for disk in 0..node.disks.len() as u32 {
        rt.spawn("scrub", crate::scrub::run(node.clone(), disk, shutdown.clone()));
    }
    let options = ServerOptions { connections_max, ..ServerOptions::default() };
    let server = Server::new(server, Rc::new(Door(node.clone())), options);
    let serving = listeners.into_iter().map(|l| server.clone().serve(&rt, l, shutdown.clone()));
    join_all(serving).await;
    node.close().await;
    Ok(())
}

/// Returns when the shutdown has begun.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    while !*shutdown.borrow() {
        if shutdown.changed().await.is_err() {
            return;
        }
    }
}
