//! Updates at the head, and what becomes of them in the store.

use super::active::{Active, Job, Phase, Update, Waiting};
use super::{ACTIVE_MAX, Ctx, QUEUE_MAX, Replica, Role, WAITERS_MAX, payload_of};
use crate::channels::{Ended, Known};
use crate::io::{Address, Failure, Output, Payload, Token};
use crate::state::{Change, Content, Pending};
use ember_types::{ChunkId, ChunkVersion, Instant, Status, WriterRecord, WriterTag, mutant};

/// Most records of writers that one chunk keeps.
const RECORDS_MAX: usize = 1024;

/// Whether the client takes the status as the end of its update.
fn is_final(status: Status) -> bool {
    matches!(status, Status::NoSpace | Status::Corrupt | Status::InvalidArgument)
}

/// A client's update that has no number yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Wanted {
    pub token: Token,
    pub chunk: ChunkId,
    pub change: Change,
    pub chunk_size: u32,
    pub tag: WriterTag,
    pub expires: Instant,
}

impl Replica {
    pub(super) fn on_update(&mut self, ctx: &mut Ctx, to: &Address, wanted: Wanted) {
        let checked = self.check_address(to).and_then(|()| match self.is_head() {
            true => Ok(()),
            false => Err(Status::StaleRouting),
        });
        if let Err(status) = checked {
            return ctx.refuse(wanted.token, status);
        }
        if self.channels.is_ended(wanted.tag.client) {
            return ctx.refuse(wanted.token, Status::SessionEnded);
        }
        let Some(wanted) = self.join(ctx, wanted) else { return };
        let mut known = self.channels.look_up(wanted.tag, wanted.chunk);
        let full = self.active.len() >= ACTIVE_MAX;
        let active = self.load(ctx, wanted.chunk);
        let crowded = active.queue.len() >= QUEUE_MAX || (full && active.job.is_none());
        let record =
            active.state.writers.iter().find(|r| r.tag == wanted.tag && r.status == Status::Ok).copied();
        if mutant!(r12_forget_writers) && record.is_none_or(|r| r.version != active.state.committed.version) {
            known = Known::New;
        }
        let refused = match (known, record) {
            (Known::Done, Some(done)) => {
                ctx.reply(wanted.token, Status::Ok, done.version, done.length);
                self.run_next(ctx, wanted.chunk);
                return;
            }
            // The record went when its channel moved on.
            (Known::Done, None) | (Known::Stale, _) => Some(Status::StaleSequence),
            (Known::Ended(ended), _) => {
                ctx.reply(wanted.token, ended.status, ended.version, ended.length);
                self.run_next(ctx, wanted.chunk);
                return;
            }
            (Known::Reused, _) => Some(Status::InvalidArgument),
            (Known::Full, _) => Some(Status::Busy),
            (Known::New, _) => crowded.then_some(Status::Busy),
        };
        let chunk = wanted.chunk;
        match refused {
            Some(status) => ctx.refuse(wanted.token, status),
            None => {
                self.channels.take(wanted.tag);
                self.load(ctx, chunk).queue.push_back(Waiting::Update(wanted));
            }
        }
        self.run_next(ctx, chunk);
    }

    /// A repeat of an update that is under way waits with it (R12); else the update comes back.
    fn join(&mut self, ctx: &mut Ctx, wanted: Wanted) -> Option<Wanted> {
        let Some(active) = self.active.get_mut(&wanted.chunk) else { return Some(wanted) };
        if let Some(update) = active.update_mut()
            && update.record.tag == wanted.tag
            && !mutant!(r12_repeat_runs_beside)
        {
            match update.waiters.len() < WAITERS_MAX {
                true => update.waiters.push(wanted.token),
                false => ctx.refuse(wanted.token, Status::Busy),
            }
            return None;
        }
        for waiting in &mut active.queue {
            if let Waiting::Update(queued) = waiting
                && queued.tag == wanted.tag
            {
                ctx.refuse(queued.token, Status::Busy);
                *queued = wanted;
                return None;
            }
        }
        Some(wanted)
    }

    /// The chunk's entry, made from the store's memory if nothing is in progress.
    pub(super) fn load(&mut self, ctx: &Ctx, chunk: ChunkId) -> &mut Active {
        self.active
            .entry(chunk)
            .or_insert_with(|| Active { state: ctx.view.chunk(chunk), ..Active::default() })
    }

    /// Gives the chunk's place to the next that waits, or forgets the chunk.
    pub(super) fn run_next(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        loop {
            let Some(active) = self.active.get_mut(&chunk) else { return };
            if active.job.is_some() {
                return;
            }
            match active.queue.pop_front() {
                None => {
                    self.active.remove(&chunk);
                    return self.check_discarded();
                }
                Some(Waiting::Update(wanted)) => self.number(ctx, wanted),
                Some(Waiting::Sync) => self.start_sync_chunk(ctx, chunk),
                Some(Waiting::Repair(version)) => self.start_repair(ctx, chunk, version),
            }
        }
    }

    /// The last checks, then the number (R13, R18).
    fn number(&mut self, ctx: &mut Ctx, wanted: Wanted) {
        let chunk = wanted.chunk;
        match self.plan(ctx, &wanted) {
            Err((status, version, length)) => {
                if status == Status::Ok || is_final(status) {
                    self.channels.end_without(wanted.tag, Ended { status, version, length });
                }
                ctx.reply(wanted.token, status, version, length);
            }
            Ok(update) => {
                let payload = match update.change {
                    Change::Write { length, .. } if length > 0 => payload_of(update.payload, update.base),
                    _ => Payload::Empty,
                };
                ctx.out.push(Output::Prepare {
                    chunk,
                    base: update.base,
                    version: update.result.version,
                    change: update.change,
                    chunk_size: update.chunk_size,
                    record: update.record,
                    writers: update.writers.clone(),
                    payload,
                });
                self.load(ctx, chunk).job = Some(Job::Update(Box::new(update)));
            }
        }
    }

    fn plan(&mut self, ctx: &Ctx, wanted: &Wanted) -> Result<Update, (Status, ChunkVersion, u32)> {
        let refuse = |status| Err((status, ChunkVersion::NONE, 0));
        if ctx.now >= wanted.expires && !mutant!(r18_expiry_ignored_at_number) {
            return refuse(Status::BadCapability);
        }
        if self.channels.is_ended(wanted.tag.client) {
            return refuse(Status::SessionEnded);
        }
        let (chain_version, attempt) = (self.chain_version(), self.attempt);
        let (writable, creatable, leased) = (self.writable, self.creatable, self.may_answer(ctx.now));
        let active = self.load(ctx, wanted.chunk);
        let (base, absent) = (active.state.committed, active.state.committed.is_absent());
        let base_length = if absent { 0 } else { base.length };
        let nothing_to_do = match wanted.change {
            Change::Cut { length } => absent || base.length <= length,
            Change::Remove => absent,
            _ => false,
        };
        if nothing_to_do {
            // No successor is asked, so this is a read: a head that was replaced must not answer it.
            return if leased {
                Err((Status::Ok, base.version, base_length))
            } else {
                refuse(Status::NoLease)
            };
        }
        let room = wanted.change.only_frees() || (writable && (creatable || !absent));
        let (Some(length), Some(number)) =
            (wanted.change.result_length(base_length, wanted.chunk_size), base.version.number.checked_add(1))
        else {
            return refuse(Status::InvalidArgument);
        };
        if matches!(wanted.change, Change::Whole { .. }) {
            return refuse(Status::InvalidArgument);
        }
        if !room && !mutant!(r13_refused_after_number) {
            return refuse(Status::NoSpace);
        }
        let version = ChunkVersion { number, chain_version, attempt };
        let record = WriterRecord { tag: wanted.tag, version, length, status: Status::Ok };
        let result = Content { version, removed: wanted.change == Change::Remove, length, checksum: 0 };
        let change = match wanted.change {
            Change::Cut { length } => Change::Truncate { length },
            other => other,
        };
        let records = active.state.writers.clone();
        let mut update = Update::new(result, base.version, change, wanted.chunk_size, record);
        update.writers = self.channels.with(&records, record, wanted.chunk);
        if update.writers.len() > RECORDS_MAX {
            return refuse(Status::Busy);
        }
        update.payload = Some(wanted.token);
        update.waiters.push(wanted.token);
        Ok(update)
    }

    pub(super) fn on_prepared(
        &mut self,
        ctx: &mut Ctx,
        chunk: ChunkId,
        version: ChunkVersion,
        length: u32,
        checksum: u32,
    ) {
        let head = self.is_head();
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let Some(Job::Update(update)) = &mut active.job else { return };
        let Phase::Preparing { drop } = update.phase else { return };
        assert_eq!(update.result.version, version, "the store prepared another version of chunk {chunk}");
        let expected = (update.result.length, update.result.checksum);
        let differs = update.expected && (length, checksum) != expected && !mutant!(r14_other_result_commits);
        if !differs {
            (update.result.length, update.result.checksum) = (length, checksum);
            update.record.length = length;
        }
        active.state.pending =
            Some(Pending { content: update.result, record: update.record, chunk_size: update.chunk_size });
        update.held = true;
        if drop || differs {
            // Another result than the predecessor's: its whole content is needed (R14).
            let status = if drop { Status::StaleRouting } else { Status::Corrupt };
            update.phase = Phase::Dropping(status);
            ctx.out.push(Output::Drop { chunk, version });
            return;
        }
        update.phase = Phase::Held;
        if mutant!(r12_answer_before_successor) && head {
            update.answer(ctx, Status::Ok);
        }
        if let Some(status) = update.refused.take() {
            return self.on_refused(ctx, chunk, status);
        }
        if let Some(id) = update.early.take() {
            update.phase = Phase::Forwarding(id);
            return self.tell_durable(ctx, chunk);
        }
        self.step(ctx, chunk);
    }

    pub(super) fn on_failed(&mut self, ctx: &mut Ctx, chunk: ChunkId, failure: Failure) {
        let status = match failure {
            Failure::NoSpace => Status::NoSpace,
            Failure::Corrupt => Status::Corrupt,
            Failure::Device => return self.fail(ctx),
        };
        let head = self.is_head();
        let preparing = |u: &mut Update| matches!(u.phase, Phase::Preparing { .. });
        let update = self.active.get_mut(&chunk).and_then(|a| a.update_mut());
        if update.is_some_and(preparing) && self.withdraw(ctx, chunk, status) {
            return;
        }
        let Some(active) = self.active.get_mut(&chunk) else { return };
        match &mut active.job {
            Some(Job::Update(update)) if matches!(update.phase, Phase::Preparing { .. }) => {
                update.answer(ctx, status);
                if head {
                    self.channels.refuse(update.record.tag, status);
                }
                self.attempt += u32::from(self.role == Role::Serving);
            }
            Some(Job::Install { token, .. }) => {
                if let Some(token) = token.take() {
                    ctx.refuse(token, status);
                }
            }
            // A commit or a drop that fails leaves the store in doubt.
            _ => return self.fail(ctx),
        }
        active.job = None;
        self.run_next(ctx, chunk);
        self.check_discarded();
    }

    pub(super) fn on_committed(&mut self, ctx: &mut Ctx, chunk: ChunkId, version: ChunkVersion) {
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let Some(Job::Update(update)) = &mut active.job else { return };
        assert_eq!(update.result.version, version, "the store committed another version of chunk {chunk}");
        active.state.committed = update.result;
        active.state.pending = None;
        active.state.writers = std::mem::take(&mut update.writers);
        self.channels.commit(&update.record, chunk);
        update.answer(ctx, Status::Ok);
        self.end_update(ctx, chunk);
    }

    pub(super) fn on_dropped(&mut self, ctx: &mut Ctx, chunk: ChunkId, version: ChunkVersion) {
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let Some(Job::Update(update)) = &mut active.job else { return };
        assert_eq!(update.result.version, version, "the store dropped another version of chunk {chunk}");
        let Phase::Dropping(status) = update.phase else { return };
        active.state.pending = None;
        if !self.withdraw(ctx, chunk, status) {
            self.end_dropped(ctx, chunk, status);
        }
    }

    /// Neither this store nor any behind holds the update any more.
    pub(super) fn end_dropped(&mut self, ctx: &mut Ctx, chunk: ChunkId, status: Status) {
        let (head, current) = (self.is_head(), self.chain_version());
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let version = update.result.version;
        if let Some(aborter) = update.aborter.take() {
            ctx.refuse(aborter, Status::Ok);
        }
        update.answer(ctx, status);
        if head && is_final(status) {
            self.channels.refuse(update.record.tag, status);
        }
        if version.chain_version == current {
            self.attempt += 1;
        }
        self.end_update(ctx, chunk);
    }

    fn end_update(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        self.unsettled.remove(&chunk);
        if let Some(active) = self.active.get_mut(&chunk) {
            active.job = None;
        }
        self.run_next(ctx, chunk);
        self.check_discarded();
    }
}
