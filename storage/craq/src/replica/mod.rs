//! The replica: its state, what it knows of itself, and who handles what.

mod active;
mod chain;
mod early;
mod forward;
mod read;
mod sync;
mod timer;
mod update;

use crate::channels::Channels;
use crate::io::{Address, Answer, Input, Output, Payload, SendId, Token};
use crate::state::View;
use active::Active;
use ember_types::{
    Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, Generation, Instant, LocalState, Status, TargetId,
    WriterRecord, mutant,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most updates that wait for one chunk.
const QUEUE_MAX: usize = 64;
/// Most chunks with something in progress before client updates are refused as busy.
const ACTIVE_MAX: usize = 16_384;
/// Most messages without an answer before reads that need one are refused as busy.
const SENDS_MAX: usize = 32_768;
/// Most requests that wait for one update.
const WAITERS_MAX: usize = 8;
/// After a refusal or a lost answer a message is sent again this much later.
const RETRY: Duration = Duration::from_millis(50);
/// A syncing successor without room is asked again so much later: mgmtd takes it out meanwhile.
const ROOM: Duration = Duration::from_millis(500);
/// Without an answer for so long, the successor is reported (R10).
const UNRESPONSIVE: Duration = Duration::from_secs(2);

/// Which target this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// The chain it belongs to.
    pub chain: ChainId,
    /// The target.
    pub target: TargetId,
    /// Which life of its content.
    pub generation: Generation,
}

/// What a replica is under the chain version in force.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Takes no part: no chain known, not a member, waiting, offline or lastsrv.
    Idle,
    /// Receives live writes and the resync.
    Syncing,
    /// Serves.
    Serving,
}

/// How far this replica, as a source, has brought its successor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SyncStatus {
    /// The syncing target.
    pub target: TargetId,
    /// Chunks compared.
    pub done: u64,
    /// Chunks in all, as far as known.
    pub total: u64,
    /// Bytes sent.
    pub bytes: u64,
}

/// One target's part in its chain. The state is everything that decides; it says nothing of bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    identity: Identity,
    /// Under versions up to this one an earlier start of the process served: never again (R7).
    floor: ChainVersion,
    chain: Option<Chain>,
    role: Role,
    /// Whether what has to happen before serving (or syncing) under the chain version has happened.
    ready: bool,
    /// Tail: the predecessor is known to be at this chain version (R6).
    confirmed: bool,
    /// Tail: pending versions of before, to be committed before anything is answered (R4).
    unsettled: BTreeSet<ChunkId>,
    /// Syncing: the source said that the comparison is complete, under this chain version.
    synced: bool,
    /// As a sender: grows when a message is sent again that may still arrive.
    epoch: u32,
    /// As a receiver: the highest epoch of the predecessor.
    seen_epoch: u32,
    /// Head: tells apart updates of one number; grows with each refused one.
    attempt: u32,
    lease: Instant,
    writable: bool,
    creatable: bool,
    failed: bool,
    channels: Channels,
    active: BTreeMap<ChunkId, Active>,
    /// What the predecessor said is durable, and has yet to come.
    announced: BTreeMap<ChunkId, ChunkVersion>,
    sends: BTreeMap<SendId, Purpose>,
    next_send: SendId,
    /// When to ask again for the confirmation and for the note "in use".
    confirm_at: Option<Instant>,
    note_at: Option<Instant>,
    sync: Option<sync::Source>,
}

/// Why a message was sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Purpose {
    Forward(ChunkId),
    Durable(ChunkId),
    Abort(ChunkId),
    Query { token: Token, chunk: ChunkId, tries: u8 },
    Confirm,
    SyncChunk(ChunkId),
    SyncLoose,
    SyncDone,
    Page,
}

/// What every handler needs.
struct Ctx<'a> {
    now: Instant,
    view: &'a dyn View,
    out: &'a mut Vec<Output>,
}

impl Ctx<'_> {
    fn reply(&mut self, token: Token, status: Status, version: ChunkVersion, length: u32) {
        self.out.push(Output::Reply { token, status, version, length });
    }
    fn refuse(&mut self, token: Token, status: Status) {
        self.reply(token, status, ChunkVersion::NONE, 0);
    }
}

/// Whether two versions are the same (R5).
fn same(a: ChunkVersion, b: ChunkVersion) -> bool {
    if mutant!(r05_number_alone_identifies) {
        return a.number == b.number;
    }
    a == b
}

impl Replica {
    /// A replica as it comes from its disk. `stored` is the highest chain version that it served under,
    /// `pending` every chunk with a pending version, `records` all committed records of writers.
    pub fn new(
        identity: Identity,
        stored: ChainVersion,
        view: &dyn View,
        pending: impl IntoIterator<Item = ChunkId>,
        records: impl IntoIterator<Item = (ChunkId, WriterRecord)>,
    ) -> Self {
        let mut channels = Channels::default();
        for (chunk, record) in records {
            if record.status == Status::Ok {
                channels.commit(&record, chunk);
            }
        }
        let active = pending.into_iter().filter_map(|chunk| Some((chunk, Active::held(view.chunk(chunk))?)));
        Self {
            identity,
            floor: stored,
            chain: None,
            role: Role::Idle,
            ready: false,
            confirmed: false,
            unsettled: BTreeSet::new(),
            synced: false,
            epoch: 0,
            seen_epoch: 0,
            attempt: 0,
            lease: Instant::default(),
            writable: true,
            creatable: true,
            failed: false,
            channels,
            active: active.collect(),
            announced: BTreeMap::new(),
            sends: BTreeMap::new(),
            next_send: 1,
            confirm_at: None,
            note_at: None,
            sync: None,
        }
    }

    /// Takes what happened and appends what is to be done.
    pub fn handle(&mut self, now: Instant, view: &dyn View, input: Input, out: &mut Vec<Output>) {
        let ctx = &mut Ctx { now, view, out };
        match input {
            Input::Chain(chain) => self.on_chain(ctx, chain),
            Input::VersionStored(version) => self.on_version_stored(ctx, version),
            Input::Lease { until } => self.lease = until,
            Input::Space { writable, creatable } => (self.writable, self.creatable) = (writable, creatable),
            Input::EndedClients(clients) => self.channels.end(clients),
            Input::Update { token, to, chunk, change, chunk_size, tag, expires } => {
                self.on_update(ctx, &to, update::Wanted { token, chunk, change, chunk_size, tag, expires });
            }
            Input::Read { token, to, chunk, relaxed } => self.on_read(ctx, token, &to, chunk, relaxed),
            Input::Query { token, to, chunk } => self.on_query(ctx, token, &to, chunk),
            Input::Confirm { token, to, chain } => self.on_confirm(ctx, token, &to, chain),
            Input::Forward { token, to, from, epoch, forward } => {
                self.on_forward(ctx, token, &to, from, epoch, forward);
            }
            Input::Durable { token, to, epoch, chunk, version } => {
                self.on_durable(ctx, token, &to, epoch, chunk, version);
            }
            Input::Abort { token, to, epoch, chunk, version } => {
                self.on_abort(ctx, token, &to, epoch, chunk, version);
            }
            Input::Sync { token, to, from, epoch, item } => {
                self.on_sync(ctx, token, &to, from, epoch, item);
            }
            Input::Answered { id, answer } => self.on_answered(ctx, id, answer),
            Input::Page { id, page } => self.on_page(ctx, id, page),
            Input::SyncTurn { chunk } => self.on_sync_turn(ctx, chunk),
            Input::Built { chunk, version, length, checksum } => {
                self.on_built(ctx, chunk, version, length, checksum);
            }
            Input::Prepared { chunk, version, length, checksum } => {
                self.on_prepared(ctx, chunk, version, length, checksum);
            }
            Input::Failed { chunk, failure } => self.on_failed(ctx, chunk, failure),
            Input::Committed { chunk, version } => self.on_committed(ctx, chunk, version),
            Input::Dropped { chunk, version } => self.on_dropped(ctx, chunk, version),
            Input::Installed { chunk } => self.on_installed(ctx, chunk),
            Input::RepairWanted { chunk, version } => self.on_repair_wanted(ctx, chunk, version),
            Input::Repaired { chunk } => self.on_repaired(ctx, chunk),
            Input::DeviceFailed => self.fail(ctx),
            Input::Tick => self.on_tick(ctx),
        }
    }

    /// Which target this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }
    /// The chain in force here.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }
    /// Its version; 0 if none is known.
    pub fn chain_version(&self) -> ChainVersion {
        self.chain.as_ref().map_or(ChainVersion(0), |chain| chain.version)
    }
    /// What this replica is under it.
    pub fn role(&self) -> Role {
        self.role
    }
    /// The local state that the node may report for the chain version in force (R1).
    pub fn local_state(&self) -> LocalState {
        match self.role {
            _ if self.failed => LocalState::Offline,
            Role::Serving if self.ready => LocalState::UpToDate,
            Role::Syncing if self.synced => LocalState::UpToDate,
            _ => LocalState::Online,
        }
    }
    /// Whether an answer of a read may leave now: to be asked with a clock read just before (R8).
    pub fn may_answer(&self, now: Instant) -> bool {
        !self.failed && (now < self.lease || mutant!(r08_answer_without_lease))
    }
    /// Whether nothing is in progress for `chunk`.
    pub fn is_idle(&self, chunk: ChunkId) -> bool {
        !self.active.contains_key(&chunk)
    }
    /// Number of chunks with something in progress.
    pub fn active_len(&self) -> usize {
        self.active.len()
    }
    /// Whether a record of a writer of `chunk` is still needed (R12).
    pub fn needs_record(&self, record: &WriterRecord, chunk: ChunkId) -> bool {
        self.channels.needs(record, chunk)
    }
    /// Progress of the syncing successor, if this is its source.
    pub fn sync_status(&self) -> Option<SyncStatus> {
        let target = self.chain.as_ref()?.syncing()?.target;
        self.sync.as_ref().map(|s| s.status(target))
    }
    /// Whether [`Input::Tick`] has anything to do.
    pub fn wants_tick(&self) -> bool {
        !self.active.is_empty() || self.sync.is_some() || self.confirm_at.is_some() || self.note_at.is_some()
    }

    fn is_head(&self) -> bool {
        self.role == Role::Serving
            && self.chain.as_ref().and_then(Chain::head).is_some_and(|t| t.target == self.identity.target)
    }
    fn is_tail(&self) -> bool {
        self.role == Role::Serving
            && self.chain.as_ref().and_then(Chain::tail).is_some_and(|t| t.target == self.identity.target)
    }
    fn in_use(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.in_use)
    }
    fn address_of(&self, target: TargetId) -> Option<Address> {
        let chain = self.chain.as_ref()?;
        let member = chain.member(target)?;
        Some(Address { chain: chain.id, chain_version: chain.version, target, generation: member.generation })
    }
    fn successor(&self) -> Option<Address> {
        let next = self.chain.as_ref()?.successor(self.identity.target)?.target;
        self.address_of(next)
    }
    fn successor_is_syncing(&self) -> bool {
        let next = self.chain.as_ref().and_then(|c| c.successor(self.identity.target));
        next.is_some_and(|t| t.state == ember_types::PublicState::Syncing)
    }
    /// Number of members that updates pass to from here, at least 1.
    fn members_behind(&self) -> u32 {
        let Some(chain) = &self.chain else { return 1 };
        let mut behind = 0;
        let mut at = self.identity.target;
        while let Some(next) = chain.successor(at) {
            at = next.target;
            behind += 1;
        }
        behind.max(1)
    }
    fn predecessor(&self) -> Option<Address> {
        let before = self.chain.as_ref()?.predecessor(self.identity.target)?.target;
        self.address_of(before)
    }

    /// Whether a request is for exactly this replica under the chain version in force (R18).
    fn check_address(&self, to: &Address) -> Result<(), Status> {
        let own = &self.identity;
        if (to.chain, to.target, to.generation) != (own.chain, own.target, own.generation) {
            return Err(Status::StaleRouting);
        }
        match &self.chain {
            _ if self.failed => Err(Status::DeviceError),
            None => Err(Status::NotServing),
            Some(chain) if chain.version != to.chain_version => Err(Status::StaleRouting),
            Some(_) if self.role == Role::Idle => Err(Status::NotServing),
            Some(_) if !self.ready => Err(Status::Busy),
            Some(_) => Ok(()),
        }
    }
    /// Whether a message of the predecessor is in order: see `epoch`.
    fn check_peer(&mut self, to: &Address, from: Option<TargetId>, epoch: u32) -> Result<(), Status> {
        self.check_address(to)?;
        let before = self.predecessor().map(|p| p.target);
        if before.is_none() || from.is_some_and(|from| before != Some(from)) {
            return Err(Status::StaleRouting);
        }
        if epoch < self.seen_epoch && !mutant!(r05_number_alone_identifies) {
            return Err(Status::Busy);
        }
        self.seen_epoch = self.seen_epoch.max(epoch);
        Ok(())
    }

    fn new_send(&mut self, purpose: Purpose) -> SendId {
        let id = self.next_send;
        self.next_send += 1;
        self.sends.insert(id, purpose);
        id
    }

    fn on_answered(&mut self, ctx: &mut Ctx, id: SendId, answer: Answer) {
        let Some(purpose) = self.sends.remove(&id) else { return };
        if let Answer::Reply { chain_version, .. } = answer
            && chain_version > self.chain_version()
        {
            ctx.out.push(Output::Refresh(chain_version));
        }
        if answer == Answer::Lost
            && matches!(purpose, Purpose::Forward(_) | Purpose::Abort(_) | Purpose::SyncChunk(_))
        {
            // The message may still arrive: whatever is sent from now on must overtake it for good.
            self.epoch += 1;
        }
        match purpose {
            Purpose::Forward(chunk) => self.on_forward_answer(ctx, chunk, id, answer),
            Purpose::Durable(chunk) => self.on_durable_answer(ctx, chunk, id, answer),
            Purpose::Abort(chunk) => self.on_abort_answer(ctx, chunk, id, answer),
            Purpose::Query { token, chunk, tries } => self.on_query_answer(ctx, token, chunk, tries, answer),
            Purpose::Confirm => self.on_confirm_answer(ctx, answer),
            Purpose::SyncChunk(chunk) => self.on_sync_answer(ctx, chunk, id, answer),
            Purpose::SyncDone => self.on_sync_done_answer(ctx, answer),
            Purpose::SyncLoose | Purpose::Page => {}
        }
    }

    /// The store is lost: everybody who waits is told, and nothing is taken any more.
    fn fail(&mut self, ctx: &mut Ctx) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.ready = false;
        self.sync = None;
        self.refuse_queries(ctx, Status::DeviceError);
        self.sends.clear();
        for (_, active) in std::mem::take(&mut self.active) {
            active.refuse_all(ctx, Status::DeviceError);
        }
    }

    fn refuse_queries(&mut self, ctx: &mut Ctx, status: Status) {
        for purpose in self.sends.values() {
            if let Purpose::Query { token, .. } = purpose {
                ctx.refuse(*token, status);
            }
        }
        self.sends.retain(|_, purpose| !matches!(purpose, Purpose::Query { .. }));
    }
}

fn payload_of(token: Option<Token>, version: ChunkVersion) -> Payload {
    token.map_or(Payload::Stored(version), Payload::Request)
}
