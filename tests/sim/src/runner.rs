//! Runs seeds, each in a world of its own, on as many threads as there are processors.

use crate::report::Totals;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What became of one seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Trace hash of the run.
    pub hash: u64,
    /// The property that did not hold.
    pub failure: Option<String>,
    /// What happened how often.
    pub counters: BTreeMap<&'static str, u64>,
}

/// How to run seeds.
#[derive(Clone, Copy, Default, Debug)]
pub struct Settings {
    /// The planted bug that is switched on.
    pub mutant: Option<&'static str>,
    /// Print every trace entry.
    pub log: bool,
}

/// A simulation: from a seed to what became of it.
pub type Simulation = fn(u64, Settings) -> Outcome;

/// A line of progress each so many seeds.
const PROGRESS: u64 = 50;

thread_local!(static PANIC: RefCell<Option<String>> = const { RefCell::new(None) });

/// Keeps the text of panics of simulated code, instead of printing it.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = info
            .payload()
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| info.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANIC.with_borrow_mut(|slot| {
            slot.get_or_insert_with(|| format!("{text} at {place}"));
        });
    }));
}

/// Runs one seed on this thread. A panic of simulated code is a property that does not hold.
pub fn run_seed(simulation: Simulation, seed: u64, settings: Settings) -> Outcome {
    ember_types::mutants::activate(settings.mutant);
    PANIC.set(None);
    let result = catch_unwind(AssertUnwindSafe(|| simulation(seed, settings)));
    ember_types::mutants::activate(None);
    result.unwrap_or_else(|_| Outcome {
        seed,
        hash: 0,
        failure: Some(format!("no panic: {}", PANIC.take().unwrap_or_default())),
        counters: BTreeMap::new(),
    })
}

/// What became of many seeds.
pub struct Batch {
    /// Sums over the seeds that passed.
    pub totals: Totals,
    /// The lowest seed that failed.
    pub failed: Option<Outcome>,
}

/// Runs the seeds `first..first + count` on `threads` threads, until one fails.
pub fn run_seeds(
    simulation: Simulation,
    first: u64,
    count: u64,
    threads: usize,
    settings: Settings,
) -> Batch {
    let next = AtomicU64::new(first);
    let end = first.saturating_add(count);
    let stop = AtomicU64::new(end);
    let batch = Mutex::new(Batch { totals: Totals::default(), failed: None });
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= stop.load(Ordering::Relaxed) {
                return;
            }
            let outcome = run_seed(simulation, seed, settings);
            let mut batch = batch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match outcome.failure {
                None => {
                    batch.totals.add(&outcome);
                    if batch.totals.seeds.is_multiple_of(PROGRESS) {
                        eprintln!("{} seeds passed", batch.totals.seeds);
                    }
                }
                Some(_) => {
                    stop.fetch_min(seed, Ordering::Relaxed);
                    if batch.failed.as_ref().is_none_or(|own| own.seed > seed) {
                        batch.failed = Some(outcome);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    batch.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
