//! A copy of the routing, kept up to date by long poll.

use super::{ClusterClock, Mgmtd};
use ember_rt::{Rt, watch};
use ember_types::{Chain, Millis, RoutingInfo, RoutingVersion, Status};
use ember_wire::method::GetRouting;
use ember_wire::mgmtd::RoutingRequest;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How long mgmtd keeps a poll open when nothing changes.
const WAIT: Duration = Duration::from_secs(10);
/// Beyond the wait, for the way there and back.
const GRACE: Duration = Duration::from_secs(2);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The newest routing that this process has heard of. Cheap to clone; the poll ends with the last clone.
#[derive(Clone)]
pub struct RoutingCache(Rc<Shared>);

struct Shared {
    view: watch::Sender<Rc<RoutingInfo>>,
    clock: Rc<ClusterClock>,
    mgmtd: Mgmtd,
}

impl RoutingCache {
    /// Begins to poll.
    pub fn start(rt: &Rt, mgmtd: Mgmtd) -> Self {
        let (view, _) = watch::channel(Rc::new(RoutingInfo::default()));
        let shared = Rc::new(Shared { view, clock: Rc::default(), mgmtd });
        rt.spawn("routing", poll(rt.clone(), Rc::downgrade(&shared)));
        Self(shared)
    }
    /// The newest view.
    pub fn view(&self) -> Rc<RoutingInfo> {
        self.0.view.borrow().clone()
    }
    /// Watches for newer views.
    pub fn watch(&self) -> watch::Receiver<Rc<RoutingInfo>> {
        self.0.view.subscribe()
    }
    /// Cluster time, as the polls and heartbeats tell it.
    pub fn clock(&self) -> &Rc<ClusterClock> {
        &self.0.clock
    }
    /// The mgmtd servers.
    pub fn mgmtd(&self) -> &Mgmtd {
        &self.0.mgmtd
    }
    /// Waits until there is a view at all.
    pub async fn ready(&self) {
        let mut watch = self.watch();
        while self.view().version == RoutingVersion::default() {
            if watch.changed().await.is_err() {
                return;
            }
        }
    }
    /// Takes chains that came another way (a heartbeat's answer, a peer): each replaces an older version of
    /// itself only (R9).
    pub fn learn_chains(&self, chains: &[Chain]) {
        let view = self.view();
        let newer = |chain: &&Chain| {
            view.chains.get(&chain.id).is_none_or(|own| {
                chain.version > own.version || (chain.version == own.version && chain.in_use && !own.in_use)
            })
        };
        let news: Vec<&Chain> = chains.iter().filter(newer).collect();
        if news.is_empty() {
            return;
        }
        let mut next = RoutingInfo::clone(&view);
        for chain in news {
            next.chains.insert(chain.id, chain.clone());
        }
        self.0.view.send(Rc::new(next));
    }
}

async fn poll(rt: Rt, shared: Weak<Shared>) {
    let mut pause = PAUSE_FIRST;
    let mut have = RoutingVersion::default();
    while let Some(mgmtd) = shared.upgrade().map(|shared| shared.mgmtd.clone()) {
        let request = RoutingRequest { have, wait_ms: Millis(WAIT.as_millis() as u64) };
        let sent = rt.now();
        let answer = mgmtd.attempt::<GetRouting>(&request, WAIT + GRACE).await;
        let Some(shared) = shared.upgrade() else { return };
        match answer {
            Ok(answer) if answer.status == Status::Ok => {
                pause = PAUSE_FIRST;
                shared.clock.learn(sent, rt.now(), answer.cluster_time);
                let Some(delta) = answer.delta else { continue };
                let mut next = RoutingInfo::clone(&shared.view.borrow());
                // A delta that doesn't fit is answered by asking for the whole view.
                have = if next.apply(&delta) { next.version } else { RoutingVersion::default() };
                shared.view.send(Rc::new(next));
            }
            _ => {
                drop(shared);
                rt.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
