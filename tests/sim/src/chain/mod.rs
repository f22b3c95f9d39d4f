//! One chain, without processes: the replica protocol and the chain state machine driven directly by messages
//! with delay and loss, stores in memory, and clients. A fast way to find bugs of the protocol.

mod clients;
mod control;
mod faults;
mod node;
mod store;

use crate::cluster::history::History;
use crate::report::OPERATIONS;
use crate::runner::{Outcome, Settings};
use crate::trace::Entry;
use crate::world::{World, between};
use clients::Clients;
use control::Control;
use ember_types::layout::SplitMix64;
use ember_types::{ChainId, TargetId};
use node::Node;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const MS: u64 = 1_000_000;
/// The only chain.
const CHAIN: ChainId = ChainId(1);
/// Members of it.
const REPLICAS: u64 = 3;
/// Virtual time with faults, in milliseconds.
const FAULTY_MS: u64 = 20_000;
/// Virtual time after which everything serves again, in milliseconds.
const HEALED_MS: u64 = 20_000;

/// Who sends or receives: a node by its target, the manager, or the clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Party {
    Target(TargetId),
    Manager,
    Clients,
}

struct Sim {
    world: World,
    rng: RefCell<SplitMix64>,
    nodes: Vec<RefCell<Node>>,
    control: RefCell<Control>,
    clients: RefCell<Clients>,
    history: History,
    blocked: RefCell<Vec<(Party, Party)>>,
    loss_percent: Cell<u64>,
    late_percent: Cell<u64>,
    healed: Cell<bool>,
}

impl Sim {
    fn draw(&self, low: u64, high: u64) -> u64 {
        between(&mut self.rng.borrow_mut(), low, high)
    }
    fn chance(&self, percent: u64) -> bool {
        self.rng.borrow_mut().below(100) < percent
    }
    fn now(&self) -> u64 {
        self.world.now_ns()
    }
    fn node(&self, target: TargetId) -> Option<&RefCell<Node>> {
        self.nodes.get((target.0 as usize).checked_sub(1)?)
    }
    fn fail(&self, property: &str, detail: &str) {
        self.world.fail(property, detail);
    }
    fn is_blocked(&self, from: Party, to: Party) -> bool {
        self.blocked.borrow().contains(&(from, to))
    }
    /// Delivers a message after a while, or never; `true` if it may arrive.
    fn send(
        self: &Rc<Self>,
        from: Party,
        to: Party,
        words: &[u64],
        deliver: impl FnOnce(&Rc<Self>) + 'static,
    ) {
        self.world.record(Entry::Send, words);
        self.world.trace().count("messages", 1);
        if self.is_blocked(from, to) || self.chance(self.loss_percent.get()) {
            self.world.trace().count("messages lost", 1);
            return;
        }
        let late = self.chance(self.late_percent.get());
        let delay = if late { self.draw(MS, 2_500 * MS) } else { self.draw(30_000, 400_000) };
        let own = self.clone();
        self.world.after(delay, move |_| deliver(&own));
    }
    fn after(self: &Rc<Self>, delay_ns: u64, call: impl FnOnce(&Rc<Self>) + 'static) {
        let own = self.clone();
        self.world.after(delay_ns, move |_| call(&own));
    }
}

/// Runs the chain from one seed.
pub fn simulate(seed: u64, settings: Settings) -> Outcome {
    let world = World::new(seed);
    world.trace().set_log(settings.log);
    let targets: Vec<TargetId> = (1..=REPLICAS).map(TargetId).collect();
    let sim = Rc::new(Sim {
        rng: RefCell::new(world.rng(8)),
        nodes: targets.iter().map(|_| RefCell::new(Node::new())).collect(),
        control: RefCell::new(Control::new(CHAIN, &targets)),
        clients: RefCell::default(),
        history: History::new(&world),
        blocked: RefCell::default(),
        loss_percent: Cell::new(0),
        late_percent: Cell::new(1),
        healed: Cell::new(false),
        world,
    });
    for &target in &targets {
        sim.start_node(target);
    }
    sim.look_regularly();
    sim.start_clients();
    sim.start_faults();
    sim.world.run_until(FAULTY_MS * MS);
    sim.heal();
    sim.world.run_until((FAULTY_MS + HEALED_MS) * MS);
    sim.check();
    sim.world.tear_down();
    let trace = sim.world.trace();
    trace.count("chain profile: client operations", trace.counters().get(OPERATIONS).copied().unwrap_or(0));
    Outcome { seed, hash: trace.hash(), failure: sim.world.failure(), counters: trace.counters() }
}

impl Sim {
    /// The manager looks at its clock.
    fn look_regularly(self: &Rc<Self>) {
        self.look();
        self.after(50 * MS, |own| own.look_regularly());
    }
    fn look(self: &Rc<Self>) {
        let result = self.control.borrow_mut().look(self.now());
        self.invariant(result);
    }
    fn invariant(&self, result: Result<(), String>) {
        if let Err(text) = result {
            self.fail("chain invariants", &text);
        }
    }
    /// What must hold at the end: everybody serves, all replicas are equal, histories are linearizable.
    fn check(self: &Rc<Self>) {
        if self.world.failure().is_some() {
            return;
        }
        if !self.control.borrow().all_serve() {
            let text = format!("{:?}", self.control.borrow().chain());
            return self.fail("every target that stays up becomes serving again", &text);
        }
        let all: Vec<_> = self.nodes.iter().map(|n| n.borrow().store.contents()).collect();
        for (at, other) in all.iter().enumerate().skip(1) {
            let differs = all[0].keys().chain(other.keys()).find(|chunk| {
                let (a, b) = (all[0].get(chunk), other.get(chunk));
                let absent = |row: Option<&(ember_craq::Content, Vec<u8>, bool)>| {
                    row.is_none_or(|(content, _, pending)| content.is_absent() && !pending)
                };
                a != b && !(absent(a) && absent(b))
            });
            if let Some(chunk) = differs {
                let show = |row: Option<&(ember_craq::Content, Vec<u8>, bool)>| {
                    row.map(|(content, _, pending)| (*content, *pending))
                };
                let text = format!(
                    "chunk {chunk}: target 1 has {:?}, target {} {:?}",
                    show(all[0].get(chunk)),
                    at + 1,
                    show(other.get(chunk))
                );
                return self.fail("all replicas are equal", &text);
            }
        }
        self.history.check();
    }
}
