//! A cluster manager of one chain, reduced to what the replicas see of it: leases, observations, transitions.

use ember_chain::{Observation, Report, invariants, new_chain, note_in_use, transition};
use ember_types::{Chain, ChainId, ChainVersion, Generation, TargetId};
use std::collections::BTreeMap;

/// Length of a lease, in nanoseconds.
pub(super) const LEASE_NS: u64 = 1_000_000_000;
/// What the manager waits beyond it.
pub(super) const DRIFT_NS: u64 = 50_000_000;

#[derive(Clone, Default)]
struct Seen {
    boot: u64,
    granted_until: Option<u64>,
    report: Option<Report>,
    generation: Generation,
}

/// The manager: it never fails and forgets nothing.
pub(super) struct Control {
    chain: Chain,
    seen: BTreeMap<TargetId, Seen>,
    /// Every version of the chain, newest last: what clients with old routing go by.
    past: Vec<Chain>,
}

impl Control {
    /// A new chain of `targets`.
    pub(super) fn new(id: ChainId, targets: &[TargetId]) -> Self {
        let members: Vec<_> = targets.iter().map(|&t| (t, Generation(1))).collect();
        let chain = new_chain(id, &members);
        let seen = |&t: &TargetId| (t, Seen { generation: Generation(1), ..Seen::default() });
        Self { past: vec![chain.clone()], chain, seen: targets.iter().map(seen).collect() }
    }
    /// The chain now.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }
    /// The chain `back` changes ago.
    pub(super) fn past(&self, back: usize) -> &Chain {
        let at = self.past.len().saturating_sub(1 + back);
        self.past.get(at).unwrap_or(&self.chain)
    }
    /// Whether every member serves.
    pub(super) fn all_serve(&self) -> bool {
        self.chain.serving().count() == self.chain.targets.len()
    }

    /// A node's heartbeat: what it says of its target in this boot. Its lease is renewed from now on.
    pub(super) fn heartbeat(
        &mut self,
        now: u64,
        target: TargetId,
        boot: u64,
        report: Report,
    ) -> Result<(), String> {
        let Some(seen) = self.seen.get_mut(&target) else { return Ok(()) };
        if boot < seen.boot {
            return Ok(());
        }
        if boot > seen.boot {
            *seen = Seen { boot, generation: seen.generation, ..Seen::default() };
        }
        seen.generation = seen.generation.max(report.generation);
        seen.report = Some(report);
        self.look(now)?;
        if let Some(seen) = self.seen.get_mut(&target) {
            seen.granted_until = Some(now + LEASE_NS + DRIFT_NS);
        }
        self.look(now)
    }

    fn observe(&self, now: u64, target: TargetId) -> Observation {
        let Some(seen) = self.seen.get(&target) else { return Observation::absent(Generation(0)) };
        let held = seen.granted_until.is_some_and(|until| now < until);
        Observation {
            alive: seen.granted_until.is_some_and(|until| now + DRIFT_NS < until),
            may_serve: held,
            report: seen.report,
            generation: seen.generation,
            shunned: false,
            stalled: false,
        }
    }

    /// Looks at the chain and changes it where something has changed.
    pub(super) fn look(&mut self, now: u64) -> Result<(), String> {
        for _ in 0..8 {
            let observations = self.chain.targets.iter().map(|m| (m.target, self.observe(now, m.target)));
            let observations: BTreeMap<_, _> = observations.collect();
            let Some(next) = transition(&self.chain, &observations) else { return Ok(()) };
            self.set(next)?;
        }
        Ok(())
    }
    fn set(&mut self, next: Chain) -> Result<(), String> {
        invariants::check_step(&self.chain, &next)?;
        self.chain = next.clone();
        self.past.push(next);
        Ok(())
    }
    /// A tail asks that its version be noted as in use.
    pub(super) fn note(&mut self, version: ChainVersion, tail: TargetId) -> Result<(), String> {
        match note_in_use(&self.chain, version, tail) {
            Ok(Some(next)) => self.set(next),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}
