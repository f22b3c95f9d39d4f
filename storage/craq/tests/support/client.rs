//! Clients: one operation at a time each, repeated under one tag until it is answered.

use super::linear::{Action, Operation};
use super::world::World;
use ember_craq::{Address, Change, Input};
use ember_types::layout::SplitMix64;
use ember_types::{Chain, ChannelId, ChunkId, DataId, Instant, Sequence, Status, WriterTag};
use std::collections::BTreeMap;

pub const CHUNK_SIZE: u32 = 8;
pub const CHUNKS: u64 = 5;

#[derive(Clone)]
pub struct Reply {
    pub status: Status,
    pub bytes: Option<Option<Vec<u8>>>,
    pub length: u32,
}

pub struct Request {
    pub node: usize,
    pub input: Input,
    pub payload: Vec<u8>,
    pub attempt: u64,
    pub patience: u64,
}

struct Open {
    tries: u32,
    chunk: ChunkId,
    change: Option<Change>,
    payload: Vec<u8>,
    begun: u64,
    wait_until: u64,
}

pub struct Client {
    id: usize,
    pub left: usize,
    sequence: u64,
    attempt: u64,
    open: Option<Open>,
    chain: Option<Chain>,
    pub history: BTreeMap<ChunkId, Vec<Operation>>,
    pub refused: u64,
}

impl Client {
    pub fn new(id: usize, operations: usize) -> Self {
        Self {
            id,
            left: operations,
            sequence: 0,
            attempt: 0,
            open: None,
            chain: None,
            history: BTreeMap::new(),
            refused: 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 && self.open.is_none()
    }

    /// The next try of the open operation, or of a new one.
    pub fn next(
        &mut self,
        now: u64,
        chain: &Chain,
        random: &mut SplitMix64,
        expires: Instant,
    ) -> Option<Request> {
        if self.open.is_none() {
            if self.left == 0 {
                return None;
            }
            self.left -= 1;
            self.open = Some(self.draw(now, random));
            self.sequence += 1;
        }
        // Routing is refreshed now and then only.
        if self.chain.is_none() || random.below(3) == 0 {
            self.chain = Some(chain.clone());
        }
        let open = self.open.as_mut()?;
        if now < open.wait_until {
            return None;
        }
        open.tries += 1;
        let patience = 100 + random.below(300);
        open.wait_until = now + patience;
        self.attempt += 1;
        let chain = self.chain.as_ref()?;
        let serving: Vec<_> = chain.serving().copied().collect();
        let index =
            if open.change.is_some() { 0 } else { random.below(serving.len().max(1) as u64) as usize };
        // A reader with odd routing may ask anybody.
        let member = match serving.get(index) {
            Some(member) if open.change.is_some() || random.below(20) > 0 => *member,
            _ => *chain.targets.get(random.below(chain.targets.len() as u64) as usize)?,
        };
        let to = Address {
            chain: chain.id,
            chain_version: chain.version,
            target: member.target,
            generation: member.generation,
        };
        let tag = WriterTag {
            client: World::client_id(self.id),
            channel: ChannelId(1),
            sequence: Sequence(self.sequence),
        };
        let (token, chunk) = (0, open.chunk);
        let input = match open.change {
            Some(change) => Input::Update { token, to, chunk, change, chunk_size: CHUNK_SIZE, tag, expires },
            None => Input::Read { token, to, chunk, relaxed: false },
        };
        let (node, payload) = (member.target.0 as usize, open.payload.clone());
        Some(Request { node, input, payload, attempt: self.attempt, patience })
    }

    fn draw(&mut self, now: u64, random: &mut SplitMix64) -> Open {
        let chunk = ChunkId::new(DataId(1), random.below(CHUNKS) as u32);
        let mut payload = Vec::new();
        let change = match random.below(20) {
            0..10 => None,
            10..16 => {
                let offset = random.below(u64::from(CHUNK_SIZE)) as u32;
                let length = 1 + random.below(u64::from(CHUNK_SIZE - offset)) as u32;
                payload = (0..length).map(|_| 1 + random.below(255) as u8).collect();
                Some(Change::Write { offset, length })
            }
            16 => Some(Change::Truncate { length: random.below(9) as u32 }),
            17 => Some(Change::Cut { length: random.below(9) as u32 }),
            _ => Some(Change::Remove),
        };
        Open { tries: 0, chunk, change, payload, begun: now, wait_until: 0 }
    }

    /// `true` if the client goes on at once.
    pub fn answered(&mut self, now: u64, attempt: u64, reply: Reply) -> bool {
        if attempt != self.attempt || self.open.is_none() {
            return false;
        }
        if reply.status.is_retryable() {
            return false;
        }
        let Some(open) = self.open.take() else { return false };
        let refused = reply.status == Status::NoSpace;
        if refused {
            self.refused += 1;
            if open.tries == 1 {
                return true;
            }
        }
        // A copy of a refused request may have reached a head that had been cut off, and be done later.
        let (status, ended) = if refused { (Status::Ok, u64::MAX) } else { (reply.status, now) };
        let action = match (open.change, status, reply.bytes) {
            (None, Status::Ok, Some(bytes)) => Action::Read(bytes),
            (Some(Change::Write { offset, .. }), Status::Ok, _) => {
                Action::Write { offset: offset as usize, bytes: open.payload }
            }
            (Some(Change::Truncate { length }), Status::Ok, _) => Action::Truncate(length as usize),
            (Some(Change::Cut { length }), Status::Ok, _) => Action::Cut(length as usize),
            (Some(Change::Remove), Status::Ok, _) => Action::Remove,
            (change, status, _) => panic!("client {}: {change:?} ended with {status}", self.id),
        };
        let history = self.history.entry(open.chunk).or_default();
        history.push(Operation { begun: open.begun, ended, action });
        true
    }
}
