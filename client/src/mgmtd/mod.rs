//! Talking to mgmtd: routing for everybody, registration and leases for nodes, sessions for clients.

mod agent;
mod clock;
mod routing;
mod session;

pub use agent::{Lease, NodeAgent, NodeIdentity, NodeState};
pub use clock::ClusterClock;
pub use routing::RoutingCache;
pub use session::{SessionState, keep_session};

use ember_net::{CallOptions, NetError, Pool};
use ember_rt::{Addr, Rt, SharedBuf};
use ember_types::Status;
use ember_wire::Rpc;
use ember_wire::mgmtd as wire;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// What answers of mgmtd have in common.
pub trait Answer {
    /// How it ended.
    fn status(&self) -> Status;
    /// With `NotPrimary`: where the primary listens, if known.
    fn primary(&self) -> &[String] {
        &[]
    }
}

macro_rules! answers {
    ($($name:ident { $($primary:ident)? })*) => {
        $(impl Answer for wire::$name {
            fn status(&self) -> Status {
                self.status
            }
            $(fn primary(&self) -> &[String] {
                &self.$primary
            })?
        })*
    };
}

answers! {
    RegisterResponse { primary }
    HeartbeatResponse { primary }
    RoutingResponse { primary }
    NoteInUseResponse {}
    ExtendClientResponse { primary }
    CreateChainsResponse {}
    ReplaceTargetResponse {}
    ClusterClockResponse {}
    ListClientsResponse {}
}

impl Answer for ember_wire::codec::Empty {
    fn status(&self) -> Status {
        Status::Ok
    }
}

impl Answer for ember_wire::admin::ClusterStatus {
    fn status(&self) -> Status {
        self.status
    }
}

/// Finds the primary among the mgmtd servers. Cheap to clone.
#[derive(Clone)]
pub struct Mgmtd(Rc<Inner>);

struct Inner {
    rt: Rt,
    pool: Pool,
    known: Vec<Addr>,
    /// The server asked last with success, or the one that the last answer named as primary.
    primary: RefCell<Option<Addr>>,
    turn: Cell<usize>,
}

impl Mgmtd {
    /// `known` are the servers of the configuration; never empty.
    pub fn new(rt: &Rt, pool: Pool, known: Vec<Addr>) -> Self {
        let (primary, turn) = (RefCell::default(), Cell::default());
        Self(Rc::new(Inner { rt: rt.clone(), pool, known, primary, turn }))
    }

    /// One attempt at the server that is taken for the primary; when it fails or isn't, the next attempt goes
    /// to another.
    pub async fn attempt<R: Rpc>(
        &self,
        request: &R::Request,
        limit: Duration,
    ) -> Result<R::Response, NetError>
    where
        R::Response: Answer,
    {
        let inner = &*self.0;
        let deadline = inner.rt.now() + limit;
        let addr = self.target()?;
        let options = CallOptions::default();
        let reply = inner.pool.call::<R>(&addr, request, SharedBuf::default(), deadline, options).await;
        match reply {
            Ok(reply) if reply.body.status() == Status::NotPrimary => {
                self.turn_to(reply.body.primary());
                Ok(reply.body)
            }
            Ok(reply) => {
                *inner.primary.borrow_mut() = Some(addr);
                Ok(reply.body)
            }
            Err(error) => {
                self.turn_to(&[]);
                Err(error)
            }
        }
    }

    /// Attempts until an answer comes that can't get better by asking again, or `limit` has passed.
    pub async fn call<R: Rpc>(&self, request: &R::Request, limit: Duration) -> Result<R::Response, NetError>
    where
        R::Response: Answer,
    {
        let inner = &*self.0;
        let end = inner.rt.now() + limit;
        let mut pause = Duration::from_millis(20);
        loop {
            let left = end.since(inner.rt.now());
            let failure = match self.attempt::<R>(request, left.min(Duration::from_secs(2))).await {
                Ok(answer) if answer.status() != Status::NotPrimary => return Ok(answer),
                Ok(_) => NetError::refused(Status::NotPrimary, "no mgmtd server is primary"),
                Err(failure) => failure,
            };
            if inner.rt.now() + pause >= end {
                return Err(failure);
            }
            inner.rt.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn target(&self) -> Result<Addr, NetError> {
        let inner = &*self.0;
        if let Some(primary) = inner.primary.borrow().clone() {
            return Ok(primary);
        }
        let index = inner.turn.get() % inner.known.len().max(1);
        let known = inner.known.get(index).cloned();
        known.ok_or_else(|| NetError::Unavailable("no mgmtd address is configured".into()))
    }

    fn turn_to(&self, named: &[String]) {
        let inner = &*self.0;
        inner.turn.set(inner.turn.get().wrapping_add(1));
        let before = inner.primary.borrow().clone();
        let named = named.iter().find_map(|addr| addr.parse::<Addr>().ok());
        *inner.primary.borrow_mut() = named.filter(|addr| before.as_ref() != Some(addr));
    }
}
