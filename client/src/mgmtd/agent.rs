//! What a node does to be part of the cluster: registers, sends heartbeats, holds a lease.

use super::{Mgmtd, RoutingCache};
use ember_rt::select::{Either, select};
use ember_rt::sync::Notify;
use ember_rt::{Rt, watch};
use ember_types::{BootId, Chain, Instant, NodeId, NodeKind, Status, mutant};
use ember_wire::method::{Heartbeat, RegisterNode};
use ember_wire::mgmtd::{
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, TargetOrder, TargetReport, Timing,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Limit of one request; far below a lease, so that several fit into one.
const ATTEMPT: Duration = Duration::from_millis(1000);
const PAUSE: Duration = Duration::from_millis(50);

/// Who a node is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Its id.
    pub node: NodeId,
    /// What it does.
    pub kind: NodeKind,
    /// This start of it: random.
    pub boot: BootId,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Failure domains.
    pub tags: BTreeMap<String, String>,
    /// Disks that it offers targets on.
    pub disks: u32,
    /// Process id.
    pub pid: u32,
    /// Data directory.
    pub data_dir: String,
    /// Release of the program.
    pub release: String,
}

/// What a node tells and obeys with each heartbeat. Both are called on the reactor and must not block.
pub trait NodeState {
    /// Every target of the node, as it is now.
    fn targets(&self) -> Vec<TargetReport>;
    /// What people should know.
    fn warnings(&self) -> Vec<String>;
    /// Takes the public states of the node's targets. After this returns, no target serves under an older chain
    /// version, and one that may not serve doesn't (R1). `chains` are those that the node's routing lacked.
    fn obey(&self, orders: &[TargetOrder], chains: &[Chain]);
}

/// A node that has nothing to tell (meta).
impl NodeState for () {
    fn targets(&self) -> Vec<TargetReport> {
        Vec::new()
    }
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    fn obey(&self, _: &[TargetOrder], _: &[Chain]) {}
}

/// A node's lease. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lease(Rc<Cell<Instant>>);

impl Lease {
    /// Whether the lease holds at `now`, which was read after the request at hand was received (R8).
    pub fn valid(&self, now: Instant) -> bool {
        now < self.0.get()
    }
    /// When it ends.
    pub fn until(&self) -> Instant {
        self.0.get()
    }
    /// Counts a grant from when its request was sent (R8); never shortens a lease.
    fn granted(&self, sent: Instant, received: Instant, length: Duration) {
        let from = if mutant!(r08_lease_counts_from_answer) { received } else { sent };
        self.0.set(self.0.get().max(from + length));
    }
    /// A lease that holds until `until`, for tests and tools.
    pub fn fixed(until: Instant) -> Self {
        Self(Rc::new(Cell::new(until)))
    }
}

/// The task that keeps a node part of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct NodeAgent(Rc<Agent>);

struct Agent {
    rt: Rt,
    mgmtd: Mgmtd,
    routing: RoutingCache,
    identity: NodeIdentity,
    lease: Lease,
    timing: Cell<Timing>,
    registered: Cell<bool>,
    withheld: Cell<bool>,
    sequence: Cell<u64>,
    nudge: Notify,
    trouble: RefCell<String>,
}

impl NodeAgent {
    /// Registers and sends heartbeats until `shutdown` turns true or its sender is gone.
    pub fn start(
        rt: &Rt,
        routing: RoutingCache,
        identity: NodeIdentity,
        state: Rc<dyn NodeState>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let agent = Self(Rc::new(Agent {
            rt: rt.clone(),
            mgmtd: routing.mgmtd().clone(),
            routing,
            identity,
            lease: Lease::default(),
            timing: Cell::default(),
            registered: Cell::default(),
            withheld: Cell::default(),
            sequence: Cell::default(),
            nudge: Notify::new(),
            trouble: RefCell::default(),
        }));
        rt.spawn("node agent", agent.clone().run(state, shutdown));
        agent
    }
    /// The node's lease.
    pub fn lease(&self) -> &Lease {
        &self.0.lease
    }
    /// The cluster's times, as mgmtd told them at registration.
    pub fn timing(&self) -> Timing {
        self.0.timing.get()
    }
    /// Sends a heartbeat now: something changed that mgmtd should know.
    pub fn nudge(&self) {
        self.0.nudge.notify_one();
    }
    /// Why the node isn't part of the cluster; empty if it is.
    pub fn trouble(&self) -> String {
        self.0.trouble.borrow().clone()
    }

    async fn run(self, state: Rc<dyn NodeState>, mut shutdown: watch::Receiver<bool>) {
        let agent = &*self.0;
        while !*shutdown.borrow() {
            let begun = agent.rt.now();
            let alive =
                if agent.registered.get() { agent.beat(&*state).await } else { agent.register().await };
            let period = if alive { Duration::from(agent.timing.get().heartbeat_ms) } else { PAUSE };
            // Without a lease, after registration or while it is withheld until the node has confirmed what it
            // was told, the next heartbeat follows at once.
            let wants_lease = agent.withheld.get() || !agent.lease.valid(agent.rt.now());
            let next = if alive && wants_lease { begun + PAUSE } else { begun + period };
            let pause = select(agent.rt.sleep_until(next), agent.nudge.notified());
            if let Either::Left(Err(_)) = select(shutdown.changed(), pause).await {
                break;
            }
        }
    }
}

impl Agent {
    async fn register(&self) -> bool {
        let own = &self.identity;
        let request = RegisterRequest {
            node: own.node,
            kind: own.kind,
            boot: own.boot,
            addresses: own.addresses.clone(),
            tags: own.tags.clone(),
            disks: own.disks,
            pid: own.pid,
            data_dir: own.data_dir.clone(),
            release: own.release.clone(),
        };
        match self.mgmtd.attempt::<RegisterNode>(&request, ATTEMPT).await {
            Ok(answer) if answer.status == Status::Ok => {
                tracing::info!(node = %own.node, "registered");
                self.timing.set(answer.timing);
                self.registered.set(true);
                self.trouble.borrow_mut().clear();
                true
            }
            Ok(answer) => {
                if !answer.status.is_retryable() {
                    tracing::error!(node = %own.node, status = %answer.status, "not registered: {}", answer.text);
                }
                *self.trouble.borrow_mut() = format!("not registered: {} {}", answer.status, answer.text);
                false
            }
            Err(error) => {
                *self.trouble.borrow_mut() = format!("mgmtd doesn't answer: {error}");
                false
            }
        }
    }

    async fn beat(&self, state: &dyn NodeState) -> bool {
        self.sequence.set(self.sequence.get() + 1);
        let request = HeartbeatRequest {
            node: self.identity.node,
            boot: self.identity.boot,
            sequence: self.sequence.get(),
            targets: state.targets(),
            routing: self.routing.view().version,
            warnings: state.warnings(),
        };
        let sent = self.rt.now();
        match self.mgmtd.attempt::<Heartbeat>(&request, ATTEMPT).await {
            Ok(answer) if answer.status == Status::Ok => {
                self.heard(state, sent, &answer);
                true
            }
            Ok(answer) => {
                if answer.status == Status::NotFound {
                    self.registered.set(false);
                }
                *self.trouble.borrow_mut() = format!("heartbeat refused: {}", answer.status);
                false
            }
            Err(error) => {
                *self.trouble.borrow_mut() = format!("mgmtd doesn't answer: {error}");
                false
            }
        }
    }

    /// Orders first, then the lease that covers them (R1).
    fn heard(&self, state: &dyn NodeState, sent: Instant, answer: &HeartbeatResponse) {
        let received = self.rt.now();
        self.routing.clock().learn(sent, received, answer.cluster_time);
        self.routing.learn_chains(&answer.chains);
        state.obey(&answer.orders, &answer.chains);
        self.withheld.set(false);
        if answer.granted {
            self.lease.granted(sent, received, self.timing.get().node_lease_ms.into());
            self.trouble.borrow_mut().clear();
        } else {
            *self.trouble.borrow_mut() = "mgmtd withholds the lease until a chain change is confirmed".into();
            self.withheld.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_a_lease_counts_from_the_sending_of_its_request() {
        let lease = Lease::default();
        assert!(!lease.valid(Instant(0)));
        lease.granted(Instant(100), Instant(900), Duration::from_nanos(500));
        assert!(lease.valid(Instant(599)));
        assert!(!lease.valid(Instant(600)));
        lease.granted(Instant(50), Instant(60), Duration::from_nanos(500));
        assert_eq!(lease.until(), Instant(600), "an older grant shortens nothing");
    }
}
