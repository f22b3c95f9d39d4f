//! The cluster manager of one chain: leases that are there or not, and the product's state machine.

use super::NODES;
use ember_chain::{Observation, Report, invariants, new_chain, note_in_use, transition};
use ember_types::{Chain, ChainId, ChainVersion, Generation, TargetId};

/// More versions than one look can make.
const ROUNDS: usize = 8;

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Seen {
    boot: u32,
    /// Whether its node may count on a lease.
    granted: bool,
    report: Option<Report>,
}

/// The manager: it never fails, and what it decides is durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Control {
    chain: Chain,
    seen: [Seen; NODES],
}

impl Control {
    pub(super) fn new(id: ChainId) -> Self {
        let members: Vec<_> = (0..NODES).map(|i| (TargetId(i as u64), Generation(1))).collect();
        let seen = Seen { boot: 1, granted: true, report: None };
        Self { chain: new_chain(id, &members), seen: std::array::from_fn(|_| seen.clone()) }
    }
    /// The chain now.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }
    /// Whether the node may count on a lease.
    pub(super) fn is_granted(&self, node: usize) -> bool {
        self.seen[node].granted
    }

    /// Whether the node said this already, in this boot.
    pub(super) fn has_heard(&self, node: usize, boot: u32, report: Report) -> bool {
        self.seen[node].boot == boot && self.seen[node].report == Some(report)
    }

    /// A node reports in this boot, and gets a lease for the chain as it then is. A new boot is taken account of
    /// before (R7).
    pub(super) fn heartbeat(&mut self, node: usize, boot: u32, report: Report) -> Result<(), String> {
        let seen = &mut self.seen[node];
        if boot > seen.boot {
            *seen = Seen { boot, ..Seen::default() };
        }
        seen.report = Some(report);
        self.look()?;
        self.seen[node].granted = true;
        self.look()
    }
    /// A lease has run out, and the node has stopped by it.
    pub(super) fn expire(&mut self, node: usize) -> Result<(), String> {
        self.seen[node].granted = false;
        self.look()
    }
    /// A tail asks that its version be noted as in use.
    pub(super) fn note(&mut self, version: ChainVersion, tail: TargetId) -> Result<(), String> {
        match note_in_use(&self.chain, version, tail) {
            Ok(Some(next)) => self.set(next),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn look(&mut self) -> Result<(), String> {
        let observe = |i: usize| {
            let seen = &self.seen[i];
            let observation = Observation {
                alive: seen.granted,
                may_serve: seen.granted,
                report: seen.report,
                generation: Generation(1),
                shunned: false,
                stalled: false,
            };
            (TargetId(i as u64), observation)
        };
        let observations = (0..NODES).map(observe).collect();
        for _ in 0..ROUNDS {
            let Some(next) = transition(&self.chain, &observations) else { return Ok(()) };
            self.set(next)?;
        }
        Err(format!("the chain does not come to rest: {:?}", self.chain))
    }
    fn set(&mut self, next: Chain) -> Result<(), String> {
        invariants::check_step(&self.chain, &next)?;
        self.chain = next;
        Ok(())
    }
}
