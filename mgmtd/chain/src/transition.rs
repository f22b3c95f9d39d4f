//! The state machine of a chain.

use crate::observation::Observation;
use ember_types::{Chain, ChainTarget, ChainVersion, Generation, PublicState, TargetId, mutant};
use std::collections::BTreeMap;

/// Whether `target` in `generation` holds every acknowledged write of the chain: it served under the last
/// version in use, or was synced from one that did, and has not begun to sync since (R7).
pub fn holds_everything(chain: &Chain, target: TargetId, generation: Generation) -> bool {
    chain.in_use_members.iter().any(|m| m.target == target && m.generation == generation)
}

/// Whether `target` may get a new, empty generation: it is not serving, and another member serves.
pub fn may_replace(chain: &Chain, target: TargetId) -> bool {
    let apart = chain.member(target).is_some_and(|m| m.state != PublicState::Serving);
    apart && chain.serving().next().is_some()
}

/// The chain's next version under these observations; `None` if nothing changes. An absent observation counts
/// as a target that may be serving: nothing is decided about it.
pub fn transition(chain: &Chain, observations: &BTreeMap<TargetId, Observation>) -> Option<Chain> {
    if let Some(max) = version_beyond(chain, observations) {
        return recover_version(chain, observations, max);
    }
    let mut next = Round::new(chain, observations);
    next.keep_serving();
    next.revive_last();
    next.continue_sync();
    next.admit_returned();
    next.finish(chain)
}

/// The highest chain version that a member served under, if the store has forgotten it (R2).
fn version_beyond(chain: &Chain, observations: &BTreeMap<TargetId, Observation>) -> Option<ChainVersion> {
    let served = |m: &ChainTarget| observations.get(&m.target)?.valid_report().map(|r| r.served);
    let max = chain.targets.iter().filter_map(served).max()?;
    (max > chain.version && !mutant!(r02_version_from_kv_only)).then_some(max)
}

/// The store lost chain versions (it was restored, say): goes beyond all of them, with only those that served
/// under the newest one as candidates (R2). Waits until nobody can be serving under the lost versions.
fn recover_version(
    chain: &Chain,
    observations: &BTreeMap<TargetId, Observation>,
    max: ChainVersion,
) -> Option<Chain> {
    let known = |m: &ChainTarget| observations.get(&m.target);
    if chain.targets.iter().any(|m| known(m).is_none_or(|o| o.may_serve)) {
        return None;
    }
    let mut targets: Vec<ChainTarget> = Vec::new();
    for member in &chain.targets {
        let report = known(member).and_then(Observation::valid_report);
        let served_last = report.is_some_and(|r| r.served == max || mutant!(r02_stale_member_revived));
        let state = if served_last { PublicState::LastSrv } else { PublicState::Offline };
        let generation = known(member).map_or(member.generation, |o| o.generation);
        targets.push(ChainTarget { state, generation, ..*member });
    }
    let in_use_members = targets
        .iter()
        .filter(|m| m.state == PublicState::LastSrv)
        .map(|m| ChainTarget { state: PublicState::Serving, ..*m })
        .collect();
    targets.sort_by_key(|m| m.state);
    let version = ChainVersion(max.0.saturating_add(1));
    Some(Chain { id: chain.id, version, targets, in_use: false, last_in_use: max, in_use_members })
}

/// One evaluation of a chain: members with the states assigned so far.
struct Round<'a> {
    observations: &'a BTreeMap<TargetId, Observation>,
    /// The chain's version under which reports must have been made.
    version: ChainVersion,
    /// Members in the chain's order, with their old entry; `None` while no new state is assigned.
    members: Vec<(ChainTarget, Option<PublicState>)>,
    /// Who holds every acknowledged write.
    holders: Vec<ChainTarget>,
}

impl<'a> Round<'a> {
    fn new(chain: &Chain, observations: &'a BTreeMap<TargetId, Observation>) -> Self {
        let mut round = Self {
            observations,
            version: chain.version,
            members: chain.targets.iter().map(|m| (*m, None)).collect(),
            holders: chain.in_use_members.clone(),
        };
        round.adopt_generations();
        round
    }

    fn of(&self, target: TargetId) -> Option<&'a Observation> {
        self.observations.get(&target)
    }

    /// A new generation is empty: whatever the target held is not there any more.
    fn adopt_generations(&mut self) {
        for at in 0..self.members.len() {
            let old = self.members[at].0;
            let Some(seen) = self.of(old.target) else { continue };
            let stopped = old.state != PublicState::Serving || !seen.may_serve;
            let others_hold = self.holders.iter().any(|h| h.target != old.target);
            if seen.generation > old.generation && stopped && others_hold {
                self.members[at].0.generation = seen.generation;
                self.members[at].0.state = PublicState::Offline;
                self.holders.retain(|h| h.target != old.target);
            }
        }
    }

    fn assigned(&self, state: PublicState) -> bool {
        self.members.iter().any(|(_, new)| *new == Some(state))
    }

    /// Some serving member can act as a source: "another serving target exists" counts only targets with a
    /// live lease from this primary in their present boot (R7).
    fn live_serving(&self) -> bool {
        self.members.iter().any(|(m, new)| {
            *new == Some(PublicState::Serving) && self.of(m.target).is_some_and(Observation::usable)
        })
    }

    /// A serving member is taken out only when it cannot be serving (R1).
    fn keep_serving(&mut self) {
        for at in 0..self.members.len() {
            let member = self.members[at].0;
            if member.state == PublicState::Serving {
                let unknown = !mutant!(r01_unknown_counts_as_stopped);
                let stays = self.of(member.target).map_or(unknown, |o| o.may_serve);
                self.members[at].1 = stays.then_some(PublicState::Serving);
            }
        }
    }

    /// With nobody serving, every holder becomes lastsrv, and the first that is back and whole serves (R7).
    fn revive_last(&mut self) {
        if self.assigned(PublicState::Serving) {
            return;
        }
        let mut served = false;
        for at in 0..self.members.len() {
            let member = self.members[at].0;
            let holds = self.holders.iter().any(|h| same(h, &member));
            if !holds && !mutant!(r07_any_member_is_lastsrv) {
                continue;
            }
            let was_out = member.state != PublicState::Serving;
            let back = was_out && self.of(member.target).is_some_and(Observation::complete);
            if back && !served {
                served = true;
                self.members[at].1 = Some(PublicState::Serving);
            } else {
                self.members[at].1 = Some(PublicState::LastSrv);
            }
        }
        if served {
            let lastsrv = |m: &&mut (ChainTarget, Option<PublicState>)| m.1 == Some(PublicState::LastSrv);
            self.members.iter_mut().filter(lastsrv).for_each(|m| m.1 = None);
        }
    }

    /// A syncing member whose sync is done under exactly this chain version joins behind the tail (R6).
    fn continue_sync(&mut self) {
        for at in 0..self.members.len() {
            let (member, new) = self.members[at];
            if member.state != PublicState::Syncing || new.is_some() {
                continue;
            }
            let Some(seen) = self.of(member.target).filter(|o| o.usable()) else { continue };
            let current = |applied| applied == self.version || mutant!(r06_old_sync_done_counts);
            let done = seen.complete() && seen.valid_report().is_some_and(|r| current(r.applied));
            if done && self.live_serving() {
                self.members[at].1 = Some(PublicState::Serving);
                self.holders.push(ChainTarget { state: PublicState::Serving, ..member });
            } else if self.assigned(PublicState::Serving)
                && (!seen.stalled || mutant!(r10_stalled_sync_stays))
            {
                self.members[at].1 = Some(PublicState::Syncing);
            }
        }
    }

    /// Everybody else is offline, waits, or begins to sync: one at a time, who yielded the place last.
    fn admit_returned(&mut self) {
        let mut open: Vec<usize> =
            (0..self.members.len()).filter(|at| self.members[*at].1.is_none()).collect();
        open.sort_by_key(|at| (self.members[*at].0.state == PublicState::Syncing, *at));
        let source = self.live_serving();
        for at in open {
            let member = self.members[at].0;
            let usable = self.of(member.target).filter(|o| o.usable());
            let yielded = member.state == PublicState::Syncing;
            let free = source && !yielded && !self.assigned(PublicState::Syncing);
            let state = match usable {
                None => PublicState::Offline,
                Some(seen) if free && !seen.shunned => PublicState::Syncing,
                Some(_) => PublicState::Waiting,
            };
            if state == PublicState::Syncing && !mutant!(r07_syncing_still_holds) {
                // It drops its pending versions now (R4), so it no longer holds what may have been read.
                self.holders.retain(|h| h.target != member.target);
            }
            self.members[at].1 = Some(state);
        }
    }

    fn finish(self, chain: &Chain) -> Option<Chain> {
        let mut order: Vec<(u8, ChainTarget)> = Vec::new();
        for (member, new) in &self.members {
            let state = new.unwrap_or(PublicState::Offline);
            // Who joins the serving ones stands behind them; who yielded stands behind those that wait.
            let joined = state == PublicState::Serving && member.state != PublicState::Serving;
            let yielded = state == PublicState::Waiting && member.state == PublicState::Syncing;
            order.push((u8::from(joined || yielded), ChainTarget { state, ..*member }));
        }
        order.sort_by_key(|(behind, m)| (m.state, *behind));
        let targets: Vec<ChainTarget> = order.into_iter().map(|(_, m)| m).collect();
        if !worth_a_version(chain, &targets) {
            return None;
        }
        let in_use_members = match mutant!(r07_unused_version_counts) {
            true => targets.iter().filter(|m| m.state == PublicState::Serving).copied().collect(),
            false => self.holders,
        };
        Some(Chain {
            id: chain.id,
            version: ChainVersion(chain.version.0.saturating_add(1)),
            targets,
            in_use: false,
            last_in_use: chain.last_in_use,
            in_use_members,
        })
    }
}

fn same(a: &ChainTarget, b: &ChainTarget) -> bool {
    a.target == b.target && a.generation == b.generation
}

/// Whether the members differ enough for a new version. A sync starts over with each version, so that a
/// member going between waiting and offline must not disturb another one's sync.
fn worth_a_version(chain: &Chain, targets: &[ChainTarget]) -> bool {
    let idle = |m: &&ChainTarget| matches!(m.state, PublicState::Waiting | PublicState::Offline);
    let active = |list: &[ChainTarget]| list.iter().filter(|m| !idle(m)).copied().collect::<Vec<_>>();
    let generations = |list: &[ChainTarget]| {
        list.iter().map(|m| (m.target, m.generation)).collect::<BTreeMap<TargetId, Generation>>()
    };
    let syncing = targets.iter().any(|m| m.state == PublicState::Syncing);
    if syncing && active(&chain.targets) == active(targets) {
        return generations(&chain.targets) != generations(targets);
    }
    chain.targets != targets
}
