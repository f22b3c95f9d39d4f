//! One target: its engine and its replica, and the way between them. What the replica wants done is started
//! here; when it has ended, the replica is told. All of it on one reactor, so nothing is ever half told.

use crate::convert::{chunk_state, failure_of, update_of};
use crate::known::Known;
use crate::node::NodeContext;
use crate::pace::Kind;
use crate::resync::Resync;
use crate::scrub::Scrub;
use ember_craq::{Answer, Content, Failure, Input, Output, Payload, Replica, Token, View};
use ember_engine::{Engine, EngineError, Prepare, Prepared, Which};
use ember_rt::SharedBuf;
use ember_rt::disk::{DiskQueue, Priority};
use ember_rt::sync::oneshot;
use ember_types::{
    Chain, ChainVersion, ChunkId, ChunkVersion, Instant, LocalState, Status, TargetId, block_checksums,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Pending chunks read at once at start.
const PAGE: usize = 4096;

/// How often what waits for room on a full disk is tried again.
const ROOM: Duration = Duration::from_millis(500);

/// What a request came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// It has ended.
    Reply { status: Status, version: ChunkVersion, length: u32 },
    /// The bytes of this content are the answer.
    Read(Content),
}

/// A request that the replica hasn't answered yet.
struct Waiting {
    payload: SharedBuf,
    checksums: Vec<u32>,
    answer: oneshot::Sender<Outcome>,
}

/// A target in service.
pub(crate) struct Target {
    pub(crate) node: Rc<NodeContext>,
    pub(crate) id: TargetId,
    pub(crate) disk: u32,
    /// The disk as this target has it.
    pub(crate) queue: DiskQueue,
    pub(crate) engine: Engine,
    replica: RefCell<Replica>,
    waiting: RefCell<BTreeMap<Token, Waiting>>,
    next_token: Cell<Token>,
    known: Cell<Known>,
    told_lease: Cell<Instant>,
    /// mgmtd has ordered it to stop under this chain version: no lease counts before a higher one (R1).
    held: Cell<ChainVersion>,
    told_space: Cell<Option<(bool, bool)>>,
    /// Why it can't be used any more.
    failed: RefCell<Option<String>>,
    pub(crate) scrub: Scrub,
    pub(crate) resync: Resync,
    /// Chunks repaired since it was opened.
    pub(crate) repairs: Cell<u64>,
}

/// The engine's memory, as the replica wants it.
struct EngineView<'a>(&'a Engine);

impl View for EngineView<'_> {
    fn chunk(&self, chunk: ChunkId) -> ember_craq::ChunkState {
        chunk_state(self.0.state(chunk))
    }
}

impl Target {
    /// Puts an opened engine in service as a member of `chain`.
    pub(crate) fn new(
        node: Rc<NodeContext>,
        disk: u32,
        queue: DiskQueue,
        engine: Engine,
        chain: ember_types::ChainId,
    ) -> Rc<Self> {
        let identity = *engine.identity();
        let own = ember_craq::Identity { chain, target: identity.target, generation: identity.generation };
        let replica = {
            let view = EngineView(&engine);
            let pending = all_pending(&engine);
            let records = all_records(&engine);
            Replica::new(own, engine.chain_version(), &view, pending, records)
        };
        Rc::new(Self {
            node,
            id: identity.target,
            disk,
            queue,
            engine,
            replica: RefCell::new(replica),
            waiting: RefCell::default(),
            next_token: Cell::new(1),
            known: Cell::default(),
            told_lease: Cell::default(),
            held: Cell::default(),
            told_space: Cell::default(),
            failed: RefCell::default(),
            scrub: Scrub::default(),
            resync: Resync::default(),
            repairs: Cell::new(0),
        })
    }

    /// Looks at the replica.
    pub(crate) fn replica(&self) -> std::cell::Ref<'_, Replica> {
        self.replica.borrow()
    }
    /// Why the target can't be used any more, if so.
    pub(crate) fn failure(&self) -> Option<String> {
        let known = self.failed.borrow().clone().or_else(|| self.engine.failure());
        let lost = || self.replica.borrow().local_state() == LocalState::Offline;
        known
            .or_else(|| lost().then(|| "its store is in doubt after an error: see its node's log".to_owned()))
    }
    /// Ends its service: the disk is taken from it, and everybody who waits is answered.
    pub(crate) fn fail(self: &Rc<Self>, why: &str) {
        self.failed.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.queue.stop(why);
        self.input(Input::DeviceFailed);
    }

    /// A heartbeat reports it.
    pub(crate) fn note_reported(&self) {
        self.known.set(self.known.get().reported());
    }
    /// A heartbeat was answered, and what mgmtd orders was done.
    pub(crate) fn note_heard(&self) {
        self.known.set(self.known.get().answered());
    }

    /// Tells the replica what happened and starts what it wants done.
    pub(crate) fn input(self: &Rc<Self>, input: Input) {
        let now = self.node.rt.now();
        let mut out = Vec::new();
        tracing::trace!(target = %self.id, ?input, "told");
        {
            let view = EngineView(&self.engine);
            let mut replica = self.replica.borrow_mut();
            let until = self.lease_until(&replica);
            if self.told_lease.replace(until) != until {
                replica.handle(now, &view, Input::Lease { until }, &mut out);
            }
            replica.handle(now, &view, input, &mut out);
        }
        for output in out {
            tracing::trace!(target = %self.id, ?output, "wants");
            self.perform(output);
        }
    }

    /// Takes a chain that is newer than the replica's.
    pub(crate) fn learn_chain(self: &Rc<Self>, chain: &Chain) {
        let own = self.replica.borrow().chain().map(|c| (c.version, c.in_use));
        if own.is_none_or(|own| own < (chain.version, chain.in_use)) {
            self.input(Input::Chain(chain.clone()));
        }
    }

    /// Stops serving under `version`, as mgmtd ordered, until the chain has a higher one (R1).
    pub(crate) fn hold(self: &Rc<Self>, version: ChainVersion) {
        if self.held.get() < version {
            tracing::warn!(target = %self.id, %version, "mgmtd ordered it to stop serving");
            self.held.set(version);
            self.input(Input::Tick);
        }
    }

    /// Whether it has stopped serving by order.
    pub(crate) fn is_held(&self) -> bool {
        self.held.get() >= self.replica.borrow().chain_version()
    }

    fn lease_until(&self, replica: &Replica) -> Instant {
        let held = self.held.get() >= replica.chain_version() || !self.known.get().lease_counts();
        if held { Instant::default() } else { self.node.lease().until() }
    }

    /// To be called every 20 to 100 ms.
    pub(crate) fn tick(self: &Rc<Self>) {
        self.look_at_resync();
        let wants = self.replica.borrow().wants_tick();
        let until = self.lease_until(&self.replica.borrow());
        if wants || self.told_lease.get() != until {
            self.input(Input::Tick);
        }
    }

    /// Looks at the disk's free space; to be called about every second.
    pub(crate) fn look_at_space(self: &Rc<Self>) {
        let Ok(space) = self.engine.space() else { return };
        let state = (space.available > 0, space.available > self.node.config.no_create_bytes);
        self.look_for_room(state.1);
        if self.told_space.replace(Some(state)) != Some(state) {
            self.input(Input::Space { writable: state.0, creatable: state.1 });
        }
    }

    /// Hands a request to the replica and waits for its answer.
    pub(crate) async fn ask(
        self: &Rc<Self>,
        payload: SharedBuf,
        checksums: Vec<u32>,
        input: impl FnOnce(Token) -> Input,
    ) -> Outcome {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let (answer, outcome) = oneshot::channel();
        self.waiting.borrow_mut().insert(token, Waiting { payload, checksums, answer });
        self.input(input(token));
        outcome.await.unwrap_or(Outcome::Reply {
            status: Status::Unavailable,
            version: ChunkVersion::NONE,
            length: 0,
        })
    }

    fn answer(&self, token: Token, outcome: Outcome) {
        let waiting = self.waiting.borrow_mut().remove(&token);
        if let Some(waiting) = waiting {
            // An asker that went away needs no answer.
            let _ = waiting.answer.send(outcome);
        }
    }

    fn perform(self: &Rc<Self>, output: Output) {
        match output {
            Output::StoreVersion(version) => self.store("chain version", move |target| async move {
                match target.when_there_is_room(|| target.engine.set_chain_version(version)).await {
                    Ok(()) => Input::VersionStored(version),
                    Err(error) => target.failed_store(&error),
                }
            }),
            Output::Prepare { .. } => self.perform_prepare(output),
            Output::Commit { chunk, version } => self.store("commit", move |target| async move {
                match target.engine.commit(chunk, version).await {
                    Ok(()) => Input::Committed { chunk, version },
                    Err(error) => target.failed_store(&error),
                }
            }),
            Output::Drop { chunk, version } => self.store("drop", move |target| async move {
                match target.drop_pending(chunk, version).await {
                    Ok(()) => Input::Dropped { chunk, version },
                    Err(error) => target.failed_store(&error),
                }
            }),
            Output::Install { chunk, content, writers, payload, .. } => {
                let bytes = self.bytes_of(payload);
                self.store("install", move |target| async move {
                    target.install(chunk, content, writers, bytes).await
                });
            }
            Output::Repair { chunk, version } => self.store("repair", move |target| async move {
                target.repair(chunk, version).await;
                Input::Repaired { chunk }
            }),
            Output::Send { id, to, message } => self.send(id, to, message),
            Output::FetchPage { id, to, after } => self.store("page", move |target| async move {
                let page = target.fetch_page(&to, after).await;
                Input::Page { id, page }
            }),
            Output::SyncTurn { chunk } => self.node.rt.spawn("resync turn", self.clone().resync_turn(chunk)),
            Output::Reply { token, status, version, length } => {
                self.answer(token, Outcome::Reply { status, version, length });
            }
            Output::Read { token, content } => self.answer(token, Outcome::Read(content)),
            Output::NoteInUse(version) => self.note_in_use(version),
            Output::Accuse { target, device } => self.accuse(target, device),
            Output::Refresh(version) => {
                tracing::debug!(target = %self.id, %version, "a peer knows a newer chain");
                self.node.nudge();
            }
        }
    }

    fn perform_prepare(self: &Rc<Self>, output: Output) {
        let Output::Prepare { chunk, base, version, change, record, writers, payload, .. } = output else {
            return;
        };
        let bytes = self.bytes_of(payload);
        self.store("prepare", move |target| async move {
            let Ok((data, checksums)) = target.resolve(chunk, bytes).await else {
                return Input::Failed { chunk, failure: Failure::Corrupt };
            };
            let bytes = data.len();
            let update = update_of(change, data, checksums, writers);
            let (writer, priority) = (Some(record.tag), Priority::Foreground);
            let request = Prepare { chunk, version, base, update, writer, expect: None, priority };
            let since = target.node.rt.now();
            match target.prepare(request).await {
                Ok(Prepared { version, length, checksum }) => {
                    target.served(Kind::Write, bytes, since);
                    Input::Prepared { chunk, version, length, checksum }
                }
                Err(error) => target.failed(chunk, &error),
            }
        });
    }

    fn send(self: &Rc<Self>, id: ember_craq::SendId, to: ember_craq::Address, message: ember_craq::Message) {
        let bytes = match &message {
            ember_craq::Message::Forward { payload, .. } => self.bytes_of(*payload),
            _ => Bytes::Here(SharedBuf::default(), Vec::new()),
        };
        self.store("send", move |target| async move {
            let answer = target.deliver(&to, message, bytes).await.unwrap_or(Answer::Lost);
            Input::Answered { id, answer }
        });
    }

    /// Prepares an update; a base with bad bytes is repaired first, while the update holds the chunk's place
    /// (R14).
    async fn prepare(self: &Rc<Self>, request: Prepare) -> Result<Prepared, EngineError> {
        match self.prepare_once(request.clone()).await {
            Err(error) if error.is_bad_bytes() => {
                let (chunk, base) = (request.chunk, request.base);
                tracing::warn!(target = %self.id, %chunk, %error, "bad bytes in the base of an update");
                self.repair(chunk, base).await;
                self.prepare_once(request).await
            }
            other => other,
        }
    }

    /// The head hears what the update makes before it is durable, and forwards it meanwhile.
    async fn prepare_once(self: &Rc<Self>, request: Prepare) -> Result<Prepared, EngineError> {
        let (target, chunk) = (self.clone(), request.chunk);
        let built = move |Prepared { version, length, checksum }| {
            target.input(Input::Built { chunk, version, length, checksum });
        };
        self.engine.prepare_telling(request, built).await
    }

    /// Starts work and tells the replica its result.
    fn store<F>(self: &Rc<Self>, name: &'static str, work: impl FnOnce(Rc<Self>) -> F + 'static)
    where
        F: Future<Output = Input> + 'static,
    {
        let target = self.clone();
        self.node.rt.spawn(name, async move {
            let input = work(target.clone()).await;
            target.input(input);
        });
    }

    pub(crate) fn failed(&self, chunk: ChunkId, error: &EngineError) -> Input {
        let failure = failure_of(error);
        if failure == Failure::Device {
            self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
        }
        match failure {
            Failure::NoSpace => tracing::warn!(target = %self.id, %chunk, %error, "no space"),
            _ => tracing::error!(target = %self.id, %chunk, %error, "the store refuses an update"),
        }
        Input::Failed { chunk, failure }
    }

    async fn drop_pending(&self, chunk: ChunkId, version: ChunkVersion) -> Result<(), EngineError> {
        let dropped = self.when_there_is_room(|| async {
            // What was pending may be gone, and something else be pending, after a while without room.
            let pending = self.engine.state(chunk).and_then(|state| state.pending);
            match pending.is_some_and(|pending| pending.version == version) {
                true => self.engine.discard_pending(chunk).await,
                false => Ok(()),
            }
        });
        dropped.await
    }

    /// Does what needs a little room in the log as soon as there is some: a full disk is no reason to take the
    /// target out of service.
    async fn when_there_is_room<F>(&self, work: impl Fn() -> F) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), EngineError>>,
    {
        loop {
            match work().await {
                Err(EngineError::NoSpace { .. }) => self.node.rt.sleep(ROOM).await,
                other => return other,
            }
        }
    }

    /// A log that can't be written any more takes the target out of service.
    fn failed_store(&self, error: &EngineError) -> Input {
        self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
        Input::DeviceFailed
    }
}

/// Where bytes come from.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// They are here, with their block checksums.
    Here(SharedBuf, Vec<u32>),
    /// The stored content of that version.
    Stored(ChunkVersion),
    /// The request that brought them is gone.
    Gone,
}

/// Why bytes can't be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missing {
    /// They were with a request that is gone, or the chunk has moved on.
    Gone,
    /// They are stored and can't be read.
    Unreadable,
}

impl Target {
    /// Where a payload's bytes are; taken at once, since the request may be answered before they are used.
    fn bytes_of(&self, payload: Payload) -> Bytes {
        match payload {
            Payload::Empty => Bytes::Here(SharedBuf::default(), Vec::new()),
            Payload::Stored(version) => Bytes::Stored(version),
            Payload::Request(token) => match self.waiting.borrow().get(&token) {
                Some(waiting) => Bytes::Here(waiting.payload.clone(), waiting.checksums.clone()),
                None => Bytes::Gone,
            },
        }
    }

    /// The bytes themselves; a bad stored copy is to be repaired.
    pub(crate) async fn resolve(
        self: &Rc<Self>,
        chunk: ChunkId,
        bytes: Bytes,
    ) -> Result<(SharedBuf, Vec<u32>), Missing> {
        let version = match bytes {
            Bytes::Here(data, checksums) => return Ok((data, checksums)),
            Bytes::Gone => return Err(Missing::Gone),
            Bytes::Stored(version) => version,
        };
        match self.engine.read(chunk, Which::Exact(version), 0, u32::MAX, Priority::Resync).await {
            Ok(read) => Ok((read.data, read.checksums)),
            Err(EngineError::NotFound(_)) => Err(Missing::Gone),
            Err(error) => {
                self.bad_bytes(chunk, version, &error);
                Err(Missing::Unreadable)
            }
        }
    }

    /// A content can't be read here: it is fetched from another replica in its turn.
    pub(crate) fn bad_bytes(self: &Rc<Self>, chunk: ChunkId, version: ChunkVersion, error: &EngineError) {
        if !matches!(error, EngineError::Lost(_)) {
            tracing::warn!(target = %self.id, %chunk, %error, "bad bytes: to be repaired");
        }
        self.input(Input::RepairWanted { chunk, version });
    }

    /// Checks a payload against its block checksums.
    pub(crate) fn payload_is_whole(payload: &[u8], checksums: &[u32]) -> bool {
        block_checksums(payload) == checksums
    }
}

fn all_pending(engine: &Engine) -> Vec<ChunkId> {
    let mut found: Vec<ChunkId> = Vec::new();
    loop {
        let page = engine.pending(found.last().copied(), PAGE);
        if page.is_empty() {
            return found;
        }
        found.extend(page);
    }
}

fn all_records(engine: &Engine) -> Vec<(ChunkId, ember_types::WriterRecord)> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = engine.list(after, PAGE);
        let Some((last, _)) = page.last() else { return found };
        after = Some(*last);
        for (chunk, state) in page {
            let ahead = state.pending.map_or(ChunkVersion::NONE, |pending| pending.version);
            let committed = state.writers.into_iter().filter(|r| ahead.is_none() || r.version != ahead);
            found.extend(committed.map(|record| (chunk, record)));
        }
    }
}
