//! Connections by address: opened on first use by one task whoever else asks, opened again after they ended.

use crate::connection::{CallOptions, Connection, Options, Reply};
use crate::error::NetError;
use crate::handshake::Identity;
use ember_rt::sync::oneshot;
use ember_rt::{Addr, Rt, SharedBuf};
use ember_types::Instant;
use ember_wire::method::Rpc;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

type Asker = oneshot::Sender<Result<Connection, NetError>>;

enum Slot {
    Connecting { askers: Vec<Asker>, backoff: Duration },
    Open(Connection),
    Failed { until: Instant, why: NetError, backoff: Duration },
}

struct State {
    rt: Rt,
    identity: Identity,
    options: Options,
    slots: RefCell<BTreeMap<Addr, Slot>>,
}

/// The connections of a reactor. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Rc<State>);

impl Pool {
    /// An empty pool; all connections introduce themselves as `identity`.
    pub fn new(rt: &Rt, identity: Identity, options: Options) -> Self {
        Self(Rc::new(State { rt: rt.clone(), identity, options, slots: RefCell::default() }))
    }

    /// Who its connections are.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The connection to `addr`, opened if need be. An address that failed a moment ago fails at once.
    pub async fn get(&self, addr: &Addr, deadline: Instant) -> Result<Connection, NetError> {
        let rt = &self.0.rt;
        let asked = {
            let mut slots = self.0.slots.borrow_mut();
            let backoff = match slots.get_mut(addr) {
                Some(Slot::Open(connection)) if connection.closed().is_none() => {
                    return Ok(connection.clone());
                }
                Some(Slot::Failed { until, why, .. }) if rt.now() < *until => return Err(why.clone()),
                Some(Slot::Connecting { askers, .. }) => {
                    let (asker, asked) = oneshot::channel();
                    // Those that went away are let go here, so that the list is bounded by who waits.
                    askers.retain(|asker| !asker.is_closed());
                    askers.push(asker);
                    Err(asked)
                }
                Some(Slot::Failed { backoff, .. }) => Ok((*backoff * 2).min(self.0.options.backoff.1)),
                Some(Slot::Open(_)) | None => Ok(self.0.options.backoff.0),
            };
            match backoff {
                Err(asked) => asked,
                Ok(backoff) => {
                    let (asker, asked) = oneshot::channel();
                    slots.insert(addr.clone(), Slot::Connecting { askers: vec![asker], backoff });
                    rt.spawn("connect", connect(self.0.clone(), addr.clone()));
                    asked
                }
            }
        };
        match rt.timeout_at(deadline, asked).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NetError::Unavailable(format!("{addr}: not connected"))),
            Err(_) => Err(NetError::Timeout(format!("connect to {addr}"))),
        }
    }

    /// The first of several addresses of one node that can be connected to.
    pub async fn get_any(&self, addrs: &[Addr], deadline: Instant) -> Result<Connection, NetError> {
        let mut last = NetError::Unavailable("the node has no address".to_owned());
        for addr in addrs {
            match self.get(addr, deadline).await {
                Ok(connection) => return Ok(connection),
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    /// Connects if need be and calls.
    pub async fn call<R: Rpc>(
        &self,
        addr: &Addr,
        request: &R::Request,
        payload: SharedBuf,
        deadline: Instant,
        options: CallOptions,
    ) -> Result<Reply<R>, NetError> {
        let connection = self.get(addr, deadline).await?;
        connection.call_with::<R>(request, payload, deadline, options).await
    }

    /// Closes the connection to `addr`, e.g. because the node behind it has changed.
    pub fn forget(&self, addr: &Addr) {
        let mut slots = self.0.slots.borrow_mut();
        if let Some(Slot::Open(_) | Slot::Failed { .. }) = slots.get(addr) {
            slots.remove(addr);
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        let slots = self.0.slots.borrow();
        slots.values().filter(|slot| matches!(slot, Slot::Open(own) if own.closed().is_none())).count()
    }
}

async fn connect(state: Rc<State>, addr: Addr) {
    let result = Connection::open(&state.rt, &addr, &state.identity, &state.options).await;
    let mut slots = state.slots.borrow_mut();
    let Some(Slot::Connecting { askers, backoff }) = slots.remove(&addr) else {
        return;
    };
    let slot = match &result {
        Ok(connection) => Slot::Open(connection.clone()),
        Err(why) => {
            // Half to all of the backoff, so that those who lost the same peer don't come back together.
            let half = u64::try_from(backoff.as_nanos() / 2).unwrap_or(u64::MAX);
            let wait = Duration::from_nanos(half + state.rt.random_below(half + 1));
            Slot::Failed { until: state.rt.now() + wait, why: why.clone(), backoff }
        }
    };
    slots.insert(addr, slot);
    drop(slots);
    for asker in askers {
        // An asker that has gone needs no answer.
        let _ = asker.send(result.clone());
    }
}
