//! Random lives of a chain in a small abstract model: which target holds which acknowledged writes.
//!
//! Each step is one of: a process dies, restarts (a new boot), loses its disk, a lease lapses, a write is
//! tried, a sync ends, mgmtd looks. After every step the invariants hold and each serving target holds every
//! acknowledged write; at the end everybody returns and every chain becomes fully serving.

use ember_chain::{
    Observation, Report, accept_generation, invariants, may_replace, new_chain, note_in_use, transition,
};
use ember_types::{Chain, ChainId, ChainVersion, Generation, LocalState, PublicState, TargetId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Target {
    running: bool,
    /// mgmtd believes that its lease lives.
    leased: bool,
    /// The lease and the drift bound have passed, as mgmtd counts.
    lapsed: bool,
    /// Content as versions, durable on its disk.
    held: BTreeSet<u32>,
    generation: Generation,
    valid: Generation,
    applied: ChainVersion,
    served: ChainVersion,
    local: LocalState,
    /// Its state under `applied`.
    state: PublicState,
}

#[derive(Clone, Debug)]
enum Event {
    /// The process dies; its lease lapses later.
    Die(usize),
    /// mgmtd's count of the lease runs out; only for a target that no longer serves.
    Lapse(usize),
    /// The process starts with a new boot id and registers.
    Restart(usize),
    /// The disk is lost and replaced while the process is down.
    Wipe(usize),
    /// A heartbeat is answered: orders arrive.
    Heartbeat(usize),
    /// A write reaches `reach` members of the chain.
    Write(usize),
    /// The syncing member gets everything from its source and says so with its next heartbeat.
    SyncDone,
    /// mgmtd evaluates the chain.
    Evaluate,
}

fn event(targets: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..targets).prop_map(Event::Die),
        3 => (0..targets).prop_map(Event::Lapse),
        4 => (0..targets).prop_map(Event::Restart),
        1 => (0..targets).prop_map(Event::Wipe),
        8 => (0..targets).prop_map(Event::Heartbeat),
        6 => (1..=targets + 1).prop_map(Event::Write),
        3 => Just(Event::SyncDone),
        8 => Just(Event::Evaluate),
    ]
}

struct Model {
    chain: Chain,
    targets: Vec<Target>,
    acknowledged: BTreeSet<u32>,
    next_write: u32,
    /// A disk that alone held everything was lost: nothing can be promised any more.
    hopeless: bool,
}

impl Model {
    fn new(count: usize) -> Self {
        let members: Vec<_> = (0..count).map(|t| (TargetId(t as u64), Generation(1))).collect();
        let target = Target {
            running: true,
            leased: true,
            lapsed: false,
            held: BTreeSet::new(),
            generation: Generation(1),
            valid: Generation(1),
            applied: ChainVersion(1),
            served: ChainVersion(1),
            local: LocalState::UpToDate,
            state: PublicState::Serving,
        };
        let chain = new_chain(ChainId(1), &members);
        Self {
            chain,
            targets: vec![target; count],
            acknowledged: BTreeSet::new(),
            next_write: 1,
            hopeless: false,
        }
    }

    fn observe(&self) -> BTreeMap<TargetId, Observation> {
        let of = |t: &Target| Observation {
            alive: t.leased,
            may_serve: !t.lapsed,
            report: t.leased.then_some(Report {
                generation: t.generation,
                local: t.local,
                applied: t.applied,
                served: t.served,
            }),
            generation: t.valid,
            shunned: false,
            stalled: false,
        };
        self.targets.iter().enumerate().map(|(at, t)| (TargetId(at as u64), of(t))).collect()
    }

    fn install(&mut self, next: Chain) {
        invariants::check_step(&self.chain, &next).expect("invariants");
        self.chain = next;
    }

    fn evaluate(&mut self) -> bool {
        let next = transition(&self.chain, &self.observe());
        let changed = next.is_some();
        if let Some(next) = next {
            self.install(next);
        }
        changed
    }

    fn apply(&mut self, at: usize) {
        let state = self.chain.member(TargetId(at as u64)).expect("member").state;
        let t = &mut self.targets[at];
        if t.applied < self.chain.version {
            t.applied = self.chain.version;
            if state == PublicState::Syncing {
                // The worst that may happen to what it held: R4 discards pending versions, R11 overwrites.
                t.held.clear();
                t.local = LocalState::Online;
            }
            if state == PublicState::Serving {
                t.served = self.chain.version;
            }
            t.state = state;
        }
    }

    fn restart(&mut self, at: usize) {
        if self.targets[at].running {
            return;
        }
        let t = &mut self.targets[at];
        (t.running, t.leased, t.lapsed) = (true, false, true);
        let whole = t.local == LocalState::UpToDate && t.generation == t.valid;
        t.local = if whole { LocalState::UpToDate } else { LocalState::Online };
        t.state = PublicState::Offline;
        self.evaluate();
        self.replace(at);
        self.targets[at].leased = true;
        self.targets[at].lapsed = false;
        self.apply(at);
    }

    /// A damaged disk gets a new generation once mgmtd agrees.
    fn replace(&mut self, at: usize) {
        let target = TargetId(at as u64);
        let wanted = self.targets[at].generation.0 == 0;
        if !wanted || !may_replace(&self.chain, target) {
            return;
        }
        let generation = Generation(self.targets[at].valid.0 + 1);
        let next = accept_generation(&self.chain, target, generation).expect("it may be replaced");
        self.install(next);
        let t = &mut self.targets[at];
        (t.valid, t.generation, t.local) = (generation, generation, LocalState::Online);
    }

    fn write(&mut self, reach: usize) {
        let version = self.chain.version;
        let active: Vec<usize> = self
            .chain
            .targets
            .iter()
            .filter(|m| matches!(m.state, PublicState::Serving | PublicState::Syncing))
            .map(|m| m.target.0 as usize)
            .collect();
        let ready = |at: &usize| self.targets[*at].running && self.targets[*at].applied == version;
        let reached: Vec<usize> = active.iter().copied().take(reach).take_while(ready).collect();
        if active.is_empty() || reached.is_empty() {
            return;
        }
        let write = self.next_write;
        self.next_write += 1;
        for at in &reached {
            self.targets[*at].held.insert(write);
        }
        if reached.len() < active.len() {
            return;
        }
        let tail = self.chain.tail().expect("serving members").target;
        if let Some(noted) = note_in_use(&self.chain, version, tail).expect("the tail asks") {
            self.install(noted);
        }
        self.acknowledged.insert(write);
    }

    fn sync_done(&mut self) {
        let (Some(to), Some(from)) = (self.chain.syncing(), self.chain.tail()) else { return };
        let (to, from) = (to.target.0 as usize, from.target.0 as usize);
        let ready = |t: &Target| t.running && t.leased && t.applied == self.chain.version;
        if ready(&self.targets[to]) && ready(&self.targets[from]) {
            let content = self.targets[from].held.clone();
            self.targets[to].held.extend(content);
            self.targets[to].local = LocalState::UpToDate;
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Die(at) => self.targets[at].running = false,
            Event::Lapse(at) if !self.targets[at].running => {
                (self.targets[at].leased, self.targets[at].lapsed) = (false, true);
            }
            Event::Restart(at) => self.restart(at),
            Event::Wipe(at) if !self.targets[at].running => {
                let t = &mut self.targets[at];
                (t.generation, t.local) = (Generation(0), LocalState::Offline);
                t.held.clear();
                let target = TargetId(at as u64);
                let holders = &self.chain.in_use_members;
                self.hopeless |= holders.iter().all(|h| self.targets[h.target.0 as usize].generation.0 == 0)
                    && holders.iter().any(|h| h.target == target);
            }
            Event::Heartbeat(at) if self.targets[at].running && self.targets[at].leased => {
                self.replace(at);
                self.apply(at);
            }
            Event::Write(reach) => self.write(reach),
            Event::SyncDone => self.sync_done(),
            Event::Evaluate => {
                self.evaluate();
            }
            _ => {}
        }
    }

    /// Each serving target whose disk is there holds everything that was acknowledged.
    fn check(&self) {
        for member in self.chain.serving() {
            let t = &self.targets[member.target.0 as usize];
            if t.generation == member.generation {
                let lost: Vec<_> = self.acknowledged.difference(&t.held).collect();
                assert!(lost.is_empty(), "{:?} serves without {lost:?}: {:?}", member.target, self.chain);
            }
        }
    }

    /// Everybody returns; after a bounded number of rounds all serve.
    fn heal(&mut self) {
        for _ in 0..8 * self.targets.len() {
            for at in 0..self.targets.len() {
                if !self.targets[at].running {
                    (self.targets[at].leased, self.targets[at].lapsed) = (false, true);
                    self.evaluate();
                    self.restart(at);
                }
                self.step(&Event::Heartbeat(at));
            }
            while self.evaluate() {}
            for at in 0..self.targets.len() {
                self.step(&Event::Heartbeat(at));
            }
            self.sync_done();
            self.check();
        }
        assert_eq!(self.chain.serving().count(), self.targets.len(), "{:?} {:?}", self.chain, self.targets);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn r07_no_acknowledged_write_is_lost_and_every_chain_heals(
        count in 1usize..5, events in proptest::collection::vec(event(4), 0..120),
    ) {
        let mut model = Model::new(count);
        for event in &events {
            let within = match event {
                Event::Write(_) | Event::SyncDone | Event::Evaluate => true,
                Event::Die(at) | Event::Lapse(at) | Event::Restart(at) => *at < count,
                Event::Wipe(at) | Event::Heartbeat(at) => *at < count,
            };
            if within {
                model.step(event);
                model.check();
            }
        }
        if !model.hopeless {
            model.heal();
        }
    }
}
