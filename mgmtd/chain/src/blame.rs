//! Which of two neighbours goes when one doesn't hear from the other (R10).

use ember_types::{Chain, NodeId, PublicState, TargetId, mutant};

/// A replica that has had no answer from its successor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Accusation {
    /// Node of the accuser.
    pub accuser: NodeId,
    /// Node of the accused.
    pub accused: NodeId,
    /// The accused answered, with device errors.
    pub device_error: bool,
}

/// Decides whom to demote when `accuser` accuses `accused`, both members of `chain`, given what was said
/// lately of their nodes (`recent`, this accusation included): whose I/O fails, else whom more nodes accuse,
/// else the accused. `None` if the chain would be left without a serving member.
pub fn blame(
    chain: &Chain,
    (accuser, accuser_node): (TargetId, NodeId),
    (accused, accused_node): (TargetId, NodeId),
    recent: &[Accusation],
) -> Option<TargetId> {
    let voices = |against: NodeId| {
        let mut from: Vec<NodeId> =
            recent.iter().filter(|a| a.accused == against).map(|a| a.accuser).collect();
        from.sort_unstable();
        from.dedup();
        from.len()
    };
    let fails = |node: NodeId| recent.iter().any(|a| a.accused == node && a.device_error);
    let first = (fails(accuser_node), voices(accuser_node)) > (fails(accused_node), voices(accused_node));
    let chosen = if first && !mutant!(r10_accuser_is_never_blamed) { accuser } else { accused };
    let left = chain.serving().filter(|m| m.target != chosen).count();
    let member = chain.member(chosen)?;
    let active = matches!(member.state, PublicState::Serving | PublicState::Syncing);
    (active && left > 0).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::new_chain;
    use ember_types::{ChainId, Generation};

    fn says(accuser: u32, accused: u32, device_error: bool) -> Accusation {
        Accusation { accuser: NodeId(accuser), accused: NodeId(accused), device_error }
    }

    #[test]
    fn r10_who_is_accused_by_several_or_fails_goes() {
        let members = [1, 2, 3].map(|t| (TargetId(t), Generation(1)));
        let chain = new_chain(ChainId(1), &members);
        let ask =
            |recent: &[Accusation]| blame(&chain, (TargetId(1), NodeId(1)), (TargetId(2), NodeId(2)), recent);
        assert_eq!(ask(&[says(1, 2, false)]), Some(TargetId(2)));
        let several = [says(1, 2, false), says(3, 1, false), says(4, 1, false), says(4, 1, false)];
        assert_eq!(ask(&several), Some(TargetId(1)));
        let failing = [says(1, 2, true), says(3, 1, false), says(4, 1, false)];
        assert_eq!(ask(&failing), Some(TargetId(2)));
        let alone = new_chain(ChainId(1), &members[..1]);
        let nobody = (TargetId(1), NodeId(1));
        assert_eq!(blame(&alone, nobody, nobody, &[says(1, 1, true)]), None);
    }
}
