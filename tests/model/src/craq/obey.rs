//! What replicas ask for: messages, the store, answers.

use super::store::chunk_id;
use super::world::{Origin, Request, World, address, now, origin, peer_token};
use super::{Bounds, CHUNKS, NODES};
use ember_craq::{Address, Answer, Content, Input, Message, Output, Page, Payload, SendId, SyncItem, Token};
use ember_types::{Instant, Status, TargetId};
use std::sync::Arc;

fn token_of(input: &Input) -> Option<(Token, &Address)> {
    match input {
        Input::Update { token, to, .. }
        | Input::Read { token, to, .. }
        | Input::Query { token, to, .. }
        | Input::Confirm { token, to, .. }
        | Input::Forward { token, to, .. }
        | Input::Durable { token, to, .. }
        | Input::Abort { token, to, .. }
        | Input::Sync { token, to, .. } => Some((*token, to)),
        _ => None,
    }
}

impl World {
    /// Gives a replica an input, whose bytes came with it, and does what it asks for.
    pub(super) fn feed(&mut self, i: usize, at: Instant, input: Input, bytes: u32, bounds: &Bounds) {
        let node = Arc::make_mut(&mut self.nodes[i]);
        if let Some((token, _)) = token_of(&input) {
            node.owes.insert(token);
        }
        let version = node.replica.chain_version();
        let mut out = Vec::new();
        node.replica.handle(at, &node.store, input, &mut out);
        if node.replica.chain_version() != version {
            // Under a new chain nothing of before is waited for.
            node.waits.clear();
            self.answers.retain(|&token, _| !matches!(origin(token), Origin::Peer { node, .. } if node == i));
        }
        let turn =
            |output: &Output| if let Output::SyncTurn { chunk } = output { Some(*chunk) } else { None };
        let turns: Vec<_> = out.iter().filter_map(turn).collect();
        let builds: Vec<_> = match bounds.late_store || bounds.late_prepares {
            true => out.iter().filter_map(|output| node.store.builds(output, bytes)).collect(),
            false => Vec::new(),
        };
        out.into_iter().for_each(|output| self.obey(i, output, bytes));
        for built in builds {
            self.feed(i, at, built, bytes, bounds);
        }
        turns.into_iter().for_each(|chunk| self.feed(i, at, Input::SyncTurn { chunk }, 0, bounds));
        let late = |(operation, _): &(Output, u32)| {
            bounds.late_store || (bounds.late_prepares && matches!(operation, Output::Prepare { .. }))
        };
        while let Some(k) = self.nodes[i].disk.iter().position(|waiting| !late(waiting)) {
            let (operation, bytes) = Arc::make_mut(&mut self.nodes[i]).disk.remove(k);
            self.store(i, &operation, bytes, bounds);
        }
    }

    /// The store does what it was asked for.
    pub(super) fn store(&mut self, i: usize, operation: &Output, bytes: u32, bounds: &Bounds) {
        let node = Arc::make_mut(&mut self.nodes[i]);
        let done = match operation {
            Output::StoreVersion(version) => {
                node.store.serve(*version);
                Ok(Input::VersionStored(*version))
            }
            other => node.store.run(other, bytes),
        };
        match done {
            Ok(input) => self.feed(i, now(), input, 0, bounds),
            Err(what) => self.fail(format!("store of target {i}: {what}")),
        }
    }

    fn obey(&mut self, i: usize, output: Output, bytes: u32) {
        let node = Arc::make_mut(&mut self.nodes[i]);
        match output {
            Output::StoreVersion(_)
            | Output::Prepare { .. }
            | Output::Commit { .. }
            | Output::Drop { .. }
            | Output::Install { .. } => node.disk.push((output, bytes)),
            Output::Repair { .. } => self.fail("a repair, and no bytes are bad"),
            Output::Send { id, to, message } => self.send(i, id, to, message),
            Output::FetchPage { id, to, .. } => self.fetch_page(i, id, to),
            // It comes at once.
            Output::SyncTurn { .. } => {}
            Output::Reply { token, status, version, .. } => {
                let chain_version = node.replica.chain_version();
                if !node.owes.remove(&token) {
                    return self.fail(format!("target {i} answers {token:x} twice"));
                }
                match origin(token) {
                    Origin::Client(client) if status == Status::Ok => {
                        self.writers[client].acknowledged = true;
                        self.seen[self.writers[client].chunk] |= 1 << client;
                    }
                    Origin::Client(_) => {}
                    Origin::Reader => self.reading = None,
                    Origin::Peer { .. } => {
                        let answer = Answer::Reply { status, version, chain_version };
                        self.answer(token, answer);
                    }
                }
            }
            Output::Read { token, content } => {
                if !node.owes.remove(&token) {
                    return self.fail(format!("target {i} answers {token:x} twice"));
                }
                if node.replica.may_answer(now()) {
                    self.has_read(i, content);
                }
                self.reading = None;
            }
            Output::NoteInUse(version) => node.note = Some(version),
            Output::Accuse { .. } | Output::Refresh(_) => {}
        }
    }

    /// The read that asked the tail ends.
    fn has_read(&mut self, i: usize, content: Content) {
        let Some(reading) = self.reading else { return };
        let here = self.nodes[i].store.bytes(chunk_id(reading.chunk), content.version);
        if here != Some(content.checksum) {
            self.fail(format!("target {i} answers {content:?}, which it does not hold"));
        } else if content.checksum & reading.floor != reading.floor {
            self.fail(format!("target {i} answers {content:?} after {:b} was seen", reading.floor));
        }
        self.seen[reading.chunk] |= content.checksum;
        self.read_through_tail = true;
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        let Origin::Peer { node, boot, id } = origin(token) else { return };
        if self.nodes[node].boot == boot && self.nodes[node].waits.contains(&id) {
            self.answers.insert(token, Arc::new(Input::Answered { id, answer }));
        }
    }

    /// An answer, or the loss of the connection, reaches the replica that waits for it.
    pub(super) fn answered(&mut self, token: Token, input: Input, bounds: &Bounds) {
        let Origin::Peer { node: i, boot, id } = origin(token) else { return };
        if self.nodes[i].boot == boot && Arc::make_mut(&mut self.nodes[i]).waits.remove(&id) {
            self.feed(i, now(), input, 0, bounds);
        }
    }

    fn send(&mut self, i: usize, id: SendId, to: Address, message: Message) {
        let node = Arc::make_mut(&mut self.nodes[i]);
        let (token, from) = (peer_token(i, node.boot, id), TargetId(i as u64));
        let (mut needed, mut given) = (None, None);
        let input = match message {
            Message::Forward { epoch, forward, payload } => {
                match payload {
                    Payload::Empty => {}
                    // A set of writes: with those that the request brought, it is what becomes of the chunk.
                    Payload::Request(_) => given = Some(forward.result.checksum),
                    Payload::Stored(version) => needed = Some((forward.chunk, version)),
                }
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
                    needed = Some((*chunk, content.version));
                }
                Input::Sync { token, to, from, epoch, item }
            }
        };
        node.waits.insert(id);
        let bytes = match needed.map(|(chunk, version)| node.store.bytes(chunk, version)) {
            Some(None) => return self.fail(format!("target {i} sends what it does not hold: {input:?}")),
            Some(Some(bytes)) => bytes,
            None => given.unwrap_or_default(),
        };
        let request = Request::new(to.target.0 as usize, input, bytes);
        self.requests.insert(token, Arc::new(request));
    }

    /// Both listings are taken now, and may be old when they arrive.
    fn fetch_page(&mut self, i: usize, id: SendId, to: Address) {
        let target = &self.nodes[to.target.0 as usize];
        let there = target.replica.chain_version() == to.chain_version;
        let local = self.nodes[i].store.page();
        let page = there.then(|| Page {
            total: local.len() as u64,
            local,
            local_more: false,
            remote: target.store.page(),
            remote_more: false,
        });
        let node = Arc::make_mut(&mut self.nodes[i]);
        node.waits.insert(id);
        let token = peer_token(i, node.boot, id);
        self.answers.insert(token, Arc::new(Input::Page { id, page }));
    }

    /// Forgets requests that change nothing wherever they arrive: under an old chain version, and nobody waits
    /// for the answer. States that differ in them alone are the same.
    pub(super) fn forget(&mut self) {
        let nodes = &self.nodes;
        self.requests.retain(|&token, request| {
            let stale = token_of(&request.input)
                .is_some_and(|(_, to)| to.chain_version < nodes[request.node].replica.chain_version());
            let waits = match origin(token) {
                Origin::Peer { node, boot, id } => {
                    nodes[node].boot == boot && nodes[node].waits.contains(&id)
                }
                Origin::Client(_) | Origin::Reader => false,
            };
            waits || !stale
        });
    }

    /// What must hold in every state.
    pub(super) fn check(&mut self) {
        for chunk in 0..CHUNKS {
            if let Err(what) = self.check_versions(chunk).and_then(|()| self.check_holders(chunk)) {
                return self.fail(what);
            }
        }
        if let Err(what) = self.check_reads() {
            self.fail(what);
        }
    }

    /// A version contains the writes of all before it, and each write once; a version has one content.
    fn check_versions(&self, chunk: usize) -> Result<(), String> {
        let mut known: [Option<Content>; 2 * NODES] = [None; 2 * NODES];
        for (i, node) in self.nodes.iter().enumerate() {
            let state = node.store.state(chunk);
            let pending = state.pending.map(|p| p.content);
            known[2 * i] = Some(state.committed);
            known[2 * i + 1] = pending;
            if pending.is_some_and(|p| p.checksum & state.committed.checksum != state.committed.checksum) {
                return Err(format!("target {i}: pending without what is committed: {state:?}"));
            }
        }
        for (at, content) in known.iter().flatten().enumerate() {
            if content.version.number != u64::from(content.checksum.count_ones()) {
                return Err(format!("chunk {chunk}: not each write once: {content:?}"));
            }
            let same = |c: &&Content| c.version == content.version && **c != *content;
            if let Some(other) = known.iter().flatten().skip(at + 1).find(same) {
                return Err(format!("chunk {chunk}: one version, two contents: {content:?}, {other:?}"));
            }
        }
        Ok(())
    }

    /// Whoever may be the one to go on from holds everything that was acknowledged or read.
    fn check_holders(&self, chunk: usize) -> Result<(), String> {
        for member in &self.control.chain().in_use_members {
            let state = self.nodes[member.target.0 as usize].store.state(chunk);
            let held = state.pending.map_or(0, |p| p.content.checksum) | state.committed.checksum;
            if self.seen[chunk] & !held != 0 {
                let seen = self.seen[chunk];
                return Err(format!("chunk {chunk}: {} lacks {seen:b} and counts as whole", member.target));
            }
        }
        Ok(())
    }

    /// Everybody reads everywhere all the time: whoever answers has all that was acknowledged or read before.
    fn check_reads(&mut self) -> Result<(), String> {
        for chunk in 0..CHUNKS {
            let told = self.derived.iter().filter_map(|derived| derived.tells[chunk]);
            let all = told.clone().fold(self.seen[chunk], |all, content| all | content.checksum);
            if let Some(content) = told.into_iter().find(|content| all & !content.checksum != 0) {
                return Err(format!("chunk {chunk}: a read answers {content:?} after {all:b} was seen"));
            }
            self.seen[chunk] = all;
        }
        Ok(())
    }

    /// What reads of a replica answer at once. Such a read changes nothing, so that it needs no state of its own.
    pub(super) fn tells(&self, i: usize) -> [Option<Content>; CHUNKS] {
        let mut tells = [None; CHUNKS];
        let replica = &self.nodes[i].replica;
        let Some(chain) = replica.chain() else { return tells };
        let to = address(chain, TargetId(i as u64));
        let mut reader = replica.clone();
        for (chunk, told) in tells.iter_mut().enumerate() {
            let mut out = Vec::new();
            let input = Input::Read { token: 0, to, chunk: chunk_id(chunk), relaxed: false };
            reader.handle(now(), &self.nodes[i].store, input, &mut out);
            if let Some(Output::Read { content, .. }) = out.first() {
                *told = Some(*content);
            }
        }
        tells
    }
}
