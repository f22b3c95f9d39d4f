//! Replicas, what is on its way between them, and what may happen next.

use super::control::Control;
use super::digest::digest;
use super::store::{Store, chunk_id};
use super::{Bounds, CHUNKS, CLIENTS, NODES};
use ember_chain::Report;
use ember_craq::{
    Address, Answer, Change, Content, Failure, Identity, Input, Output, Replica, Role, SendId, Token,
};
use ember_types::{
    Chain, ChainId, ChainVersion, ChannelId, ClientId, Generation, Instant, Sequence, TargetId, WriterTag,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

pub(super) const CHAIN: ChainId = ChainId(1);
const CHUNK_SIZE: u32 = 8;
const FOREVER: Instant = Instant(u64::MAX);

/// Time stands still: what waits for a while becomes due with [`Action::Tick`] alone.
pub(super) fn now() -> Instant {
    Instant::default() + Duration::from_secs(1)
}
/// When everything that is to be sent again is due, and nothing that takes longer.
fn later() -> Instant {
    now() + Duration::from_millis(60)
}

/// Who waits for the answer of a request; tokens name it, so that none is used twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Client(usize),
    Reader,
    Peer { node: usize, boot: u32, id: SendId },
}

const CLIENT: u64 = 1 << 60;
const READER: u64 = 2 << 60;

pub(super) fn peer_token(node: usize, boot: u32, id: SendId) -> Token {
    (node as u64) << 52 | u64::from(boot) << 40 | id
}
pub(super) fn origin(token: Token) -> Origin {
    match token & (3 << 60) {
        CLIENT => Origin::Client((token >> 8 & 0xff) as usize),
        READER => Origin::Reader,
        _ => Origin::Peer {
            node: (token >> 52) as usize,
            boot: (token >> 40) as u32 & 0xfff,
            id: token & 0xff_ffff_ffff,
        },
    }
}

/// One process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Node {
    pub(super) replica: Replica,
    pub(super) store: Store,
    pub(super) boot: u32,
    pub(super) leased: bool,
    /// What the store has yet to do, with the bytes that it needs.
    pub(super) disk: Vec<(Output, u32)>,
    /// A tail's wish that mgmtd has yet to hear of.
    pub(super) note: Option<ChainVersion>,
    /// Messages that the replica wants an answer of.
    pub(super) waits: BTreeSet<SendId>,
    /// Requests that it has not answered.
    pub(super) owes: BTreeSet<Token>,
}

/// What follows from a node's state: computed once for all states that share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Derived {
    digest: u64,
    /// What a read of each chunk answers at once, if it does.
    pub(super) tells: [Option<Content>; CHUNKS],
    /// Whether the passing of time changes anything.
    waits: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    digest: u64,
    pub(super) node: usize,
    pub(super) input: Input,
    pub(super) bytes: u32,
}

impl Request {
    pub(super) fn new(node: usize, input: Input, bytes: u32) -> Self {
        Self { digest: digest(&(node, &input, bytes)), node, input, bytes }
    }
}

/// A client with one write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Writer {
    pub(super) chunk: usize,
    tries: u8,
    pub(super) acknowledged: bool,
}

/// A read that asks the tail, and what it must at least see.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Reading {
    pub(super) node: usize,
    pub(super) chunk: usize,
    pub(super) floor: u32,
}

/// What has happened of what is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Spent {
    pub(super) losses: u8,
    pub(super) ticks: u8,
    pub(super) crashes: u8,
    pub(super) expiries: u8,
    pub(super) reads: u8,
    pub(super) refusals: u8,
}

/// The whole state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct World {
    pub(super) nodes: [Arc<Node>; NODES],
    pub(super) derived: [Derived; NODES],
    pub(super) control: Arc<Control>,
    pub(super) requests: BTreeMap<Token, Arc<Request>>,
    pub(super) answers: BTreeMap<Token, Arc<Input>>,
    pub(super) writers: [Writer; CLIENTS],
    pub(super) reading: Option<Reading>,
    /// A read was answered through the tail.
    pub(super) read_through_tail: bool,
    /// Writes of each chunk that were acknowledged or read.
    pub(super) seen: [u32; CHUNKS],
    pub(super) spent: Spent,
    pub(super) violation: Option<Arc<str>>,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.derived.iter().for_each(|derived| derived.digest.hash(state));
        self.requests.iter().for_each(|(token, request)| (token, request.digest).hash(state));
        (&self.control, &self.answers, &self.writers, self.reading).hash(state);
        (self.read_through_tail, self.seen, self.spent, &self.violation).hash(state);
    }
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// The client sends its write, for the first time or again.
    Write(usize),
    /// A replica that must ask the tail is read.
    Read(usize, usize),
    /// A request arrives.
    Deliver(Token),
    /// An answer arrives.
    Answer(Token),
    /// The sender hears that the connection is lost; the message may arrive all the same.
    Lose(Token),
    /// The store does what it was asked for.
    Disk(usize, usize),
    /// The store has no room for what it was asked to prepare.
    Refuse(usize, usize),
    /// A node reports to mgmtd and hears of the chain.
    Heartbeat(usize),
    /// A node's lease runs out, and mgmtd counts on it.
    Expire(usize),
    /// Mgmtd notes a version as in use.
    Note(usize),
    /// Time passes on a node.
    Tick(usize),
    /// A process starts anew with what its disk holds; the log is flushed before, or not.
    Crash(usize, bool),
}

fn start(node: usize, store: Store, boot: u32) -> Node {
    let identity = Identity { chain: CHAIN, target: TargetId(node as u64), generation: Generation(1) };
    let replica = Replica::new(identity, store.served, &store, store.pending(), store.records());
    let (waits, owes) = (BTreeSet::new(), BTreeSet::new());
    Node { replica, store, boot, leased: false, disk: Vec::new(), note: None, waits, owes }
}

impl World {
    /// A new chain in service, whose clients write these chunks.
    pub(super) fn new(bounds: &Bounds, chunks: [usize; CLIENTS]) -> Self {
        let mut world = Self {
            nodes: std::array::from_fn(|i| Arc::new(start(i, Store::default(), 1))),
            derived: [Derived::default(); NODES],
            control: Arc::new(Control::new(CHAIN)),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            writers: chunks.map(|chunk| Writer { chunk, ..Writer::default() }),
            reading: None,
            read_through_tail: false,
            seen: [0; CHUNKS],
            spent: Spent::default(),
            violation: None,
        };
        // Everybody learns of the chain, the tail asks for the note, everybody learns of that.
        for _ in 0..3 {
            (0..NODES).for_each(|node| world.apply(Action::Heartbeat(node), bounds));
            while let Some(action) = world.automatic().into_iter().next() {
                world.apply(action, bounds);
            }
        }
        world
    }

    /// Whether all members serve under one version that is not the first.
    pub(super) fn is_whole_again(&self) -> bool {
        let chain = self.control.chain();
        let serves = |node: &Arc<Node>| {
            node.replica.chain_version() == chain.version && node.replica.role() == Role::Serving
        };
        chain.version > ChainVersion(1) && self.nodes.iter().all(serves)
    }

    /// What happens without anybody's doing.
    fn automatic(&self) -> Vec<Action> {
        let mut actions: Vec<Action> = self.requests.keys().map(|&token| Action::Deliver(token)).collect();
        actions.extend(self.answers.keys().map(|&token| Action::Answer(token)));
        for (i, node) in self.nodes.iter().enumerate() {
            actions.extend((0..node.disk.len()).map(|k| Action::Disk(i, k)));
            if node.note.is_some() {
                actions.push(Action::Note(i));
            }
        }
        actions
    }

    /// Everything that can happen now.
    pub(super) fn possible(&self, bounds: &Bounds) -> Vec<Action> {
        if self.violation.is_some() {
            return Vec::new();
        }
        let mut actions = self.automatic();
        let chain = self.control.chain();
        for (c, writer) in self.writers.iter().enumerate() {
            if c < bounds.writers
                && !writer.acknowledged
                && writer.tries < bounds.tries
                && chain.head().is_some()
            {
                actions.push(Action::Write(c));
            }
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.leased || node.replica.chain() != Some(chain) || self.reports(i) {
                actions.push(Action::Heartbeat(i));
            }
            if self.spent.losses < bounds.losses {
                actions.extend(node.waits.iter().map(|&id| Action::Lose(peer_token(i, node.boot, id))));
            }
            if self.spent.ticks < bounds.ticks && self.derived[i].waits && self.ticks_at(i, bounds) {
                actions.push(Action::Tick(i));
            }
            if self.spent.refusals < bounds.refusals {
                let prepares = |&k: &usize| matches!(node.disk[k].0, Output::Prepare { .. });
                actions.extend((0..node.disk.len()).filter(prepares).map(|k| Action::Refuse(i, k)));
            }
            if self.spent.crashes < bounds.crashes {
                actions.push(Action::Crash(i, true));
                if node.store.has_unflushed() {
                    actions.push(Action::Crash(i, false));
                }
            }
            if self.spent.expiries < bounds.expiries && self.control.is_granted(i) {
                actions.push(Action::Expire(i));
            }
            if self.spent.reads < bounds.reads && self.reading.is_none() {
                let asks = |&c: &usize| node.store.state(c).pending.is_some();
                actions.extend((0..CHUNKS).filter(asks).map(|c| Action::Read(i, c)));
            }
        }
        actions
    }

    /// With restarts, time passes on the processes that restarted alone: that keeps the bounds small.
    fn ticks_at(&self, node: usize, bounds: &Bounds) -> bool {
        bounds.crashes == 0 || self.nodes[node].boot > 1
    }

    fn waits(&self, node: usize) -> bool {
        let node = &*self.nodes[node];
        let (mut later_on, mut out) = (node.replica.clone(), Vec::new());
        if node.replica.wants_tick() {
            later_on.handle(later(), &node.store, Input::Tick, &mut out);
        }
        !out.is_empty() || later_on != node.replica
    }

    /// Whether the node has something to say that mgmtd may act on.
    fn reports(&self, node: usize) -> bool {
        !self.control.has_heard(node, self.nodes[node].boot, self.report(node))
    }
    fn report(&self, node: usize) -> Report {
        let node = &self.nodes[node];
        Report {
            generation: Generation(1),
            local: node.replica.local_state(),
            applied: node.replica.chain_version(),
            served: node.store.served,
        }
    }

    pub(super) fn fail(&mut self, what: impl Into<Arc<str>>) {
        self.violation.get_or_insert(what.into());
    }
    fn must(&mut self, done: Result<(), String>) {
        if let Err(what) = done {
            self.fail(what);
        }
    }

    /// Lets one thing happen, and checks what must hold then.
    pub(super) fn apply(&mut self, action: Action, bounds: &Bounds) {
        let before = self.nodes.clone();
        self.happen(action, bounds);
        while bounds.prompt_notes
            && let Some(node) = self.nodes.iter().position(|node| node.note.is_some())
        {
            self.happen(Action::Note(node), bounds);
        }
        for (i, old) in before.iter().enumerate() {
            if !Arc::ptr_eq(old, &self.nodes[i]) {
                let digest = digest(&*self.nodes[i]);
                self.derived[i] = Derived { digest, tells: self.tells(i), waits: self.waits(i) };
            }
        }
        self.forget();
        self.check();
    }

    fn happen(&mut self, action: Action, bounds: &Bounds) {
        match action {
            Action::Write(client) => self.write(client),
            Action::Read(node, chunk) => self.read(node, chunk, bounds),
            Action::Deliver(token) => {
                let request = self.requests.remove(&token).expect("a request that is on its way");
                self.feed(request.node, now(), request.input.clone(), request.bytes, bounds);
            }
            Action::Answer(token) => {
                let input = self.answers.remove(&token).expect("an answer that is on its way");
                self.answered(token, Input::clone(&input), bounds);
            }
            Action::Lose(token) => {
                self.spent.losses += 1;
                self.answers.remove(&token);
                if let Origin::Peer { id, .. } = origin(token) {
                    self.answered(token, Input::Answered { id, answer: Answer::Lost }, bounds);
                }
            }
            Action::Disk(node, k) => {
                let (operation, bytes) = Arc::make_mut(&mut self.nodes[node]).disk.remove(k);
                self.store(node, &operation, bytes, bounds);
            }
            Action::Refuse(node, k) => {
                self.spent.refusals += 1;
                let (operation, _) = Arc::make_mut(&mut self.nodes[node]).disk.remove(k);
                if let Output::Prepare { chunk, .. } = operation {
                    let input = Input::Failed { chunk, failure: Failure::NoSpace };
                    self.feed(node, now(), input, 0, bounds);
                }
            }
            Action::Heartbeat(node) => self.heartbeat(node, bounds),
            Action::Expire(node) => {
                self.spent.expiries += 1;
                Arc::make_mut(&mut self.nodes[node]).leased = false;
                self.feed(node, now(), Input::Lease { until: Instant::default() }, 0, bounds);
                let done = Arc::make_mut(&mut self.control).expire(node);
                self.must(done);
            }
            Action::Note(node) => {
                if let Some(version) = Arc::make_mut(&mut self.nodes[node]).note.take() {
                    let done = Arc::make_mut(&mut self.control).note(version, TargetId(node as u64));
                    self.must(done);
                }
            }
            Action::Tick(node) => {
                self.spent.ticks += 1;
                self.feed(node, later(), Input::Tick, 0, bounds);
            }
            Action::Crash(node, flushed) => self.crash(node, flushed),
        }
    }

    fn write(&mut self, client: usize) {
        let chain = self.control.chain();
        let Some(to) = chain.head().map(|head| address(chain, head.target)) else { return };
        let writer = &mut self.writers[client];
        writer.tries += 1;
        let token = CLIENT | (client as u64) << 8 | u64::from(writer.tries);
        let input = Input::Update {
            token,
            to,
            chunk: chunk_id(writer.chunk),
            change: Change::Write { offset: client as u32, length: 1 },
            chunk_size: CHUNK_SIZE,
            tag: WriterTag {
                client: ClientId::from_u128(client as u128 + 1),
                channel: ChannelId(1),
                sequence: Sequence(1),
            },
            expires: FOREVER,
        };
        let request = Request::new(to.target.0 as usize, input, 0);
        self.requests.insert(token, Arc::new(request));
    }

    fn read(&mut self, node: usize, chunk: usize, bounds: &Bounds) {
        self.spent.reads += 1;
        self.reading = Some(Reading { node, chunk, floor: self.seen[chunk] });
        let Some(to) = self.nodes[node].replica.chain().map(|c| address(c, TargetId(node as u64))) else {
            return;
        };
        let token = READER | u64::from(self.spent.reads);
        let input = Input::Read { token, to, chunk: chunk_id(chunk), relaxed: false };
        self.feed(node, now(), input, 0, bounds);
    }

    fn heartbeat(&mut self, node: usize, bounds: &Bounds) {
        let report = self.report(node);
        let boot = self.nodes[node].boot;
        let done = Arc::make_mut(&mut self.control).heartbeat(node, boot, report);
        self.must(done);
        let chain = self.control.chain().clone();
        // The chain comes before the lease that covers it (R1).
        self.feed(node, now(), Input::Chain(chain), 0, bounds);
        Arc::make_mut(&mut self.nodes[node]).leased = true;
        self.feed(node, now(), Input::Lease { until: FOREVER }, 0, bounds);
    }

    /// Requests that are on their way to a process that ends are lost with their connections.
    fn crash(&mut self, node: usize, flushed: bool) {
        self.spent.crashes += 1;
        let old = &self.nodes[node];
        let (mut store, boot) = (old.store.clone(), old.boot + 1);
        store.crash(flushed);
        self.nodes[node] = Arc::new(start(node, store, boot));
        self.answers.retain(|&token, _| !matches!(origin(token), Origin::Peer { node: n, .. } if n == node));
        self.requests.retain(|_, request| request.node != node);
        for i in 0..NODES {
            for &id in &self.nodes[i].waits {
                let token = peer_token(i, self.nodes[i].boot, id);
                if !self.requests.contains_key(&token) && !self.is_held(token) {
                    let lost = Input::Answered { id, answer: Answer::Lost };
                    self.answers.entry(token).or_insert_with(|| Arc::new(lost));
                }
            }
        }
        self.reading = self.reading.filter(|reading| reading.node != node);
    }

    /// Whether a living replica owes the answer.
    fn is_held(&self, token: Token) -> bool {
        self.nodes.iter().any(|node| node.owes.contains(&token))
    }
}

pub(super) fn address(chain: &Chain, target: TargetId) -> Address {
    Address { chain: chain.id, chain_version: chain.version, target, generation: Generation(1) }
}
