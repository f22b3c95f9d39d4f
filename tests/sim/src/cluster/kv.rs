//! The store under the metadata and cluster-manager services: one for all, with delays and unknown outcomes.

use crate::world::{World, between};
use ember_kv::faulty::{CommitPlan, Faults, FaultyKv, Hold, Outcome, Release, hold};
use ember_kv::{Durability, Kv, MemKv};
use ember_types::layout::SplitMix64;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits that nobody has timed yet. The store's traits want `Send`, which a world is not: so a task of the
/// world ends the waits.
#[derive(Default)]
struct Waits {
    new: Vec<(Release, u64)>,
    waker: Option<Waker>,
}

/// Decides delays and outcomes from the seed.
pub struct KvFaults {
    rng: Mutex<SplitMix64>,
    waits: Mutex<Waits>,
    unknown_ppm: AtomicU64,
    unknown: AtomicU64,
}

impl KvFaults {
    fn hold(&self, low_ns: u64, high_ns: u64) -> Hold {
        let (release, hold) = hold();
        let delay = between(&mut lock(&self.rng), low_ns, high_ns);
        let mut waits = lock(&self.waits);
        waits.new.push((release, delay));
        if let Some(waker) = waits.waker.take() {
            waker.wake();
        }
        hold
    }
    /// From now on this many commits in a million have an unknown outcome.
    pub fn set_unknown_ppm(&self, ppm: u64) {
        self.unknown_ppm.store(ppm, Ordering::Relaxed);
    }
    /// Commits so far whose outcome was made unknown.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }
}

impl Faults for KvFaults {
    fn on_read(&self) -> Option<Hold> {
        Some(self.hold(20_000, 120_000))
    }
    fn on_commit(&self, durability: Durability) -> CommitPlan {
        let draw = lock(&self.rng).next();
        let ppm = self.unknown_ppm.load(Ordering::Relaxed);
        let outcome = match draw % 1_000_000 < ppm {
            false => Outcome::Normal,
            true => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                if draw >> 63 == 0 { Outcome::UnknownApplied } else { Outcome::UnknownNotApplied }
            }
        };
        let after_ns = if durability == Durability::Durable { 1_500_000 } else { 100_000 };
        CommitPlan {
            before: Some(self.hold(20_000, 200_000)),
            outcome,
            after: Some(self.hold(20_000, after_ns)),
        }
    }
}

/// A store for a world.
pub struct SimKv {
    /// The store itself.
    pub mem: MemKv,
    /// Its faults.
    pub faults: Arc<KvFaults>,
}

impl SimKv {
    /// An empty store; delays follow from the world's seed.
    pub fn new(world: &World) -> Self {
        let faults = Arc::new(KvFaults {
            rng: Mutex::new(world.rng(4)),
            waits: Mutex::default(),
            unknown_ppm: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        });
        let (own, timer) = (faults.clone(), world.clone());
        world.spawn_harness("timer of the store", async move {
            loop {
                let new = poll_fn(|cx| {
                    let mut waits = lock(&own.waits);
                    if waits.new.is_empty() {
                        waits.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    Poll::Ready(std::mem::take(&mut waits.new))
                })
                .await;
                for (release, delay) in new {
                    timer.after(delay, move |_| release.release());
                }
            }
        });
        Self { mem: MemKv::new(), faults }
    }
    /// What a service uses.
    pub fn handle(&self) -> Arc<dyn Kv> {
        Arc::new(FaultyKv::new(Arc::new(self.mem.clone()), self.faults.clone()))
    }
}
