//! The network between processes: streams whose messages are delayed, lost together with their connection,
//! or held up by partitions.
//!
//! As TCP does it: bytes of one stream arrive in order or not at all. A lost message ends its connection some
//! time later; a partition holds messages back, and when it heals they arrive late or the connection breaks.

mod conn;
mod stream;

use crate::process::{Crash, ProcessId};
use crate::trace::{Entry, name_digest};
use crate::world::{Core, World, between};
use conn::Conn;
use ember_rt::net::{Addr, Listener, Net, Stream};
use ember_rt::{LocalBoxFuture, sync::oneshot};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// Connections that wait to be accepted, per listener.
const BACKLOG_MAX: usize = 128;
/// How long an unanswered connection attempt goes on, in nanoseconds.
const CONNECT_TIMEOUT_NS: u64 = 8_000_000_000;
/// Time between two tries of one connection attempt, in nanoseconds.
const CONNECT_RETRY_NS: u64 = 500_000_000;

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Shortest delay of a message, in nanoseconds.
    pub delay_min_ns: u64,
    /// Longest delay of an ordinary message, in nanoseconds.
    pub delay_max_ns: u64,
    /// Messages in a million that are late.
    pub late_ppm: u64,
    /// Longest delay of a late message, in nanoseconds.
    pub late_max_ns: u64,
    /// Messages in a million that are lost with their connection.
    pub loss_ppm: u64,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            delay_min_ns: 30_000,
            delay_max_ns: 300_000,
            late_ppm: 2_000,
            late_max_ns: 40_000_000,
            loss_ppm: 0,
        }
    }
}

struct Backlog {
    owner: ProcessId,
    id: u64,
    waiting: VecDeque<Stream>,
    waker: Option<Waker>,
}

/// Everything that is open.
#[derive(Default)]
pub(crate) struct NetState {
    config: NetConfig,
    listeners: BTreeMap<Addr, Rc<RefCell<Backlog>>>,
    /// Who listened at an address last: a machine without power doesn't even refuse.
    owners: BTreeMap<Addr, ProcessId>,
    conns: BTreeMap<u64, Weak<Conn>>,
    blocked: BTreeSet<(ProcessId, ProcessId)>,
    next_id: u64,
    next_port: u16,
}

impl NetState {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl World {
    /// Changes how the network behaves from now on.
    pub fn set_net(&self, config: NetConfig) {
        self.0.net.borrow_mut().config = config;
    }
    /// How the network behaves.
    pub fn net_config(&self) -> NetConfig {
        self.0.net.borrow().config
    }
    /// Cuts or heals the way from one process to another, in this direction alone.
    pub fn set_blocked(&self, from: ProcessId, to: ProcessId, blocked: bool) {
        let changed = match blocked {
            true => self.0.net.borrow_mut().blocked.insert((from, to)),
            false => self.0.net.borrow_mut().blocked.remove(&(from, to)),
        };
        if !changed {
            return;
        }
        self.record(Entry::Fault, &[1, from.number(), to.number(), u64::from(blocked)]);
        if !blocked {
            for conn in self.conns_of(from) {
                conn.path_healed(self, from, to);
            }
        }
    }
    /// Heals every partition.
    pub fn heal_all(&self) {
        let blocked: Vec<_> = self.0.net.borrow().blocked.iter().copied().collect();
        for (from, to) in blocked {
            self.set_blocked(from, to, false);
        }
    }
    /// Breaks one open connection of a process, chosen by `pick`; whether it had one.
    pub fn break_connection(&self, of: ProcessId, pick: u64) -> bool {
        let conns: Vec<_> = self.conns_of(of).into_iter().filter(|c| c.is_open()).collect();
        let Some(conn) = conns.get((pick % conns.len().max(1) as u64) as usize) else { return false };
        self.record(Entry::Fault, &[2, of.number(), conn.id()]);
        conn.lose(self);
        true
    }
    pub(crate) fn is_blocked(&self, from: ProcessId, to: ProcessId) -> bool {
        let net = self.0.net.borrow();
        !net.blocked.is_empty() && net.blocked.contains(&(from, to))
    }
    pub(crate) fn is_powered(&self, id: ProcessId) -> bool {
        self.process_state(id).is_none_or(|s| s.powered.get())
    }
    pub(crate) fn message_delay(&self) -> u64 {
        let config = self.net_config();
        let mut rng = self.0.net_rng.borrow_mut();
        if config.late_ppm > 0 && rng.below(1_000_000) < config.late_ppm {
            self.trace().count("late messages", 1);
            return between(&mut rng, config.delay_max_ns, config.late_max_ns);
        }
        between(&mut rng, config.delay_min_ns, config.delay_max_ns)
    }
    pub(crate) fn message_is_lost(&self) -> bool {
        let config = self.net_config();
        config.loss_ppm > 0 && self.0.net_rng.borrow_mut().below(1_000_000) < config.loss_ppm
    }
    pub(crate) fn net_chance(&self, percent: u64) -> bool {
        self.0.net_rng.borrow_mut().below(100) < percent
    }
    fn conns_of(&self, id: ProcessId) -> Vec<Rc<Conn>> {
        let net = self.0.net.borrow();
        net.conns.values().filter_map(Weak::upgrade).filter(|c| c.has_end(id)).collect()
    }
    /// Closes everything of a process that has just ended.
    pub(crate) fn close_process(&self, id: ProcessId, crash: Crash) {
        let removed: Vec<_> = {
            let mut net = self.0.net.borrow_mut();
            let addrs: Vec<_> = net
                .listeners
                .iter()
                .filter(|(_, b)| b.borrow().owner == id)
                .map(|(a, _)| a.clone())
                .collect();
            addrs.iter().filter_map(|a| net.listeners.remove(a)).collect()
        };
        for conn in self.conns_of(id) {
            conn.process_ended(self, id, crash);
        }
        // Streams that nobody had accepted end here, after their connections know that the process is gone.
        for backlog in removed {
            let waiting = std::mem::take(&mut backlog.borrow_mut().waiting);
            drop(waiting);
        }
    }
    pub(crate) fn forget_conn(core: &Core, id: u64) {
        if let Ok(mut net) = core.net.try_borrow_mut() {
            net.conns.remove(&id);
        }
    }
}

/// The network as one process sees it.
pub(crate) struct SimNet {
    world: World,
    own: ProcessId,
}

impl SimNet {
    pub(crate) fn new(world: World, own: ProcessId) -> Self {
        Self { world, own }
    }
}

enum Knock {
    /// Open: the caller's end.
    Open(Stream),
    Refused,
    NoAnswer,
}

impl Net for SimNet {
    fn connect(&self, addr: &Addr) -> LocalBoxFuture<'static, io::Result<Stream>> {
        let (answer, result) = oneshot::channel();
        let deadline = self.world.now_ns() + CONNECT_TIMEOUT_NS;
        knock(&self.world, self.own, addr.clone(), deadline, answer);
        let addr = addr.clone();
        Box::pin(async move {
            match result.await {
                Ok(Knock::Open(stream)) => Ok(stream),
                Ok(Knock::Refused) => Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("connect to {addr}: nobody listens there"),
                )),
                Ok(Knock::NoAnswer) | Err(_) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, format!("connect to {addr}: no answer")))
                }
            }
        })
    }

    fn listen(&self, addr: &Addr) -> io::Result<Box<dyn Listener>> {
        let mut net = self.world.0.net.borrow_mut();
        let addr = match addr {
            Addr::Tcp(tcp) if tcp.port() == 0 => {
                net.next_port = net.next_port.checked_add(1).unwrap_or(1);
                let mut tcp = *tcp;
                tcp.set_port(20_000 + net.next_port % 40_000);
                Addr::Tcp(tcp)
            }
            other => other.clone(),
        };
        if net.listeners.contains_key(&addr) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("listen on {addr}: address in use"),
            ));
        }
        let id = net.id();
        let backlog =
            Rc::new(RefCell::new(Backlog { owner: self.own, id, waiting: VecDeque::new(), waker: None }));
        net.listeners.insert(addr.clone(), backlog.clone());
        net.owners.insert(addr.clone(), self.own);
        drop(net);
        Ok(Box::new(SimListener { world: self.world.clone(), addr, backlog }))
    }
}

/// One try to reach a listener; the next one follows while there is no answer.
fn knock(world: &World, from: ProcessId, addr: Addr, deadline: u64, answer: oneshot::Sender<Knock>) {
    let delay = world.message_delay();
    world.after(delay, move |world| {
        if answer.is_closed() {
            return;
        }
        let owner = world.0.net.borrow().owners.get(&addr).copied();
        let reachable = owner.is_none_or(|to| {
            world.is_powered(to) && !world.is_blocked(from, to) && !world.is_blocked(to, from)
        });
        if !reachable {
            if world.now_ns() + CONNECT_RETRY_NS > deadline {
                let _ = answer.send(Knock::NoAnswer);
            } else {
                world.after(CONNECT_RETRY_NS, move |world| knock(world, from, addr, deadline, answer));
            }
            return;
        }
        let opened = open(world, from, &addr);
        let back = world.message_delay();
        world.after(back, move |_| {
            let _ = answer.send(opened.map_or(Knock::Refused, Knock::Open));
        });
    });
}

fn open(world: &World, from: ProcessId, addr: &Addr) -> Option<Stream> {
    let backlog = world.0.net.borrow().listeners.get(addr).cloned();
    let backlog = backlog.filter(|b| b.borrow().waiting.len() < BACKLOG_MAX)?;
    let to = backlog.borrow().owner;
    let id = world.0.net.borrow_mut().id();
    world.record(Entry::Connection, &[1, id, from.number(), to.number(), name_digest(&addr.to_string())]);
    world.trace().count("connections", 1);
    let conn = Conn::new(world, id, from, to);
    world.0.net.borrow_mut().conns.insert(id, Rc::downgrade(&conn));
    let (near, far) = stream::ends(&conn, addr);
    let waker = {
        let mut backlog = backlog.borrow_mut();
        backlog.waiting.push_back(far);
        backlog.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
    Some(near)
}

struct SimListener {
    world: World,
    addr: Addr,
    backlog: Rc<RefCell<Backlog>>,
}

struct Accept<'a>(&'a Rc<RefCell<Backlog>>);

impl Future for Accept<'_> {
    type Output = io::Result<Stream>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut backlog = self.0.borrow_mut();
        match backlog.waiting.pop_front() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => {
                backlog.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Stream>> {
        Box::pin(Accept(&self.backlog))
    }
    fn local_addr(&self) -> Addr {
        self.addr.clone()
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if let Ok(mut net) = self.world.0.net.try_borrow_mut() {
            let own = self.backlog.borrow().id;
            if net.listeners.get(&self.addr).is_some_and(|b| b.borrow().id == own) {
                net.listeners.remove(&self.addr);
            }
        }
        let waiting = std::mem::take(&mut self.backlog.borrow_mut().waiting);
        drop(waiting);
    }
}
