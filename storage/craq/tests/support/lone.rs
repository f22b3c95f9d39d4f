//! One replica and its store, driven by hand.

use super::store::{Done, Store};
use ember_craq::{
    Address, Answer, Change, Content, Forward, Identity, Input, Message, Output, Payload, Replica, SendId,
    Token,
};
use ember_types::checksum::crc32c;
use ember_types::{
    Chain, ChainId, ChainTarget, ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DataId,
    Generation, Instant, PublicState, Sequence, Status, TargetId, WriterTag,
};
use std::time::Duration;

pub const CHUNK: ChunkId = ChunkId::new(DataId(1), 0);
pub const LATER: Instant = Instant(u64::MAX);

/// A replica whose store answers at once, unless it is held.
pub struct Lone {
    pub replica: Replica,
    pub store: Store,
    pub me: u64,
    pub now: Instant,
    /// The store's operations wait for [`Lone::release`].
    pub hold: bool,
    pub held: Vec<Output>,
    /// Forwards come early: not all before hold them.
    pub early: bool,
    /// Turns of a resync don't come by themselves.
    pub hold_turns: bool,
    pub out: Vec<Output>,
    pub bytes: Vec<u8>,
}

pub fn chain(version: u64, members: &[(u64, PublicState)]) -> Chain {
    let targets: Vec<ChainTarget> = members
        .iter()
        .map(|&(id, state)| ChainTarget { target: TargetId(id), generation: Generation(1), state })
        .collect();
    Chain {
        id: ChainId(1),
        version: ChainVersion(version),
        in_use_members: targets.clone(),
        targets,
        in_use: true,
        last_in_use: ChainVersion(version),
    }
}

pub fn tag(client: u128, sequence: u64) -> WriterTag {
    WriterTag { client: ClientId::from_u128(client), channel: ChannelId(1), sequence: Sequence(sequence) }
}

pub fn version(number: u64, chain_version: u64) -> ChunkVersion {
    ChunkVersion { number, chain_version: ChainVersion(chain_version), attempt: 0 }
}

impl Lone {
    pub fn new(me: u64, chain: Chain) -> Self {
        let identity = Identity { chain: ChainId(1), target: TargetId(me), generation: Generation(1) };
        let store = Store::default();
        let replica = Replica::new(identity, ChainVersion(0), &store, [], []);
        let now = Instant::default() + Duration::from_secs(1);
        let (held, out, bytes) = (Vec::new(), Vec::new(), Vec::new());
        let mut lone =
            Self { replica, store, me, now, hold: false, held, early: false, hold_turns: false, out, bytes };
        lone.feed(Input::Chain(chain));
        lone.feed(Input::Lease { until: LATER });
        lone
    }

    pub fn to(&self) -> Address {
        Address {
            chain: ChainId(1),
            chain_version: self.replica.chain_version(),
            target: TargetId(self.me),
            generation: Generation(1),
        }
    }

    pub fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.replica.handle(self.now, &self.store, input, &mut out);
        for output in out {
            match output {
                Output::StoreVersion(v) => self.feed(Input::VersionStored(v)),
                Output::SyncTurn { chunk } if !self.hold_turns => self.feed(Input::SyncTurn { chunk }),
                Output::Prepare { .. }
                | Output::Commit { .. }
                | Output::Drop { .. }
                | Output::Install { .. } => {
                    self.out.push(output.clone());
                    if self.hold { self.held.push(output) } else { self.run(&output) }
                }
                other => self.out.push(other),
            }
        }
    }

    pub fn run(&mut self, operation: &Output) {
        let bytes = match operation {
            Output::Prepare { payload: Payload::Empty, .. }
            | Output::Install { payload: Payload::Empty, .. } => Vec::new(),
            _ => self.bytes.clone(),
        };
        let done = self.store.run(operation, &bytes);
        let input = match (operation, done) {
            (Output::Prepare { chunk, .. } | Output::Install { chunk, .. }, Done::Failed(failure)) => {
                Input::Failed { chunk: *chunk, failure }
            }
            (Output::Prepare { chunk, version, .. }, Done::Prepared(length, checksum)) => {
                Input::Prepared { chunk: *chunk, version: *version, length, checksum }
            }
            (Output::Commit { chunk, version }, _) => Input::Committed { chunk: *chunk, version: *version },
            (Output::Drop { chunk, version }, _) => Input::Dropped { chunk: *chunk, version: *version },
            (Output::Install { chunk, .. }, _) => Input::Installed { chunk: *chunk },
            other => panic!("{:?}", other.0),
        };
        self.feed(input);
    }

    pub fn release(&mut self) {
        self.hold = false;
        for operation in std::mem::take(&mut self.held) {
            self.run(&operation);
        }
    }

    pub fn write(&mut self, token: Token, tag: WriterTag, bytes: &[u8]) {
        self.bytes = bytes.to_vec();
        let change = Change::Write { offset: 0, length: bytes.len() as u32 };
        let to = self.to();
        self.feed(Input::Update { token, to, chunk: CHUNK, change, chunk_size: 64, tag, expires: LATER });
    }

    pub fn forward(
        &mut self,
        token: Token,
        epoch: u32,
        base: ChunkVersion,
        new: ChunkVersion,
        bytes: &[u8],
        change: Change,
    ) {
        self.bytes = bytes.to_vec();
        let result = Content {
            version: new,
            removed: change == Change::Remove,
            length: bytes.len() as u32,
            checksum: crc32c(bytes),
        };
        let tag = tag(9, new.number);
        let forward = Forward {
            chunk: CHUNK,
            change,
            chunk_size: 64,
            base,
            result,
            tag,
            writers: vec![],
            early: self.early,
        };
        let from = self
            .replica
            .chain()
            .and_then(|c| c.predecessor(TargetId(self.me)))
            .expect("a predecessor")
            .target;
        let to = self.to();
        self.feed(Input::Forward { token, to, from, epoch, forward });
    }

    /// The page that was asked for last.
    pub fn page(&self) -> Option<SendId> {
        self.out.iter().rev().find_map(|o| match o {
            Output::FetchPage { id, .. } => Some(*id),
            _ => None,
        })
    }

    /// The last message sent, and to whom.
    pub fn sent(&self) -> (SendId, TargetId, Message) {
        let sent = self.out.iter().rev().find_map(|o| match o {
            Output::Send { id, to, message } => Some((*id, to.target, message.clone())),
            _ => None,
        });
        sent.expect("a message was sent")
    }

    pub fn answer(&mut self, id: SendId, status: Status, version: ChunkVersion) {
        let chain_version = self.replica.chain_version();
        self.feed(Input::Answered { id, answer: Answer::Reply { status, version, chain_version } });
    }

    pub fn reply(&self, wanted: Token) -> Option<Status> {
        self.out.iter().find_map(|o| match o {
            Output::Reply { token, status, .. } if *token == wanted => Some(*status),
            _ => None,
        })
    }

    pub fn read(&mut self, token: Token) -> Option<Content> {
        let to = self.to();
        self.feed(Input::Read { token, to, chunk: CHUNK, relaxed: false });
        self.out.iter().find_map(|o| match o {
            Output::Read { token: t, content } if *t == token => Some(*content),
            _ => None,
        })
    }

    pub fn wrote(&self, what: impl Fn(&Output) -> bool) -> bool {
        self.out.iter().any(what)
    }
}
