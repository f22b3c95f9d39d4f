//! Explorations, what they print, and whether they found what they should.

use crate::craq::{ASKED, Bounds, CHUNKS, CLIENTS, Chain3, NODES, SAFE, WHOLE, WRITTEN};
use stateright::{Checker, HasDiscoveries, Model};
use std::fmt;
use std::time::{Duration, Instant};

const NOTHING: Bounds = Bounds {
    name: "",
    prompt_notes: false,
    writers: 2,
    tries: 1,
    losses: 0,
    ticks: 0,
    crashes: 0,
    expiries: 0,
    reads: 0,
    refusals: 0,
    late_store: false,
    late_prepares: false,
    chunks: &[[0, 1], [0, 0]],
    mutant: None,
    reaches: &[WRITTEN],
};

/// Seconds in a debug build: what runs with the other tests.
pub const SMALL: Bounds = Bounds { name: "small", reads: 1, reaches: &[WRITTEN, ASKED], ..NOTHING };

/// The wrong rule that must be found: a replica answers a read with its pending version.
pub const WRONG: Bounds =
    Bounds { name: "wrong rule", mutant: Some("r06_read_answers_pending"), reaches: &[], ..NOTHING };

/// Of a client that doesn't write it is all the same which chunk it would.
const ONE: &[[usize; CLIENTS]] = &[[0, 1]];

/// All configurations of the replica protocol.
pub const CRAQ: &[Bounds] = &[
    SMALL,
    Bounds { name: "late store", late_store: true, reads: 1, reaches: &[WRITTEN, ASKED], ..NOTHING },
    Bounds { name: "refused", late_store: true, refusals: 1, chunks: ONE, reaches: &[], ..NOTHING },
    Bounds {
        name: "early",
        late_prepares: true,
        expiries: 1,
        prompt_notes: true,
        writers: 1,
        chunks: ONE,
        reaches: &[WHOLE],
        ..NOTHING
    },
    Bounds { name: "lossy", losses: 1, ticks: 1, tries: 2, reads: 1, reaches: &[WRITTEN, ASKED], ..NOTHING },
    Bounds {
        name: "lease",
        expiries: 1,
        prompt_notes: true,
        writers: 1,
        chunks: ONE,
        reaches: &[WHOLE],
        ..NOTHING
    },
    Bounds { name: "late notes", crashes: 1, writers: 1, chunks: ONE, reaches: &[WHOLE], ..NOTHING },
    Bounds { name: AMNESIA, crashes: 1, ticks: 1, prompt_notes: true, reaches: &[WRITTEN, WHOLE], ..NOTHING },
];
/// The configuration that must have as many states as the project asks for.
pub const AMNESIA: &str = "amnesia";

/// What an exploration found.
#[derive(Debug)]
pub struct Outcome {
    /// Distinct states.
    pub states: usize,
    /// States reached, the same ones again included.
    pub reached: usize,
    /// Longest path.
    pub depth: usize,
    /// Time that it took.
    pub took: Duration,
    /// Whether the bounds were explored to the end.
    pub complete: bool,
    /// What does not hold, and the steps that lead there.
    pub violation: Option<(String, Vec<String>)>,
    /// What should have happened somewhere and did not.
    pub missed: Vec<&'static str>,
}

#[expect(clippy::disallowed_methods, reason = "how long it took is printed, nothing is decided by it")]
fn clock() -> Instant {
    Instant::now()
}

/// Explores the bounds depth first; at most about `cap` states are reached, if it is given.
pub fn explore(bounds: Bounds, threads: usize, cap: Option<usize>) -> Outcome {
    let begin = clock();
    let mut builder = Chain3::new(bounds).checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(cap) = cap {
        builder = builder.target_state_count(cap);
    }
    let checker = builder.spawn_dfs().join();
    let violation = checker.discovery(SAFE).map(|path| {
        let what = path.last_state().violation().unwrap_or_default().to_owned();
        (what, path.into_actions().iter().map(|step| format!("{step:?}")).collect())
    });
    let reached = checker.state_count();
    let missed = bounds.reaches.iter().copied().filter(|name| checker.discovery(name).is_none()).collect();
    Outcome {
        states: checker.unique_state_count(),
        reached,
        depth: checker.max_depth(),
        took: begin.elapsed(),
        complete: violation.is_none() && cap.is_none_or(|cap| reached < cap),
        violation,
        missed,
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {NODES} replicas, {CHUNKS} chunks, {} of {CLIENTS} clients write, sends of a write {}, losses {}, \
             ticks {}, restarts {}, leases ended {}, refusals {}, reads through the tail {}{}{}",
            self.name,
            self.writers,
            self.tries,
            self.losses,
            self.ticks,
            self.crashes,
            self.expiries,
            self.refusals,
            self.reads,
            if self.late_store || self.late_prepares { ", slow stores" } else { "" },
            if self.prompt_notes { ", prompt notes" } else { "" }
        )
    }
}
