//! A chunk with something in progress, and what waits for it.

use super::{Ctx, update::Wanted};
use crate::io::{SendId, Token};
use crate::state::{Change, ChunkState, Content};
use ember_types::{ChunkVersion, Instant, Status, WriterRecord};
use std::collections::VecDeque;

/// Exists while a chunk has a pending version or something in progress.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Active {
    /// What the store holds, as far as it has told: no operation of the store passes this replica by.
    pub state: ChunkState,
    pub job: Option<Job>,
    pub queue: VecDeque<Waiting>,
}

/// What has the chunk's place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Job {
    /// An update on its way along the chain.
    Update(Box<Update>),
    /// A whole state is being stored for the predecessor, on a syncing target.
    Install { token: Option<Token>, content: Content, writers: Vec<WriterRecord> },
    /// The state is being sent to the syncing successor.
    Sync { sent: Option<SendId>, retry_at: Option<Instant> },
    /// Bad bytes are being replaced.
    Repair,
}

/// What waits for the chunk's place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Waiting {
    Update(Wanted),
    Sync,
    Repair(ChunkVersion),
}

/// An update.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Update {
    /// What the chunk becomes: of the head's own before it is prepared, the checksum is unknown.
    pub result: Content,
    /// Whether `result.checksum` came with the forward and must be met (R14).
    pub expected: bool,
    pub base: ChunkVersion,
    pub change: Change,
    pub chunk_size: u32,
    pub record: WriterRecord,
    /// Records that the chunk keeps once this is committed.
    pub writers: Vec<WriterRecord>,
    /// Whose payload the bytes of `change` are, while that request waits.
    pub payload: Option<Token>,
    /// Clients that wait (head).
    pub waiters: Vec<Token>,
    /// The predecessor's forward that waits.
    pub upstream: Option<Token>,
    /// The predecessor's abort that waits.
    pub aborter: Option<Token>,
    /// The successor asked for the whole chunk.
    pub whole: bool,
    pub phase: Phase,
    /// Whether the store holds it durably as pending.
    pub held: bool,
    /// Whether a successor may have got it from here.
    pub spread: bool,
    /// Whether the predecessor said, under this chain version, that every replica before this one holds it.
    pub ahead: bool,
    /// The forward that was sent while the store was at it, as long as it isn't answered.
    pub early: Option<SendId>,
    /// What the successor refused meanwhile.
    pub refused: Option<Status>,
    /// Whether the successor was told that every replica before it holds it: with the forward, or by that message.
    pub told: bool,
    pub notice: Option<SendId>,
    /// Since when the successor owes an answer under this chain version.
    pub since: Option<Instant>,
    pub retry_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Phase {
    /// The store makes it durable. `drop`: it is not wanted any more.
    Preparing { drop: bool },
    /// Durable; to be forwarded, or acknowledged if there is no successor.
    Held,
    /// Forwarded.
    Forwarding(SendId),
    /// Every replica behind holds it; at the tail, something else may be missing.
    Acked,
    /// It is refused for good, by the successor or by the own store: the head will abort, or send it whole.
    Refused(Status),
    /// The successors drop it. `None`: to be sent again.
    Aborting(Option<SendId>, Status),
    /// The store drops it; then whoever waits gets the status.
    Dropping(Status),
    /// The store commits it.
    Committing,
}

impl Phase {
    /// Why the update is given up.
    pub(super) fn refusal(self) -> Status {
        match self {
            Self::Refused(status) | Self::Aborting(_, status) | Self::Dropping(status) => status,
            _ => Status::Aborted,
        }
    }
}

impl Update {
    pub(super) fn new(
        result: Content,
        base: ChunkVersion,
        change: Change,
        chunk_size: u32,
        record: WriterRecord,
    ) -> Self {
        Self {
            result,
            expected: false,
            base,
            change,
            chunk_size,
            record,
            writers: Vec::new(),
            payload: None,
            waiters: Vec::new(),
            upstream: None,
            aborter: None,
            whole: false,
            phase: Phase::Preparing { drop: false },
            held: false,
            spread: false,
            ahead: false,
            early: None,
            refused: None,
            told: false,
            notice: None,
            since: None,
            retry_at: None,
        }
    }

    /// Whether the store's operation on it has yet to end.
    pub(super) fn in_store(&self) -> bool {
        matches!(self.phase, Phase::Preparing { .. } | Phase::Dropping(_) | Phase::Committing)
    }

    /// Answers everybody who waits for it.
    pub(super) fn answer(&mut self, ctx: &mut Ctx, status: Status) {
        let (version, length) = match status {
            Status::Ok => (self.result.version, self.result.length),
            _ => (ChunkVersion::NONE, 0),
        };
        for token in self.waiters.drain(..).chain(self.upstream.take()) {
            ctx.reply(token, status, version, length);
        }
        if let Some(aborter) = self.aborter.take() {
            ctx.refuse(aborter, if status == Status::Ok { Status::Conflict } else { status });
        }
        self.payload = None;
    }

    /// Answers the predecessor's requests alone.
    pub(super) fn answer_peer(&mut self, ctx: &mut Ctx, status: Status) {
        if self.payload.is_some() && self.payload == self.upstream {
            self.payload = None;
        }
        for token in self.upstream.take().into_iter().chain(self.aborter.take()) {
            ctx.refuse(token, status);
        }
    }
}

impl Active {
    /// A chunk whose pending version comes from the disk; `None` if it has none.
    pub(super) fn held(state: ChunkState) -> Option<Self> {
        let pending = state.pending?;
        let mut update = Update::new(
            pending.content,
            state.committed.version,
            match pending.content.removed {
                true => Change::Remove,
                false => Change::Whole { length: pending.content.length },
            },
            pending.chunk_size,
            pending.record,
        );
        update.phase = Phase::Held;
        update.held = true;
        update.writers = state.writers.clone();
        update.writers.push(pending.record);
        Some(Self { state, job: Some(Job::Update(Box::new(update))), queue: VecDeque::new() })
    }

    pub(super) fn update_mut(&mut self) -> Option<&mut Update> {
        match &mut self.job {
            Some(Job::Update(update)) => Some(update),
            _ => None,
        }
    }

    pub(super) fn refuse_all(mut self, ctx: &mut Ctx, status: Status) {
        match &mut self.job {
            Some(Job::Update(update)) => update.answer(ctx, status),
            Some(Job::Install { token: Some(token), .. }) => ctx.refuse(*token, status),
            _ => {}
        }
        for waiting in self.queue {
            if let Waiting::Update(wanted) = waiting {
                ctx.refuse(wanted.token, status);
            }
        }
    }
}
