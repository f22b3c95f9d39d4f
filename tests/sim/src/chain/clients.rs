//! Clients of the chain: each sends one operation after the other, again under the same tag until it is
//! answered or given up.

use super::node::{ClientAnswer, Waiter};
use super::{FAULTY_MS, MS, Party, Sim};
use crate::check::chunk::{CELL, ChunkOp, fill};
use crate::cluster::history::OpenChunkOp;
use crate::trace::digest;
use ember_craq::{Address, Change, Input};
use ember_types::{
    Chain, ChannelId, ChunkId, ClientId, DataId, Instant, Sequence, Status, TargetId, WriterTag,
};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Number of clients.
const CLIENTS: u64 = 5;
/// Number of chunks.
const CHUNKS: u64 = 5;
/// Cells that operations touch in each chunk.
const CELLS: u64 = 8;
const CHUNK_SIZE: u32 = 64 << 10;
/// How long an attempt waits for its answer, in milliseconds.
const ATTEMPT_MS: (u64, u64) = (150, 900);
/// Attempts before an operation is given up.
const ATTEMPTS_MAX: u32 = 14;

#[derive(Clone)]
enum Work {
    Change { change: Change, payload: Vec<u8>, tag: WriterTag, open: OpenChunkOp },
    Read { first: u32, cells: u32, begin: u64 },
}

#[derive(Clone)]
struct Op {
    client: u64,
    chunk: ChunkId,
    work: Work,
    attempts: u32,
    /// Which attempt is the present one: a timer of an earlier one does nothing.
    round: u32,
}

/// All clients.
#[derive(Default)]
pub(super) struct Clients {
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    /// Each client's run, channel and sequence.
    channels: BTreeMap<u64, (u64, u32, u64)>,
}

impl Clients {
    pub(super) fn chunk_of(&self, op: u64) -> Option<ChunkId> {
        self.ops.get(&op).map(|op| op.chunk)
    }
}

impl Sim {
    pub(super) fn start_clients(self: &Rc<Self>) {
        for client in 1..=CLIENTS {
            self.clients.borrow_mut().channels.insert(client, (client, 1, 0));
            self.after(self.draw(1, 100) * MS, move |own| own.next_op(client));
        }
    }

    fn tag(&self, client: u64) -> WriterTag {
        let mut clients = self.clients.borrow_mut();
        let entry = clients.channels.entry(client).or_insert((client, 1, 0));
        entry.2 += 1;
        WriterTag {
            client: ClientId::from_u128(u128::from(entry.0)),
            channel: ChannelId(entry.1),
            sequence: Sequence(entry.2),
        }
    }

    fn next_op(self: &Rc<Self>, client: u64) {
        // Operations go on a little after the faults have ended.
        if self.now() > (FAULTY_MS + 3_000) * MS {
            return;
        }
        let chunk = ChunkId::new(DataId(7), self.draw(0, CHUNKS - 1) as u32);
        let place = (1, chunk.index);
        self.history.asked();
        let work = match self.draw(0, 99) {
            0..45 => {
                let first = self.draw(0, CELLS - 1) as u32;
                let cells = self.draw(1, CELLS - u64::from(first)) as u32;
                Work::Read { first, cells, begin: self.now() }
            }
            45..85 => {
                let first = self.draw(0, CELLS - 1) as u32;
                let cells = self.draw(1, CELLS - u64::from(first)) as u32;
                let stamp = self.history.stamp();
                let payload = fill(stamp, first, cells);
                let change = Change::Write { offset: first * CELL as u32, length: payload.len() as u32 };
                let open = self.history.begin_chunk(place, ChunkOp::Write { stamp, first, cells });
                Work::Change { change, payload, tag: self.tag(client), open }
            }
            other => {
                let cells = self.draw(0, CELLS) as u32;
                let length = cells * CELL as u32;
                let (change, op) = match other {
                    85..90 => (Change::Remove, ChunkOp::Remove),
                    90..95 => (Change::Truncate { length }, ChunkOp::Cut { cells }),
                    _ => (Change::Cut { length }, ChunkOp::Cut { cells }),
                };
                let open = self.history.begin_chunk(place, op);
                Work::Change { change, payload: Vec::new(), tag: self.tag(client), open }
            }
        };
        let id = {
            let mut clients = self.clients.borrow_mut();
            clients.next_op += 1;
            let id = clients.next_op;
            clients.ops.insert(id, Op { client, chunk, work, attempts: 0, round: 0 });
            id
        };
        self.attempt(id);
    }

    /// The chain as this client knows it: now and then an older version.
    fn routing(&self) -> Chain {
        let back = if self.chance(5) { self.draw(1, 4) as usize } else { 0 };
        self.control.borrow().past(back).clone()
    }

    fn attempt(self: &Rc<Self>, id: u64) {
        let Some((op, round)) = ({
            let mut clients = self.clients.borrow_mut();
            clients.ops.get_mut(&id).map(|op| {
                op.attempts += 1;
                op.round += 1;
                (op.clone(), op.round)
            })
        }) else {
            return;
        };
        if op.attempts > ATTEMPTS_MAX {
            return self.give_up(id);
        }
        let patience = self.draw(ATTEMPT_MS.0, ATTEMPT_MS.1) * MS;
        self.after(patience, move |own| {
            let current = own.clients.borrow().ops.get(&id).is_some_and(|op| op.round == round);
            if current {
                own.attempt(id);
            }
        });
        let chain = self.routing();
        let serving: Vec<TargetId> = chain.serving().map(|t| t.target).collect();
        let target = match &op.work {
            Work::Change { .. } => serving.first().copied(),
            Work::Read { .. } => serving.get(self.draw(0, serving.len().max(1) as u64 - 1) as usize).copied(),
        };
        let Some(target) = target else { return };
        let generation = chain.member(target).map(|m| m.generation).unwrap_or_default();
        let to = Address { chain: chain.id, chain_version: chain.version, target, generation };
        let expires = Instant(u64::MAX / 2);
        let chunk = op.chunk;
        self.send(Party::Clients, Party::Target(target), &[11, id, target.0], move |own| {
            let waiter = Waiter::Client { op: id, round };
            match op.work {
                Work::Change { change, payload, tag, .. } => {
                    own.request(target, waiter, payload, |token| Input::Update {
                        token,
                        to,
                        chunk,
                        change,
                        chunk_size: CHUNK_SIZE,
                        tag,
                        expires,
                    });
                }
                Work::Read { .. } => {
                    own.request(target, waiter, Vec::new(), |token| Input::Read {
                        token,
                        to,
                        chunk,
                        relaxed: false,
                    });
                }
            }
        });
    }

    fn give_up(self: &Rc<Self>, id: u64) {
        let removed = self.clients.borrow_mut().ops.remove(&id);
        if let Some(op) = removed {
            self.retire(op.client);
        }
    }

    /// A channel whose request may still be on its way is never used again.
    fn retire(self: &Rc<Self>, client: u64) {
        if let Some(entry) = self.clients.borrow_mut().channels.get_mut(&client) {
            (entry.1, entry.2) = (entry.1 + 1, 0);
        }
        self.think(client);
    }

    fn think(self: &Rc<Self>, client: u64) {
        let longest = if self.healed.get() { 40 } else { 120 };
        self.after(self.draw(1, longest) * MS, move |own| own.next_op(client));
    }

    pub(super) fn client_answer(self: &Rc<Self>, id: u64, round: u32, answer: ClientAnswer) {
        let Some(op) = self.clients.borrow().ops.get(&id).cloned() else { return };
        // An answer that comes after its attempt was given up is dropped, as a connection does.
        if op.round != round {
            return;
        }
        self.history.answered(&[id, u64::from(answer.status.code()), digest(&answer.bytes)]);
        if answer.status.is_retryable() {
            let pause = self.draw(2, 40) * MS;
            let round = op.round;
            self.after(pause, move |own| {
                let current = own.clients.borrow().ops.get(&id).is_some_and(|op| op.round == round);
                if current {
                    own.attempt(id);
                }
            });
            return;
        }
        self.clients.borrow_mut().ops.remove(&id);
        let place = (1, op.chunk.index);
        match (op.work, answer.status) {
            (Work::Change { open, .. }, Status::Ok) => self.history.end_chunk(open),
            // Refused for good: it was not done and never will be (R13), unless an earlier attempt is under way.
            (Work::Change { open, .. }, Status::NoSpace) if op.attempts == 1 => {
                self.history.refused_chunk(open);
            }
            (Work::Change { .. }, Status::NoSpace) => return self.retire(op.client),
            (Work::Read { first, cells, begin }, Status::Ok) => {
                let range = first as usize * CELL..(first + cells) as usize * CELL;
                let mut bytes = answer.bytes;
                bytes.resize(bytes.len().max(range.end), 0);
                self.history.read_chunk(place, begin, first, &bytes[range]);
            }
            (Work::Change { .. }, status) => {
                self.fail("updates end well or with no space", &format!("{}: {status}", op.chunk));
            }
            (Work::Read { .. }, status) => {
                self.fail("reads end well", &format!("{}: {status}", op.chunk));
            }
        }
        self.think(op.client);
    }
}
