//! Replicas, stores and the network in virtual time.

use super::client::{Client, Reply};
use super::mgmtd::{LEASE, Mgmtd};
use super::store::{Done, Store};
use ember_craq::{
    Address, Answer, Identity, Input, Message, Output, Page, Payload, Replica, SendId, Summary, SyncItem,
    Token,
};
use ember_types::layout::SplitMix64;
use ember_types::{
    Chain, ChainId, ChainVersion, ChunkId, ClientId, Generation, Instant, LocalState, Status, TargetId,
    WriterRecord,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// How rough the world is.
#[derive(Clone, Copy)]
pub struct Faults {
    /// Messages lost or late, of 1000.
    pub loss: u64,
    /// Mean time between crashes of a process, in ms; 0: never.
    pub crash_ms: u64,
    /// Mean time between isolations of a node from mgmtd, in ms; 0: never.
    pub isolate_ms: u64,
    /// Mean time between changes of "disk full", in ms; 0: never.
    pub full_ms: u64,
}

enum Event {
    Deliver { node: usize, boot: u64, input: Box<Input>, payload: Vec<u8>, origin: Origin },
    Plain { node: usize, boot: u64, input: Box<Input> },
    Disk { node: usize, boot: u64, operation: Box<Output>, payload: Vec<u8> },
    Serve { node: usize, boot: u64, token: Token, read: Read },
    ToClient { client: usize, attempt: u64, reply: Reply },
    NoteInUse(ChainVersion),
    Chain { node: usize, boot: u64, chain: Box<Chain>, lease: u64 },
    Tick(usize),
    Heartbeat(usize),
    Restart(usize),
    Mgmtd,
    Client(usize),
    Fault,
}

#[derive(Clone, Copy)]
struct Read {
    chunk: ChunkId,
    content: ember_craq::Content,
    to: Address,
}

#[derive(Clone)]
enum Origin {
    Peer { node: usize, boot: u64, id: SendId },
    Client { client: usize, attempt: u64, read: Option<(ChunkId, Address)> },
    Nobody,
}

pub struct Node {
    pub store: Store,
    pub replica: Option<Replica>,
    boot: u64,
    tokens: BTreeMap<Token, (Origin, Vec<u8>)>,
    next_token: Token,
    isolated_until: u64,
}

pub struct World {
    pub random: SplitMix64,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub mgmtd: Mgmtd,
    pub faults: Faults,
    pub counts: BTreeMap<&'static str, u64>,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
}

impl World {
    pub fn new(seed: u64, nodes: usize, clients: usize, operations: usize, faults: Faults) -> Self {
        let mut world = Self {
            random: SplitMix64(seed),
            now: 0,
            nodes: Vec::new(),
            clients: Vec::new(),
            mgmtd: Mgmtd::new(nodes),
            faults,
            counts: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
        };
        for i in 0..nodes {
            let node = Node {
                store: Store::default(),
                replica: None,
                boot: 0,
                tokens: BTreeMap::new(),
                next_token: 1,
                isolated_until: 0,
            };
            world.nodes.push(node);
            world.start(i);
        }
        for i in 0..clients {
            world.clients.push(Client::new(i, operations));
            world.at(20, Event::Client(i));
        }
        world.at(5, Event::Mgmtd);
        world.at(50, Event::Fault);
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
    fn instant(&self) -> Instant {
        Instant::default() + Duration::from_millis(self.now)
    }
    fn at(&mut self, delay: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.random.below(high - low + 1)
    }
    fn chance(&mut self, per_mille: u64) -> bool {
        self.random.below(1000) < per_mille
    }

    fn start(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        node.boot += 1;
        let identity = Identity { chain: ChainId(1), target: TargetId(i as u64), generation: Generation(1) };
        let pending: Vec<ChunkId> =
            node.store.now.iter().filter(|(_, s)| s.state.pending.is_some()).map(|(&c, _)| c).collect();
        let records: Vec<(ChunkId, WriterRecord)> =
            node.store.now.iter().flat_map(|(&c, s)| s.state.writers.iter().map(move |r| (c, *r))).collect();
        node.replica = Some(Replica::new(identity, node.store.version, &node.store, pending, records));
        node.tokens.clear();
        self.at(1, Event::Heartbeat(i));
        self.at(10, Event::Tick(i));
    }

    fn crash(&mut self, i: usize, down: u64) {
        if self.nodes[i].replica.take().is_some() {
            self.count("crashes");
            let keeps_log = self.chance(500);
            self.nodes[i].store.crash(keeps_log);
            self.nodes[i].tokens.clear();
            self.at(down, Event::Restart(i));
        }
    }

    /// Feeds one input to a replica and does what it asks for.
    pub fn feed(&mut self, i: usize, input: Input) {
        let now = self.instant();
        let node = &mut self.nodes[i];
        let mut out = Vec::new();
        if let Some(replica) = &mut node.replica {
            replica.handle(now, &node.store, input, &mut out);
        }
        for output in out {
            self.obey(i, output);
        }
    }

    fn token(&mut self, i: usize, origin: Origin, payload: Vec<u8>) -> Token {
        let node = &mut self.nodes[i];
        node.next_token += 1;
        node.tokens.insert(node.next_token, (origin, payload));
        node.next_token
    }

    fn obey(&mut self, i: usize, output: Output) {
        let boot = self.nodes[i].boot;
        match output {
            Output::StoreVersion(version) => {
                self.nodes[i].store.version = version;
                self.nodes[i].store.flush();
                let delay = self.between(1, 4);
                self.at(
                    delay,
                    Event::Plain { node: i, boot, input: Box::new(Input::VersionStored(version)) },
                );
            }
            Output::Prepare { .. } | Output::Commit { .. } | Output::Drop { .. } | Output::Install { .. } => {
                let payload = match &output {
                    Output::Prepare { payload: Payload::Request(token), .. }
                    | Output::Install { payload: Payload::Request(token), .. } => {
                        self.nodes[i].tokens[token].1.clone()
                    }
                    _ => Vec::new(),
                };
                let delay = self.between(1, 6);
                let built = self.nodes[i].store.builds(&output, &payload).filter(|_| self.chance(800));
                self.at(delay, Event::Disk { node: i, boot, operation: Box::new(output), payload });
                if let Some(built) = built {
                    self.feed(i, built);
                }
            }
            Output::Repair { chunk, .. } => {
                self.at(1, Event::Plain { node: i, boot, input: Box::new(Input::Repaired { chunk }) });
            }
            Output::Send { id, to, message } => self.send(i, id, to, message),
            Output::FetchPage { id, to, after } => self.fetch_page(i, id, to, after),
            Output::SyncTurn { chunk } => {
                let delay = self.between(0, 4);
                self.at(delay, Event::Plain { node: i, boot, input: Box::new(Input::SyncTurn { chunk }) });
            }
            Output::Reply { token, status, version, length } => {
                let chain_version =
                    self.nodes[i].replica.as_ref().map_or(ChainVersion(0), Replica::chain_version);
                let (origin, _) = self.nodes[i].tokens.remove(&token).expect("one answer for each request");
                let answer = Answer::Reply { status, version, chain_version };
                self.answer(origin, answer, Reply { status, bytes: None, length });
            }
            Output::Read { token, content } => {
                let Origin::Client { read: Some((chunk, to)), .. } = self.nodes[i].tokens[&token].0 else {
                    panic!("a read answers a client")
                };
                let delay = self.between(0, 4);
                let read = Read { chunk, content, to };
                self.at(delay, Event::Serve { node: i, boot, token, read });
            }
            Output::NoteInUse(version) => {
                let delay = self.between(1, 20);
                self.at(delay, Event::NoteInUse(version));
            }
            Output::Accuse { .. } => self.count("accusations"),
            Output::Refresh(_) => {}
        }
    }

    fn answer(&mut self, origin: Origin, answer: Answer, reply: Reply) {
        let lost = self.chance(self.faults.loss);
        let delay = self.between(1, 5);
        match origin {
            Origin::Peer { node, boot, id } if !lost => {
                self.at(delay, Event::Plain { node, boot, input: Box::new(Input::Answered { id, answer }) });
            }
            Origin::Client { client, attempt, .. } if !lost => {
                self.at(delay, Event::ToClient { client, attempt, reply });
            }
            _ => {}
        }
    }

    /// Serves the bytes of a read: they may have gone since it was decided.
    fn serve(&mut self, i: usize, token: Token, read: Read) {
        let bytes = match read.content.is_absent() {
            true => Some(None),
            false => self.nodes[i].store.read(read.chunk, read.content.version).map(Some),
        };
        let Some(bytes) = bytes else {
            let input = Input::Read { token, to: read.to, chunk: read.chunk, relaxed: false };
            return self.feed(i, input);
        };
        let now = self.instant();
        let may = self.nodes[i].replica.as_ref().is_some_and(|r| r.may_answer(now));
        let Some((origin, _)) = self.nodes[i].tokens.remove(&token) else { return };
        let status = if may { Status::Ok } else { Status::NoLease };
        let reply = Reply { status, bytes: Some(bytes), length: 0 };
        self.answer(origin, Answer::Lost, reply);
    }

    fn send(&mut self, i: usize, id: SendId, to: Address, message: Message) {
        let boot = self.nodes[i].boot;
        let token = 0;
        let from = TargetId(i as u64);
        let mut bytes = Vec::new();
        let input = match message {
            Message::Forward { epoch, forward, payload } => {
                bytes = match payload {
                    Payload::Empty => Vec::new(),
                    Payload::Request(token) => self.nodes[i].tokens[&token].1.clone(),
                    Payload::Stored(version) => {
                        self.nodes[i].store.read(forward.chunk, version).expect("a version that is held")
                    }
                };
                Input::Forward { token, to, from, epoch, forward }
            }
            Message::Durable { epoch, chunk, version } => Input::Durable { token, to, epoch, chunk, version },
            Message::Abort { epoch, chunk, version } => Input::Abort { token, to, epoch, chunk, version },
            Message::Query { chunk } => Input::Query { token, to, chunk },
            Message::Confirm { chain } => Input::Confirm { token, to, chain },
            Message::Sync { epoch, item } => {
                if let SyncItem::Chunk { chunk, content, .. } = &item
                    && !content.is_absent()
                {
                    bytes = self.nodes[i].store.read(*chunk, content.version).expect("the committed version");
                }
                Input::Sync { token, to, from, epoch, item }
            }
        };
        let target = to.target.0 as usize;
        let origin = Origin::Peer { node: i, boot, id };
        let lost =
            Event::Plain { node: i, boot, input: Box::new(Input::Answered { id, answer: Answer::Lost }) };
        let patience = self.between(60, 400);
        self.at(patience, lost);
        let delay = self.network_delay();
        let Some(delay) = delay else { return };
        let there = self.nodes[target].boot;
        let deliver =
            Event::Deliver { node: target, boot: there, input: Box::new(input), payload: bytes, origin };
        self.at(delay, deliver);
    }

    /// `None`: the message is lost. Sometimes it is very late.
    fn network_delay(&mut self) -> Option<u64> {
        if self.chance(self.faults.loss) {
            self.count("lost or late");
            return if self.chance(500) { None } else { Some(self.between(50, 900)) };
        }
        Some(self.between(1, 5))
    }

    fn page_of(store: &Store, after: Option<ChunkId>) -> (Vec<Summary>, bool) {
        const PAGE: usize = 2;
        let behind = store.now.iter().filter(|(chunk, _)| after.is_none_or(|after| **chunk > after));
        let mut all: Vec<Summary> = behind
            .map(|(&chunk, s)| Summary {
                chunk,
                content: s.state.committed,
                pending: s.state.pending.is_some(),
                lost: false,
            })
            .collect();
        let more = all.len() > PAGE;
        all.truncate(PAGE);
        (all, more)
    }

    fn fetch_page(&mut self, i: usize, id: SendId, to: Address, after: Option<ChunkId>) {
        let target = to.target.0 as usize;
        let (local, local_more) = Self::page_of(&self.nodes[i].store, after);
        let there =
            self.nodes[target].replica.as_ref().is_some_and(|r| r.chain_version() == to.chain_version);
        let page = there.then(|| {
            let (remote, remote_more) = Self::page_of(&self.nodes[target].store, after);
            let total = self.nodes[i].store.now.len() as u64;
            Page { local, local_more, remote, remote_more, total }
        });
        let delay = self.between(1, 60);
        let boot = self.nodes[i].boot;
        self.at(delay, Event::Plain { node: i, boot, input: Box::new(Input::Page { id, page }) });
    }

    fn disk(&mut self, i: usize, operation: &Output, payload: &[u8]) {
        let done = self.nodes[i].store.run(operation, payload);
        let input = match (operation, done) {
            (Output::Prepare { chunk, .. } | Output::Install { chunk, .. }, Done::Failed(failure)) => {
                self.count("disk refusals");
                Input::Failed { chunk: *chunk, failure }
            }
            (Output::Prepare { chunk, version, .. }, Done::Prepared(length, checksum)) => {
                Input::Prepared { chunk: *chunk, version: *version, length, checksum }
            }
            (Output::Commit { chunk, version }, _) => Input::Committed { chunk: *chunk, version: *version },
            (Output::Drop { chunk, version }, _) => {
                self.count("drops");
                Input::Dropped { chunk: *chunk, version: *version }
            }
            (Output::Install { chunk, .. }, _) => {
                self.count("installs");
                Input::Installed { chunk: *chunk }
            }
            _ => return,
        };
        self.feed(i, input);
    }

    fn heartbeat(&mut self, i: usize) {
        self.at(30, Event::Heartbeat(i));
        if self.now < self.nodes[i].isolated_until {
            return;
        }
        let node = &self.nodes[i];
        let (Some(replica), boot) = (&node.replica, node.boot) else { return };
        let own = &mut self.mgmtd.nodes[i];
        own.boot = boot;
        if replica.role() == ember_craq::Role::Syncing && replica.local_state() == LocalState::UpToDate {
            own.synced = replica.chain_version();
        }
        if own.boot == own.boot_seen {
            own.lease = self.now + LEASE;
            let chain = Box::new(self.mgmtd.chain.clone());
            let (delay, lease) = (self.between(2, 15), self.now + LEASE);
            self.at(delay, Event::Chain { node: i, boot, chain, lease });
        }
    }

    fn fault(&mut self) {
        self.at(10, Event::Fault);
        let f = self.faults;
        for i in 0..self.nodes.len() {
            if f.crash_ms > 0 && self.random.below(f.crash_ms) < 10 {
                let down = self.between(20, 1500);
                self.crash(i, down);
            }
            if f.isolate_ms > 0 && self.random.below(f.isolate_ms) < 10 {
                self.count("isolations");
                self.nodes[i].isolated_until = self.now + self.between(200, 1500);
            }
            if f.full_ms > 0 && self.random.below(f.full_ms) < 10 {
                self.nodes[i].store.full = !self.nodes[i].store.full;
            }
        }
        if f.crash_ms > 0 && self.random.below(f.crash_ms) < 3 {
            // Power fails everywhere.
            for i in 0..self.nodes.len() {
                let down = self.between(20, 300);
                self.crash(i, down);
            }
        }
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.faults = Faults { loss: 0, crash_ms: 0, isolate_ms: 0, full_ms: 0 };
        for node in &mut self.nodes {
            (node.isolated_until, node.store.full) = (0, false);
        }
    }

    /// Runs until `until` (virtual ms) or until `done`.
    pub fn run(&mut self, until: u64, done: impl Fn(&Self) -> bool) {
        while self.now < until && !done(self) {
            let Some(((at, _), event)) = self.events.pop_first() else { return };
            self.now = at;
            self.happen(event);
        }
    }

    fn alive(&self, i: usize, boot: u64) -> bool {
        self.nodes[i].boot == boot && self.nodes[i].replica.is_some()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { node, boot, mut input, payload, origin } if self.alive(node, boot) => {
                let fresh = self.token(node, origin, payload);
                match &mut *input {
                    Input::Update { token, .. }
                    | Input::Read { token, .. }
                    | Input::Query { token, .. }
                    | Input::Confirm { token, .. }
                    | Input::Forward { token, .. }
                    | Input::Durable { token, .. }
                    | Input::Abort { token, .. }
                    | Input::Sync { token, .. } => *token = fresh,
                    other => panic!("no request: {other:?}"),
                }
                self.feed(node, *input);
            }
            Event::Plain { node, boot, input } if self.alive(node, boot) => self.feed(node, *input),
            Event::Disk { node, boot, operation, payload } if self.alive(node, boot) => {
                self.disk(node, &operation, &payload);
            }
            Event::Serve { node, boot, token, read } if self.alive(node, boot) => {
                self.serve(node, token, read)
            }
            Event::ToClient { client, attempt, reply } => {
                let now = self.now;
                if self.clients[client].answered(now, attempt, reply) {
                    self.at(1, Event::Client(client));
                }
            }
            Event::NoteInUse(version) => self.mgmtd.note_in_use(version),
            Event::Chain { node, boot, chain, lease } if self.alive(node, boot) => {
                self.feed(node, Input::Chain(*chain));
                // The chain comes before the lease that covers it (R1).
                let until = Instant::default() + Duration::from_millis(lease);
                self.feed(node, Input::Lease { until });
            }
            Event::Tick(i) if self.nodes[i].replica.is_some() => {
                self.at(10, Event::Tick(i));
                self.feed(i, Input::Tick);
            }
            Event::Heartbeat(i) if self.nodes[i].replica.is_some() => self.heartbeat(i),
            Event::Restart(i) if self.nodes[i].replica.is_none() => self.start(i),
            Event::Mgmtd => {
                self.at(10, Event::Mgmtd);
                if self.mgmtd.round(self.now) {
                    self.count("chain changes");
                }
            }
            Event::Client(i) => self.client(i),
            Event::Fault => self.fault(),
            _ => {}
        }
    }

    fn client(&mut self, i: usize) {
        let chain = self.mgmtd.chain.clone();
        let (now, expires) = (self.now, self.instant() + Duration::from_secs(60));
        let Some(request) = self.clients[i].next(now, &chain, &mut self.random, expires) else { return };
        // A try that isn't answered is repeated.
        self.at(request.patience, Event::Client(i));
        let Some(delay) = self.network_delay() else { return };
        let read = match &request.input {
            Input::Read { chunk, to, .. } => Some((*chunk, *to)),
            _ => None,
        };
        let origin = Origin::Client { client: i, attempt: request.attempt, read };
        let node = request.node;
        let boot = self.nodes[node].boot;
        let input = Box::new(request.input);
        self.at(delay, Event::Deliver { node, boot, input, payload: request.payload, origin });
    }

    /// Gives a replica a request whose answer nobody hears.
    pub fn inject(&mut self, i: usize, make: impl FnOnce(Token) -> Input, payload: Vec<u8>) {
        let token = self.token(i, Origin::Nobody, payload);
        self.feed(i, make(token));
    }

    pub fn client_id(i: usize) -> ClientId {
        ClientId::from_u128(i as u128 + 1)
    }
}
