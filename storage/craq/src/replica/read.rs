//! Reads and version queries.

use super::{Ctx, Purpose, Replica, Role, SENDS_MAX, same};
use crate::io::{Address, Answer, Message, Output, Token};
use crate::state::{ChunkState, Content};
use ember_types::{ChunkId, Instant, Status, mutant};

/// A read whose chunk moves on while the tail is asked starts anew so often.
const TRIES_MAX: u8 = 4;

impl Replica {
    pub(super) fn state_of(&self, ctx: &Ctx, chunk: ChunkId) -> ChunkState {
        self.active.get(&chunk).map_or_else(|| ctx.view.chunk(chunk), |active| active.state.clone())
    }

    /// Whether this replica may say what is committed.
    fn check_reader(&self, now: Instant, to: &Address) -> Result<(), Status> {
        self.check_address(to)?;
        if self.role != Role::Serving {
            return Err(Status::NotServing);
        }
        if now >= self.lease && !mutant!(r08_read_without_lease) {
            return Err(Status::NoLease);
        }
        // What a syncing target took over may never have been committed: it is shown only once nobody who
        // lacks it can come back as lastsrv (R7).
        let settled = self.unsettled.is_empty() || mutant!(r04_new_tail_tells_before_commit);
        let confirmed = self.confirmed || mutant!(r06_new_tail_unconfirmed);
        if !self.in_use() || (self.is_tail() && !(confirmed && settled)) {
            return Err(Status::Busy);
        }
        Ok(())
    }

    /// Whether an answer about what is committed may be given now, other than through [`Input::Read`]: only if
    /// nothing is pending for what it speaks of.
    ///
    /// [`Input::Read`]: crate::Input::Read
    pub fn may_tell(&self, now: Instant, to: &Address) -> Result<(), Status> {
        self.check_reader(now, to)
    }

    pub(super) fn on_read(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        to: &Address,
        chunk: ChunkId,
        relaxed: bool,
    ) {
        match self.check_reader(ctx.now, to) {
            Ok(()) => self.read(ctx, token, chunk, relaxed, 0),
            Err(_)
                if mutant!(r18_absent_is_hole_anywhere)
                    && self.state_of(ctx, chunk).committed.is_absent() =>
            {
                ctx.out.push(Output::Read { token, content: Content::default() });
            }
            Err(status) => ctx.refuse(token, status),
        }
    }

    fn read(&mut self, ctx: &mut Ctx, token: Token, chunk: ChunkId, relaxed: bool, tries: u8) {
        let state = self.state_of(ctx, chunk);
        let content = match state.pending {
            // The tail's committed version is the committed one.
            None => state.committed,
            Some(_) if self.is_tail() => state.committed,
            Some(pending) if relaxed || mutant!(r06_read_answers_pending) => pending.content,
            Some(_) => return self.ask_tail(ctx, token, chunk, tries),
        };
        ctx.out.push(Output::Read { token, content });
    }

    fn ask_tail(&mut self, ctx: &mut Ctx, token: Token, chunk: ChunkId, tries: u8) {
        let tail = self.chain.as_ref().and_then(|chain| chain.tail()).map(|t| t.target);
        let Some(to) = tail.and_then(|tail| self.address_of(tail)) else {
            return ctx.refuse(token, Status::NotServing);
        };
        if tries >= TRIES_MAX || self.sends.len() >= SENDS_MAX {
            return ctx.refuse(token, Status::Busy);
        }
        let id = self.new_send(Purpose::Query { token, chunk, tries });
        ctx.out.push(Output::Send { id, to, message: Message::Query { chunk } });
    }

    pub(super) fn on_query_answer(
        &mut self,
        ctx: &mut Ctx,
        token: Token,
        chunk: ChunkId,
        tries: u8,
        answer: Answer,
    ) {
        let version = match answer {
            Answer::Reply { status: Status::Ok, version, .. } => version,
            // The tail isn't ready or at another chain version: somebody has to learn of a new chain first.
            Answer::Reply { .. } => return ctx.refuse(token, Status::Busy),
            Answer::Lost | Answer::Unreadable => return ctx.refuse(token, Status::Unavailable),
        };
        let state = self.state_of(ctx, chunk);
        if same(version, state.committed.version) || (version.is_none() && state.committed.is_absent()) {
            ctx.out.push(Output::Read { token, content: state.committed });
        } else if let Some(pending) = state.pending.filter(|p| same(p.content.version, version)) {
            ctx.out.push(Output::Read { token, content: pending.content });
        } else {
            // This replica has gone on since the question: what it holds now is newer than the answer.
            self.read(ctx, token, chunk, false, tries + 1);
        }
    }

    pub(super) fn on_query(&mut self, ctx: &mut Ctx, token: Token, to: &Address, chunk: ChunkId) {
        let checked = self.check_reader(ctx.now, to).and_then(|()| match self.is_tail() {
            true => Ok(()),
            false => Err(Status::StaleRouting),
        });
        match checked {
            Err(status) => ctx.refuse(token, status),
            Ok(()) => {
                let committed = self.state_of(ctx, chunk).committed;
                ctx.reply(token, Status::Ok, committed.version, committed.length);
            }
        }
    }
}
