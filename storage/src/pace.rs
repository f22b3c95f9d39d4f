//! How fast resyncs may go on one disk, so that those who wait for it hardly notice. Pure.
//!
//! While no resync runs, the latencies of the foreground are remembered, by kind and size: their 99th percentile is
//! the yardstick. While one runs, a request that takes more than [`SLOW`] times that long is *slow*. As long as at
//! most one in [`SLOW_SHARE`] is slow the limit grows by a step, otherwise it falls by a quarter, down to a floor that
//! a resync gets in any case. Without foreground there is no limit. Now and then resyncs pause for a moment, so
//! that the yardstick stays true while the load changes.

use ember_types::{Instant, mutant};
use std::time::Duration;

/// What is judged together at least, in time.
const PERIOD: Duration = Duration::from_millis(200);
/// What is judged together, in requests, unless that takes longer than [`JUDGE_MAX`].
const JUDGE_MIN: u32 = 200;
/// Longest time for which latencies are gathered before they are judged.
const JUDGE_MAX: Duration = Duration::from_secs(1);
/// Without a request for so long there is no foreground.
const GONE: Duration = Duration::from_secs(1);
/// How long a resync pauses for a measurement.
const PROBE: Duration = Duration::from_millis(600);
/// A yardstick older than this is measured again.
const STALE: Duration = Duration::from_secs(20);
/// So many times the 99th percentile is slow.
const SLOW: f64 = 1.5;
/// One slow request in so many is no reason to go slower.
const SLOW_SHARE: u32 = 150;
/// Bytes per second: the least, what a resync begins with beside a foreground, and what it grows by.
pub(crate) const FLOOR: u64 = 8 << 20;
const BEGIN: u64 = 16 << 20;
const STEP: u64 = 4 << 20;
/// Above this a limit is none: no disk of today is faster.
const CEILING: u64 = 64 << 30;

/// Kinds and sizes that are judged apart: reads, then writes, each up to 16 KiB, 256 KiB, 4 MiB and more.
const CLASSES: usize = 8;
/// Buckets of a tail: eight for each doubling, from 1 µs up.
const BUCKETS: usize = 8 * 28;
/// Latencies that a yardstick rests on; older ones count half, again and again.
const TAIL_MAX: u32 = 4_096;

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A read.
    Read,
    /// An update made durable on this disk.
    Write,
}

fn class(kind: Kind, bytes: usize) -> usize {
    let size = match bytes {
        0..=0x4000 => 0,
        0x4001..=0x4_0000 => 1,
        0x4_0001..=0x40_0000 => 2,
        _ => 3,
    };
    size + if kind == Kind::Write { CLASSES / 2 } else { 0 }
}

/// The distribution of latencies.
#[derive(Clone, Debug)]
struct Tail {
    counts: Vec<u32>,
    total: u32,
}

impl Tail {
    fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
    fn bucket(latency: Duration) -> usize {
        let us = (latency.as_nanos() as f64 / 1000.0).max(1.0);
        ((us.log2() * 8.0) as usize).min(BUCKETS - 1)
    }
    fn add(&mut self, latency: Duration) {
        if self.total >= TAIL_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        self.counts[Self::bucket(latency)] += 1;
        self.total += 1;
    }
    /// The 99th percentile, as the upper end of its bucket; `None` if nothing is known.
    fn p99(&self) -> Option<Duration> {
        let mut above = self.total / 100;
        for (bucket, &count) in self.counts.iter().enumerate().rev() {
            if count > above {
                let us = ((bucket + 1) as f64 / 8.0).exp2();
                return Some(Duration::from_nanos((us * 1000.0) as u64));
            }
            above -= count;
        }
        None
    }
}

/// The limit of the resyncs of one disk, and what it follows from.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Bytes per second; `None`: as fast as it goes.
    limit: Option<u64>,
    /// Latencies without a resync.
    quiet: Vec<Tail>,
    /// When the quiet ones were last added to.
    measured: Option<Instant>,
    /// Latencies of the present period.
    samples: Vec<(usize, Duration)>,
    period: Instant,
    /// A resync was under way in the present period.
    disturbed: bool,
    /// Messages of resyncs under way.
    under_way: usize,
    /// Their bytes since the limit was last looked at.
    moved: u64,
    judged_at: Instant,
    requests: u32,
    slow: u32,
    last_request: Option<Instant>,
    /// The present pause, and when the last one began.
    pause_until: Instant,
    paused: Option<Instant>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            limit: None,
            quiet: (0..CLASSES).map(|_| Tail::new()).collect(),
            measured: None,
            samples: Vec::new(),
            period: Instant::default(),
            disturbed: false,
            under_way: 0,
            moved: 0,
            judged_at: Instant::default(),
            requests: 0,
            slow: 0,
            last_request: None,
            pause_until: Instant::default(),
            paused: None,
        }
    }

    /// A client's request on this disk took so long.
    pub(crate) fn foreground(&mut self, now: Instant, kind: Kind, bytes: usize, latency: Duration) {
        self.roll(now);
        if !self.has_foreground(now) && self.disturbed {
            // It came while a resync runs: carefully from here on.
            self.limit = Some(self.limit.unwrap_or(BEGIN).min(BEGIN));
            self.judged(now);
        }
        self.last_request = Some(now);
        self.samples.push((class(kind, bytes), latency));
    }

    /// A message of a resync sets out, or arrives.
    pub(crate) fn begin(&mut self, now: Instant, bytes: usize) {
        self.roll(now);
        let beside = self.has_foreground(now) && !mutant!(r11_resync_begins_at_full_speed);
        if self.under_way == 0 && self.limit.is_none() && beside {
            self.limit = Some(BEGIN);
            self.judged(now);
        }
        self.disturbed = true;
        self.under_way += 1;
        self.moved += bytes as u64;
    }

    /// It has come to its end.
    pub(crate) fn end(&mut self, now: Instant) {
        self.roll(now);
        self.under_way -= 1;
    }

    /// Bytes per second that all resyncs on this disk may move; `None` is no limit.
    pub(crate) fn limit(&mut self, now: Instant) -> Option<u64> {
        self.roll(now);
        self.limit
    }

    /// Until when nothing is to set out, so that the foreground can be measured alone.
    pub(crate) fn pause(&mut self, now: Instant) -> Option<Instant> {
        self.roll(now);
        let old = |at: Option<Instant>| at.is_none_or(|at| now.since(at) >= STALE);
        let due = old(self.measured) && old(self.paused) && !mutant!(r11_yardstick_grows_old);
        if self.has_foreground(now) && due {
            self.paused = Some(now);
            self.pause_until = now + PROBE;
        }
        (now < self.pause_until).then_some(self.pause_until)
    }

    fn has_foreground(&self, now: Instant) -> bool {
        self.last_request.is_some_and(|at| now.since(at) < GONE)
    }

    /// Closes the period if it is over.
    fn roll(&mut self, now: Instant) {
        if now.since(self.period) < PERIOD {
            return;
        }
        self.period = now;
        let samples = std::mem::take(&mut self.samples);
        if std::mem::replace(&mut self.disturbed, self.under_way > 0) {
            for (class, latency) in samples {
                let Some(usual) = self.quiet[class].p99() else { continue };
                self.requests += 1;
                self.slow += u32::from(latency.as_secs_f64() > usual.as_secs_f64() * SLOW);
            }
        } else if !samples.is_empty() {
            samples.into_iter().for_each(|(class, latency)| self.quiet[class].add(latency));
            self.measured = Some(now);
        }
        self.adjust(now);
    }

    fn adjust(&mut self, now: Instant) {
        let Some(limit) = self.limit else {
            if self.requests == 0 {
                return self.judged(now);
            }
            return;
        };
        if !self.has_foreground(now) {
            self.limit = Some(limit.saturating_mul(2)).filter(|&limit| limit <= CEILING);
            return self.judged(now);
        }
        let over = now.since(self.judged_at);
        if self.requests < JUDGE_MIN && (over < JUDGE_MAX || self.requests == 0) {
            return;
        }
        if self.slow * SLOW_SHARE > self.requests && !mutant!(r11_pace_ignores_slow_requests) {
            self.limit = Some((limit / 4 * 3).max(FLOOR));
        } else if self.moved as f64 >= limit as f64 * over.as_secs_f64() / 2.0 {
            // What isn't used isn't raised: it says nothing of what the foreground would bear.
            self.limit = Some(limit + STEP);
        }
        self.judged(now);
    }

    fn judged(&mut self, now: Instant) {
        (self.requests, self.slow, self.moved, self.judged_at) = (0, 0, 0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 4096;

    struct Load {
        pace: Pace,
        now: Instant,
    }

    impl Load {
        fn new() -> Self {
            Self { pace: Pace::new(), now: Instant(1_000_000_000) }
        }
        /// Requests each millisecond, whose latency is drawn by `latency`, beside a resync if `resync`.
        fn run(&mut self, ms: u64, resync: bool, latency: impl Fn(u64, Option<u64>) -> u64) {
            for i in 0..ms {
                self.now = self.now + Duration::from_millis(1);
                if resync && self.pace.pause(self.now).is_none() {
                    let bytes = self.pace.limit(self.now).unwrap_or(1 << 30) / 1000;
                    self.pace.begin(self.now, bytes as usize);
                    self.pace.end(self.now);
                }
                let limit = self.pace.limit;
                let us = latency(i, limit);
                if us > 0 {
                    self.pace.foreground(self.now, Kind::Read, READ, Duration::from_micros(us));
                }
            }
        }
    }

    #[test]
    fn without_a_foreground_there_is_no_limit_and_with_one_it_begins_low() {
        let mut load = Load::new();
        load.run(2_000, true, |_, _| 0);
        assert_eq!(load.pace.limit(load.now), None);
        load.run(1, true, |_, _| 100);
        assert_eq!(load.pace.limit(load.now), Some(BEGIN));
        load.run(30_000, true, |_, _| 0);
        assert_eq!(load.pace.limit(load.now), None, "the foreground has gone");
    }

    #[test]
    fn it_grows_while_latency_stays_and_falls_to_the_floor_when_it_does_not() {
        let mut load = Load::new();
        load.run(2_000, false, |i, _| 100 + i % 50);
        load.run(10_000, true, |i, _| 100 + i % 50);
        let grown = load.pace.limit(load.now).expect("a limit");
        assert!(grown > BEGIN + 20 * STEP, "{grown}");
        load.run(10_000, true, |i, _| if i % 20 == 0 { 900 } else { 100 });
        assert_eq!(load.pace.limit(load.now), Some(FLOOR));
    }

    #[test]
    fn it_settles_where_the_foreground_begins_to_suffer() {
        let mut load = Load::new();
        load.run(2_000, false, |_, _| 100);
        // Above 60 MiB/s one request in fifty is slow.
        let suffers = |i: u64, limit: Option<u64>| match limit.is_none_or(|limit| limit > 60 << 20) {
            true if i.is_multiple_of(50) => 1_000,
            _ => 100,
        };
        load.run(30_000, true, suffers);
        let (mut least, mut most) = (u64::MAX, 0);
        for _ in 0..100 {
            load.run(100, true, suffers);
            let limit = load.pace.limit(load.now).expect("a limit");
            (least, most) = (least.min(limit), most.max(limit));
        }
        assert!(least >= 40 << 20 && most <= 72 << 20, "{} to {} MiB/s", least >> 20, most >> 20);
    }

    #[test]
    fn a_pause_measures_a_foreground_that_came_with_the_resync() {
        let mut load = Load::new();
        load.run(25_000, true, |_, _| 100);
        assert!(load.pace.measured.is_some(), "measured during a pause");
        let limit = load.pace.limit(load.now).expect("a limit");
        assert!(limit > BEGIN, "{limit}");
        // The load has changed for good: the yardstick follows, and the resync isn't starved by an old one.
        load.run(120_000, true, |_, _| 400);
        assert!(load.pace.limit(load.now).expect("a limit") > BEGIN);
    }

    #[test]
    fn the_tail_is_the_99th_percentile() {
        let mut tail = Tail::new();
        (0..1000).for_each(|i| tail.add(Duration::from_micros(if i < 985 { 100 } else { 2_000 })));
        let p99 = tail.p99().expect("known");
        assert!((1_900..2_400).contains(&p99.as_micros()), "{p99:?}");
        (0..20_000).for_each(|_| tail.add(Duration::from_micros(100)));
        assert!(tail.p99().expect("known").as_micros() < 120, "what is old counts less and less");
        assert_eq!(Tail::new().p99(), None);
    }
}
