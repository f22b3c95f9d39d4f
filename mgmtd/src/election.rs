//! Becoming and staying primary (R8).

use crate::config::Config;
use crate::error::Error;
use crate::primary::{Begin, Own, Primary};
use crate::record::{self, Batch};
use crate::store::{Claim, Store};
use ember_rt::select::select;
use ember_rt::{Rt, watch};
use ember_types::Instant;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How long the farewell of a primary may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// This server: a candidate, or the primary.
pub(crate) struct Server {
    pub(crate) rt: Rt,
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) own: Own,
    primary: RefCell<Option<Rc<Primary>>>,
    /// Where the primary listens, as far as this server knows.
    elsewhere: RefCell<Vec<String>>,
}

impl Server {
    pub(crate) fn new(rt: &Rt, config: Config, store: Store, own: Own) -> Rc<Self> {
        let (primary, elsewhere) = (RefCell::default(), RefCell::default());
        Rc::new(Self { rt: rt.clone(), config, store, own, primary, elsewhere })
    }

    /// The primary, if this server is it now.
    pub(crate) fn acting(&self) -> Option<Rc<Primary>> {
        let primary = self.primary.borrow().clone()?;
        primary.acts(self.rt.now()).then_some(primary)
    }

    /// Where the primary listens, if it is another server and known.
    pub(crate) fn elsewhere(&self) -> Vec<String> {
        self.elsewhere.borrow().clone()
    }

    /// Takes part in elections until `shutdown`; then gives the lease back.
    pub(crate) async fn elect(self: Rc<Self>, mut shutdown: watch::Receiver<bool>) {
        let poll = Duration::from_millis(self.config.primary_poll_ms);
        let mut seen: Option<(Claim, Instant)> = None;
        while !*shutdown.borrow() {
            let primary = self.primary.borrow().clone();
            match primary {
                Some(primary) if primary.ended() => *self.primary.borrow_mut() = None,
                Some(primary) => primary.renew(self.config.primary_lease()).await,
                None => {
                    if let Err(error) = self.stand(&mut seen).await {
                        tracing::warn!("not primary: {error}");
                    }
                }
            }
            let again = self.primary.borrow().as_ref().is_some_and(|p| p.ended());
            let pause = if again { Duration::from_millis(1) } else { poll };
            if let ember_rt::select::Either::Left(Err(_)) =
                select(shutdown.changed(), self.rt.sleep(pause)).await
            {
                break;
            }
        }
        self.release().await;
    }

    /// One look at the primary's record, which is taken over if it may be.
    async fn stand(self: &Rc<Self>, seen: &mut Option<(Claim, Instant)>) -> Result<(), Error> {
        let before = self.rt.now();
        let claim = self.store.claim().await?;
        let holder = claim.0.as_ref();
        let own = &self.own.record;
        let free = holder.is_none_or(|h| h.released || (h.node == own.id && h.boot == own.boot));
        *self.elsewhere.borrow_mut() =
            holder.filter(|h| !free && h.node != own.id).map_or_else(Vec::new, |h| h.addresses.clone());
        let lapse = Duration::from_millis(holder.map_or(0, |h| h.lease_ms)) + self.config.drift();
        let unchanged = seen.as_ref().filter(|(old, _)| *old == claim);
        let lapsed = unchanged.is_some_and(|(_, since)| before.since(*since) >= lapse);
        if !free && !lapsed {
            if unchanged.is_none() {
                *seen = Some((claim, self.rt.now()));
            }
            return Ok(());
        }
        *seen = None;
        self.take(claim).await
    }

    async fn take(self: &Rc<Self>, claim: Claim) -> Result<(), Error> {
        let begun = self.rt.now();
        let lease = self.config.primary_lease();
        let term = claim.0.as_ref().map_or(0, |p| p.term) + 1;
        let own = record::Primary {
            term,
            node: self.own.node,
            boot: self.own.record.boot,
            addresses: self.own.record.addresses.clone(),
            lease_ms: self.config.primary_lease_ms,
            released: false,
        };
        let time = self.rt.unix_now_ms().max(claim.1.map_or(0, |b| b.time_bound_ms));
        let time_bound_ms = time.saturating_add(self.config.primary_lease_ms + 1);
        let beat = record::Beat { term, count: 1, time_bound_ms };
        if let Err(error) = self.store.take(claim, own.clone(), beat).await {
            tracing::debug!("taking the primary's place: {error}");
        }
        // Whatever came back, the store says whether it worked.
        let image = match self.store.load(&own).await {
            Err(Error::NotPrimary) => return Ok(()),
            image => image?,
        };
        let begin = Begin { own, beat, lease_until: begun + lease, time_base: (begun, time) };
        let config = self.config.clone();
        let primary = Primary::new(&self.rt, self.store.clone(), config, begin, image);
        self.enlist(&primary).await?;
        tracing::info!(term, node = %self.own.node, "primary");
        let every = Duration::from_millis(self.config.evaluate_ms);
        self.rt.spawn("chains", primary.clone().keep_chains(every));
        self.elsewhere.borrow_mut().clear();
        *self.primary.borrow_mut() = Some(primary);
        Ok(())
    }

    /// The primary is a node like others.
    async fn enlist(&self, primary: &Primary) -> Result<(), Error> {
        let known = primary.state.borrow().nodes.get(&self.own.node).map(|n| n.record.clone());
        if known.as_ref().is_some_and(|k| k.kind != self.own.record.kind) {
            let text = format!("node id {} belongs to another kind of node", self.own.node);
            return Err(Error::Config(text));
        }
        if known.as_ref() == Some(&self.own.record) {
            return Ok(());
        }
        let batch = Batch { nodes: vec![self.own.record.clone()], ..Batch::default() };
        primary.leave().await?.commit(batch).await
    }

    /// Stops acting and lets the next primary in without waiting.
    async fn release(&self) {
        let Some(primary) = self.primary.borrow_mut().take() else { return };
        if primary.ended() {
            return;
        }
        let own = primary.own.clone();
        // Whoever is writing comes to its end first; nobody writes afterwards.
        let farewell = async {
            let leave = primary.leave().await;
            primary.end("the server shuts down");
            if leave.is_ok() {
                let released = record::Primary { released: true, ..own.clone() };
                let key = record::single(record::table::PRIMARY);
                let change = (key, Some(record::encode(&released)));
                if let Err(error) = self.store.commit(&own, vec![change]).await {
                    tracing::warn!("the primary's lease could not be given back: {error}");
                }
            }
        };
        if self.rt.timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!("the primary's lease could not be given back in time; it runs out by itself");
        }
        primary.end("the server shuts down");
    }
}
