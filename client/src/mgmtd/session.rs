//! A client's session: as long as it lives, storage remembers the client's writes (R12).

use super::{ClusterClock, Mgmtd};
use ember_rt::select::{Either, select};
use ember_rt::{Rt, watch};
use ember_types::{ClientId, Status};
use ember_wire::method::{EndClient, ExtendClient};
use ember_wire::mgmtd::{EndClientRequest, ExtendClientRequest, Timing};
use std::rc::Rc;
use std::time::Duration;

/// Limit of one request.
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// How a client's session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionState {
    /// Not known to mgmtd yet.
    Opening,
    /// Known, with the cluster's times.
    Open(Timing),
    /// Ended by mgmtd: the client must start again under another id.
    Ended,
}

/// Opens a session and extends it until `shutdown` turns true, then ends it.
pub fn keep_session(
    rt: &Rt,
    mgmtd: Mgmtd,
    client: ClientId,
    description: String,
    clock: Rc<ClusterClock>,
    mut shutdown: watch::Receiver<bool>,
) -> watch::Receiver<SessionState> {
    let (state, watching) = watch::channel(SessionState::Opening);
    let own = rt.clone();
    rt.spawn("client session", async move {
        let request = ExtendClientRequest { client, description };
        loop {
            let sent = own.now();
            let pause = match mgmtd.attempt::<ExtendClient>(&request, ATTEMPT).await {
                Ok(answer) if answer.status == Status::Ok => {
                    clock.learn(sent, own.now(), answer.cluster_time);
                    let life = Duration::from(answer.timing.client_session_ms);
                    if *state.borrow() != SessionState::Open(answer.timing) {
                        state.send(SessionState::Open(answer.timing));
                    }
                    life / 4
                }
                Ok(answer) if answer.status == Status::SessionEnded => {
                    tracing::error!(%client, "mgmtd has ended this client's session");
                    state.send(SessionState::Ended);
                    return;
                }
                _ => PAUSE,
            };
            let stop = async {
                while !*shutdown.borrow() {
                    if shutdown.changed().await.is_err() {
                        break;
                    }
                }
            };
            if let Either::Left(()) = select(stop, own.sleep(pause)).await {
                break;
            }
        }
        // Without the farewell the session ends by itself a little later.
        let _ = mgmtd.attempt::<EndClient>(&EndClientRequest { client }, FAREWELL).await;
    });
    watching
}
