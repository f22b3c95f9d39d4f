//! Three replicas of one chain, two chunks, two clients with one write each, and readers of everything.
//!
//! The network delivers in any order, late or never, and tells senders of losses; leases end and mgmtd changes the
//! chain; replicas and clients learn of it late; a process may restart with what its disk holds. In every state:
//! - whoever answers a read has every write that was acknowledged or read before, on any replica;
//! - each version contains the writes of all before it, and each write once;
//! - one version has one content everywhere;
//! - every member that may be gone on from holds everything that was acknowledged or read;
//! - the chain keeps `ember_chain::invariants`, each request is answered once, the store is asked only for what
//!   fits its state, and nothing panics.

mod control;
mod digest;
mod obey;
mod store;
mod world;

use ember_types::mutants;
use stateright::{Model, Property};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Action, World};

/// Members of the chain.
pub const NODES: usize = 3;
/// Chunks.
pub const CHUNKS: usize = 2;
/// Clients, one write each.
pub const CLIENTS: usize = 2;

/// How much of each may happen.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Name of the configuration.
    pub name: &'static str,
    /// Whether mgmtd notes a version as in use at once when it is asked to.
    pub prompt_notes: bool,
    /// Clients that write.
    pub writers: usize,
    /// Times that a client sends its write.
    pub tries: u8,
    /// Messages whose sender hears of a loss; they may arrive all the same.
    pub losses: u8,
    /// Times that something is sent again for time alone; with restarts, by a process that restarted.
    pub ticks: u8,
    /// Processes that restart with what is on their disks.
    pub crashes: u8,
    /// Leases that end.
    pub expiries: u8,
    /// Reads that ask the tail; others are free.
    pub reads: u8,
    /// Times that a store has no room for what it was asked to prepare.
    pub refusals: u8,
    /// Whether the store takes its time, so that other things happen meanwhile; what it makes is known at once.
    pub late_store: bool,
    /// The same of prepares alone.
    pub late_prepares: bool,
    /// The chunks that the clients write; one initial state each.
    pub chunks: &'static [[usize; CLIENTS]],
    /// A planted bug.
    pub mutant: Option<&'static str>,
    /// What the bounds must allow to happen: names of [`REACHED`].
    pub reaches: &'static [&'static str],
}

/// Both clients have heard that their writes are done.
pub const WRITTEN: &str = "both writes acknowledged";
/// After a restart or a lease that ended, all members serve again under one chain version.
pub const WHOLE: &str = "all members serve after a chain change";
/// A replica with a pending version asked the tail and answered.
pub const ASKED: &str = "a read answered through the tail";

/// What shows that the bounds are not empty.
pub const REACHED: &[&str] = &[WRITTEN, WHOLE, ASKED];
/// The name of what must always hold.
pub const SAFE: &str = "safe";

/// The model that stateright explores.
#[derive(Clone, Debug)]
pub struct Chain3 {
    bounds: Bounds,
}

impl Chain3 {
    /// The model within these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds }
    }
}

/// One state of everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State(World);

impl State {
    /// What does not hold, if anything.
    pub fn violation(&self) -> Option<&str> {
        self.0.violation.as_deref()
    }
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(Action);

impl Model for Chain3 {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        mutants::activate(self.bounds.mutant);
        self.bounds.chunks.iter().map(|&chunks| State(World::new(&self.bounds, chunks))).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend(state.0.possible(&self.bounds).into_iter().map(Step));
    }

    fn next_state(&self, state: &State, action: Step) -> Option<State> {
        // The checker's threads are its own.
        mutants::activate(self.bounds.mutant);
        let mut next = state.0.clone();
        let done = catch_unwind(AssertUnwindSafe(|| next.apply(action.0, &self.bounds)));
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            next.fail(format!("panic: {text}"));
        }
        Some(State(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![Property::always(SAFE, |_, state: &State| state.0.violation.is_none())];
        for &name in self.bounds.reaches {
            all.push(match name {
                WRITTEN => Property::sometimes(WRITTEN, |_, state: &State| {
                    state.0.writers.iter().all(|writer| writer.acknowledged)
                }),
                WHOLE => Property::sometimes(WHOLE, |_, state: &State| state.0.is_whole_again()),
                _ => Property::sometimes(ASKED, |_, state: &State| state.0.read_through_tail),
            });
        }
        all
    }
}
