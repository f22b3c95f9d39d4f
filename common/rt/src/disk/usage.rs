//! Who uses a disk, and how long its operations take.

use crate::sync::Notify;
use ember_types::Instant;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// One user of a disk.
#[derive(Default)]
pub(super) struct User {
    in_flight: Cell<usize>,
    why: RefCell<Option<Rc<str>>>,
    stopping: Notify,
}

impl User {
    pub(super) fn started(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }
    pub(super) fn ended(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }
    /// `false` if it was stopped before.
    pub(super) fn stop(&self, why: &str) -> bool {
        let first = self.why.borrow().is_none();
        if first {
            *self.why.borrow_mut() = Some(why.into());
            self.stopping.notify_waiters();
        }
        first
    }
    /// Returns when it is stopped; to be waited for right after a [`User::check`].
    pub(super) async fn stopped(&self) {
        self.stopping.notified().await;
    }
    pub(super) fn check(&self) -> io::Result<()> {
        if self.why.borrow().is_some() { Err(self.error()) } else { Ok(()) }
    }
    pub(super) fn error(&self) -> io::Error {
        match &*self.why.borrow() {
            Some(why) => io::Error::new(io::ErrorKind::TimedOut, why.to_string()),
            None => io::Error::other("disk queue closed"),
        }
    }
}

/// Longest window, in seconds.
const SECONDS: usize = 64;
/// Buckets of a second's histogram: two per power of two of microseconds.
const BUCKETS: usize = 64;

/// How long the operations of some time took.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Latency {
    /// How many there were.
    pub operations: u64,
    /// 99 of 100 took this long at most; known to within a half.
    pub p99: Duration,
}

/// Histograms of the last seconds.
pub(super) struct Latencies {
    slots: Box<[(u64, [u32; BUCKETS]); SECONDS]>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { slots: Box::new([(0, [0; BUCKETS]); SECONDS]) }
    }
}

/// The bucket whose upper end is the first at or above `us`.
fn bucket(us: u64) -> usize {
    (0..BUCKETS - 1).find(|&at| us <= upper_us(at)).unwrap_or(BUCKETS - 1)
}

/// 1, 2, 3, 4, 6, 8, 12, 16, ... microseconds.
fn upper_us(bucket: usize) -> u64 {
    let power = 1 << (bucket / 2);
    if bucket.is_multiple_of(2) { power } else { power + power.div_ceil(2) }
}

fn second(at: Instant) -> u64 {
    // Zero is that of a slot that was never used.
    at.0 / 1_000_000_000 + 1
}

impl Latencies {
    pub(super) fn add(&mut self, now: Instant, took: Duration) {
        let second = second(now);
        let slot = &mut self.slots[second as usize % SECONDS];
        if slot.0 != second {
            *slot = (second, [0; BUCKETS]);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        slot.1[bucket(us)] += 1;
    }

    pub(super) fn within(&self, now: Instant, window: Duration) -> Latency {
        let newest = second(now);
        let oldest = newest.saturating_sub(window.as_secs().min(SECONDS as u64 - 1));
        let mut sum = [0u64; BUCKETS];
        for (_, histogram) in self.slots.iter().filter(|(second, _)| (oldest..=newest).contains(second)) {
            sum.iter_mut().zip(histogram).for_each(|(sum, count)| *sum += u64::from(*count));
        }
        let operations: u64 = sum.iter().sum();
        let above = operations / 100;
        let mut seen = 0;
        let at = (0..BUCKETS).rev().find(|&at| {
            seen += sum[at];
            seen > above
        });
        Latency { operations, p99: at.map_or(Duration::ZERO, |at| Duration::from_micros(upper_us(at))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000 + 5)
    }

    #[test]
    fn buckets_grow_by_halves_and_hold_what_they_say() {
        for us in [0, 1, 2, 3, 5, 100, 1_000, 999_999, 7_000_000] {
            let upper = upper_us(bucket(us));
            assert!(us <= upper && upper <= (us + us.div_ceil(2)).max(1), "{us}: {upper}");
        }
        assert!((1..BUCKETS).all(|at| upper_us(at) > upper_us(at - 1) || at < 3));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_99th_percentile_is_of_the_window_alone() {
        let mut latencies = Latencies::default();
        let (short, long) = (Duration::from_micros(100), Duration::from_millis(900));
        assert_eq!(latencies.within(at(3), Duration::from_secs(10)), Latency::default());
        (0..990).for_each(|_| latencies.add(at(5), short));
        (0..10).for_each(|_| latencies.add(at(5), long));
        let ten = Duration::from_secs(10);
        let now = latencies.within(at(6), ten);
        assert_eq!(now.operations, 1000);
        assert!(now.p99 >= short && now.p99 < 2 * short, "{now:?}");
        latencies.add(at(7), long);
        assert!(latencies.within(at(8), ten).p99 >= long);
        assert_eq!(latencies.within(at(8), Duration::from_secs(1)).operations, 1);
        assert_eq!(latencies.within(at(30), ten).operations, 0);
        // A second of long ago gives its place to a new one.
        latencies.add(at(5 + SECONDS as u64), short);
        assert_eq!(latencies.within(at(5 + SECONDS as u64), Duration::from_secs(63)).operations, 2);
    }
}
