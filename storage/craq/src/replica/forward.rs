//! Updates along the chain: forwards, commits coming back, aborts.

use super::active::{Job, Phase, Update, Waiting};
use super::{Ctx, Purpose, RETRY, ROOM, Replica, Role, payload_of, same};
use crate::io::{Address, Answer, Forward, Message, Output, Payload, SendId, Token};
use crate::state::{Change, Content};
use ember_types::{ChunkId, ChunkVersion, Status, TargetId, WriterRecord, mutant};
use std::time::Duration;

/// A note "in use" is asked for again after so long.
const NOTE_AGAIN: Duration = Duration::from_millis(500);

impl Replica {
    /// Moves an update on as far as it goes.
    pub(super) fn step(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        if !self.ready || self.role != Role::Serving {
            return;
        }
        let (successor, head, syncing) = (self.successor(), self.is_head(), self.successor_is_syncing());
        let skips = mutant!(r06_tail_ignores_syncing) && self.successor_is_syncing();
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let due = update.retry_at.is_none_or(|at| at <= ctx.now);
        let ahead = head || update.ahead || mutant!(r06_commit_before_all_hold_it);
        match update.phase {
            Phase::Held if (successor.is_none() || syncing) && !ahead => {}
            Phase::Held if successor.is_none() || skips => {
                update.phase = Phase::Acked;
                self.commit_if_allowed(ctx, chunk);
            }
            Phase::Acked => self.commit_if_allowed(ctx, chunk),
            Phase::Held if due => self.send_forward(ctx, chunk),
            Phase::Aborting(None, status) if due => {
                let version = update.result.version;
                let Some(to) = successor else {
                    return self.drop_own(ctx, chunk, status);
                };
                update.retry_at = None;
                let (id, epoch) = (self.new_send(Purpose::Abort(chunk)), self.epoch);
                if let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) {
                    update.phase = Phase::Aborting(Some(id), status);
                }
                ctx.out.push(Output::Send { id, to, message: Message::Abort { epoch, chunk, version } });
            }
            _ => {}
        }
    }

    /// Everybody behind holds it: the tail decides (R6, R7), the others follow.
    fn commit_if_allowed(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        if self.is_tail() {
            self.ask_for_note(ctx);
            let used = self.in_use() || mutant!(r07_commit_before_note);
            if !used || !self.confirmed {
                return;
            }
        }
        if let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) {
            update.phase = Phase::Committing;
            ctx.out.push(Output::Commit { chunk, version: update.result.version });
        }
    }

    /// The tail asks that the chain version be noted as in use; nothing is committed or told before (R7).
    pub(super) fn ask_for_note(&mut self, ctx: &mut Ctx) {
        if !self.in_use() && self.note_at.is_none() {
            ctx.out.push(Output::NoteInUse(self.chain_version()));
            self.note_at = Some(ctx.now + NOTE_AGAIN);
        }
    }

    /// Those behind have dropped it: now this store does.
    fn drop_own(&mut self, ctx: &mut Ctx, chunk: ChunkId, status: Status) {
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        update.spread = false;
        if update.held {
            update.phase = Phase::Dropping(status);
            ctx.out.push(Output::Drop { chunk, version: update.result.version });
        } else {
            self.end_dropped(ctx, chunk, status);
        }
    }

    pub(super) fn send_forward(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let Some(to) = self.successor() else { return };
        let (id, epoch) = (self.new_send(Purpose::Forward(chunk)), self.epoch);
        let (head, syncing) = (self.is_head(), self.successor_is_syncing());
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let lost_bytes =
            update.payload.is_none() && matches!(update.change, Change::Write { length: 1.., .. });
        let needs_whole = (update.whole || syncing || lost_bytes) && update.change != Change::Remove;
        let version = update.result.version;
        let (change, payload) = match update.change {
            Change::Whole { .. } => (update.change, payload_of(update.payload, version)),
            _ if needs_whole => (Change::Whole { length: update.result.length }, Payload::Stored(version)),
            Change::Write { length: 1.., .. } => (update.change, payload_of(update.payload, version)),
            other => (other, Payload::Empty),
        };
        let storing = matches!(update.phase, Phase::Preparing { .. });
        let early = storing || !(head || update.ahead);
        let forward = Forward {
            chunk,
            early,
            change,
            chunk_size: update.chunk_size,
            base: update.base,
            result: update.result,
            tag: update.record.tag,
            writers: if change.replaces_all() { update.writers.clone() } else { Vec::new() },
        };
        (update.spread, update.told, update.notice, update.retry_at) = (true, !early, None, None);
        match storing {
            true => update.early = Some(id),
            false => update.phase = Phase::Forwarding(id),
        }
        if !early {
            // Before it is told that all is durable, it can't answer.
            update.since.get_or_insert(ctx.now);
        }
        ctx.out.push(Output::Send { id, to, message: Message::Forward { epoch, forward, payload } });
    }

    pub(super) fn on_forward_answer(&mut self, ctx: &mut Ctx, chunk: ChunkId, id: SendId, answer: Answer) {
        let (syncing, head, mut in_use) = (self.successor_is_syncing(), self.is_head(), false);
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        if update.early == Some(id) {
            return self.on_early_answer(ctx, chunk, answer);
        }
        if update.phase != Phase::Forwarding(id) {
            return;
        }
        update.phase = Phase::Held;
        let later = Some(ctx.now + RETRY);
        if !matches!(answer, Answer::Lost | Answer::Unreadable) {
            update.since = None;
        }
        match answer {
            Answer::Reply { status: Status::Ok, version, .. } if same(version, update.result.version) => {
                update.phase = Phase::Acked;
                // A serving successor says so only under a version in use.
                in_use = !syncing;
            }
            Answer::Reply { status: Status::Corrupt, .. } => {
                // The successor can't make the same content out of its own: once more, whole (R14).
                update.retry_at = if update.whole { later } else { None };
                update.whole = true;
            }
            // Whoever is only being brought up to date has no say in what is written: mgmtd takes it out until it
            // has room, and the update goes on without it.
            Answer::Reply { status: Status::NoSpace, .. }
                if syncing && !mutant!(r13_syncing_target_refuses) =>
            {
                update.retry_at = Some(ctx.now + ROOM);
            }
            Answer::Reply { status: status @ (Status::NoSpace | Status::InvalidArgument), .. } => {
                return self.on_refused(ctx, chunk, status);
            }
            Answer::Reply { status: Status::DeviceError, .. } => {
                update.retry_at = later;
                self.accuse(ctx, true);
            }
            // The successor lacks the base and this chunk's bytes are bad beyond what the update replaces: nobody
            // has acknowledged it yet, and its writer may try again when the base is repaired (R14).
            Answer::Unreadable if head => return self.give_up(ctx, chunk),
            Answer::Lost if mutant!(r13_silence_aborts) => {
                return self.on_refused(ctx, chunk, Status::NoSpace);
            }
            Answer::Reply { .. } | Answer::Lost | Answer::Unreadable => update.retry_at = later,
        }
        if let Some(chain) = self.chain.as_mut().filter(|_| in_use) {
            chain.in_use = true;
        }
        self.step(ctx, chunk);
    }

    /// The head withdraws an update that it can't pass on, and has its base repaired.
    fn give_up(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let current = self.chain_version();
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let Some(update) = active.update_mut() else { return };
        if update.result.version.chain_version != current {
            // A tail of before may have committed it.
            update.retry_at = Some(ctx.now + RETRY);
            return;
        }
        update.phase = Phase::Aborting(None, Status::Aborted);
        let base = update.base;
        if !active.queue.iter().any(|waiting| matches!(waiting, Waiting::Repair(_))) {
            active.queue.push_front(Waiting::Repair(base));
        }
        self.step(ctx, chunk);
    }

    /// The successor refuses an update for good (R13). One that was numbered under this very chain version
    /// can't have been committed by anybody: the head aborts it. An older one may have been: it stays.
    pub(super) fn on_refused(&mut self, ctx: &mut Ctx, chunk: ChunkId, status: Status) {
        let (head, current) = (self.is_head(), self.chain_version());
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        if update.result.version.chain_version != current {
            update.retry_at = Some(ctx.now + RETRY);
            return self.accuse(ctx, true);
        }
        if head {
            update.phase = Phase::Aborting(None, status);
            if mutant!(r13_abort_forgets_locally) {
                update.spread = false;
                update.phase = Phase::Dropping(status);
                ctx.out.push(Output::Drop { chunk, version: update.result.version });
            }
            return self.step(ctx, chunk);
        }
        update.phase = Phase::Refused(status);
        update.answer_peer(ctx, status);
    }

    pub(super) fn accuse(&mut self, ctx: &mut Ctx, device: bool) {
        if let Some(to) = self.successor() {
            ctx.out.push(Output::Accuse { target: to.target, device });
        }
    }

    pub(super) fn on_forward(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        to: &Address,
        from: TargetId,
        epoch: u32,
        forward: Forward,
    ) {
        if let Err(status) = self.check_peer(to, Some(from), epoch) {
            return ctx.refuse(token, status);
        }
        // Only a predecessor at this very chain version forwards (R6).
        self.confirm(ctx);
        let (chunk, role) = (forward.chunk, self.role);
        let may_tell = role == Role::Syncing || self.in_use();
        let (version, early) = (forward.result.version, forward.early);
        if early && role == Role::Syncing {
            return ctx.refuse(token, Status::Busy);
        }
        if self.take_up(ctx, token, chunk, version, early) {
            return;
        }
        let active = self.load(ctx, chunk);
        if active.job.is_some() {
            return ctx.refuse(token, Status::Busy);
        }
        let own = active.state.committed;
        let whole = forward.change.replaces_all();
        let equal_bytes = (own.removed, own.length, own.checksum)
            == (forward.result.removed, forward.result.length, forward.result.checksum);
        let unordered = mutant!(r05_number_alone_identifies);
        if same(own.version, version) && (equal_bytes || unordered) {
            match may_tell {
                true => ctx.reply(token, Status::Ok, version, own.length),
                // Taken over while syncing: whether it counts as committed is decided with the note.
                false => ctx.refuse(token, Status::Busy),
            }
        } else if role == Role::Syncing || same(own.version, version) {
            match whole {
                true => return self.install_forward(ctx, token, forward),
                false => ctx.refuse(token, Status::Corrupt),
            }
        } else if same(own.version, forward.base)
            || (forward.base.is_none() && own.removed)
            || (whole && own.is_absent())
        {
            return self.prepare_forward(ctx, token, forward);
        } else {
            let status = if whole { Status::Internal } else { Status::Corrupt };
            ctx.refuse(token, status);
        }
        self.run_next(ctx, chunk);
    }

    fn prepare_forward(&mut self, ctx: &mut Ctx, token: Token, forward: Forward) {
        let (chunk, result) = (forward.chunk, forward.result);
        let ahead = !forward.early || self.was_announced(chunk, result.version);
        let record = WriterRecord {
            tag: forward.tag,
            version: result.version,
            length: result.length,
            status: Status::Ok,
        };
        let active = self.load(ctx, chunk);
        let base = active.state.committed.version;
        let records = match forward.change {
            Change::Whole { .. } => forward.writers,
            _ => active.state.writers.clone(),
        };
        let writers = self.channels.with(&records, record, chunk);
        let mut update = Update::new(result, base, forward.change, forward.chunk_size, record);
        update.expected = true;
        update.ahead = ahead;
        update.writers = writers.clone();
        update.payload = Some(token);
        update.upstream = Some(token);
        let payload = match forward.change {
            Change::Write { length: 1.., .. } | Change::Whole { length: 1.. } => Payload::Request(token),
            _ => Payload::Empty,
        };
        ctx.out.push(Output::Prepare {
            chunk,
            base,
            version: result.version,
            change: forward.change,
            chunk_size: forward.chunk_size,
            record,
            writers,
            payload,
        });
        self.load(ctx, chunk).job = Some(Job::Update(Box::new(update)));
        self.send_early(ctx, chunk);
    }

    /// A syncing target takes whole contents as committed: nobody reads it before it serves, and nobody
    /// behind it can refuse.
    fn install_forward(&mut self, ctx: &mut Ctx, token: Token, forward: Forward) {
        let writers = forward.writers;
        self.install(ctx, token, forward.chunk, forward.result, writers, forward.chunk_size);
    }

    pub(super) fn install(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        chunk: ChunkId,
        content: Content,
        writers: Vec<WriterRecord>,
        chunk_size: u32,
    ) {
        let payload = match content.is_absent() || content.length == 0 {
            true => Payload::Empty,
            false => Payload::Request(token),
        };
        ctx.out.push(Output::Install { chunk, content, writers: writers.clone(), chunk_size, payload });
        self.load(ctx, chunk).job = Some(Job::Install { token: Some(token), content, writers });
    }

    pub(super) fn on_installed(&mut self, ctx: &mut Ctx, chunk: ChunkId) {
        let Some(active) = self.active.get_mut(&chunk) else { return };
        let Some(Job::Install { token, content, writers }) = active.job.take() else { return };
        let void = |old: &&WriterRecord| !writers.contains(old) && !mutant!(r12_void_records_stay);
        for record in active.state.writers.iter().filter(void) {
            self.channels.forget(record, chunk);
        }
        for record in &writers {
            self.channels.commit(record, chunk);
        }
        active.state = crate::state::ChunkState { committed: content, pending: None, writers };
        if let Some(token) = token {
            ctx.reply(token, Status::Ok, content.version, content.length);
        }
        self.run_next(ctx, chunk);
    }

    /// The predecessor drops an update that was refused here or behind: first those behind, then this one,
    /// so that whoever holds a version has predecessors that hold it (R13).
    pub(super) fn on_abort(
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
        self.was_announced(chunk, version);
        let active = self.load(ctx, chunk);
        let committed = same(active.state.committed.version, version);
        let status = match active.update_mut().filter(|u| same(u.result.version, version)) {
            None if committed => Status::Conflict,
            None => return self.pass_abort(ctx, token, chunk, version),
            Some(update) => match update.phase {
                Phase::Refused(status) => {
                    update.phase = Phase::Aborting(None, status);
                    update.aborter = Some(token);
                    return self.step(ctx, chunk);
                }
                Phase::Aborting(..) | Phase::Dropping(_) => {
                    if let Some(old) = update.aborter.replace(token) {
                        ctx.refuse(old, Status::Busy);
                    }
                    return;
                }
                Phase::Acked | Phase::Committing => Status::Conflict,
                // A predecessor's store has failed, and nobody has been told otherwise.
                phase @ (Phase::Held | Phase::Forwarding(_)) if !update.ahead => {
                    update.phase = Phase::Aborting(None, Status::Aborted);
                    update.aborter = Some(token);
                    update.retry_at = None;
                    // The forward may still arrive.
                    self.epoch += u32::from(matches!(phase, Phase::Forwarding(_)));
                    return self.step(ctx, chunk);
                }
                Phase::Preparing { .. } | Phase::Held | Phase::Forwarding(_) => Status::Busy,
            },
        };
        ctx.refuse(token, status);
        self.run_next(ctx, chunk);
    }

    pub(super) fn on_abort_answer(&mut self, ctx: &mut Ctx, chunk: ChunkId, id: SendId, answer: Answer) {
        let Some(update) = self.active.get_mut(&chunk).and_then(|a| a.update_mut()) else { return };
        let Phase::Aborting(sent, status) = update.phase else { return };
        if sent != Some(id) {
            return;
        }
        match answer {
            Answer::Reply { status: Status::Ok, .. } => return self.drop_own(ctx, chunk, status),
            // It is committed there after all.
            Answer::Reply { status: Status::Conflict, .. } if update.held => update.phase = Phase::Held,
            _ => {
                update.phase = Phase::Aborting(None, status);
                update.retry_at = Some(ctx.now + RETRY);
            }
        }
        self.step(ctx, chunk);
    }
}
