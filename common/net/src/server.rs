//! The listener's side: accepts, admits, hands requests to a handler, sends its answers.

use crate::credits::{Ledger, lane};
use crate::error::NetError;
use crate::frame::{Frame, Head, encode};
use crate::handshake::{Peer, ServerIdentity, admit, turn_away};
use crate::link::{FrameReader, Link};
use crate::queue::Outgoing;
use ember_rt::net::{Listener, Stream};
use ember_rt::select::{Either, select};
use ember_rt::sync::oneshot;
use ember_rt::{Buf, LocalBoxFuture, Rt, SharedBuf, watch};
use ember_types::{Instant, Status};
use ember_wire::codec::Empty;
use ember_wire::header::FLAG_RESPONSE;
use ember_wire::method::{Class, Method, Rpc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Callers that are being turned away at once, beside those that are served.
const TURNED_AWAY_MAX: usize = 64;
/// Longest deadline that a request is taken to have.
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// Limits and times of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Connections at once.
    pub connections_max: usize,
    /// For a handshake.
    pub handshake: Duration,
    /// Quiet time after which a connection is closed; callers send a sign of life every few seconds.
    pub silence_max: Duration,
    /// How long open requests may take at the end.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            handshake: Duration::from_secs(3),
            silence_max: Duration::from_secs(30),
            drain: Duration::from_secs(2),
        }
    }
}

/// What a server has counted since its start.
#[derive(Default, Debug)]
pub struct ServerStats {
    /// Connections that are open.
    pub connections: Cell<u64>,
    /// Connections that were admitted.
    pub accepted: Cell<u64>,
    /// Callers that were refused at the handshake.
    pub refused: Cell<u64>,
    /// Connections closed because of bytes that are no frame, or a broken rule.
    pub bad_frames: Cell<u64>,
    /// Requests taken.
    pub requests: Cell<u64>,
    /// Payload bytes received.
    pub bytes_in: Cell<u64>,
    /// Payload bytes sent.
    pub bytes_out: Cell<u64>,
}

fn count(cell: &Cell<u64>, by: u64) {
    cell.set(cell.get().wrapping_add(by));
}

/// A request as it came.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// The encoded body.
    pub body: Buf,
    /// The payload, page-aligned.
    pub payload: Buf,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// When it had been received (R8).
    pub received: Instant,
}

impl Request {
    /// The body; an error is the answer to give.
    pub fn decode<R: Rpc>(&self) -> Result<R::Request, Response> {
        ember_wire::decode(&self.body)
            .map_err(|err| Response::error(Status::InvalidArgument, format!("{:?}: {err}", self.method)))
    }
}

/// The answer to a request.
#[derive(Debug)]
pub struct Response {
    status: Status,
    body: Vec<u8>,
    payload: SharedBuf,
}

impl Response {
    /// An answer with a body.
    pub fn ok<R: Rpc>(body: &R::Response) -> Self {
        Self::with_payload::<R>(body, SharedBuf::default())
    }
    /// An answer with a body and a payload.
    pub fn with_payload<R: Rpc>(body: &R::Response, payload: SharedBuf) -> Self {
        Self { status: Status::Ok, body: ember_wire::encode(body), payload }
    }
    /// A refusal; the text is for people.
    pub fn error(status: Status, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(4096));
        Self { status, body: text.into_bytes(), payload: SharedBuf::default() }
    }
    /// The answer to a method that this service doesn't have.
    pub fn not_supported(method: Method) -> Self {
        Self::error(Status::NotSupported, format!("{method:?} is not a method of this service"))
    }
    /// How it ended, as far as the transport knows.
    pub fn status(&self) -> Status {
        self.status
    }
}

/// What answers requests.
pub trait Handler {
    /// Answers a request. Called for each one as it arrives; the futures run side by side. A future of class
    /// `Read` is dropped when its caller has gone, any other one runs to its end.
    fn handle(&self, peer: &Peer, request: Request) -> LocalBoxFuture<'static, Response>;
}

/// A service on any number of listeners.
pub struct Server {
    identity: ServerIdentity,
    handler: Rc<dyn Handler>,
    options: ServerOptions,
    stats: ServerStats,
    next_connection: Cell<u64>,
    turned_away: Cell<usize>,
}

/// The connections of one listener.
struct Listening {
    rt: Rt,
    server: Rc<Server>,
    sessions: RefCell<BTreeMap<u64, Rc<Session>>>,
    /// Connections that are open or in their handshake.
    open: Cell<usize>,
    ending: Cell<bool>,
}

struct OpenRequest {
    class: Class,
    payload: usize,
    /// Dropped to drop the handler's future.
    cancel: Option<oneshot::Sender<()>>,
}

struct Session {
    link: Rc<Link>,
    peer: Peer,
    ledger: RefCell<Ledger>,
    requests: RefCell<BTreeMap<u64, OpenRequest>>,
}

impl Server {
    /// A service that `handler` answers for.
    pub fn new(identity: ServerIdentity, handler: Rc<dyn Handler>, options: ServerOptions) -> Rc<Self> {
        Rc::new(Self {
            identity,
            handler,
            options,
            stats: ServerStats::default(),
            next_connection: Cell::new(1),
            turned_away: Cell::new(0),
        })
    }

    /// What it has counted.
    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    /// Serves a listener until `shutdown` turns true or its sender is gone; then open requests other than
    /// reads get [`ServerOptions::drain`] to end.
    pub async fn serve(
        self: Rc<Self>,
        rt: &Rt,
        mut listener: Box<dyn Listener>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let listening = Rc::new(Listening {
            rt: rt.clone(),
            server: self,
            sessions: RefCell::default(),
            open: Cell::new(0),
            ending: Cell::new(false),
        });
        while !*shutdown.borrow() {
            match select(shutdown.changed(), listener.accept()).await {
                Either::Left(Ok(())) => {}
                Either::Left(Err(watch::Closed)) => break,
                Either::Right(Ok(stream)) => listening.take(stream),
                Either::Right(Err(err)) => {
                    tracing::warn!(address = %listener.local_addr(), "cannot accept a connection: {err}");
                    rt.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        listening.end().await;
    }
}

impl Listening {
    fn take(self: &Rc<Self>, stream: Stream) {
        let server = &self.server;
        if self.open.get() < server.options.connections_max {
            self.open.set(self.open.get() + 1);
            let own = self.clone();
            self.rt.spawn("connection", async move {
                own.clone().connection(stream).await;
                own.open.set(own.open.get() - 1);
            });
        } else if server.turned_away.get() < TURNED_AWAY_MAX {
            count(&server.stats.refused, 1);
            server.turned_away.set(server.turned_away.get() + 1);
            let own = self.clone();
            let mut writer = stream.writer;
            self.rt.spawn("connection turned away", async move {
                let server = &own.server;
                let text = format!("{} connections are open already", server.options.connections_max);
                let told = turn_away(&mut *writer, Status::Busy, &text);
                let _ = own.rt.timeout(Duration::from_secs(1), told).await;
                server.turned_away.set(server.turned_away.get() - 1);
            });
        }
    }

    async fn connection(self: Rc<Self>, stream: Stream) {
        let Stream { reader, mut writer, peer: address } = stream;
        let (server, stats) = (&self.server, &self.server.stats);
        let mut reader = FrameReader::new(reader);
        let admitted = admit(&self.rt, &mut reader, &mut *writer, &server.identity);
        let mut peer = match self.rt.timeout(server.options.handshake, admitted).await {
            Ok(Ok(peer)) => peer,
            Ok(Err(err)) => {
                writer.shutdown();
                let counter =
                    if let NetError::Protocol(_) = err { &stats.bad_frames } else { &stats.refused };
                count(counter, 1);
                tracing::info!(address, "caller refused: {err}");
                return;
            }
            Err(_) => {
                writer.shutdown();
                count(&stats.refused, 1);
                tracing::info!(address, "caller did not end its handshake in time");
                return;
            }
        };
        peer.connection = server.next_connection.get();
        server.next_connection.set(peer.connection + 1);
        peer.address = address.clone();
        count(&stats.accepted, 1);
        stats.connections.set(stats.connections.get() + 1);
        let link = Link::start(&self.rt, address, writer);
        let number = peer.connection;
        let session =
            Rc::new(Session { link, peer, ledger: RefCell::default(), requests: RefCell::default() });
        self.sessions.borrow_mut().insert(number, session.clone());
        self.rt.spawn("connection monitor", monitor(session.clone(), server.options.silence_max));
        let why = loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    if let Err(text) = self.frame(&session, frame) {
                        break NetError::Protocol(text);
                    }
                }
                Ok(None) => break NetError::Unavailable("closed by the peer".to_owned()),
                Err(err) => break err,
            }
        };
        if let NetError::Protocol(_) = why {
            count(&stats.bad_frames, 1);
            tracing::warn!(peer = session.link.peer, "connection closed: {why}");
        }
        session.link.close(why);
        // Reads that nobody waits for end here.
        for request in session.requests.borrow_mut().values_mut() {
            request.cancel = None;
        }
        self.sessions.borrow_mut().remove(&number);
        stats.connections.set(stats.connections.get() - 1);
    }

    /// Takes a frame of an admitted caller; an error ends its connection.
    fn frame(self: &Rc<Self>, session: &Rc<Session>, frame: Frame) -> Result<(), String> {
        session.link.note_heard();
        let id = frame.header.request_id.get();
        if frame.is_response() {
            return Err("a caller must not send responses".to_owned());
        }
        if frame.is_cancel() {
            if let Some(request) = session.requests.borrow_mut().get_mut(&id) {
                request.cancel = None;
            }
            return Ok(());
        }
        let number = frame.header.method.get();
        let Some(method) = Method::from_number(number) else {
            // Without a class there are no credits: answered at once.
            let text = format!("method {number} is unknown here: the service is older than the caller");
            session.answer(Class::Control, number, id, Response::error(Status::NotSupported, text));
            return Ok(());
        };
        let (class, payload) = (method.class(), frame.payload.len());
        session.ledger.borrow_mut().open(class, payload)?;
        let (cancel, cancelled) = oneshot::channel();
        let cancel = (class == Class::Read).then_some(cancel);
        let request = OpenRequest { class, payload, cancel };
        if session.requests.borrow_mut().insert(id, request).is_some() {
            return Err(format!("request {id} is open already"));
        }
        let stats = &self.server.stats;
        count(&stats.requests, 1);
        count(&stats.bytes_in, payload as u64);
        match method {
            Method::Ping => {
                session.end(&self.server, method, id, Response::ok::<ember_wire::method::Ping>(&Empty {}))
            }
            _ if self.ending.get() => {
                let refused = Response::error(Status::Unavailable, "the service is shutting down");
                session.end(&self.server, method, id, refused);
            }
            Method::Greet | Method::Admit => return Err("a second handshake".to_owned()),
            _ => self.start(session, method, frame, cancelled),
        }
        Ok(())
    }

    fn start(
        self: &Rc<Self>,
        session: &Rc<Session>,
        method: Method,
        frame: Frame,
        cancelled: oneshot::Receiver<()>,
    ) {
        let id = frame.header.request_id.get();
        let received = self.rt.now();
        let left = Duration::from_millis(u64::from(frame.header.deadline_ms.get())).min(DEADLINE_MAX);
        let Frame { body, payload, .. } = frame;
        let request = Request { method, body, payload, deadline: received + left, received };
        let answer = self.server.handler.handle(&session.peer, request);
        let (session, server) = (session.clone(), self.server.clone());
        self.rt.spawn("request", async move {
            let response = match method.class() {
                Class::Read => match select(answer, cancelled).await {
                    Either::Left(response) => response,
                    Either::Right(_) => Response::error(Status::Unavailable, "the caller has gone"),
                },
                _ => answer.await,
            };
            session.end(&server, method, id, response);
        });
    }

    /// Ends all connections.
    async fn end(&self) {
        self.ending.set(true);
        let until = self.rt.now() + self.server.options.drain;
        while self.rt.now() < until && self.busy() {
            self.rt.sleep(Duration::from_millis(5)).await;
        }
        let sessions: Vec<Rc<Session>> = self.sessions.borrow().values().cloned().collect();
        for session in &sessions {
            session.link.finish();
        }
        for session in &sessions {
            let limit = self.rt.sleep_until(until.max(self.rt.now() + Duration::from_millis(100)));
            let _ = select(session.link.ended(), limit).await;
            session.link.close(NetError::Unavailable("the service has shut down".to_owned()));
        }
    }

    /// Whether a request other than a read is open.
    fn busy(&self) -> bool {
        let sessions = self.sessions.borrow();
        sessions.values().any(|session| {
            let ledger = session.ledger.borrow();
            Class::ALL.iter().any(|&class| class != Class::Read && ledger.requests(class) > 0)
        })
    }
}

impl Session {
    /// Sends the answer to an open request.
    fn end(&self, server: &Server, method: Method, id: u64, response: Response) {
        let Some(request) = self.requests.borrow_mut().remove(&id) else {
            return;
        };
        self.ledger.borrow_mut().close(request.class, request.payload);
        count(&server.stats.bytes_out, response.payload.len() as u64);
        self.answer(request.class, method.number(), id, response);
    }

    fn answer(&self, class: Class, method: u16, id: u64, response: Response) {
        let Response { status, body, payload } = response;
        let head =
            Head { flags: FLAG_RESPONSE, method, status: status.code(), request_id: id, ..Head::default() };
        let encoded = encode(head, payload.len(), |out| out.extend_from_slice(&body));
        let (head, payload) = match encoded {
            Ok(bytes) => (bytes, payload),
            Err(err) => {
                tracing::error!(peer = self.link.peer, method, "answer dropped: {err}");
                let head = Head { status: Status::Internal.code(), ..head };
                let Ok(bytes) = encode(head, 0, |out| out.extend_from_slice(b"the answer is too large"))
                else {
                    return;
                };
                (bytes, SharedBuf::default())
            }
        };
        self.link.send(lane(class, u8::MAX), Outgoing { id: None, head, payload });
    }
}

/// Closes a connection whose caller gives no sign of life.
async fn monitor(session: Rc<Session>, silence_max: Duration) {
    loop {
        let link = &session.link;
        let quiet = link.rt.now().since(link.heard());
        if quiet >= silence_max {
            let text = format!("no sign of life for {} ms", quiet.as_millis());
            return link.close(NetError::Unavailable(text));
        }
        if let Either::Left(()) = select(link.ended(), link.rt.sleep_until(link.heard() + silence_max)).await
        {
            return;
        }
    }
}
