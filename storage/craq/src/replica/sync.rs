//! Resync: listings nominate chunks, and each is decided while it holds its place in the chunk's order (R11).
//! Also repairs, which hold that place too (R14).

use super::active::{Active, Job, Phase, Waiting};
use super::{Ctx, Purpose, RETRY, ROOM, Replica, Role, SyncStatus, same};
use crate::io::{Address, Answer, Message, Output, Page, SendId, SyncItem, Token};
use crate::state::{Content, Summary};
use ember_types::{ChunkId, ChunkVersion, Instant, Status, TargetId, mutant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Chunks that wait for their turn, or wait for or hold their place, at once.
const WINDOW: usize = 32;
/// Repairs of one chunk that wait.
const REPAIRS_MAX: usize = 1;

/// The source's place in a comparison; void after any chain change.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Source {
    /// Chunks up to this one are done or nominated.
    cursor: Option<ChunkId>,
    fetching: Option<SendId>,
    exhausted: bool,
    nominated: VecDeque<ChunkId>,
    /// Nominated chunks whose turn has been asked for.
    turns: BTreeSet<ChunkId>,
    /// Chunks that wait for their place or hold it.
    outstanding: usize,
    told: bool,
    complete: bool,
    retry_at: Option<Instant>,
    done: u64,
    total: u64,
    bytes: u64,
}

impl Source {
    pub(super) fn status(&self, target: TargetId) -> SyncStatus {
        SyncStatus { target, done: self.done, total: self.total.max(self.done), bytes: self.bytes }
    }
}

impl Replica {
    pub(super) fn start_sync(&mut self, ctx: &mut Ctx) {
        // What was being installed or committed when this replica began to serve is in no listing yet.
        let unlisted = |a: &Active| match &a.job {
            Some(Job::Install { .. }) => true,
            Some(Job::Update(update)) => update.phase == Phase::Committing,
            _ => false,
        };
        let nominated = self.active.iter().filter(|(_, a)| unlisted(a)).map(|(&chunk, _)| chunk).collect();
        self.sync = Some(Source { nominated, ..Source::default() });
        self.drive_sync(ctx);
    }

    /// Keeps the window full, and the next page at hand; when nothing is left, says that all is done.
    fn drive_sync(&mut self, ctx: &mut Ctx) {
        let Some(to) = self.successor() else { return };
        while let Some(source) = &mut self.sync {
            if source.turns.len() + source.outstanding < WINDOW
                && let Some(chunk) = source.nominated.pop_front()
            {
                source.turns.insert(chunk);
                ctx.out.push(Output::SyncTurn { chunk });
                continue;
            }
            let busy = source.fetching.is_some() || source.complete || source.told;
            if busy || source.nominated.len() >= WINDOW || source.retry_at.is_some_and(|at| at > ctx.now) {
                return;
            }
            let open = source.outstanding > 0 || !source.turns.is_empty() || !source.nominated.is_empty();
            // A version of before may have been acknowledged once: the target must hold it before it can serve.
            let held = self.unsettled.is_empty() || mutant!(r11_sync_done_before_pending);
            if source.exhausted && (open || !held) {
                return;
            }
            source.retry_at = None;
            let (exhausted, after) = (source.exhausted, source.cursor);
            let id = self.new_send(if exhausted { Purpose::SyncDone } else { Purpose::Page });
            let epoch = self.epoch;
            let Some(source) = &mut self.sync else { return };
            if exhausted {
                source.told = true;
                let message = Message::Sync { epoch, item: SyncItem::Done };
                ctx.out.push(Output::Send { id, to, message });
            } else {
                source.fetching = Some(id);
                ctx.out.push(Output::FetchPage { id, to, after });
            }
            return;
        }
    }

    /// The chunk may be sent as soon as it has its place.
    pub(super) fn on_sync_turn(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let Some(source) = &mut self.sync else { return };
        if source.turns.remove(&chunk) {
            source.outstanding += 1;
            self.load(ctx, chunk).queue.push_back(Waiting::Sync);
            self.run_next(ctx, chunk);
        }
    }

    pub(super) fn on_page(&mut self, ctx: &mut Ctx, id: SendId, page: Option<Page>) {
        self.sends.remove(&id);
        let now = ctx.now;
        let Some(source) = self.sync.as_mut().filter(|s| s.fetching == Some(id)) else { return };
        source.fetching = None;
        let Some(page) = page else {
            source.retry_at = Some(now + RETRY);
            return;
        };
        // Beyond the shorter of two unfinished listings nothing can be said.
        let ends = |list: &[Summary], more: bool| list.last().filter(|_| more).map(|s| s.chunk);
        let bound = match (ends(&page.local, page.local_more), ends(&page.remote, page.remote_more)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let within = |s: &&Summary| bound.is_none_or(|bound| s.chunk <= bound);
        let remote: BTreeMap<ChunkId, Summary> =
            page.remote.iter().filter(within).map(|s| (s.chunk, *s)).collect();
        let local: BTreeMap<ChunkId, Summary> =
            page.local.iter().filter(within).map(|s| (s.chunk, *s)).collect();
        let differs = |s: &&Summary| match remote.get(&s.chunk) {
            Some(other) if mutant!(r05_number_alone_identifies) => {
                other.content.version.number != s.content.version.number
            }
            other => other.is_none_or(|o| o.content != s.content || o.lost != s.lost || o.pending),
        };
        let mut nominated: Vec<ChunkId> = local.values().filter(differs).map(|s| s.chunk).collect();
        let missing: Vec<ChunkId> =
            remote.keys().filter(|chunk| !local.contains_key(chunk)).copied().collect();
        source.done += (local.len() - nominated.len()) as u64;
        source.total = page.total;
        (source.cursor, source.exhausted) = (bound, bound.is_none());
        nominated.extend(missing);
        nominated.sort_unstable();
        if mutant!(r11_resync_acts_on_listing) {
            return self.act_on_listing(ctx, nominated);
        }
        source.nominated.extend(nominated);
        self.drive_sync(ctx);
    }

    /// The planted bug of R11: the listing decides, and what it says is sent past the updates under way.
    fn act_on_listing(&mut self, ctx: &mut Ctx, chunks: Vec<ChunkId>) {
        for chunk in chunks {
            let state = ctx.view.chunk(chunk);
            self.send_state(ctx, Purpose::SyncLoose, chunk, state.committed, state.writers);
        }
        self.drive_sync(ctx);
    }

    /// The chunk's turn has come: nothing is under way here, so its committed state is all there is.
    pub(super) fn start_sync_chunk(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        if self.sync.is_some() {
            self.load(ctx, chunk).job = Some(Job::Sync { sent: None, retry_at: None });
            self.send_sync_chunk(ctx, chunk);
        }
    }

    pub(super) fn send_sync_chunk(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let state = self.load(ctx, chunk).state.clone();
        assert!(state.pending.is_none(), "chunk {chunk} is synced while an update is under way");
        let sent = self.send_state(ctx, Purpose::SyncChunk(chunk), chunk, state.committed, state.writers);
        self.load(ctx, chunk).job = Some(Job::Sync { sent, retry_at: None });
    }

    fn send_state(
        &mut self,
        ctx: &mut Ctx,
        purpose: Purpose,
        chunk: ChunkId,
        content: Content,
        writers: Vec<ember_types::WriterRecord>,
    ) -> Option<SendId> {
        let to = self.successor()?;
        let (id, epoch) = (self.new_send(purpose), self.epoch);
        let item = SyncItem::Chunk { chunk, content, writers };
        ctx.out.push(Output::Send { id, to, message: Message::Sync { epoch, item } });
        Some(id)
    }

    pub(super) fn on_sync_answer(&mut self, ctx: &mut Ctx, chunk: ChunkId, id: SendId, answer: Answer) {
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let length = active.state.committed.length;
        let Some(Job::Sync { sent, retry_at }) = &mut active.job else { return };
        if *sent != Some(id) {
            return;
        }
        match answer {
            Answer::Reply { status: Status::Ok, .. } => {
                active.job = None;
                if let Some(source) = &mut self.sync {
                    source.outstanding -= 1;
                    source.done += 1;
                    source.bytes += u64::from(length);
                }
                self.run_next(ctx, chunk);
                self.drive_sync(ctx);
            }
            other => {
                let full = matches!(other, Answer::Reply { status: Status::NoSpace, .. });
                (*sent, *retry_at) = (None, Some(ctx.now + if full { ROOM } else { RETRY }));
                if let Answer::Reply { status: Status::DeviceError, .. } = other {
                    self.accuse(ctx, true);
                }
            }
        }
    }

    pub(super) fn on_sync_done_answer(&mut self, ctx: &mut Ctx, answer: Answer) {
        let Some(source) = &mut self.sync else { return };
        source.told = false;
        match answer {
            Answer::Reply { status: Status::Ok, .. } => source.complete = true,
            _ => source.retry_at = Some(ctx.now + RETRY),
        }
    }

    pub(super) fn tick_sync(&mut self, ctx: &mut Ctx) {
        self.drive_sync(ctx);
    }

    /// The syncing target's side.
    pub(super) fn on_sync(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        to: &Address,
        from: TargetId,
        epoch: u32,
        item: SyncItem,
    ) {
        if let Err(status) = self.check_peer(to, Some(from), epoch) {
            return ctx.refuse(token, status);
        }
        if self.role != Role::Syncing {
            return ctx.refuse(token, Status::StaleRouting);
        }
        match item {
            SyncItem::Done => {
                self.synced = true;
                ctx.refuse(token, Status::Ok);
            }
            SyncItem::Chunk { chunk, content, writers } => {
                if self.load(ctx, chunk).job.is_some() {
                    return ctx.refuse(token, Status::Busy);
                }
                self.install(ctx, token, chunk, content, writers, 0);
            }
        }
    }

    pub(super) fn on_repair_wanted(&mut self, ctx: &mut Ctx, chunk: ChunkId, version: ChunkVersion) {
        if self.failed || self.role == Role::Idle {
            return;
        }
        let active = self.load(ctx, chunk);
        let waiting = active.queue.iter().filter(|w| matches!(w, Waiting::Repair(_))).count();
        if waiting < REPAIRS_MAX && !matches!(active.job, Some(Job::Repair)) {
            active.queue.push_back(Waiting::Repair(version));
        }
        self.run_next(ctx, chunk);
    }

    /// The repair's turn has come: it is void if the chunk has another version now.
    pub(super) fn start_repair(&mut self, ctx: &mut Ctx, chunk: ChunkId, version: ChunkVersion) {
        let active = self.load(ctx, chunk);
        let unchanged = same(active.state.committed.version, version) || mutant!(r14_repair_of_other_version);
        if unchanged && !active.state.committed.is_absent() {
            active.job = Some(Job::Repair);
            ctx.out.push(Output::Repair { chunk, version });
        }
    }

    pub(super) fn on_repaired(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let Some(active) = self.active.get_mut(&chunk) else { return };
        if matches!(active.job, Some(Job::Repair)) {
            active.job = None;
            self.run_next(ctx, chunk);
        }
    }
}
