//! The thread that drives the connections of a rank.

use crate::mailbox::{End, Mailbox, Part};
use crate::{LinkError, Tag};
use ember_net::handshake::Peer;
use ember_net::{
    Connection, Handler, Identity, Keys, NetError, Options, Request, Response, Server, ServerIdentity,
    ServerOptions,
};
use ember_rt::select::{Either, join_all, select};
use ember_rt::sync::{mpsc, oneshot};
use ember_rt::{Addr, Buf, LocalBoxFuture, Rt, SharedBuf, watch};
use ember_rt_uring::{ReactorThread, spawn_reactor};
use ember_types::checksum::crc32c;
use ember_types::{ClusterId, NodeId, Status};
use ember_wire::codec::Empty;
use ember_wire::handshake::Caller;
use ember_wire::method::{Method, SendPart};
use ember_wire::ranks::PartRequest;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of a part at most.
const PART: usize = 16 << 20;
/// Messages to a rank that are not sent yet.
const QUEUE_MAX: usize = 64;
/// Pause between two tries to connect.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a rank that leaves tells the others so.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longer limits are none.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The channel of the last message of a rank; its number is 0, or 1 and the culprit's number.
const END: u32 = 1 << 31;

/// Which ranks come together.
#[derive(Clone, Debug)]
pub struct Join<'a> {
    /// The own number.
    pub rank: usize,
    /// Where each rank listens.
    pub addresses: &'a [Addr],
    /// A number that all ranks of the job have, and no other job.
    pub job: u128,
    /// What only ranks of the job know.
    pub key: [u8; 32],
    /// Bytes of a message at most.
    pub message_max: usize,
    /// How long a rank is waited for at most, now and later.
    pub limit: Duration,
}

/// Where a rank can be reached.
pub struct Listener {
    address: Addr,
    start: oneshot::Sender<Start>,
    thread: ReactorThread<()>,
}

/// A rank's way to the others.
pub struct Link {
    rank: usize,
    limit: Duration,
    mailbox: Arc<Mailbox>,
    /// To each rank; none to itself.
    out: Vec<Option<mpsc::Sender<Outgoing>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<ReactorThread<()>>,
    failed: Arc<AtomicBool>,
}

struct Outgoing {
    tag: Tag,
    bytes: Vec<u8>,
}

/// What the thread needs to begin.
struct Start {
    rank: usize,
    addresses: Vec<Addr>,
    job: ClusterId,
    key: [u8; 32],
    limit: Duration,
    mailbox: Arc<Mailbox>,
    queues: Vec<Option<mpsc::Receiver<Outgoing>>>,
    failed: Arc<AtomicBool>,
    stop: oneshot::Receiver<()>,
}

impl Listener {
    /// Listens at an address; with port 0 the system chooses one.
    ///
    /// # Errors
    /// If the address is taken, or the kernel refuses io_uring.
    pub fn bind(address: &Addr) -> Result<Self, LinkError> {
        let (start, started) = oneshot::channel();
        let (bound, wait) = std::sync::mpsc::channel();
        let asked = address.clone();
        let failed = |error: std::io::Error| LinkError::Listener(error.to_string());
        let thread = spawn_reactor("ranks", ember_rt_uring::Options::default(), move |rt| async move {
            let listener = match rt.net().listen(&asked) {
                Ok(listener) => listener,
                Err(error) => return drop(bound.send(Err(error.to_string()))),
            };
            let told = bound.send(Ok(listener.local_addr()));
            if let (Ok(()), Ok(start)) = (told, started.await) {
                run(rt, listener, start).await;
            }
        })
        .map_err(failed)?;
        match wait.recv() {
            Ok(Ok(address)) => Ok(Self { address, start, thread }),
            Ok(Err(why)) => Err(LinkError::Listener(why)),
            Err(_) => Err(failed(thread.join().err().unwrap_or_else(|| std::io::ErrorKind::Other.into()))),
        }
    }
    /// Where it listens.
    pub fn address(&self) -> &Addr {
        &self.address
    }
}

impl Link {
    /// Joins the other ranks; returns when this one has a connection to each. `listener` is at the own address.
    ///
    /// # Errors
    /// If there is no such rank, or another one is not there in time, or of another job.
    pub fn join(listener: Listener, join: &Join<'_>) -> Result<Self, LinkError> {
        let (rank, ranks) = (join.rank, join.addresses.len());
        if rank >= ranks {
            return Err(LinkError::Listener(format!("rank {rank} is none of {ranks} that have an address")));
        }
        let mailbox = Arc::new(Mailbox::new(rank, ranks, join.message_max));
        let channel = |peer: usize| (peer != rank).then(|| mpsc::channel(QUEUE_MAX)).unzip();
        let (out, queues): (Vec<_>, Vec<_>) = (0..ranks).map(channel).unzip();
        let (stop, stopped) = oneshot::channel();
        let limit = join.limit.min(LIMIT_MAX);
        let failed = Arc::new(AtomicBool::new(false));
        let start = Start {
            rank,
            addresses: join.addresses.to_vec(),
            job: ClusterId::from_u128(join.job),
            key: join.key,
            limit,
            mailbox: mailbox.clone(),
            queues,
            failed: failed.clone(),
            stop: stopped,
        };
        if listener.start.send(start).is_err() {
            return Err(LinkError::Listener("the thread of the connections has ended".into()));
        }
        let (stop, thread) = (Some(stop), Some(listener.thread));
        let link = Self { rank, limit, mailbox, out, stop, thread, failed };
        let missing = |rank: usize, why: String| LinkError::Missing {
            rank,
            address: join.addresses[rank].to_string(),
            why,
        };
        let joined = link.mailbox.wait_connected(limit).map_err(|error| match error {
            LinkError::Gone { rank, why, .. } => missing(rank, why),
            LinkError::Late { rank, milliseconds, .. } => {
                missing(rank, format!("not there within {milliseconds} ms"))
            }
            other => other,
        });
        if joined.is_err() {
            // Nobody is told, and nobody need be waited for: those who have met this rank see its connection end.
            link.failed.store(true, Ordering::Relaxed);
        }
        joined.map(|()| link)
    }

    /// The own number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Sends a message; returns at once.
    ///
    /// # Errors
    /// If there is no such rank, it has ended, or many messages to it wait already.
    pub fn send(&self, rank: usize, tag: Tag, bytes: Vec<u8>) -> Result<(), LinkError> {
        let what = "taken what was sent to it";
        let Some(Some(out)) = self.out.get(rank) else {
            return Err(LinkError::Listener(format!("there is no rank {rank}, or it is this one")));
        };
        match out.try_send(Outgoing { tag, bytes }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(LinkError::Late { rank, what, milliseconds: 0 }),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.check()?;
                Err(LinkError::Gone { rank, what, why: "its connection has ended".into() })
            }
        }
    }

    /// Waits for a message of a rank; `what` is what it then has done. `check` is called now and then: an error of it
    /// ends the wait.
    ///
    /// # Errors
    /// If the message is not there when the limit is over, or a rank has died or given up before.
    pub fn receive<E: From<LinkError>>(
        &self,
        rank: usize,
        tag: Tag,
        what: &'static str,
        check: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        self.mailbox.receive(rank, tag, what, self.limit, check)
    }

    /// Looks whether a rank has died or given up; one that has left in order is no trouble.
    ///
    /// # Errors
    /// If so.
    pub fn check(&self) -> Result<(), LinkError> {
        self.mailbox.check()
    }

    /// Says that this rank gives up because of rank `culprit`, in whatever way its users number ranks: the calls of the
    /// others end with an error. The first time counts.
    pub fn fail(&self, culprit: usize) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            self.say_end(u32::try_from(culprit).unwrap_or(u32::MAX).saturating_add(1));
        }
    }

    fn say_end(&self, number: u32) {
        for out in self.out.iter().flatten() {
            // One that has ended need not be told.
            let _ = out.try_send(Outgoing { tag: Tag { channel: END, number }, bytes: Vec::new() });
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.failed.load(Ordering::Relaxed) && !std::thread::panicking() {
            self.say_end(0);
        }
        // The queues end here; what is in them is still sent.
        self.out.clear();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Ranks {
    key: [u8; 32],
    ranks: usize,
}

/// Ranks call as nodes, the first as 1.
fn node(rank: usize) -> NodeId {
    NodeId(rank as u32 + 1)
}

impl Keys for Ranks {
    fn key(&self, caller: &Caller, _user: &str) -> Option<[u8; 32]> {
        let Caller::Node(NodeId(number)) = caller else { return None };
        (1..=self.ranks).contains(&(*number as usize)).then_some(self.key)
    }
}

/// Puts parts into the mailbox.
struct Receiver(Arc<Mailbox>);

impl Receiver {
    fn take(&self, peer: &Peer, request: &Request) -> Result<(), Response> {
        if request.method != Method::SendPart {
            return Err(Response::not_supported(request.method));
        }
        let Caller::Node(NodeId(number)) = peer.caller else {
            return Err(Response::error(Status::InvalidArgument, "a rank is a node"));
        };
        let rank = (number as usize).wrapping_sub(1);
        let PartRequest { channel, number, total, offset, checksum } = request.decode::<SendPart>()?;
        let refused = |why: String| {
            self.0.end(rank, End::Damaged(why.clone()));
            Response::error(Status::InvalidArgument, why)
        };
        let bytes: &[u8] = &request.payload;
        if crc32c(bytes) != checksum {
            return Err(refused(format!("the checksum of a part is not {checksum:08x}")));
        }
        match (channel, number) {
            (END, 0) => self.0.end(rank, End::Left),
            (END, number) => self.0.end(rank, End::Failed(number as usize - 1)),
            _ => {
                let part = Part { tag: Tag { channel, number }, total, offset, bytes };
                self.0.put(rank, &part).map_err(refused)?;
            }
        }
        Ok(())
    }
}

impl Handler for Receiver {
    fn handle(&self, peer: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        let response = match self.take(peer, &request) {
            Ok(()) => Response::ok::<SendPart>(&Empty {}),
            Err(refused) => refused,
        };
        Box::pin(async move { response })
    }
}

async fn run(rt: Rt, listener: Box<dyn ember_rt::net::Listener>, start: Start) {
    let Start { rank, addresses, job, key, limit, mailbox, queues, failed, mut stop } = start;
    let keys = Rc::new(Ranks { key, ranks: addresses.len() });
    let identity = ServerIdentity { cluster: job, node: node(rank), keys };
    let server = Server::new(identity, Rc::new(Receiver(mailbox.clone())), ServerOptions::default());
    let (shutdown, ending) = watch::channel(false);
    let (served, end) = oneshot::channel();
    let own = rt.clone();
    rt.spawn("server of a rank", async move {
        server.serve(&own, listener, ending).await;
        let _ = served.send(());
    });
    let identity =
        Identity { cluster: job, caller: Caller::Node(node(rank)), user: String::new(), key, lane: 0 };
    let each = queues.into_iter().zip(&addresses).enumerate().filter_map(|(peer, (queue, address))| {
        let sender = Sender { rt: &rt, rank: peer, address, identity: &identity, limit, mailbox: &mailbox };
        queue.map(|queue| sender.run(queue))
    });
    let mut sending = Box::pin(join_all(each));
    let left = match select(&mut sending, &mut stop).await {
        Either::Left(_) => stop.await,
        Either::Right(left) => {
            let moment = if failed.load(Ordering::Relaxed) { FAREWELL.min(limit) } else { limit };
            let _ = rt.timeout(moment, sending).await;
            left
        }
    };
    // Whether it was said or the rank has gone: the end of the thread.
    drop(left);
    shutdown.send(true);
    let _ = end.await;
}

/// Connects with a rank, and sends it what there is.
struct Sender<'a> {
    rt: &'a Rt,
    rank: usize,
    address: &'a Addr,
    identity: &'a Identity,
    limit: Duration,
    mailbox: &'a Mailbox,
}

impl Sender<'_> {
    async fn run(self, mut queue: mpsc::Receiver<Outgoing>) {
        let gone = |why: NetError| self.mailbox.end(self.rank, End::Gone(why.to_string()));
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(why) => return gone(why),
        };
        self.mailbox.connected(self.rank);
        loop {
            match select(queue.recv(), connection.ended()).await {
                Either::Left(Some(message)) => {
                    if let Err(why) = self.send(&connection, message).await {
                        return gone(why);
                    }
                }
                Either::Left(None) => return,
                Either::Right(()) => {
                    let why = connection.closed();
                    return gone(why.unwrap_or_else(|| NetError::Unavailable("the connection ended".into())));
                }
            }
        }
    }

    /// It may not listen yet.
    async fn connect(&self) -> Result<Connection, NetError> {
        let until = self.rt.now() + self.limit;
        loop {
            match Connection::open(self.rt, self.address, self.identity, &Options::default()).await {
                Err(NetError::Refused { status, text }) if status != Status::Busy => {
                    return Err(NetError::Refused { status, text });
                }
                Err(why) if self.rt.now() >= until || self.mailbox.has_ended(self.rank) => return Err(why),
                Err(_) => self.rt.sleep(PAUSE).await,
                opened => return opened,
            }
        }
    }

    async fn send(&self, connection: &Connection, message: Outgoing) -> Result<(), NetError> {
        let Outgoing { tag: Tag { channel, number }, bytes } = message;
        let total = bytes.len() as u64;
        let (mut offset, mut first) = (0, true);
        while first || offset < bytes.len() {
            let part = Buf::copy_from(&bytes[offset..bytes.len().min(offset + PART)]);
            let checksum = crc32c(&part);
            let request = PartRequest { channel, number, total, offset: offset as u64, checksum };
            offset += part.len();
            first = false;
            let deadline = self.rt.now() + self.limit;
            connection.call::<SendPart>(&request, SharedBuf::from(part), deadline).await?;
        }
        Ok(())
    }
}
