//! Changes of a chain that are asked for: notes of use, new generations, members that come and go.

use ember_types::{Chain, ChainId, ChainTarget, ChainVersion, Generation, PublicState, TargetId};

/// Why a chain was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    /// The chain has moved on: look at it again.
    #[error("the chain has another version by now")]
    StaleVersion,
    /// Only the tail may ask.
    #[error("the target is not the chain's tail")]
    NotTail,
    /// The target is a member already.
    #[error("the target is a member of the chain already")]
    Member,
    /// The target is no member.
    #[error("the target is not a member of the chain")]
    NotMember,
    /// The member may not go now: it is not offline, or nobody else holds everything.
    #[error("the target is needed: it is in service, or no other member holds every acknowledged write")]
    Needed,
}

/// A chain that was never used: everybody serves, and everybody holds all of nothing.
pub fn new_chain(id: ChainId, members: &[(TargetId, Generation)]) -> Chain {
    let member = |&(target, generation): &_| ChainTarget { target, generation, state: PublicState::Serving };
    let targets: Vec<ChainTarget> = members.iter().map(member).collect();
    Chain {
        id,
        version: ChainVersion(1),
        in_use_members: targets.clone(),
        targets,
        in_use: false,
        last_in_use: ChainVersion(0),
    }
}

/// Notes that `tail` may commit under `version`: from now on only its serving members hold everything (R7).
/// `Ok(None)` if that is noted already.
pub fn note_in_use(
    chain: &Chain,
    version: ChainVersion,
    tail: TargetId,
) -> Result<Option<Chain>, MembershipError> {
    if chain.version != version {
        return Err(MembershipError::StaleVersion);
    }
    if chain.tail().map(|t| t.target) != Some(tail) {
        return Err(MembershipError::NotTail);
    }
    if chain.in_use {
        return Ok(None);
    }
    let in_use_members = chain.serving().copied().collect();
    Ok(Some(Chain { in_use: true, last_in_use: version, in_use_members, ..chain.clone() }))
}

/// Takes `target`'s content for lost: its next generation comes back through a full sync (R7).
pub fn accept_generation(
    chain: &Chain,
    target: TargetId,
    generation: Generation,
) -> Result<Chain, MembershipError> {
    let member = chain.member(target).ok_or(MembershipError::NotMember)?;
    if !crate::may_replace(chain, target) || generation <= member.generation {
        return Err(MembershipError::Needed);
    }
    let mut next = changed(chain);
    next.in_use_members.retain(|m| m.target != target);
    for member in next.targets.iter_mut().filter(|m| m.target == target) {
        member.generation = generation;
        member.state = PublicState::Offline;
    }
    next.targets.sort_by_key(|m| m.state);
    Ok(next)
}

/// Adds an empty target, which then syncs.
pub fn add(chain: &Chain, target: TargetId, generation: Generation) -> Result<Chain, MembershipError> {
    if chain.member(target).is_some() {
        return Err(MembershipError::Member);
    }
    let mut next = changed(chain);
    next.targets.push(ChainTarget { target, generation, state: PublicState::Offline });
    Ok(next)
}

/// Removes an offline target.
pub fn remove(chain: &Chain, target: TargetId) -> Result<Chain, MembershipError> {
    let member = chain.member(target).ok_or(MembershipError::NotMember)?;
    let others = chain.in_use_members.iter().any(|m| m.target != target);
    if member.state != PublicState::Offline || !others {
        return Err(MembershipError::Needed);
    }
    let mut next = changed(chain);
    next.targets.retain(|m| m.target != target);
    next.in_use_members.retain(|m| m.target != target);
    Ok(next)
}

fn changed(chain: &Chain) -> Chain {
    Chain { version: ChainVersion(chain.version.0.saturating_add(1)), in_use: false, ..chain.clone() }
}
