//! A storage node with one target: the replica, its store, and what connects them.

use super::store::Store;
use super::{CHAIN, MS, Party, Sim};
use crate::trace::{Entry, digest};
use ember_chain::Report;
use ember_craq::{
    Address, Answer, Change, Failure, Identity, Input, Message, Output, Page, Payload, Replica, SendId,
    SyncItem, Token,
};
use ember_types::{
    Chain, ChainVersion, ChunkId, ChunkVersion, Generation, Instant, LocalState, Status, TargetId,
};
use std::collections::BTreeMap;
use std::rc::Rc;

/// How often a node reports, in nanoseconds.
const HEARTBEAT_NS: u64 = 100 * MS;
/// Chunks in a page of a comparison: few, so that there are several pages.
const PAGE: usize = 3;

/// Who waits for the answer of a request.
pub(super) enum Waiter {
    Client { op: u64, round: u32 },
    Peer { target: TargetId, boot: u64, id: SendId },
}

/// An answer to a client.
pub(super) struct ClientAnswer {
    pub(super) status: Status,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Node {
    pub(super) store: Store,
    pub(super) alive: bool,
    pub(super) paused: bool,
    pub(super) boot: u64,
    pub(super) generation: Generation,
    pub(super) full: bool,
    pub(super) slow: bool,
    replica: Option<Replica>,
    waiting: BTreeMap<Token, (Waiter, Vec<u8>)>,
    next_token: Token,
    held: Vec<Input>,
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            store: Store::default(),
            alive: false,
            paused: false,
            boot: 0,
            generation: Generation(1),
            full: false,
            slow: false,
            replica: None,
            waiting: BTreeMap::new(),
            next_token: 1,
            held: Vec::new(),
        }
    }
}

impl Sim {
    pub(super) fn start_node(self: &Rc<Self>, target: TargetId) {
        let Some(node) = self.node(target) else { return };
        let boot = {
            let mut node = node.borrow_mut();
            if node.alive {
                return;
            }
            node.alive = true;
            node.boot += 1;
            let identity = Identity { chain: CHAIN, target, generation: node.generation };
            let store = &node.store;
            let replica = Replica::new(identity, store.served, store, store.pending(), store.records());
            node.replica = Some(replica);
            node.boot
        };
        self.world.record(Entry::Process, &[1, target.0, boot]);
        self.heartbeat(target, boot);
        self.tick(target, boot);
    }

    pub(super) fn stop_node(self: &Rc<Self>, target: TargetId, power: bool) {
        let Some(node) = self.node(target) else { return };
        let mut node = node.borrow_mut();
        if !node.alive {
            return;
        }
        node.alive = false;
        node.paused = false;
        node.replica = None;
        node.waiting.clear();
        node.held.clear();
        if power {
            node.store.lose_power(&mut self.rng.borrow_mut());
        }
        self.world.record(Entry::Process, &[2, target.0, u64::from(power)]);
    }

    pub(super) fn resume_node(self: &Rc<Self>, target: TargetId) {
        let Some(node) = self.node(target) else { return };
        node.borrow_mut().paused = false;
        let held = std::mem::take(&mut node.borrow_mut().held);
        let boot = node.borrow().boot;
        for input in held {
            self.input(target, boot, input);
        }
    }

    fn tick(self: &Rc<Self>, target: TargetId, boot: u64) {
        if self.is_boot(target, boot) {
            self.input(target, boot, Input::Tick);
            self.after(self.draw(20, 60) * MS, move |own| own.tick(target, boot));
        }
    }

    pub(super) fn is_boot(&self, target: TargetId, boot: u64) -> bool {
        self.node(target).is_some_and(|n| n.borrow().alive && n.borrow().boot == boot)
    }
    fn is_paused(&self, target: TargetId) -> bool {
        self.node(target).is_some_and(|n| n.borrow().paused)
    }

    fn heartbeat(self: &Rc<Self>, target: TargetId, boot: u64) {
        if !self.is_boot(target, boot) {
            return;
        }
        self.after(HEARTBEAT_NS, move |own| own.heartbeat(target, boot));
        if self.is_paused(target) {
            return;
        }
        let report = {
            let Some(node) = self.node(target) else { return };
            let node = node.borrow();
            let Some(replica) = &node.replica else { return };
            Report {
                generation: node.generation,
                local: self.local(replica),
                applied: replica.chain_version(),
                served: node.store.served,
            }
        };
        // The holder counts from before it sent the request (R8).
        let until = Instant(self.now() + super::control::LEASE_NS);
        self.send(Party::Target(target), Party::Manager, &[1, target.0], move |own| {
            let result = own.control.borrow_mut().heartbeat(own.now(), target, boot, report);
            own.invariant(result);
            let chain = own.control.borrow().chain().clone();
            own.send(Party::Manager, Party::Target(target), &[2, target.0, chain.version.0], move |own| {
                own.input(target, boot, Input::Chain(chain));
                own.input(target, boot, Input::Lease { until });
            });
        });
    }
    /// A replica without a part in the chain reports that its recovery is complete: it lost nothing.
    fn local(&self, replica: &Replica) -> LocalState {
        let chain = replica.chain();
        let member = chain.and_then(|c| c.member(replica.identity().target));
        match member.map(|m| m.state) {
            Some(ember_types::PublicState::LastSrv) => LocalState::UpToDate,
            _ => replica.local_state(),
        }
    }

    /// Gives the newest chain to a replica that asked for it.
    fn refresh(self: &Rc<Self>, target: TargetId, boot: u64) {
        self.send(Party::Target(target), Party::Manager, &[3, target.0], move |own| {
            let chain = own.control.borrow().chain().clone();
            own.send(Party::Manager, Party::Target(target), &[4, target.0], move |own| {
                own.input(target, boot, Input::Chain(chain));
            });
        });
    }

    /// Gives something to a replica and does what it wants done.
    pub(super) fn input(self: &Rc<Self>, target: TargetId, boot: u64, input: Input) {
        let Some(node) = self.node(target).filter(|_| self.is_boot(target, boot)) else { return };
        let mut outputs = Vec::new();
        {
            let mut node = node.borrow_mut();
            let node = &mut *node;
            if node.paused {
                node.held.push(input);
                return;
            }
            let Some(replica) = &mut node.replica else { return };
            if self.world.trace().is_logged() {
                eprintln!("{:>14} target {target} <- {input:?}", self.now());
            }
            replica.handle(Instant(self.now()), &node.store, input, &mut outputs);
        }
        for output in outputs {
            if self.world.trace().is_logged() {
                eprintln!("{:>14} target {target} -> {output:?}", self.now());
            }
            self.output(target, boot, output);
        }
    }

    /// A request arrives at a node.
    pub(super) fn request(
        self: &Rc<Self>,
        target: TargetId,
        waiter: Waiter,
        payload: Vec<u8>,
        input: impl FnOnce(Token) -> Input,
    ) {
        let Some(node) = self.node(target) else { return };
        let (token, boot) = {
            let mut node = node.borrow_mut();
            if !node.alive {
                return;
            }
            node.next_token += 1;
            let token = node.next_token;
            node.waiting.insert(token, (waiter, payload));
            (token, node.boot)
        };
        self.input(target, boot, input(token));
    }

    fn disk_delay(&self, target: TargetId) -> u64 {
        let slow = self.node(target).is_some_and(|n| n.borrow().slow);
        if slow { self.draw(MS, 700 * MS) } else { self.draw(50_000, 2 * MS) }
    }

    /// Does something with a store after the time that it takes.
    fn disk(
        self: &Rc<Self>,
        target: TargetId,
        boot: u64,
        work: impl FnOnce(&Rc<Self>, &mut Node) -> Option<Input> + 'static,
    ) {
        self.world.trace().count("disk operations", 1);
        self.after(self.disk_delay(target), move |own| {
            if !own.is_boot(target, boot) {
                return;
            }
            let Some(node) = own.node(target) else { return };
            let input = work(own, &mut node.borrow_mut());
            own.world.record(Entry::DiskEnd, &[target.0, u64::from(input.is_some())]);
            if let Some(input) = input {
                own.input(target, boot, input);
            }
        });
    }

    fn bytes_of(&self, target: TargetId, chunk: ChunkId, payload: Payload) -> Option<Vec<u8>> {
        let node = self.node(target)?.borrow();
        match payload {
            Payload::Empty => Some(Vec::new()),
            Payload::Request(token) => node.waiting.get(&token).map(|(_, bytes)| bytes.clone()),
            Payload::Stored(version) => node.store.bytes(chunk, version),
        }
    }

    /// Often the store says what an update makes before it is durable.
    fn built(
        self: &Rc<Self>,
        target: TargetId,
        boot: u64,
        chunk: ChunkId,
        version: ChunkVersion,
        change: Change,
        bytes: &[u8],
    ) {
        let Some(node) = self.node(target) else { return };
        let (length, checksum) = node.borrow().store.builds(chunk, change, bytes);
        let input = Input::Built { chunk, version, length, checksum };
        self.after(self.draw(0, MS), move |own| own.input(target, boot, input));
    }

    fn input_soon(self: &Rc<Self>, target: TargetId, boot: u64, input: Input) {
        self.after(MS, move |own| own.input(target, boot, input));
    }

    fn output(self: &Rc<Self>, target: TargetId, boot: u64, output: Output) {
        match output {
            Output::StoreVersion(version) => self.disk(target, boot, move |_, node| {
                node.store.served = node.store.served.max(version);
                Some(Input::VersionStored(version))
            }),
            Output::Prepare { chunk, base, version, change, chunk_size, record, writers, payload } => {
                let bytes = self.bytes_of(target, chunk, payload);
                self.built(target, boot, chunk, version, change, bytes.as_deref().unwrap_or_default());
                self.disk(target, boot, move |own, node| {
                    if node.full && !change.only_frees() {
                        return Some(Input::Failed { chunk, failure: Failure::NoSpace });
                    }
                    let bytes = bytes.unwrap_or_default();
                    let done =
                        node.store.prepare(chunk, base, version, change, chunk_size, record, writers, &bytes);
                    match done {
                        Some((length, checksum)) => {
                            Some(Input::Prepared { chunk, version, length, checksum })
                        }
                        None => {
                            let text = format!("target {target}: {chunk} {version:?} on {base:?}");
                            own.fail("an update applies to the committed version (R5)", &text);
                            None
                        }
                    }
                });
            }
            Output::Commit { chunk, version } => self.disk(target, boot, move |own, node| {
                if !node.store.commit(chunk, version) {
                    own.fail(
                        "a version is held before it is committed",
                        &format!("{target}: {chunk} {version:?}"),
                    );
                }
                Some(Input::Committed { chunk, version })
            }),
            Output::Drop { chunk, version } => self.disk(target, boot, move |_, node| {
                node.store.drop_pending(chunk, version);
                Some(Input::Dropped { chunk, version })
            }),
            Output::Install { chunk, content, writers, payload, .. } => {
                let bytes = self.bytes_of(target, chunk, payload).unwrap_or_default();
                self.disk(target, boot, move |_, node| {
                    node.store.install(chunk, content, writers, &bytes);
                    Some(Input::Installed { chunk })
                });
            }
            Output::Repair { chunk, .. } => self.input_soon(target, boot, Input::Repaired { chunk }),
            Output::Send { id, to, message } => self.send_message(target, boot, id, to, message),
            Output::FetchPage { id, to, after } => self.fetch_page(target, boot, id, to, after),
            Output::SyncTurn { chunk } => self.input_soon(target, boot, Input::SyncTurn { chunk }),
            Output::Reply { token, status, version, .. } => {
                self.answer(target, token, status, version, Vec::new());
            }
            Output::Read { token, content } => self.answer_read(target, token, content),
            Output::NoteInUse(version) => {
                self.send(Party::Target(target), Party::Manager, &[5, target.0, version.0], move |own| {
                    let result = own.control.borrow_mut().note(version, target);
                    own.invariant(result);
                    let chain = own.control.borrow().chain().clone();
                    own.send(Party::Manager, Party::Target(target), &[6, target.0], move |own| {
                        own.input(target, boot, Input::Chain(chain));
                    });
                });
            }
            Output::Refresh(_) => self.refresh(target, boot),
            Output::Accuse { .. } => self.world.trace().count("accusations", 1),
        }
    }

    fn answer_read(self: &Rc<Self>, target: TargetId, token: Token, content: ember_craq::Content) {
        let Some(node) = self.node(target) else { return };
        let chunk = match node.borrow().waiting.get(&token) {
            Some((Waiter::Client { op, .. }, _)) => self.clients.borrow().chunk_of(*op),
            _ => None,
        };
        let Some(chunk) = chunk else { return };
        let stored = node.borrow().store.bytes(chunk, content.version);
        let bytes = if content.is_absent() { Some(Vec::new()) } else { stored };
        let may = node.borrow().replica.as_ref().is_some_and(|r| r.may_answer(Instant(self.now())));
        match bytes {
            Some(bytes) if may => self.answer(target, token, Status::Ok, content.version, bytes),
            Some(_) => self.answer(target, token, Status::NoLease, content.version, Vec::new()),
            None => {
                let text = format!("target {target}: {chunk} {content:?}");
                self.fail("a version that is answered is there", &text);
            }
        }
    }

    fn answer(
        self: &Rc<Self>,
        target: TargetId,
        token: Token,
        status: Status,
        version: ChunkVersion,
        bytes: Vec<u8>,
    ) {
        let Some(node) = self.node(target) else { return };
        let (waiter, chain_version) = {
            let mut node = node.borrow_mut();
            let Some((waiter, _)) = node.waiting.remove(&token) else { return };
            let version = node.replica.as_ref().map_or(ChainVersion(0), Replica::chain_version);
            (waiter, version)
        };
        let words = [7, target.0, u64::from(status.code()), digest(&bytes)];
        match waiter {
            Waiter::Client { op, round } => {
                self.send(Party::Target(target), Party::Clients, &words, move |own| {
                    own.client_answer(op, round, ClientAnswer { status, bytes });
                })
            }
            Waiter::Peer { target: peer, boot, id } => {
                let answer = Answer::Reply { status, version, chain_version };
                self.send(Party::Target(target), Party::Target(peer), &words, move |own| {
                    own.input(peer, boot, Input::Answered { id, answer });
                });
            }
        }
    }

    fn send_message(self: &Rc<Self>, target: TargetId, boot: u64, id: SendId, to: Address, message: Message) {
        let bytes = match &message {
            Message::Forward { forward, payload, .. } => self.bytes_of(target, forward.chunk, *payload),
            Message::Sync { item: SyncItem::Chunk { chunk, content, .. }, .. } if !content.is_absent() => {
                self.bytes_of(target, *chunk, Payload::Stored(content.version))
            }
            _ => Some(Vec::new()),
        };
        let Some(bytes) = bytes else {
            if matches!(message, Message::Sync { .. }) {
                return self.input(target, boot, Input::Answered { id, answer: Answer::Lost });
            }
            self.fail("a replica sends what it holds", &format!("target {target}: {message:?}"));
            return;
        };
        // Without an answer the sender gives up; the message may still arrive.
        let patience = self.draw(200, 1_000) * MS;
        self.after(patience, move |own| {
            own.input(target, boot, Input::Answered { id, answer: Answer::Lost });
        });
        let words = [8, target.0, to.target.0, digest(&bytes)];
        self.send(Party::Target(target), Party::Target(to.target), &words, move |own| {
            let waiter = Waiter::Peer { target, boot, id };
            own.request(to.target, waiter, bytes, |token| match message {
                Message::Forward { epoch, forward, .. } => {
                    Input::Forward { token, to, from: target, epoch, forward }
                }
                Message::Durable { epoch, chunk, version } => {
                    Input::Durable { token, to, epoch, chunk, version }
                }
                Message::Abort { epoch, chunk, version } => Input::Abort { token, to, epoch, chunk, version },
                Message::Query { chunk } => Input::Query { token, to, chunk },
                Message::Confirm { chain } => Input::Confirm { token, to, chain },
                Message::Sync { epoch, item } => Input::Sync { token, to, from: target, epoch, item },
            });
        });
    }

    fn fetch_page(
        self: &Rc<Self>,
        target: TargetId,
        boot: u64,
        id: SendId,
        to: Address,
        after: Option<ChunkId>,
    ) {
        self.after(600 * MS, move |own| own.input(target, boot, Input::Page { id, page: None }));
        let remote = to.target;
        self.send(Party::Target(target), Party::Target(remote), &[9, target.0], move |own| {
            let Some(peer) = own.node(remote).filter(|n| n.borrow().alive) else { return };
            let fits = |chain: Option<&Chain>| chain.is_some_and(|c| c.version == to.chain_version);
            let (rows, more) = {
                let peer = peer.borrow();
                if peer.generation != to.generation || !fits(peer.replica.as_ref().and_then(Replica::chain)) {
                    return;
                }
                peer.store.page(after, PAGE)
            };
            own.send(Party::Target(remote), Party::Target(target), &[10, target.0], move |own| {
                let Some(node) = own.node(target) else { return };
                let (local, local_more) = node.borrow().store.page(after, PAGE);
                let total = node.borrow().store.len() as u64;
                let page = Page { local, local_more, remote: rows, remote_more: more, total };
                own.input(target, boot, Input::Page { id, page: Some(page) });
            });
        });
    }
}
