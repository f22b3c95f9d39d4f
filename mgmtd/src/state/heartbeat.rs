//! Registrations and heartbeats.

use super::{Node, State};
use crate::record::{self, Batch};
use ember_chain::Observation;
use ember_types::{
    Chain, ClusterTime, Instant, NodeId, PublicState, RoutingVersion, Status, TargetId, mutant,
};
use ember_wire::mgmtd::{HeartbeatRequest, HeartbeatResponse, RegisterRequest, TargetOrder, TargetReport};
use std::collections::BTreeSet;

/// Most chains in one answer; a node that lacks more learns them from its routing.
const CHAINS_MAX: usize = 2_000;
/// Limits of what a node says of itself.
const ADDRESSES_MAX: usize = 16;
const TAGS_MAX: usize = 32;
const TEXT_MAX: usize = 1_024;
const DISKS_MAX: u32 = 1_024;
const WARNINGS_MAX: usize = 32;

impl State {
    /// What a registration changes; `None` if it is known already. A new boot takes the node's targets out of
    /// service (R7): the process before it has ended, since both need the data directory for themselves.
    pub(crate) fn register(
        &mut self,
        request: &RegisterRequest,
        now: Instant,
    ) -> Result<Option<Batch>, (Status, String)> {
        let record = self.check_registration(request)?;
        let known = self.nodes.get(&record.id);
        if known.is_some_and(|n| n.record == record) {
            return Ok(None);
        }
        let same_boot = known.is_some_and(|n| n.record.boot == record.boot);
        let mut batch = Batch::default();
        if !same_boot && !mutant!(r07_new_boot_stays_in_service) {
            batch.chains = self.take_offline(record.id, now);
            for chain in &batch.chains {
                self.hold_back(chain);
            }
            if let Some(node) = self.nodes.get_mut(&record.id) {
                node.replaced = true;
            }
        }
        batch.nodes.push(record);
        Ok(Some(batch))
    }

    fn check_registration(&self, request: &RegisterRequest) -> Result<record::Node, (Status, String)> {
        let refuse = |text: &str| Err((Status::InvalidArgument, format!("node {}: {text}", request.node)));
        if request.node.0 == 0 || request.boot.0 == 0 {
            return refuse("a node id and a boot id must not be 0");
        }
        let known = self.nodes.get(&request.node);
        if known.is_some_and(|n| n.record.kind != request.kind) {
            return refuse("this id belongs to a node of another kind: choose another id");
        }
        let readable = |a: &String| a.len() <= TEXT_MAX && a.parse::<ember_rt::Addr>().is_ok();
        if request.addresses.is_empty() || request.addresses.len() > ADDRESSES_MAX {
            return refuse("it must listen on 1 to 16 addresses");
        }
        if let Some(bad) = request.addresses.iter().find(|a| !readable(a)) {
            return refuse(&format!("address {bad:?} is neither IP:PORT nor unix:/absolute/path"));
        }
        let long = |s: &String| s.len() > TEXT_MAX;
        if request.tags.len() > TAGS_MAX || request.tags.iter().any(|(k, v)| long(k) || long(v)) {
            return refuse("at most 32 tags of at most 1024 bytes");
        }
        if request.disks > DISKS_MAX || long(&request.release) || request.data_dir.len() > 4 * TEXT_MAX {
            return refuse("at most 1024 disks, and a shorter release or data directory");
        }
        let used = self.targets_of(request.node).filter_map(|t| self.targets.get(&t)).map(|t| t.disk).max();
        if used.is_some_and(|disk| disk >= request.disks) {
            return refuse("it offers fewer disks than it has targets on: restore the missing disk's entry");
        }
        Ok(record::Node {
            id: request.node,
            kind: request.kind,
            boot: request.boot,
            addresses: request.addresses.clone(),
            tags: request.tags.clone(),
            disks: request.disks,
            pid: request.pid,
            data_dir: request.data_dir.clone(),
            release: request.release.clone(),
        })
    }

    /// The chains of a node whose process has ended.
    fn take_offline(&self, node: NodeId, now: Instant) -> Vec<Chain> {
        let own: BTreeSet<TargetId> = self.targets_of(node).collect();
        let ids: BTreeSet<_> = own.iter().filter_map(|t| self.targets.get(t)).map(|t| t.chain).collect();
        let chains = ids.into_iter().filter_map(|id| self.chains.get(&id));
        let next = chains.filter_map(|chain| {
            let mut observations = self.observe(chain, now);
            for (target, seen) in observations.iter_mut().filter(|(t, _)| own.contains(t)) {
                debug_assert!(self.targets.contains_key(target));
                *seen = Observation::absent(seen.generation);
            }
            ember_chain::transition(chain, &observations)
        });
        next.collect()
    }

    /// Takes a node's reports and answers with the public states of its targets; grants a lease unless the
    /// node has yet to confirm that a target stopped (R1).
    pub(crate) fn heartbeat(
        &mut self,
        request: HeartbeatRequest,
        term: u64,
        now: Instant,
        time: ClusterTime,
    ) -> HeartbeatResponse {
        let routing = RoutingVersion { term, counter: self.routing.counter };
        let mut answer = HeartbeatResponse {
            status: Status::NotFound,
            granted: false,
            orders: Vec::new(),
            chains: Vec::new(),
            routing,
            cluster_time: time,
            primary: Vec::new(),
        };
        let Some(node) = self.nodes.get_mut(&request.node).filter(|n| n.record.boot == request.boot) else {
            return answer;
        };
        answer.status = Status::Ok;
        let newest = request.sequence > node.sequence;
        let (id, known) = (request.node, request.routing);
        if newest {
            node.sequence = request.sequence;
            node.heard = Some(now);
            node.warnings = request.warnings;
            node.warnings.truncate(WARNINGS_MAX);
            self.take_reports(id, request.targets, now);
        }
        self.fill_orders(id, known, now, &mut answer);
        answer.granted = newest && self.may_grant(id, now);
        if answer.granted {
            let first = self.nodes.get_mut(&id).is_some_and(|node| node.granted.replace(now).is_none());
            if first {
                self.mark_node(id);
            }
        }
        answer
    }

    fn take_reports(&mut self, node: NodeId, reports: Vec<TargetReport>, now: Instant) {
        let Some(own) = self.by_node.get(&node) else { return };
        let reports: Vec<TargetReport> = reports.into_iter().filter(|r| own.contains(&r.target)).collect();
        let chain_of: Vec<_> = reports.iter().map(|r| self.targets.get(&r.target).map(|t| t.chain)).collect();
        let Some(Node { reports: known, .. }) = self.nodes.get_mut(&node) else { return };
        for (report, chain) in reports.into_iter().zip(chain_of) {
            self.gray.note_slow(report.target, report.slow, now);
            let changed = known.get(&report.target).is_none_or(|old| differs(old, &report));
            known.insert(report.target, report);
            if let (true, Some(chain)) = (changed, chain) {
                self.dirty.insert(chain);
            }
        }
    }

    fn fill_orders(&self, node: NodeId, known: RoutingVersion, now: Instant, answer: &mut HeartbeatResponse) {
        for target in self.targets_of(node) {
            let Some(chain) = self.targets.get(&target).and_then(|t| self.chains.get(&t.chain)) else {
                continue;
            };
            let Some(member) = chain.member(target) else { continue };
            let state = if self.must_stop(chain, target, now) { PublicState::Offline } else { member.state };
            answer.orders.push(TargetOrder { target, chain: chain.id, chain_version: chain.version, state });
            let behind = self.report(target).is_none_or(|r| r.chain_version < chain.version);
            if (behind || known != answer.routing) && answer.chains.len() < CHAINS_MAX {
                answer.chains.push(chain.clone());
            }
        }
        answer.chains.sort_by_key(|c| c.id);
        answer.chains.dedup_by_key(|c| c.id);
    }

    /// No renewal while a target that is to stop has not confirmed it (R1), or has served under a version
    /// that the store has lost (R2): its lease must run out first.
    fn may_grant(&self, node: NodeId, now: Instant) -> bool {
        if self.nodes.get(&node).is_none_or(|n| n.replaced) {
            return false;
        }
        self.targets_of(node).all(|target| {
            let Some(chain) = self.targets.get(&target).and_then(|t| self.chains.get(&t.chain)) else {
                return true;
            };
            let report = self.report(target);
            let confirmed = self.has_stopped(chain, target);
            let lost = report.is_some_and(|r| r.served_version > chain.version);
            let lost = lost && !mutant!(r02_version_from_kv_only);
            let stops = self.must_stop(chain, target, now) && !mutant!(r01_lease_while_demoted);
            (confirmed || !stops) && !lost
        })
    }
}

/// Whether two reports differ in what chains depend on.
fn differs(old: &TargetReport, new: &TargetReport) -> bool {
    let key = |r: &TargetReport| {
        let versions = (r.chain_version, r.served_version);
        (r.generation, r.state, versions, r.wants_replacement, r.stopped, r.no_room, r.slow)
    };
    key(old) != key(new)
}
