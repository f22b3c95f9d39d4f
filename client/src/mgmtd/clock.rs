//! Cluster time, with a known error bound (R20).

use ember_types::{ClusterTime, Instant, mutant};
use std::cell::Cell;
use std::time::Duration;

/// Translates this process' clock to cluster time. Until the first answer of mgmtd it knows nothing.
#[derive(Debug, Default)]
pub struct ClusterClock(Cell<Option<Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// When the request was sent: the answer's time is not earlier.
    sent: Instant,
    received: Instant,
    time: ClusterTime,
}

/// A clock that drifts from another by at most this share, beside the bound of a lease.
const DRIFT_PER_MILLE: u64 = 1;

impl ClusterClock {
    /// Takes a time that mgmtd gave between `sent` and `received`.
    pub fn learn(&self, sent: Instant, received: Instant, time: ClusterTime) {
        let better = self.0.get().is_none_or(|own| {
            let own_error = own.received.since(own.sent) + received.since(own.received) / 1000;
            received.since(sent) <= own_error || received.since(own.received) > Duration::from_secs(10)
        });
        if better {
            self.0.set(Some(Sample { sent, received, time }));
        }
    }
    /// The earliest that cluster time can be; `None` before the first answer.
    pub fn earliest(&self, now: Instant) -> Option<ClusterTime> {
        let sample = self.0.get()?;
        let passed = now.since(sample.received);
        Some(sample.time + passed.saturating_sub(drift(passed)))
    }
    /// The latest that cluster time can be: whoever relies on an expiry not having passed uses this one.
    pub fn latest(&self, now: Instant) -> Option<ClusterTime> {
        let sample = self.0.get()?;
        let from = if mutant!(r20_time_counts_from_receipt) { sample.received } else { sample.sent };
        let passed = now.since(from);
        Some(sample.time + passed + drift(passed) + Duration::from_millis(1))
    }
}

fn drift(passed: Duration) -> Duration {
    passed / 1000 * DRIFT_PER_MILLE as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn r20_the_true_time_lies_within_the_bounds() {
        let clock = ClusterClock::default();
        assert_eq!(clock.latest(at(1)), None);
        // Cluster time is own time + 5000; the answer was made at own time 1004.
        clock.learn(at(1000), at(1010), ClusterTime(6004));
        let (earliest, latest) = (clock.earliest(at(3000)).unwrap(), clock.latest(at(3000)).unwrap());
        assert!(earliest.0 <= 8000 && 8000 <= latest.0, "{earliest:?} {latest:?}");
        assert!(latest.0 - earliest.0 < 30);
    }
}
