//! Updates that are passed on while the own store is at them: what the successor is told when they are durable, and
//! what becomes of them when they don't get there.
//!
//! The successor commits only after it has heard that every replica before it holds the version durably. A version
//! may so be durable behind a serving replica that hasn't got it: that replica keeps the update's place until it has
//! stored it, or until those behind have dropped it (R13).

use super::active::{Job, Phase, Update};
use super::{Ctx, Purpose, RETRY, Replica, Role, same};
use crate::io::{Address, Answer, Message, Output, SendId, Token};
use crate::state::{Change, Content};
use ember_types::{ChunkId, ChunkVersion, Status, WriterRecord, WriterTag, mutant};

/// Most versions that are known to be durable before they themselves have come.
const ANNOUNCED_MAX: usize = 4096;

impl Replica {
    /// The head knows what its update makes: everything that a forward says.
    pub(super) fn on_built(
        &mut self,
        ctx: &mut Ctx,
        chunk: ChunkId,
        version: ChunkVersion,
        length: u32,
        checksum: u32,
    ) {
        let head = self.is_head();
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let fresh = update.phase == Phase::Preparing { drop: false } && !update.expected;
        if head && fresh && update.result.version == version {
            (update.result.length, update.result.checksum) = (length, checksum);
            update.record.length = length;
            update.expected = true;
            self.send_early(ctx, chunk);
        }
    }

    /// Passes an update on that the store is at. A syncing successor gets whole contents that can't be dropped any
    /// more, and so only what all before it hold.
    pub(super) fn send_early(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        if self.ready && self.role == Role::Serving && !self.successor_is_syncing() {
            self.send_forward(ctx, chunk);
        }
    }

    /// The successor has answered while the store is at it: it can't have committed it.
    pub(super) fn on_early_answer(&mut self, ctx: &mut Ctx, chunk: ChunkId, answer: Answer) {
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        update.early = None;
        match answer {
            Answer::Reply { status: Status::Corrupt, .. } => update.whole = true,
            Answer::Reply { status: status @ (Status::NoSpace | Status::InvalidArgument), .. } => {
                update.refused = Some(status);
            }
            Answer::Reply { status: Status::DeviceError, .. } => {
                update.retry_at = Some(ctx.now + RETRY);
                self.accuse(ctx, true);
            }
            // The peer doesn't know early forwards.
            Answer::Unreadable => {}
            Answer::Reply { .. } | Answer::Lost => update.retry_at = Some(ctx.now + RETRY),
        }
    }

    /// Tells the successor that what it got early is durable on every replica before it, once it is.
    pub(super) fn tell_durable(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let Some(to) = self.successor() else { return };
        let (head, epoch, id) = (self.is_head(), self.epoch, self.next_send);
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let forwarded = matches!(update.phase, Phase::Forwarding(_)) && !update.told;
        if forwarded && (head || update.ahead) {
            update.told = true;
            update.notice = Some(id);
            update.since.get_or_insert(ctx.now);
            let version = update.result.version;
            self.new_send(Purpose::Durable(chunk));
            ctx.out.push(Output::Send { id, to, message: Message::Durable { epoch, chunk, version } });
        }
    }

    pub(super) fn on_durable_answer(&mut self, ctx: &mut Ctx, chunk: ChunkId, id: SendId, answer: Answer) {
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        if update.notice != Some(id) {
            return;
        }
        update.notice = None;
        let heard = matches!(answer, Answer::Reply { status: Status::Ok, .. });
        if !heard && matches!(update.phase, Phase::Forwarding(_)) {
            // The next forward says it; the one that isn't answered may still arrive.
            self.epoch += 1;
            update.phase = Phase::Held;
            update.retry_at = Some(ctx.now + RETRY);
        }
    }

    /// Every replica before this one holds a version durably.
    pub(super) fn on_durable(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        to: &Address,
        epoch: u32,
        chunk: ChunkId,
        version: ChunkVersion,
    ) {
        if let Err(status) = self.check_peer(to, None, epoch) {
            return ctx.refuse(token, status);
        }
        self.confirm(ctx);
        let committed = same(self.state_of(ctx, chunk).committed.version, version);
        let update = self.active.get_mut(&chunk).and_then(|a| a.update_mut());
        let status = match update.filter(|update| same(update.result.version, version)) {
            Some(update) => {
                update.ahead = true;
                ctx.refuse(token, Status::Ok);
                self.tell_durable(ctx, chunk);
                return self.step(ctx, chunk);
            }
            None if committed => Status::Ok,
            // It has overtaken the forward.
            None if self.announced.len() < ANNOUNCED_MAX => {
                self.announced.insert(chunk, version);
                Status::Ok
            }
            None => Status::Busy,
        };
        ctx.refuse(token, status);
    }

    /// A forward of the update that has the chunk's place already: the answer goes to this request from now on. `false`
    /// if another has it, or nothing does.
    pub(super) fn take_up(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        chunk: ChunkId,
        version: ChunkVersion,
        early: bool,
    ) -> bool {
        let active = self.load(ctx, chunk);
        let Some(update) = active.update_mut().filter(|u| same(u.result.version, version)) else {
            return false;
        };
        if matches!(update.phase, Phase::Refused(_)) && !update.held {
            // The store hasn't got it: it tries again.
            active.job = None;
            return false;
        }
        if let Some(old) = update.upstream.replace(token) {
            ctx.refuse(old, Status::Busy);
            if update.payload == Some(old) {
                update.payload = None;
            }
        }
        update.ahead |= !early;
        if let Phase::Refused(status) = update.phase {
            update.answer_peer(ctx, status);
        }
        self.tell_durable(ctx, chunk);
        self.step(ctx, chunk);
        true
    }

    /// Whether the predecessor has said that a version is durable before it came.
    pub(super) fn was_announced(&mut self, chunk: ChunkId, version: ChunkVersion) -> bool {
        let found = self.announced.get(&chunk).is_some_and(|announced| same(*announced, version));
        found && self.announced.remove(&chunk).is_some()
    }

    /// The own store hasn't got an update, or has dropped it again. `false` if nobody else can hold it: then it has
    /// ended. Else it stays until those behind have dropped it (R13), or a predecessor sends it again.
    pub(super) fn withdraw(&mut self, ctx: &mut Ctx, chunk: ChunkId, status: Status) -> bool {
        let (head, serving) = (self.is_head(), self.role == Role::Serving);
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return false };
        update.held = false;
        if update.early.take().is_some() {
            // It may still arrive.
            self.epoch += 1;
        }
        if !update.spread || !serving || mutant!(r13_failed_store_forgets_its_forward) {
            return false;
        }
        if head {
            update.phase = Phase::Aborting(None, status);
            self.step(ctx, chunk);
        } else {
            update.phase = Phase::Refused(status);
            update.answer_peer(ctx, status);
        }
        true
    }

    /// An abort of an update that isn't here: those behind may have got it before this store failed.
    pub(super) fn pass_abort(&mut self, ctx: &mut Ctx, token: Token, chunk: ChunkId, version: ChunkVersion) {
        let last = self.successor().is_none() || self.successor_is_syncing();
        let active = self.load(ctx, chunk);
        let status = match (&active.job, last) {
            (_, true) => Status::Ok,
            (Some(_), false) => Status::Busy,
            (None, false) => {
                let result = Content { version, ..Content::default() };
                let (tag, status) = (WriterTag::default(), Status::Aborted);
                let record = WriterRecord { tag, version, length: 0, status };
                let mut update = Update::new(result, ChunkVersion::NONE, Change::Remove, 0, record);
                update.phase = Phase::Aborting(None, status);
                update.aborter = Some(token);
                active.job = Some(Job::Update(Box::new(update)));
                return self.step(ctx, chunk);
            }
        };
        ctx.refuse(token, status);
        self.run_next(ctx, chunk);
    }
}
