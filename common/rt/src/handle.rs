//! The handle through which a task reaches the outside world.

use crate::Elapsed;
use crate::disk::Disks;
use crate::net::Net;
use crate::select::{Either, select};
use crate::sync::oneshot;
use ember_types::{Instant, UnixTime};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// A boxed future that stays on its reactor.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
/// Work for a thread that may block: called there, and the future that it makes is run to its end there.
pub type SendTask = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// Tells time.
pub trait Clock {
    /// CLOCK_BOOTTIME (R8).
    fn now(&self) -> Instant;
    /// The wall clock, for file times and cluster time.
    fn unix_now(&self) -> UnixTime;
    /// Waits until `at`.
    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()>;
}

/// Starts tasks.
pub trait Spawn {
    /// Runs a task on this reactor until it ends. `name` is for logs and traces.
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>);
    /// Runs a task on one of a bounded number of threads that may block. The simulator runs it on the one
    /// thread it has.
    fn spawn_blocking(&self, name: &'static str, task: SendTask);
}

/// Draws random numbers: from the system in production, from the seed in the simulator.
pub trait Rng {
    /// 64 random bits, good enough for ids and secrets.
    fn next_u64(&self) -> u64;
}

/// What an implementation of the seam provides.
pub struct RtParts {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// Tasks.
    pub spawn: Rc<dyn Spawn>,
    /// Network.
    pub net: Rc<dyn Net>,
    /// Disks.
    pub disks: Rc<dyn Disks>,
    /// Randomness.
    pub rng: Rc<dyn Rng>,
}

/// One reactor's handle on the outside world; cheap to clone, never leaves its thread.
#[derive(Clone)]
pub struct Rt(Rc<RtParts>);

impl Rt {
    /// Wraps an implementation.
    pub fn new(parts: RtParts) -> Self {
        Self(Rc::new(parts))
    }
    /// The boot-time clock.
    pub fn now(&self) -> Instant {
        self.0.clock.now()
    }
    /// The wall clock.
    pub fn unix_now(&self) -> UnixTime {
        self.0.clock.unix_now()
    }
    /// The wall clock in whole milliseconds since 1970 (0 before that).
    pub fn unix_now_ms(&self) -> u64 {
        let now = self.unix_now();
        u64::try_from(now.seconds).unwrap_or(0).saturating_mul(1000) + u64::from(now.nanos / 1_000_000)
    }
    /// Waits for `duration`.
    pub fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.sleep_until(self.now() + duration)
    }
    /// Waits until `at`.
    pub fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        self.0.clock.sleep_until(at)
    }
    /// Runs a future until `at` at the latest; then it is dropped.
    pub async fn timeout_at<F: Future>(&self, at: Instant, future: F) -> Result<F::Output, Elapsed> {
        match select(future, self.sleep_until(at)).await {
            Either::Left(value) => Ok(value),
            Either::Right(()) => Err(Elapsed),
        }
    }
    /// Runs a future for `duration` at most; then it is dropped.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
        self.timeout_at(self.now() + duration, future).await
    }
    /// Starts a task on this reactor.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.spawn.spawn(name, Box::pin(task));
    }
    /// Runs work that may block on another thread and waits for its result. `Err` if that thread pool is gone
    /// or the work panicked.
    pub async fn blocking<T, W, F>(&self, name: &'static str, work: W) -> Result<T, Elapsed>
    where
        T: Send + 'static,
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (answer, result) = oneshot::channel();
        let task: SendTask = Box::new(move || {
            Box::pin(async move {
                let _ = answer.send(work().await);
            })
        });
        self.0.spawn.spawn_blocking(name, task);
        result.await.map_err(|_| Elapsed)
    }
    /// The network.
    pub fn net(&self) -> &dyn Net {
        &*self.0.net
    }
    /// The disks.
    pub fn disks(&self) -> &dyn Disks {
        &*self.0.disks
    }
    /// 64 random bits.
    pub fn random_u64(&self) -> u64 {
        self.0.rng.next_u64()
    }
    /// 128 random bits.
    pub fn random_u128(&self) -> u128 {
        (u128::from(self.random_u64()) << 64) | u128::from(self.random_u64())
    }
    /// A random number below `bound` (0 if `bound` is 0).
    pub fn random_below(&self, bound: u64) -> u64 {
        ((u128::from(self.random_u64()) * u128::from(bound)) >> 64) as u64
    }
}
