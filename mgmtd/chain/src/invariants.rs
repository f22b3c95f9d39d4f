//! What holds for every chain and every step of a chain. Property tests and the simulator check it.

use crate::transition::holds_everything;
use ember_types::{Chain, PublicState, TargetId};
use std::collections::BTreeSet;

/// Checks one chain; the error says which invariant it breaks.
pub fn check(chain: &Chain) -> Result<(), String> {
    let fail = |what: &str| Err(format!("chain {} version {}: {what}", chain.id, chain.version));
    if chain.targets.is_empty() || chain.version.0 == 0 {
        return fail("it has no members or no version");
    }
    let ids: BTreeSet<TargetId> = chain.targets.iter().map(|m| m.target).collect();
    if ids.len() != chain.targets.len() {
        return fail("a target is a member twice");
    }
    if !chain.targets.is_sorted_by_key(|m| m.state) {
        return fail("members are not ordered by state");
    }
    let count = |state| chain.targets.iter().filter(|m| m.state == state).count();
    if count(PublicState::Syncing) > 1 {
        return fail("several members are syncing (R6)");
    }
    if count(PublicState::Serving) > 0 && count(PublicState::LastSrv) > 0 {
        return fail("it has serving and lastsrv members at once (R7)");
    }
    if count(PublicState::Serving) == 0 && count(PublicState::Syncing) > 0 {
        return fail("a member is syncing and nobody serves");
    }
    if chain.in_use_members.is_empty() {
        return fail("nobody holds the acknowledged writes (R7)");
    }
    let trusted =
        |m: &&ember_types::ChainTarget| matches!(m.state, PublicState::Serving | PublicState::LastSrv);
    if chain.targets.iter().filter(trusted).any(|m| !holds_everything(chain, m.target, m.generation)) {
        return fail("a serving or lastsrv member may lack acknowledged writes (R7)");
    }
    if chain.last_in_use > chain.version || chain.in_use != (chain.last_in_use == chain.version) {
        return fail("in use and last in use don't agree");
    }
    Ok(())
}

/// Checks the step from one durable state of a chain to a later one.
pub fn check_step(old: &Chain, new: &Chain) -> Result<(), String> {
    check(new)?;
    let fail =
        |what: &str| Err(format!("chain {} version {} to {}: {what}", old.id, old.version, new.version));
    if new.version < old.version || (new.version == old.version && new.targets != old.targets) {
        return fail("members changed without a higher version (R2)");
    }
    let kept: Vec<TargetId> =
        old.serving().filter(|m| new.serving().any(|n| n.target == m.target)).map(|m| m.target).collect();
    let now: Vec<TargetId> = new.serving().map(|m| m.target).collect();
    if !now.starts_with(&kept) {
        return fail("serving members changed order (R5)");
    }
    for member in &new.targets {
        let Some(before) = old.member(member.target) else { continue };
        if member.generation < before.generation {
            return fail("a generation went back");
        }
        let ready =
            matches!(before.state, PublicState::Serving | PublicState::LastSrv | PublicState::Syncing);
        let held = holds_everything(old, before.target, before.generation);
        let one_step = new.version.0 == old.version.0 + 1;
        if one_step && member.state == PublicState::Serving && !ready && !held {
            return fail("a member serves that neither held everything nor was synced (R7)");
        }
    }
    Ok(())
}
