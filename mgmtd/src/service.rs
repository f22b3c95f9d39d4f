//! Answers requests.

use crate::election::Server;
use crate::error::Error;
use crate::primary::Primary;
use crate::record::{Batch, Client};
use crate::state::Extension;
use ember_net::{Handler, Peer, Request, Response};
use ember_rt::LocalBoxFuture;
use ember_rt::select::select;
use ember_rt::sync::oneshot;
use ember_types::{ClientId, ClusterTime, NodeId, RoutingVersion, Status};
use ember_wire::codec::Empty;
use ember_wire::handshake::Caller;
use ember_wire::method::{self, Method};
use ember_wire::mgmtd::{
    ClusterClockResponse, EndClientRequest, ExtendClientRequest, ExtendClientResponse, HeartbeatRequest,
    HeartbeatResponse, ListClientsResponse, NoteInUseRequest, NoteInUseResponse, RegisterRequest,
    RegisterResponse, RoutingRequest, RoutingResponse,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// The user that may administer the cluster.
const ADMIN: &str = "root";
/// Longest wait of a long poll.
const POLL_MAX: Duration = Duration::from_secs(60);
/// Notes of use that wait for one transaction.
const NOTES_MAX: usize = 10_000;
/// Longest description of a client, in bytes.
const DESCRIPTION_MAX: usize = 256;

type Note = (NoteInUseRequest, oneshot::Sender<NoteInUseResponse>);

/// The handler of mgmtd's methods.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) server: Rc<Server>,
    notes: Rc<RefCell<Vec<Note>>>,
}

impl Handler for Service {
    fn handle(&self, peer: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        let (service, peer) = (self.clone(), peer.clone());
        Box::pin(async move { service.answer(&peer, &request).await.unwrap_or_else(|refused| refused) })
    }
}

fn refuse(text: &str) -> Response {
    Response::error(Status::PermissionDenied, text)
}

fn is_admin(peer: &Peer) -> bool {
    matches!(peer.caller, Caller::Node(_)) || peer.user == ADMIN
}

impl Service {
    pub(crate) fn new(server: Rc<Server>) -> Self {
        Self { server, notes: Rc::default() }
    }

    async fn answer(&self, peer: &Peer, request: &Request) -> Result<Response, Response> {
        match request.method {
            Method::RegisterNode => {
                let body = request.decode::<method::RegisterNode>()?;
                allow_node(peer, body.node)?;
                Ok(Response::ok::<method::RegisterNode>(&self.register(body).await))
            }
            Method::Heartbeat => {
                let body = request.decode::<method::Heartbeat>()?;
                allow_node(peer, body.node)?;
                Ok(Response::ok::<method::Heartbeat>(&self.heartbeat(body)))
            }
            Method::GetRouting => {
                let body = request.decode::<method::GetRouting>()?;
                Ok(Response::ok::<method::GetRouting>(&self.routing(body).await))
            }
            Method::NoteInUse => {
                let body = request.decode::<method::NoteInUse>()?;
                allow_any_node(peer)?;
                Ok(Response::ok::<method::NoteInUse>(&self.note_in_use(body).await))
            }
            Method::ReportUnresponsive => {
                let body = request.decode::<method::ReportUnresponsive>()?;
                allow_any_node(peer)?;
                let primary = self.primary()?;
                let now = primary.rt.now();
                if primary.state.borrow_mut().accuse(&body, now) {
                    primary.work.notify_one();
                }
                Ok(Response::ok::<method::ReportUnresponsive>(&Empty {}))
            }
            Method::ExtendClient => {
                let body = request.decode::<method::ExtendClient>()?;
                allow_client(peer, body.client)?;
                Ok(Response::ok::<method::ExtendClient>(&self.extend(body).await))
            }
            Method::EndClient => {
                let body = request.decode::<method::EndClient>()?;
                allow_client(peer, body.client)?;
                self.end_client(&body).await?;
                Ok(Response::ok::<method::EndClient>(&Empty {}))
            }
            _ => self.answer_admin(peer, request).await,
        }
    }

    async fn answer_admin(&self, peer: &Peer, request: &Request) -> Result<Response, Response> {
        match request.method {
            Method::CreateChains if is_admin(peer) => {
                let body = request.decode::<method::CreateChains>()?;
                Ok(Response::ok::<method::CreateChains>(&self.create_chains(&body).await))
            }
            Method::ReplaceTarget if is_admin(peer) => {
                let body = request.decode::<method::ReplaceTarget>()?;
                Ok(Response::ok::<method::ReplaceTarget>(&self.replace_target(&body).await))
            }
            Method::CreateChains | Method::ReplaceTarget => {
                Err(refuse("only user root may change the cluster"))
            }
            Method::ClusterStatus => Ok(Response::ok::<method::ClusterStatus>(&self.cluster_status(peer))),
            Method::ClusterClock => {
                let acting = self.server.acting();
                let cluster_time = acting.as_ref().map_or(ClusterTime(0), |p| p.time(p.rt.now()));
                let status = if acting.is_some() { Status::Ok } else { Status::NotPrimary };
                let timing = self.server.config.timing();
                let body = ClusterClockResponse { status, timing, cluster_time };
                Ok(Response::ok::<method::ClusterClock>(&body))
            }
            Method::ListClients => {
                allow_any_node(peer)?;
                Ok(Response::ok::<method::ListClients>(&self.list_clients()))
            }
            other => Err(Response::not_supported(other)),
        }
    }

    pub(crate) fn primary(&self) -> Result<Rc<Primary>, Response> {
        let other = || format!("this mgmtd is not the primary; {}", known(&self.server.elsewhere()));
        self.server.acting().ok_or_else(|| Response::error(Status::NotPrimary, other()))
    }

    async fn register(&self, request: RegisterRequest) -> RegisterResponse {
        let timing = self.server.config.timing();
        let answer = |status, text: String| RegisterResponse {
            status,
            primary: if status == Status::NotPrimary { self.server.elsewhere() } else { Vec::new() },
            timing,
            text,
        };
        let Some(primary) = self.server.acting() else {
            return answer(Status::NotPrimary, String::new());
        };
        let Ok(leave) = primary.leave().await else {
            return answer(Status::NotPrimary, String::new());
        };
        let now = primary.rt.now();
        let batch = primary.state.borrow_mut().register(&request, now);
        match batch {
            Ok(None) => answer(Status::Ok, String::new()),
            Ok(Some(batch)) => match leave.commit(batch).await {
                Ok(()) => {
                    tracing::info!(node = %request.node, kind = ?request.kind, "node registered");
                    answer(Status::Ok, String::new())
                }
                Err(error) => answer(status_of(&error), error.to_string()),
            },
            Err((status, text)) => answer(status, text),
        }
    }

    /// Answered from memory, without a wait: the lease is counted from the moment of the answer (R8).
    fn heartbeat(&self, request: HeartbeatRequest) -> HeartbeatResponse {
        let Some(primary) = self.server.acting() else {
            return HeartbeatResponse {
                status: Status::NotPrimary,
                granted: false,
                orders: Vec::new(),
                chains: Vec::new(),
                routing: RoutingVersion::default(),
                cluster_time: ClusterTime(0),
                primary: self.server.elsewhere(),
            };
        };
        let now = primary.rt.now();
        let time = primary.time(now);
        let answer = primary.state.borrow_mut().heartbeat(request, primary.own.term, now, time);
        if primary.state.borrow().has_work() {
            primary.work.notify_one();
        }
        answer
    }

    async fn routing(&self, request: RoutingRequest) -> RoutingResponse {
        let answer =
            |status, delta, cluster_time, primary| RoutingResponse { status, delta, primary, cluster_time };
        let refused = || answer(Status::NotPrimary, None, ClusterTime(0), self.server.elsewhere());
        let Some(primary) = self.server.acting() else { return refused() };
        let until = primary.rt.now() + Duration::from(request.wait_ms).min(POLL_MAX);
        let mut changes = primary.watch();
        loop {
            let now = primary.rt.now();
            if !primary.acts(now) {
                return refused();
            }
            let delta = primary.state.borrow().delta(primary.own.term, request.have);
            if delta.is_some() || now >= until {
                return answer(Status::Ok, delta, primary.time(now), Vec::new());
            }
            // A lease that runs out unnoticed must not hold the poll.
            let look = until.min(now + self.server.config.primary_lease());
            select(changes.changed(), primary.rt.sleep_until(look)).await;
        }
    }

    /// Notes that arrive while another transaction runs share the next one.
    async fn note_in_use(&self, request: NoteInUseRequest) -> NoteInUseResponse {
        let failed = |status| NoteInUseResponse { status, chain: None };
        let Some(primary) = self.server.acting() else { return failed(Status::NotPrimary) };
        if self.notes.borrow().len() >= NOTES_MAX {
            return failed(Status::Busy);
        }
        let (answer, mut answered) = oneshot::channel();
        self.notes.borrow_mut().push((request, answer));
        let Ok(leave) = primary.leave().await else { return failed(Status::NotPrimary) };
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        let notes = std::mem::take(&mut *self.notes.borrow_mut());
        let mut batch = Batch::default();
        let mut answers = Vec::new();
        for (note, answer) in notes {
            let status = self.note(&primary, &note, &mut batch);
            answers.push((note.chain, status, answer));
        }
        let done = if batch.is_empty() { Ok(()) } else { leave.commit(batch).await };
        drop(leave);
        for (id, status, answer) in answers {
            let status = done.as_ref().map_or_else(status_of, |()| status);
            let chain = primary.state.borrow().chains.get(&id).cloned();
            // Who asked may have gone.
            let _ = answer.send(NoteInUseResponse { status, chain });
        }
        answered.await.unwrap_or_else(|_| failed(Status::NotPrimary))
    }

    fn note(&self, primary: &Primary, note: &NoteInUseRequest, batch: &mut Batch) -> Status {
        if batch.chains.iter().any(|c| c.id == note.chain && c.version == note.version) {
            return Status::Ok;
        }
        let state = primary.state.borrow();
        let Some(chain) = state.chains.get(&note.chain) else { return Status::NotFound };
        match ember_chain::note_in_use(chain, note.version, note.target) {
            Ok(Some(noted)) => {
                batch.chains.push(noted);
                Status::Ok
            }
            Ok(None) => Status::Ok,
            Err(_) => Status::StaleRouting,
        }
    }

    async fn extend(&self, request: ExtendClientRequest) -> ExtendClientResponse {
        let timing = self.server.config.timing();
        let answer = |status, cluster_time| ExtendClientResponse {
            status,
            timing,
            cluster_time,
            primary: if status == Status::NotPrimary { self.server.elsewhere() } else { Vec::new() },
        };
        let Some(primary) = self.server.acting() else {
            return answer(Status::NotPrimary, ClusterTime(0));
        };
        let extended = |primary: &Primary| {
            let now = primary.rt.now();
            (primary.state.borrow_mut().clients.extend(request.client, now), primary.time(now))
        };
        match extended(&primary) {
            (Extension::Extended, time) => return answer(Status::Ok, time),
            (Extension::Ended, time) => return answer(Status::SessionEnded, time),
            (Extension::New, _) => {}
        }
        let Ok(leave) = primary.leave().await else { return answer(Status::NotPrimary, ClusterTime(0)) };
        match extended(&primary) {
            (Extension::Extended, time) => return answer(Status::Ok, time),
            (Extension::Ended, time) => return answer(Status::SessionEnded, time),
            (Extension::New, time)
                if primary.state.borrow().clients.count() >= self.server.config.clients_max =>
            {
                return answer(Status::Busy, time);
            }
            (Extension::New, _) => {}
        }
        let mut description = request.description;
        description.truncate(description.floor_char_boundary(DESCRIPTION_MAX));
        let client = Client { description, ended_ms: None };
        let batch = Batch { clients: vec![(request.client, Some(client))], ..Batch::default() };
        let status = leave.commit(batch).await.map_or_else(|e| status_of(&e), |()| Status::Ok);
        answer(status, primary.time(primary.rt.now()))
    }

    async fn end_client(&self, request: &EndClientRequest) -> Result<(), Response> {
        let primary = self.primary()?;
        let failed = |error: Error| Response::error(status_of(&error), error.to_string());
        let leave = primary.leave().await.map_err(failed)?;
        let time = primary.time(primary.rt.now());
        let Some(ended) = primary.state.borrow().clients.end(request.client, time) else { return Ok(()) };
        leave.commit(Batch { clients: vec![ended], ..Batch::default() }).await.map_err(failed)
    }

    fn list_clients(&self) -> ListClientsResponse {
        let Some(primary) = self.server.acting() else {
            return ListClientsResponse { status: Status::NotPrimary, clients: Vec::new(), complete: false };
        };
        let now = primary.rt.now();
        // Sessions are stored, so that a new primary knows all of them.
        let clients: Vec<ClientId> = primary.state.borrow().clients.live(now).map(|(id, ..)| id).collect();
        ListClientsResponse { status: Status::Ok, clients, complete: true }
    }
}

/// The status that answers a failed change.
pub(crate) fn status_of(error: &Error) -> Status {
    match error {
        Error::NotPrimary | Error::Ending => Status::NotPrimary,
        Error::Store(error) if error.is_retryable() => Status::Busy,
        Error::Store(_) | Error::Damaged { .. } => Status::Internal,
        Error::Config(_) => Status::InvalidArgument,
    }
}

fn known(addresses: &[String]) -> String {
    match addresses {
        [] => "no primary is known yet".to_owned(),
        some => format!("the primary listens on {}", some.join(", ")),
    }
}

fn allow_node(peer: &Peer, node: NodeId) -> Result<(), Response> {
    match peer.caller {
        Caller::Node(id) if id == node => Ok(()),
        _ => Err(refuse("a node may speak for itself only")),
    }
}

fn allow_any_node(peer: &Peer) -> Result<(), Response> {
    match peer.caller {
        Caller::Node(_) => Ok(()),
        Caller::Client(_) => Err(refuse("only nodes of the cluster may ask this")),
    }
}

fn allow_client(peer: &Peer, client: ClientId) -> Result<(), Response> {
    match peer.caller {
        Caller::Client(id) if id == client => Ok(()),
        Caller::Node(_) => Ok(()),
        Caller::Client(_) => Err(refuse("a client may speak for itself only")),
    }
}
