//! The caller's side of a connection.

use crate::credits::{BYTES_MAX, BYTES_PER_PERMIT, LANES, class_of, lane, permits, requests_max};
use crate::error::NetError;
use crate::frame::{Frame, Head, encode};
use crate::handshake::{Agreed, Identity, greet};
use crate::link::{FrameReader, Link};
use crate::queue::Outgoing;
use ember_rt::net::Stream;
use ember_rt::select::{Either, select};
use ember_rt::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use ember_rt::{Addr, Buf, Rt, SharedBuf};
use ember_types::{Instant, NodeId, Status};
use ember_wire::codec::Body;
use ember_wire::header::FLAG_CANCEL;
use ember_wire::method::{Method, Rpc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Times of a caller.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For connecting.
    pub connect: Duration,
    /// For the handshake.
    pub handshake: Duration,
    /// Quiet time after which the peer is asked for a sign of life.
    pub ping_after: Duration,
    /// Quiet time after which the connection is given up.
    pub silence_max: Duration,
    /// How long a failed address is not tried again: at first, and at most.
    pub backoff: (Duration, Duration),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            handshake: Duration::from_secs(3),
            ping_after: Duration::from_secs(3),
            silence_max: Duration::from_secs(10),
            backoff: (Duration::from_millis(50), Duration::from_millis(1000)),
        }
    }
}

/// What few calls need.
#[derive(Clone, Copy, Default, Debug)]
pub struct CallOptions {
    /// Position of the receiver in the chain, for forwards: 1 is the head's successor (R15).
    pub position: u8,
    /// Payload bytes that the answer may have: counted like the request's, so that answers are bounded too.
    pub expect: usize,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Reply<R: Rpc> {
    /// The body.
    pub body: R::Response,
    /// The payload, page-aligned.
    pub payload: Buf,
}

type Answer = Result<Frame, NetError>;

struct Pending {
    lane: usize,
    /// `None` if nobody waits any more; the credits are held until the peer has answered all the same.
    answer: Option<oneshot::Sender<Answer>>,
    _credits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

struct Lane {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

struct Shared {
    link: Rc<Link>,
    agreed: Agreed,
    pending: RefCell<BTreeMap<u64, Pending>>,
    next_id: Cell<u64>,
    lanes: [Lane; LANES],
    ping: Cell<Option<u64>>,
}

/// Ends the connection when its last user is gone.
struct Owner(Rc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.link.close(NetError::Unavailable(format!("{}: closed by this side", self.0.link.peer)));
    }
}

/// An open connection to a peer. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone)]
pub struct Connection(Rc<Owner>);

/// Forgets the call when whoever waits for it is gone.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

impl Connection {
    /// Connects to `addr` and introduces this process.
    pub async fn open(
        rt: &Rt,
        addr: &Addr,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, NetError> {
        let stream = match rt.timeout(options.connect, rt.net().connect(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return Err(NetError::Unavailable(err.to_string())),
            Err(_) => {
                let text = format!("{addr}: not connected within {} ms", options.connect.as_millis());
                return Err(NetError::Unavailable(text));
            }
        };
        Self::establish(rt, stream, identity, options).await
    }

    /// Introduces this process on a stream that is connected already.
    pub async fn establish(
        rt: &Rt,
        stream: Stream,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, NetError> {
        let Stream { reader, mut writer, peer } = stream;
        let mut reader = FrameReader::new(reader);
        let greeted = rt.timeout(options.handshake, greet(&mut reader, &mut *writer, identity)).await;
        let agreed = match greeted {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(err)) => {
                writer.shutdown();
                return Err(named(&peer, err));
            }
            Err(_) => {
                writer.shutdown();
                let within = options.handshake.as_millis();
                return Err(NetError::Unavailable(format!("{peer}: no handshake within {within} ms")));
            }
        };
        let link = Link::start(rt, peer, writer);
        let lanes = std::array::from_fn(|at| Lane {
            requests: Arc::new(Semaphore::new(requests_max(class_of(at)))),
            bytes: Arc::new(Semaphore::new(BYTES_MAX / BYTES_PER_PERMIT)),
        });
        let shared = Rc::new(Shared {
            link,
            agreed,
            pending: RefCell::default(),
            next_id: Cell::new(1),
            lanes,
            ping: Cell::new(None),
        });
        rt.spawn("connection reader", read(shared.clone(), reader));
        rt.spawn("connection monitor", monitor(shared.clone(), *options));
        Ok(Self(Rc::new(Owner(shared))))
    }

    /// The node at the other end (0 if it is none).
    pub fn node(&self) -> NodeId {
        self.shared().agreed.node
    }
    /// Feature bits that both sides understand.
    pub fn features(&self) -> u64 {
        self.shared().agreed.features
    }
    /// The other end, for people.
    pub fn peer(&self) -> &str {
        &self.shared().link.peer
    }
    /// Why the connection has ended, if it has.
    pub fn closed(&self) -> Option<NetError> {
        self.shared().link.closed()
    }
    /// Waits until the connection has ended.
    pub async fn ended(&self) {
        self.shared().link.ended().await;
    }
    /// Ends the connection; calls in progress fail.
    pub fn close(&self) {
        self.shared().link.close(NetError::Unavailable(format!("{}: closed by this side", self.peer())));
    }
    /// Calls that have not been answered, those that nobody waits for among them.
    pub fn outstanding(&self) -> usize {
        self.shared().pending.borrow().len()
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Calls a method and waits for the answer until `deadline`. Dropping the future forgets the call.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        payload: SharedBuf,
        deadline: Instant,
    ) -> Result<Reply<R>, NetError> {
        self.call_with::<R>(request, payload, deadline, CallOptions::default()).await
    }

    /// As [`Connection::call`], with options.
    pub async fn call_with<R: Rpc>(
        &self,
        request: &R::Request,
        payload: SharedBuf,
        deadline: Instant,
        options: CallOptions,
    ) -> Result<Reply<R>, NetError> {
        let shared = self.shared();
        let rt = &shared.link.rt;
        let lane = lane(R::METHOD.class(), options.position);
        let credits = shared.credits(lane, payload.len().max(options.expect), deadline).await?;
        let id = shared.next_id.get();
        shared.next_id.set(id + 1);
        let left = deadline.since(rt.now()).as_millis().clamp(1, u128::from(u32::MAX)) as u32;
        let head = Head { method: R::METHOD.number(), deadline_ms: left, request_id: id, ..Head::default() };
        let head = encode(head, payload.len(), |out| request.write(out))
            .map_err(|err| NetError::refused(Status::InvalidArgument, err.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending { lane, answer: Some(answer), _credits: Some(credits) };
        shared.pending.borrow_mut().insert(id, pending);
        let waiting = Waiting { shared, id };
        shared.link.send(lane, Outgoing { id: Some(id), head, payload });
        let ended = rt.timeout_at(deadline, answered).await;
        drop(waiting);
        let frame = match ended {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => return Err(shared.link.closed().unwrap_or_else(|| shared.gone())),
            Err(_) => return Err(NetError::Timeout(format!("{}: {:?}", shared.link.peer, R::METHOD))),
        };
        shared.reply::<R>(frame)
    }
}

fn named(peer: &str, err: NetError) -> NetError {
    match err {
        NetError::Timeout(text) => NetError::Timeout(format!("{peer}: {text}")),
        NetError::Unavailable(text) => NetError::Unavailable(format!("{peer}: {text}")),
        NetError::Protocol(text) => NetError::Protocol(format!("{peer}: {text}")),
        NetError::Refused { status, text } => NetError::Refused { status, text: format!("{peer}: {text}") },
    }
}

impl Shared {
    fn gone(&self) -> NetError {
        NetError::Unavailable(format!("{}: connection ended", self.link.peer))
    }

    async fn credits(
        &self,
        lane: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), NetError> {
        if let Some(why) = self.link.closed() {
            return Err(why);
        }
        let Lane { requests, bytes: limit } = &self.lanes[lane];
        let both = async {
            let request = requests.clone().acquire_owned().await;
            let bytes = limit.clone().acquire_many_owned(permits(bytes)).await;
            request.and_then(|request| bytes.map(|bytes| (request, bytes)))
        };
        match self.link.rt.timeout_at(deadline, both).await {
            // It may have ended while the credits were on their way: then nobody would answer.
            Ok(Ok(both)) => self.link.closed().map_or(Ok(both), Err),
            // The connection's end closes the credits, so that nobody waits for them.
            Ok(Err(_)) => Err(self.link.closed().unwrap_or_else(|| self.gone())),
            Err(_) => {
                let text =
                    format!("{}: all credits of class {:?} are in use", self.link.peer, class_of(lane));
                Err(NetError::Timeout(text))
            }
        }
    }

    /// Nobody waits for this call any more.
    fn forget(&self, id: u64) {
        let mut pending = self.pending.borrow_mut();
        let Some(call) = pending.get_mut(&id) else {
            return;
        };
        call.answer = None;
        let lane = call.lane;
        if self.link.take_back(lane, id) {
            pending.remove(&id);
            return;
        }
        drop(pending);
        let head = Head { flags: FLAG_CANCEL, request_id: id, ..Head::default() };
        if let Ok(head) = encode(head, 0, |_| {}) {
            self.link.send(0, Outgoing { id: None, head, payload: SharedBuf::default() });
        }
    }

    fn reply<R: Rpc>(&self, frame: Frame) -> Result<Reply<R>, NetError> {
        let status = Status::from_code(frame.header.status.get());
        if status != Status::Ok {
            let text = String::from_utf8_lossy(&frame.body);
            return Err(NetError::refused(status, format!("{}: {text}", self.link.peer)));
        }
        match ember_wire::decode(&frame.body) {
            Ok(body) => Ok(Reply { body, payload: frame.payload }),
            Err(err) => {
                Err(NetError::Protocol(format!("{}: answer to {:?}: {err}", self.link.peer, R::METHOD)))
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), NetError> {
        self.link.note_heard();
        let id = frame.header.request_id.get();
        if !frame.is_response() {
            return Err(NetError::Protocol("a listener must not send requests".to_owned()));
        }
        let call = self.pending.borrow_mut().remove(&id);
        let Some(call) = call else {
            return Err(NetError::Protocol(format!("answer to request {id}, which is not open")));
        };
        if self.ping.get() == Some(id) {
            self.ping.set(None);
        }
        if let Some(answer) = call.answer {
            // The asker may have gone in this very turn.
            let _ = answer.send(Ok(frame));
        }
        Ok(())
    }

    fn ping(&self) {
        if self.ping.get().is_some() {
            return;
        }
        let id = self.next_id.get();
        let head = Head { method: Method::Ping.number(), request_id: id, deadline_ms: 1, ..Head::default() };
        if let Ok(head) = encode(head, 0, |out| ember_wire::codec::Empty {}.write(out)) {
            self.next_id.set(id + 1);
            self.ping.set(Some(id));
            self.pending.borrow_mut().insert(id, Pending { lane: 0, answer: None, _credits: None });
            self.link.send(0, Outgoing { id: None, head, payload: SharedBuf::default() });
        }
    }
}

async fn read(shared: Rc<Shared>, mut reader: FrameReader) {
    let why = loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if let Err(err) = shared.take(frame) {
                    break named(&shared.link.peer, err);
                }
            }
            Ok(None) => break NetError::Unavailable(format!("{}: closed by the peer", shared.link.peer)),
            Err(err) => break named(&shared.link.peer, err),
        }
    };
    shared.link.close(why);
    for lane in &shared.lanes {
        lane.requests.close();
        lane.bytes.close();
    }
    let why = shared.link.closed().unwrap_or_else(|| shared.gone());
    let pending = std::mem::take(&mut *shared.pending.borrow_mut());
    for call in pending.into_values() {
        if let Some(answer) = call.answer {
            let _ = answer.send(Err(lost(why.clone())));
        }
    }
}

/// A call on a connection that ended is unavailable, whatever ended it.
fn lost(why: NetError) -> NetError {
    match why {
        NetError::Unavailable(text) | NetError::Timeout(text) | NetError::Protocol(text) => {
            NetError::Unavailable(text)
        }
        NetError::Refused { text, .. } => NetError::Unavailable(text),
    }
}

/// Asks for a sign of life when the peer is quiet, and gives up when it stays so.
async fn monitor(shared: Rc<Shared>, options: Options) {
    loop {
        let link = &shared.link;
        let quiet = link.rt.now().since(link.heard());
        if quiet >= options.silence_max {
            let text = format!("{}: no sign of life for {} ms", link.peer, quiet.as_millis());
            return link.close(NetError::Unavailable(text));
        }
        let next = if quiet >= options.ping_after {
            shared.ping();
            link.heard() + options.silence_max
        } else {
            link.heard() + options.ping_after
        };
        if let Either::Left(()) = select(link.ended(), link.rt.sleep_until(next)).await {
            return;
        }
    }
}
