//! The primary: what only it may do, and how its changes become durable before anybody hears of them (R2).

use crate::config::Config;
use crate::error::Error;
use crate::record::{self, Batch, Image};
use crate::state::State;
use crate::store::Store;
use ember_rt::sync::{Notify, Semaphore, SemaphorePermit};
use ember_rt::{Rt, watch};
use ember_types::{ClusterId, ClusterTime, Instant, NodeId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Chains that change in one transaction.
const CHAINS_PER_BATCH: usize = 1_000;
/// Client sessions that change in one transaction.
const CLIENTS_PER_BATCH: usize = 1_000;

/// One term of this server as the primary.
pub(crate) struct Primary {
    pub(crate) rt: Rt,
    pub(crate) store: Store,
    pub(crate) own: record::Primary,
    pub(crate) state: RefCell<State>,
    /// The lease: counted from before its transaction was begun (R8).
    lease_until: Cell<Instant>,
    ended: Cell<bool>,
    /// Cluster time at a moment of the own clock.
    time_base: (Instant, u64),
    beats: Cell<u64>,
    /// One change at a time is computed and committed.
    writer: Semaphore,
    changed: watch::Sender<u64>,
    /// Something to evaluate.
    pub(crate) work: Notify,
}

/// Leave to change what is stored; one holder at a time.
pub(crate) struct Leave<'a> {
    primary: &'a Primary,
    _permit: SemaphorePermit<'a>,
}

/// How a term begins.
pub(crate) struct Begin {
    pub(crate) own: record::Primary,
    pub(crate) beat: record::Beat,
    pub(crate) lease_until: Instant,
    pub(crate) time_base: (Instant, u64),
}

impl Primary {
    pub(crate) fn new(rt: &Rt, store: Store, config: Config, begin: Begin, image: Image) -> Rc<Self> {
        let node = begin.own.node;
        let (changed, _) = watch::channel(0);
        Rc::new(Self {
            rt: rt.clone(),
            store,
            own: begin.own,
            state: RefCell::new(State::new(config, node, image, rt.now())),
            lease_until: Cell::new(begin.lease_until),
            ended: Cell::new(false),
            time_base: begin.time_base,
            beats: Cell::new(begin.beat.count),
            writer: Semaphore::new(1),
            changed,
            work: Notify::new(),
        })
    }

    /// Whether this server acts as the primary at `now`.
    pub(crate) fn acts(&self, now: Instant) -> bool {
        !self.ended.get() && now < self.lease_until.get()
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// Stops acting, for good in this term.
    pub(crate) fn end(&self, why: &str) {
        if !self.ended.replace(true) {
            tracing::warn!(term = self.own.term, "no longer primary: {why}");
            self.writer.close();
            self.work.notify_one();
            self.changed.modify(|_| {});
        }
    }

    /// Cluster time (R20).
    pub(crate) fn time(&self, now: Instant) -> ClusterTime {
        let passed = u64::try_from(now.since(self.time_base.0).as_millis()).unwrap_or(u64::MAX);
        ClusterTime(self.time_base.1.saturating_add(passed))
    }

    /// Watches for changes of routing, and for the end of the term.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells those who wait that routing changed.
    pub(crate) fn publish(&self) {
        let counter = self.state.borrow().routing.counter;
        self.changed.send(counter);
    }

    /// Renews the lease.
    pub(crate) async fn renew(&self, lease: Duration) {
        let begun = self.rt.now();
        if begun >= self.lease_until.get() {
            return self.end("its lease ran out before it could be renewed");
        }
        let count = self.beats.get() + 1;
        self.beats.set(count);
        let time_bound_ms = self.time(begun + lease).0 + 1;
        let beat = record::Beat { term: self.own.term, count, time_bound_ms };
        let change = (record::single(record::table::BEAT), Some(record::encode(&beat)));
        match self.store.commit(&self.own, vec![change]).await {
            Ok(()) => self.lease_until.set(begun + lease),
            Err(Error::Store(error)) => tracing::warn!("the primary's lease could not be renewed: {error}"),
            Err(error) => self.end(&error.to_string()),
        }
    }

    /// Waits for leave to change what is stored; `NotPrimary` once the term has ended.
    pub(crate) async fn leave(&self) -> Result<Leave<'_>, Error> {
        let permit = self.writer.acquire().await.map_err(|_| Error::NotPrimary)?;
        if !self.acts(self.rt.now()) {
            return Err(Error::NotPrimary);
        }
        Ok(Leave { primary: self, _permit: permit })
    }

    /// Changes chains whenever there is reason to, until the term ends.
    pub(crate) async fn keep_chains(self: Rc<Self>, every: Duration) {
        while !self.ended() {
            let now = self.rt.now();
            if self.acts(now) {
                if self.state.borrow_mut().tick(now) {
                    self.publish();
                }
                if let Err(error) = self.evaluate().await {
                    self.end(&error.to_string());
                }
            }
            let nudged = self.work.notified();
            ember_rt::select::select(nudged, self.rt.sleep(every)).await;
        }
    }

    /// Evaluates every marked chain until nothing changes.
    async fn evaluate(&self) -> Result<(), Error> {
        loop {
            let leave = self.leave().await?;
            let now = self.rt.now();
            let time = self.time(now);
            let batch = {
                let mut state = self.state.borrow_mut();
                let life = state.config.client_session() + state.config.drift();
                let mut batch = state.repairs(now);
                for chain in &batch.chains {
                    state.mark(chain.id);
                }
                if batch.is_empty() {
                    batch.chains = state.evaluate(now, CHAINS_PER_BATCH);
                }
                batch.clients = state.clients.due(now, time, life, CLIENTS_PER_BATCH);
                batch
            };
            if batch.is_empty() {
                return Ok(());
            }
            for chain in &batch.chains {
                let members: Vec<_> = chain.targets.iter().map(|m| (m.target.0, m.state)).collect();
                tracing::info!(chain = %chain.id, version = %chain.version, ?members, "chain changes");
            }
            leave.commit(batch).await?;
        }
    }
}

impl Leave<'_> {
    /// Makes a batch durable, then takes it over and tells everybody. Any failure ends the term: what is
    /// stored is read again by the next primary, which may be this server.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<(), Error> {
        let primary = self.primary;
        let (routing, tell) = {
            let state = primary.state.borrow();
            let tell = batch.changes_routing();
            let counter = state.routing.counter + u64::from(tell);
            (record::Routing { counter, ..state.routing }, tell)
        };
        if let Err(error) = primary.store.commit(&primary.own, batch.changes(routing)).await {
            primary.end(&error.to_string());
            return Err(error);
        }
        let now = primary.rt.now();
        // The counter may have moved on meanwhile, by nodes that came or went.
        let counter = primary.state.borrow().routing.counter + u64::from(tell);
        primary.state.borrow_mut().install(batch, counter.max(routing.counter), now);
        if tell {
            primary.publish();
            primary.work.notify_one();
        }
        Ok(())
    }
}

/// Who this server is.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) record: record::Node,
}
