//! The primary's decisions on a clock that the test turns.

use super::State;
use crate::config::Config;
use crate::record::{self, Batch, Image};
use ember_types::{
    BootId, Chain, ChainId, ChainVersion, ClientId, ClusterTime, Generation, Instant, LocalState, NodeId,
    NodeKind, PublicState, RoutingInfo, RoutingVersion, Status, TargetId, TargetInfo,
};
use ember_wire::mgmtd::{
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, SyncProgress, TargetReport, UnresponsiveRequest,
};
use std::collections::BTreeMap;
use std::time::Duration;

use PublicState::{LastSrv, Offline, Serving, Syncing};

const TERM: u64 = 3;

fn at(ms: u64) -> Instant {
    Instant(1_000_000_000_000) + Duration::from_millis(ms)
}

/// Three nodes with one target each, in one chain; the primary has just taken over at 0.
struct Cluster {
    state: State,
    sequence: u64,
    /// What each node's target says next.
    reports: BTreeMap<u64, TargetReport>,
}

fn record(id: u32, boot: u64) -> record::Node {
    record::Node {
        id: NodeId(id),
        kind: NodeKind::Storage,
        boot: BootId(boot),
        addresses: vec![format!("10.0.0.{id}:1")],
        tags: BTreeMap::new(),
        disks: 1,
        pid: 1,
        data_dir: "/data".into(),
        release: "1".into(),
    }
}

fn registration(id: u32, boot: u64) -> RegisterRequest {
    let record = record(id, boot);
    RegisterRequest {
        node: record.id,
        kind: record.kind,
        boot: record.boot,
        addresses: record.addresses,
        tags: record.tags,
        disks: record.disks,
        pid: record.pid,
        data_dir: record.data_dir,
        release: record.release,
    }
}

fn report(target: u64, version: u64, state: LocalState) -> TargetReport {
    TargetReport {
        target: TargetId(target),
        generation: Generation(1),
        state,
        chain_version: ChainVersion(version),
        served_version: ChainVersion(version),
        used_bytes: 0,
        free_bytes: 0,
        sync: None,
        trouble: String::new(),
        capacity_bytes: 0,
        wants_replacement: false,
        stopped: false,
        no_room: false,
        slow: false,
        scrub: None,
    }
}

impl Cluster {
    fn new() -> Self {
        let members: Vec<_> = (1..=3).map(|t| (TargetId(t), Generation(1))).collect();
        let chain = ember_chain::new_chain(ChainId(1), &members);
        let used =
            ember_chain::note_in_use(&chain, ChainVersion(1), TargetId(3)).expect("tail").expect("new");
        let target = |t: u64| TargetInfo {
            id: TargetId(t),
            node: NodeId(t as u32),
            disk: 0,
            generation: Generation(1),
            chain: ChainId(1),
            created: true,
            lane: 0,
        };
        let image = Image {
            nodes: (1..=3).map(|n| record(n, 10)).collect(),
            targets: (1..=3).map(target).collect(),
            chains: vec![used],
            ..Image::default()
        };
        let state = State::new(Config::default(), NodeId(9), image, at(0));
        let reports = (1..=3).map(|t| (t, report(t, 1, LocalState::UpToDate))).collect();
        Self { state, sequence: 0, reports }
    }
    fn chain(&self) -> &Chain {
        &self.state.chains[&ChainId(1)]
    }
    fn states(&self) -> Vec<(u64, PublicState)> {
        self.chain().targets.iter().map(|m| (m.target.0, m.state)).collect()
    }
    fn beat(&mut self, node: u64, ms: u64) -> HeartbeatResponse {
        let known = RoutingVersion { term: TERM, counter: self.state.routing.counter };
        self.sequence += 1;
        let request = HeartbeatRequest {
            node: NodeId(node as u32),
            boot: self.state.nodes[&NodeId(node as u32)].record.boot,
            sequence: self.sequence,
            targets: vec![self.reports[&node].clone()],
            routing: known,
            warnings: Vec::new(),
        };
        self.state.heartbeat(request, TERM, at(ms), ClusterTime(ms))
    }
    /// A node obeys an answer, as its next report will say.
    fn obey(&mut self, node: u64, answer: &HeartbeatResponse) {
        let order = answer.orders[0];
        let report = self.reports.get_mut(&node).expect("node");
        report.stopped = order.state != Serving;
        if order.state == Syncing && report.chain_version < order.chain_version {
            report.state = LocalState::Online;
        }
        if order.state == Serving {
            report.served_version = order.chain_version;
        }
        report.chain_version = order.chain_version;
    }
    fn all_beat(&mut self, ms: u64) {
        for node in 1..=3 {
            let answer = self.beat(node, ms);
            assert!(answer.granted);
            self.obey(node, &answer);
        }
    }
    fn install(&mut self, batch: Batch, ms: u64) {
        for chain in &batch.chains {
            ember_chain::invariants::check_step(&self.state.chains[&chain.id], chain).expect("invariants");
        }
        let counter = self.state.routing.counter + 1;
        self.state.install(batch, counter, at(ms));
    }
    /// Evaluates until nothing changes.
    fn settle(&mut self, ms: u64) {
        self.state.tick(at(ms));
        loop {
            let chains = self.state.evaluate(at(ms), 10);
            if chains.is_empty() {
                return;
            }
            self.install(Batch { chains, ..Batch::default() }, ms);
        }
    }
}

#[test]
fn r08_a_new_primary_declares_nobody_dead_for_a_lease_and_drift() {
    let mut cluster = Cluster::new();
    cluster.settle(5_250);
    assert_eq!(cluster.states(), [(1, Serving), (2, Serving), (3, Serving)]);
    cluster.settle(5_251);
    assert_eq!(cluster.states(), [(1, LastSrv), (2, LastSrv), (3, LastSrv)]);
}

#[test]
fn r01_a_silent_node_is_taken_out_after_lease_and_drift_and_gets_versions_with_its_next_lease() {
    let mut cluster = Cluster::new();
    cluster.all_beat(6_000);
    for node in [1, 2] {
        assert!(cluster.beat(node, 10_900).granted);
    }
    cluster.settle(11_250);
    assert_eq!(cluster.chain().version, ChainVersion(1), "3 may count on its lease until now");
    cluster.settle(11_251);
    assert_eq!(cluster.states(), [(1, Serving), (2, Serving), (3, Offline)]);
    let answer = cluster.beat(3, 11_300);
    assert_eq!(answer.orders[0].chain_version, ChainVersion(2));
    assert_eq!(answer.orders[0].state, Offline);
    assert_eq!(answer.chains.len(), 1);
}

#[test]
fn r01_no_lease_while_a_demotion_is_being_written() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    for node in [1, 2] {
        cluster.beat(node, 5_000);
    }
    cluster.state.tick(at(5_300));
    let chains = cluster.state.evaluate(at(5_300), 10);
    assert_eq!(chains.len(), 1);
    let answer = cluster.beat(3, 5_301);
    assert!(!answer.granted, "the transaction that takes 3 out is under way");
    assert_eq!((answer.orders[0].state, answer.orders[0].chain_version), (Offline, ChainVersion(1)));
    cluster.obey(3, &answer);
    assert!(cluster.beat(3, 5_302).granted, "it has confirmed");
    cluster.install(Batch { chains, ..Batch::default() }, 5_303);
    assert_eq!(cluster.states(), [(1, Serving), (2, Serving), (3, Offline)]);
}

#[test]
fn r10_an_accused_member_stops_first_and_is_demoted_then() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    cluster.settle(10);
    let accusation = UnresponsiveRequest {
        chain: ChainId(1),
        version: ChainVersion(1),
        accuser: TargetId(1),
        accused: TargetId(2),
        device_error: false,
    };
    assert!(cluster.state.accuse(&accusation, at(20)));
    cluster.settle(30);
    assert_eq!(cluster.chain().version, ChainVersion(1), "2 has a lease and has not confirmed");
    let answer = cluster.beat(2, 40);
    assert!(!answer.granted && answer.orders[0].state == Offline);
    cluster.obey(2, &answer);
    assert!(cluster.beat(2, 50).granted);
    cluster.settle(60);
    assert_eq!(cluster.states()[..2], [(1, Serving), (3, Serving)]);
    assert_eq!(cluster.states()[2].0, 2);
    let wrong = UnresponsiveRequest { accused: TargetId(3), ..accusation };
    assert!(!cluster.state.accuse(&wrong, at(70)), "an old version counts for nothing");
}

#[test]
fn r07_a_new_boot_is_offline_first_and_resyncs() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    let batch = cluster.state.register(&registration(2, 11), at(100)).expect("valid").expect("a change");
    assert!(!cluster.beat(2, 101).granted, "the old process is gone; nobody gets a lease meanwhile");
    cluster.install(batch, 102);
    assert_eq!(cluster.states(), [(1, Serving), (3, Serving), (2, Offline)]);
    cluster.reports.insert(2, report(2, 1, LocalState::UpToDate));
    let answer = cluster.beat(2, 110);
    assert!(answer.granted);
    cluster.obey(2, &answer);
    cluster.settle(120);
    assert_eq!(cluster.states(), [(1, Serving), (3, Serving), (2, Syncing)]);
    cluster.settle(121);
    assert_eq!(cluster.chain().version, ChainVersion(3), "up to date was said under an older version (R6)");
    let answer = cluster.beat(2, 130);
    cluster.obey(2, &answer);
    cluster.reports.get_mut(&2).expect("node").state = LocalState::UpToDate;
    cluster.beat(2, 140);
    cluster.settle(150);
    assert_eq!(cluster.states(), [(1, Serving), (3, Serving), (2, Serving)]);
}

#[test]
fn r07_all_restart_at_once_and_serve_again() {
    let mut cluster = Cluster::new();
    for node in 1..=3 {
        let batch =
            cluster.state.register(&registration(node, 20), at(10)).expect("valid").expect("a change");
        cluster.install(batch, 11);
        cluster.beat(u64::from(node), 12);
        cluster.settle(13);
    }
    assert_eq!(cluster.states()[0].1, Serving);
    for round in 0..20 {
        for node in 1..=3 {
            let answer = cluster.beat(node, 100 + round);
            cluster.obey(node, &answer);
            if answer.orders[0].state == Syncing {
                cluster.reports.get_mut(&node).expect("node").state = LocalState::UpToDate;
            }
        }
        cluster.settle(100 + round);
    }
    assert!(cluster.states().iter().all(|(_, state)| *state == Serving), "{:?}", cluster.states());
}

#[test]
fn r02_a_version_beyond_the_stores_gets_no_lease_and_is_passed() {
    let mut cluster = Cluster::new();
    for node in 1..=3 {
        cluster.reports.insert(node, report(node, 7, LocalState::UpToDate));
        assert!(!cluster.beat(node, 100).granted);
    }
    cluster.settle(5_000);
    assert_eq!(cluster.chain().version, ChainVersion(1), "leases of the lost versions may still be valid");
    cluster.settle(5_300);
    assert_eq!(cluster.chain().version, ChainVersion(8));
}

#[test]
fn r10_a_sync_without_progress_yields_after_the_stall_time() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    for id in [2, 3] {
        let batch = cluster.state.register(&registration(id, 30), at(10)).expect("valid").expect("a change");
        cluster.install(batch, 10);
        cluster.reports.insert(u64::from(id), report(u64::from(id), 1, LocalState::Online));
    }
    let mut now = 20;
    let mut syncing = Vec::new();
    while now < 140_000 {
        for node in 1..=3 {
            if node == 1 {
                let moved = if now < 30_000 { now } else { 30_000 };
                let progress = SyncProgress { chunks_done: moved, ..SyncProgress::default() };
                cluster.reports.get_mut(&1).expect("node").sync = Some(progress);
            }
            let answer = cluster.beat(node, now);
            cluster.obey(node, &answer);
        }
        cluster.settle(now);
        let target = cluster.chain().syncing().map(|m| m.target.0);
        if syncing.last().map(|(_, t)| *t) != Some(target) {
            syncing.push((now, target));
        }
        now += 1_000;
    }
    assert_eq!(syncing[0].1, Some(3));
    assert_eq!(syncing[1].1, Some(2));
    assert!((89_000..95_000).contains(&syncing[1].0), "{syncing:?}");
}

#[test]
fn r10_a_target_without_room_waits_and_changes_no_chain_version() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    let batch = cluster.state.register(&registration(2, 30), at(10)).expect("valid").expect("a change");
    cluster.install(batch, 10);
    cluster.reports.insert(2, report(2, 1, LocalState::Online));
    let mut run = |from: u64, no_room: bool| {
        for now in (from..from + 20_000).step_by(500) {
            cluster.reports.get_mut(&2).expect("node").no_room = no_room;
            for node in 1..=3 {
                let answer = cluster.beat(node, now);
                cluster.obey(node, &answer);
            }
            cluster.settle(now);
        }
        let state = cluster.states().into_iter().find(|(target, _)| *target == 2).expect("member").1;
        (state, cluster.chain().version.0)
    };
    let (state, before) = run(1_000, false);
    assert_eq!(state, Syncing);
    assert_eq!(run(21_000, true), (PublicState::Waiting, before + 1), "one version, and no other in 20 s");
    assert_eq!(run(41_000, false), (Syncing, before + 2));
}

#[test]
fn r10_a_slow_member_stays_out_while_the_rest_of_its_chain_is_well() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    let mut run = |from: u64, slow: &[u64], silent: u64| {
        for now in (from..from + 10_000).step_by(500) {
            for node in (1..=3).filter(|&node| node != silent) {
                cluster.reports.get_mut(&node).expect("node").slow = slow.contains(&node);
                let answer = cluster.beat(node, now);
                cluster.obey(node, &answer);
            }
            cluster.settle(now);
        }
        cluster.states()
    };
    let all = [(1, Serving), (2, Serving), (3, Serving)];
    assert_eq!(run(500, &[1, 2], 0), all, "who is slow together is what there is");
    let out = [(2, Serving), (3, Serving), (1, PublicState::Waiting)];
    assert_eq!(run(10_500, &[1], 0), out);
    assert_eq!(run(20_500, &[1, 2], 0)[2], (1, Syncing), "it is needed: another one is slow");
    assert_eq!(run(30_500, &[1], 0)[2], (1, Syncing), "a sync that has begun goes on");
}

#[test]
fn a_damaged_target_is_replaced_when_another_serves() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    let damaged = TargetReport { wants_replacement: true, ..report(2, 1, LocalState::Offline) };
    cluster.reports.insert(2, damaged);
    cluster.beat(2, 10);
    assert!(cluster.state.repairs(at(11)).is_empty(), "it is still in service");
    cluster.settle(12);
    assert_eq!(cluster.states(), [(1, Serving), (3, Serving), (2, Offline)]);
    let batch = cluster.state.repairs(at(13));
    assert_eq!(batch.targets[0].generation, Generation(2));
    assert!(!batch.targets[0].created);
    cluster.install(batch, 14);
    assert!(cluster.state.repairs(at(15)).is_empty());
    assert_eq!(cluster.chain().member(TargetId(2)).map(|m| m.generation), Some(Generation(2)));
}

#[test]
fn r09_deltas_have_a_base_in_this_term() {
    let mut cluster = Cluster::new();
    cluster.all_beat(0);
    cluster.state.tick(at(1));
    let now = |c: &Cluster| RoutingVersion { term: TERM, counter: c.state.routing.counter };
    let full = cluster.state.delta(TERM, RoutingVersion::default()).expect("news");
    let mut view = RoutingInfo::default();
    assert!(full.full.is_some() && view.apply(&full));
    assert_eq!(view.version, now(&cluster));
    assert_eq!(cluster.state.delta(TERM, view.version), None);
    cluster.beat(1, 5_000);
    cluster.beat(2, 5_000);
    cluster.settle(5_300);
    let delta = cluster.state.delta(TERM, view.version).expect("news");
    assert!(delta.full.is_none());
    assert_eq!(delta.chains.len(), 1);
    assert!(view.apply(&delta));
    assert_eq!(view.chains, cluster.state.chains);
    assert!(!view.nodes[&NodeId(3)].alive && view.nodes[&NodeId(1)].alive);
    let other_term = RoutingVersion { term: TERM - 1, ..view.version };
    assert!(cluster.state.delta(TERM, other_term).expect("news").full.is_some());
    let beyond = RoutingVersion { counter: view.version.counter + 5, ..view.version };
    assert!(cluster.state.delta(TERM, beyond).expect("news").full.is_some());
}

#[test]
fn an_older_or_foreign_heartbeat_renews_nothing() {
    let mut cluster = Cluster::new();
    assert!(cluster.beat(1, 10).granted);
    cluster.sequence -= 1;
    assert!(!cluster.beat(1, 20).granted, "a repeated sequence");
    let foreign = HeartbeatRequest {
        node: NodeId(1),
        boot: BootId(77),
        sequence: 50,
        targets: Vec::new(),
        routing: RoutingVersion::default(),
        warnings: Vec::new(),
    };
    let answer = cluster.state.heartbeat(foreign, TERM, at(30), ClusterTime(30));
    assert_eq!((answer.status, answer.granted), (Status::NotFound, false));
}

#[test]
fn registrations_are_checked() {
    let mut cluster = Cluster::new();
    let refused = |c: &mut Cluster, request: RegisterRequest| {
        c.state.register(&request, at(0)).expect_err("refused").0 == Status::InvalidArgument
    };
    let good = registration(4, 40);
    assert!(refused(&mut cluster, RegisterRequest { boot: BootId(0), ..good.clone() }));
    assert!(refused(&mut cluster, RegisterRequest { addresses: vec!["nowhere".into()], ..good.clone() }));
    assert!(refused(&mut cluster, RegisterRequest { node: NodeId(1), kind: NodeKind::Meta, ..good.clone() }));
    assert!(refused(&mut cluster, RegisterRequest { node: NodeId(1), disks: 0, ..good.clone() }));
    assert_eq!(cluster.state.register(&registration(1, 10), at(0)), Ok(None), "known already");
    assert!(cluster.state.register(&good, at(0)).expect("valid").is_some());
}

#[test]
fn r12_a_session_ends_after_its_time_and_stays_ended() {
    let mut cluster = Cluster::new();
    let id = ClientId::from_u128(5);
    let client = record::Client { description: "test".into(), ended_ms: None };
    cluster.install(Batch { clients: vec![(id, Some(client))], ..Batch::default() }, 0);
    let life = Duration::from_millis(60_250);
    let due = |c: &Cluster, ms: u64| c.state.clients.due(at(ms), ClusterTime(ms), life, 10);
    assert!(due(&cluster, 60_250).is_empty());
    let ended = due(&cluster, 60_251);
    assert_eq!(ended.len(), 1);
    cluster.install(Batch { clients: ended, ..Batch::default() }, 60_252);
    assert_eq!(cluster.state.clients.ended(), [id]);
    assert_eq!(cluster.state.clients.extend(id, at(60_300)), super::Extension::Ended);
    assert!(due(&cluster, 900_000).is_empty());
    assert_eq!(due(&cluster, 1_000_000), [(id, None)]);
}

#[test]
fn a_target_that_is_being_made_keeps_its_place_for_a_while() {
    let mut cluster = Cluster::new();
    let young = TargetInfo { created: false, ..cluster.state.targets[&TargetId(2)].clone() };
    cluster.install(Batch { targets: vec![young], ..Batch::default() }, 0);
    cluster.reports.insert(2, report(2, 0, LocalState::Offline));
    for ms in [10, 4_000, 8_000] {
        for node in 1..=3 {
            assert!(cluster.beat(node, ms).granted);
        }
        cluster.settle(ms);
        assert_eq!(cluster.chain().version, ChainVersion(1));
    }
    for node in 1..=3 {
        cluster.beat(node, 10_100);
    }
    cluster.settle(10_100);
    assert_eq!(cluster.states(), [(1, Serving), (3, Serving), (2, Offline)]);
}
