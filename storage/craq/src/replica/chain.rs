//! Chain versions: taking one over, serving under it, confirming it to the successor.

use super::active::{Active, Job, Phase, Waiting};
use super::{Ctx, Purpose, RETRY, Replica, Role};
use crate::io::{Address, Answer, Message, Output, Token};
use ember_types::{Chain, ChainVersion, ChunkId, PublicState, Status, mutant};

impl Replica {
    pub(super) fn on_chain(&mut self, ctx: &mut Ctx, chain: Chain) {
        if chain.id != self.identity.chain || self.failed {
            return;
        }
        match &mut self.chain {
            Some(own) if chain.version < own.version => {}
            Some(own) if chain.version == own.version => {
                if chain.in_use {
                    *own = chain;
                    if self.note_at.take().is_some() {
                        self.step_all(ctx);
                    }
                }
            }
            _ => self.adopt(ctx, chain),
        }
    }

    fn role_in(&self, chain: &Chain) -> Role {
        let own = chain.member(self.identity.target);
        match own.filter(|t| t.generation == self.identity.generation).map(|t| t.state) {
            // An earlier start of this process served under it: mgmtd has to take note of this one first.
            Some(PublicState::Serving) if chain.version > self.floor => Role::Serving,
            Some(PublicState::Syncing) => Role::Syncing,
            _ => Role::Idle,
        }
    }

    /// Puts a newer chain in force. Whatever was under way under the old one is void: peers are told to come
    /// again, pending versions stay and go to the new successor (R4).
    fn adopt(&mut self, ctx: &mut Ctx, chain: Chain) {
        self.refuse_queries(ctx, Status::StaleRouting);
        self.sends.clear();
        self.announced.clear();
        self.role = self.role_in(&chain);
        self.chain = Some(chain);
        self.synced &= mutant!(r11_sync_done_outlives_change);
        (self.ready, self.confirmed, self.sync) = (false, false, None);
        (self.epoch, self.seen_epoch, self.attempt) = (0, 0, 0);
        (self.confirm_at, self.note_at) = (None, None);
        self.unsettled.clear();

        let (head, role) = (self.is_head(), self.role);
        for (&chunk, active) in &mut self.active {
            active.rewind(ctx, chunk, head, role);
        }
        let chunks: Vec<ChunkId> = self.active.keys().copied().collect();
        chunks.into_iter().for_each(|chunk| self.run_next(ctx, chunk));
        match self.role {
            Role::Serving => {
                if self.is_tail() {
                    let held = |a: &Active| {
                        a.state.pending.is_some()
                            && !matches!(&a.job, Some(Job::Update(u)) if matches!(u.phase, Phase::Dropping(_)))
                    };
                    self.unsettled =
                        self.active.iter().filter(|(_, a)| held(a)).map(|(&chunk, _)| chunk).collect();
                }
                ctx.out.push(Output::StoreVersion(self.chain_version()));
            }
            Role::Syncing => self.check_discarded(),
            Role::Idle => {}
        }
    }

    /// Syncing: everything starts once no pending version of before is left (R4).
    pub(super) fn check_discarded(&mut self) {
        if self.role == Role::Syncing && !self.ready && !self.failed {
            self.ready = !self.active.values().any(|a| matches!(a.job, Some(Job::Update(_))));
        }
    }

    pub(super) fn on_version_stored(&mut self, ctx: &mut Ctx, version: ChainVersion) {
        if self.role != Role::Serving || self.failed || self.ready || version != self.chain_version() {
            return;
        }
        self.ready = true;
        self.confirmed |= self.predecessor().is_none();
        if self.is_tail() {
            self.ask_for_note(ctx);
            self.send_confirm(ctx);
            if self.successor_is_syncing() {
                self.start_sync(ctx);
            }
        }
        self.step_all(ctx);
    }

    pub(super) fn step_all(&mut self, ctx: &mut Ctx) {
        let chunks: Vec<ChunkId> = self.active.keys().copied().collect();
        chunks.into_iter().for_each(|chunk| self.step(ctx, chunk));
    }

    /// A new tail asks whether its predecessor has put the chain version in force: only then has the old
    /// tail stopped answering as one (R6).
    pub(super) fn send_confirm(&mut self, ctx: &mut Ctx) {
        self.confirm_at = None;
        let (Some(to), Some(chain), false) = (self.predecessor(), self.chain.clone(), self.confirmed) else {
            return;
        };
        let id = self.new_send(Purpose::Confirm);
        ctx.out.push(Output::Send { id, to, message: Message::Confirm { chain } });
    }

    pub(super) fn on_confirm_answer(&mut self, ctx: &mut Ctx, answer: Answer) {
        match answer {
            Answer::Reply { status: Status::Ok, chain_version, .. }
                if chain_version == self.chain_version() =>
            {
                self.confirm(ctx);
            }
            _ => self.confirm_at = Some(ctx.now + RETRY),
        }
    }

    pub(super) fn confirm(&mut self, ctx: &mut Ctx) {
        if !std::mem::replace(&mut self.confirmed, true) {
            self.confirm_at = None;
            self.step_all(ctx);
        }
    }

    /// The successor asks for confirmation; it may bring the news of the chain.
    pub(super) fn on_confirm(&mut self, ctx: &mut Ctx, token: Token, to: &Address, chain: Chain) {
        if chain.id == self.identity.chain && chain.version == to.chain_version {
            self.on_chain(ctx, chain);
        }
        let status = self.check_address(to).err().unwrap_or_default();
        ctx.refuse(token, status);
    }
}

impl Active {
    /// Undoes what belongs to the old chain version.
    fn rewind(&mut self, ctx: &mut Ctx, chunk: ChunkId, head: bool, role: Role) {
        self.queue.retain(|waiting| match waiting {
            Waiting::Update(wanted) => {
                ctx.refuse(wanted.token, Status::StaleRouting);
                false
            }
            Waiting::Sync => false,
            Waiting::Repair(_) => true,
        });
        match &mut self.job {
            Some(Job::Update(update)) => {
                update.answer_peer(ctx, Status::StaleRouting);
                if !head {
                    update.answer(ctx, Status::StaleRouting);
                }
                (update.whole, update.since, update.retry_at) = (false, None, None);
                (update.early, update.refused, update.notice) = (None, None, None);
                (update.ahead, update.told) = (false, false);
                let discard =
                    role == Role::Syncing || (mutant!(r04_drop_pending_on_change) && role == Role::Serving);
                if let Phase::Preparing { drop } = &mut update.phase {
                    *drop |= role == Role::Syncing;
                } else if !update.in_store() && !update.held {
                    // Nothing of it is here, but it may be behind: the head withdraws it.
                    let status = update.phase.refusal();
                    match role {
                        Role::Syncing => self.job = None,
                        _ if head => update.phase = Phase::Aborting(None, status),
                        _ => update.phase = Phase::Refused(status),
                    }
                } else if !update.in_store() {
                    update.phase = Phase::Held;
                    if discard {
                        update.phase = Phase::Dropping(Status::StaleRouting);
                        ctx.out.push(Output::Drop { chunk, version: update.result.version });
                    }
                }
            }
            Some(Job::Install { token, .. }) => {
                if let Some(token) = token.take() {
                    ctx.refuse(token, Status::StaleRouting);
                }
            }
            Some(Job::Sync { .. }) => self.job = None,
            Some(Job::Repair) | None => {}
        }
    }
}
