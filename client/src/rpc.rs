//! One attempt at one node, and what to do between attempts.

use crate::Inner;
use crate::error::{ClientError, Result};
use ember_net::CallOptions;
use ember_rt::select::{Either, select};
use ember_rt::{Addr, SharedBuf};
use ember_types::{Instant, NodeInfo, RoutingInfo, Status};
use ember_wire::Rpc;
use std::time::Duration;

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Grows the pause between attempts; a change of routing ends it early.
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { pause: BACKOFF_FIRST }
    }

    /// Waits before the next attempt. `Err(failure)` if there is no time for one.
    pub(crate) async fn wait(
        &mut self,
        inner: &Inner,
        deadline: Instant,
        failure: ClientError,
    ) -> Result<()> {
        let jitter = Duration::from_nanos(inner.rt.random_below(self.pause.as_nanos() as u64 / 2 + 1));
        let wake = inner.rt.now() + self.pause + jitter;
        if wake >= deadline {
            let text = format!("gave up after the operation's deadline: {}", failure.text);
            return Err(ClientError::new(failure.status, text));
        }
        self.pause = (self.pause * 2).min(BACKOFF_MAX);
        let mut routing = inner.routing.watch();
        select(routing.changed(), inner.rt.sleep_until(wake)).await;
        Ok(())
    }
}

impl Inner {
    /// Sends one request to one node. `expect` is the most payload bytes that the answer has.
    pub(crate) async fn call<R: Rpc>(
        &self,
        node: &NodeInfo,
        request: &R::Request,
        payload: SharedBuf,
        expect: usize,
        until: Instant,
    ) -> Result<(R::Response, SharedBuf)> {
        let failed = |error: ember_net::NetError| {
            ClientError::new(error.status(), format!("{:?} at node {}: {error}", R::METHOD, node.id))
        };
        let addrs: Vec<Addr> = node.addresses.iter().filter_map(|addr| addr.parse().ok()).collect();
        let connection = self.pool.get_any(&addrs, until).await.map_err(failed)?;
        let options = CallOptions { expect, ..CallOptions::default() };
        let reply = connection.call_with::<R>(request, payload, until, options).await.map_err(failed)?;
        Ok((reply.body, reply.payload.into()))
    }

    /// The same, given up as soon as routing says that somebody else is to be asked: a node that stands still keeps
    /// its connections, and would cost the whole time of the attempt.
    pub(crate) async fn call_while<R: Rpc>(
        &self,
        node: &NodeInfo,
        request: &R::Request,
        payload: SharedBuf,
        expect: usize,
        until: Instant,
        right: impl Fn(&RoutingInfo) -> bool,
    ) -> Result<(R::Response, SharedBuf)> {
        let mut routing = self.routing.watch();
        let moved = async {
            while right(&self.routing.view()) {
                // It can't end before this client, which holds the routing.
                if routing.changed().await.is_err() {
                    return;
                }
            }
        };
        match select(self.call::<R>(node, request, payload, expect, until), moved).await {
            Either::Left(answer) => answer,
            Either::Right(()) => {
                let text = format!("{:?} at node {}: it is no longer the one to ask", R::METHOD, node.id);
                Err(ClientError::new(Status::StaleRouting, text))
            }
        }
    }

    /// The failure of an attempt for which there is nobody to ask.
    pub(crate) fn nobody(what: String) -> ClientError {
        ClientError::new(Status::Unavailable, what)
    }
}
