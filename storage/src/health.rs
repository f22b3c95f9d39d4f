//! Disks that hang, fail or are slow (R10).
//!
//! A disk that doesn't end an operation in time is taken from its targets: whoever waits is answered, mgmtd hears
//! that the targets are offline, and the other disks go on. A target that went so, or whose log could not be
//! written, is opened again as soon as nothing of it is in flight any more (R17) and mgmtd has taken it out of
//! service: it is then what it would be after a restart.

use crate::config::StorageConfig;
use crate::node::Node;
use crate::slots::Slot;
use crate::target::Target;
use ember_rt::disk::{DiskQueue, Latency};
use ember_types::{Instant, PublicState, TargetInfo};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How often disks are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Who looks so long after the last time has been standing still itself, stopped or starved: what is in flight then
/// gets its whole time anew.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// A disk that has kept an operation for so long gets none that can wait.
const STANDS_STILL: Duration = Duration::from_millis(500);
/// Pause before the first try to open a failed target again; each failure doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Most doublings of the pause.
const DOUBLINGS_MAX: u32 = 6;
/// A target that ran for so long is taken for a sound one: the pauses begin anew.
const SOUND: Duration = Duration::from_secs(600);
/// Fewer operations in a window say nothing of a disk's speed.
const OPERATIONS_MIN: u64 = 20;
/// How long a disk that was too slow counts as such, at least; each time doubles it.
const SLOW_MIN: Duration = Duration::from_secs(60);

/// Failures of one target in a row.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    /// Counts one more; how long to wait before the target is opened again.
    fn add(&mut self, now: Instant) -> Duration {
        if self.count > 0 && now.since(self.last) >= SOUND {
            self.count = 0;
        }
        let pause = PAUSE_MIN * 2u32.pow(self.count.min(DOUBLINGS_MAX));
        (self.count, self.last) = (self.count.saturating_add(1), now);
        pause
    }
}

/// What is known of the speed of a disk.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Speed {
    latency: Latency,
    /// Since when it has been slower than the first bound.
    slow: Option<Instant>,
    /// Since when it has been slower than the second bound.
    too_slow: Option<Instant>,
    /// Until then its targets had better not serve.
    until: Instant,
    times: u32,
}

impl Speed {
    /// Takes the latency of the last window in.
    fn look(&mut self, now: Instant, latency: Latency, config: &StorageConfig) {
        self.latency = latency;
        let above = |since: Option<Instant>, bound_ms: u64| {
            let counts = bound_ms > 0 && latency.operations >= OPERATIONS_MIN;
            let slow = counts && latency.p99 >= Duration::from_millis(bound_ms);
            slow.then(|| since.unwrap_or(now))
        };
        self.slow = above(self.slow, config.disk_slow_ms);
        self.too_slow = above(self.too_slow, config.disk_demote_ms);
        if self.too_slow.is_some_and(|since| now.since(since) >= lasting(config)) && now >= self.until {
            if now.since(self.until) >= SOUND {
                self.times = 0;
            }
            self.until = now + SLOW_MIN * 2u32.pow(self.times.min(DOUBLINGS_MAX));
            self.times += 1;
        }
    }
    /// Whether its targets had better not serve.
    fn is_too_slow(&self, now: Instant) -> bool {
        now < self.until
    }
    fn warning(&self, now: Instant, path: &str, config: &StorageConfig) -> Option<String> {
        let (seconds, p99) = (config.disk_slow_window_s, self.latency.p99.as_secs_f64());
        if self.is_too_slow(now) {
            let left = self.until.since(now).as_secs();
            return Some(format!(
                "{path} was too slow (99 of 100 operations took more than {:.1} s): its targets serve only where \
                 they are needed for the next {left} s; at present {p99:.3} s",
                config.disk_demote_ms as f64 / 1e3,
            ));
        }
        let slow = self.slow.is_some_and(|since| now.since(since) >= lasting(config));
        slow.then(|| {
            format!(
                "{path} is slow: the slowest of 100 operations of the last {seconds} s took {p99:.3} s (bound {:.1} s)",
                config.disk_slow_ms as f64 / 1e3
            )
        })
    }
}

fn window(config: &StorageConfig) -> Duration {
    Duration::from_secs(config.disk_slow_window_s)
}

/// How long a disk must be slow: longer than what is measured at once, so that one burst is not enough, say of
/// operations that hung and end together.
fn lasting(config: &StorageConfig) -> Duration {
    window(config) + Duration::from_secs(2)
}

/// Watches a node's disks for as long as there is the node.
pub(crate) async fn watch(node: Weak<Node>) {
    let (mut looked, mut measured) = (Instant::default(), Instant::default());
    while let Some(node) = node.upgrade() {
        let now = node.context.rt.now();
        if now.since(looked) >= STOOD_STILL {
            node.awake_since.set(now);
        }
        looked = now;
        node.look_at_disks();
        if now.since(measured) >= Duration::from_secs(1) {
            measured = now;
            node.look_at_speed(now);
        }
        let pause = node.context.rt.sleep(LOOK);
        drop(node);
        pause.await;
    }
}

impl Node {
    /// What hangs on a disk, for people; `None` if nothing does.
    pub(crate) fn hangs(&self, disk: u32) -> Option<String> {
        let limit = Duration::from_millis(self.context.config.disk_timeout_ms);
        let (what, since) = self.disks.get(disk as usize).and_then(DiskQueue::oldest)?;
        let age = self.context.rt.now().since(since.max(self.awake_since.get()));
        let path = self.context.config.disks.get(disk as usize).map_or("", String::as_str);
        (age >= limit && !limit.is_zero())
            .then(|| format!("{path} hangs: a {what} has not ended for {:.1} s", age.as_secs_f64()))
    }

    /// Whether a disk has something in flight for so long that nothing should be asked of it that can wait: opening a
    /// file, say, would hold the node's thread.
    pub(crate) fn stands_still(&self, disk: u32) -> bool {
        let oldest = self.disks.get(disk as usize).and_then(DiskQueue::oldest);
        oldest.is_some_and(|(_, since)| self.context.rt.now().since(since) >= STANDS_STILL)
    }

    fn look_at_disks(self: &Rc<Self>) {
        for (disk, queue) in (0u32..).zip(&self.disks) {
            if let Some(why) = self.hangs(disk) {
                queue.stop_users(&why);
                let on_it = self.running().into_iter().filter(|target| target.disk == disk);
                on_it.for_each(|target| self.retire(&target, why.clone()));
            }
        }
        for target in self.running() {
            if let Some(why) = target.failure() {
                self.retire(&target, why);
            }
        }
    }

    /// Takes a target out of service. What it has in flight goes on; when that has ended it is opened again.
    fn retire(&self, target: &Rc<Target>, trouble: String) {
        target.fail(&trouble);
        let now = self.context.rt.now();
        let pause = self.failures.borrow_mut().entry(target.id).or_default().add(now);
        let in_flight = target.queue.in_flight();
        tracing::error!(target = %target.id, in_flight, ?pause, trouble, "target is out of service");
        let generation = target.engine.identity().generation;
        let broken = Slot::Broken {
            generation,
            trouble,
            wants_replacement: false,
            in_use: false,
            retry_at: now + pause,
            queue: Some(target.queue.clone()),
        };
        self.slots.borrow_mut().insert(target.id, broken);
        self.context.nudge();
    }

    /// Whether a target may be opened again: nothing of its former life is in flight, its disk answers, and mgmtd
    /// has taken note that it stopped.
    pub(crate) fn may_reopen(&self, info: &TargetInfo, former: Option<&DiskQueue>) -> bool {
        let view = self.context.routing.view();
        let member = view.chains.get(&info.chain).and_then(|chain| chain.member(info.id));
        let out = member.is_none_or(|member| {
            member.generation != info.generation
                || !matches!(member.state, PublicState::Serving | PublicState::Syncing)
        });
        out && former.is_none_or(|queue| queue.in_flight() == 0) && self.hangs(info.disk).is_none()
    }

    fn look_at_speed(&self, now: Instant) {
        let config = &self.context.config;
        for (speed, queue) in self.speeds.borrow_mut().iter_mut().zip(&self.disks) {
            speed.look(now, queue.latency(window(config)), config);
        }
    }
    /// Whether targets of a disk had better not serve, because it is too slow.
    pub(crate) fn is_too_slow(&self, disk: u32) -> bool {
        let now = self.context.rt.now();
        self.speeds.borrow().get(disk as usize).is_some_and(|speed| speed.is_too_slow(now))
    }
    /// What people should know of the disks.
    pub(crate) fn disk_warnings(&self) -> Vec<String> {
        let config = &self.context.config;
        let now = self.context.rt.now();
        let speeds = self.speeds.borrow();
        let of = |((disk, path), (queue, speed)): ((u32, &String), (&DiskQueue, &Speed))| {
            let lacks = queue.disk().warnings().into_iter().map(|text| format!("{path} {text}"));
            let slow = || speed.warning(now, path, config);
            lacks.chain(self.hangs(disk).or_else(slow)).collect::<Vec<String>>()
        };
        (0u32..).zip(&config.disks).zip(self.disks.iter().zip(&*speeds)).flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn r10_a_target_that_fails_again_waits_longer_and_a_sound_one_is_forgiven() {
        let mut failures = Failures::default();
        let pauses: Vec<u64> = (0..9).map(|n| failures.add(at(10 + n)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(failures.add(at(18 + 599)).as_secs(), 64);
        assert_eq!(failures.add(at(18 + 599 + 600)).as_secs(), 1);
    }

    #[test]
    fn r10_a_disk_is_too_slow_after_a_whole_window_above_the_bound() {
        let config = StorageConfig::default();
        let (bound, lasting) = (config.disk_demote_ms, lasting(&config).as_secs());
        let took = |ms: u64, operations| Latency { operations, p99: Duration::from_millis(ms) };
        let mut speed = Speed::default();
        for second in 0..lasting {
            speed.look(at(1 + second), took(bound, 100), &config);
            assert!(!speed.is_too_slow(at(1 + second)), "{second}");
        }
        assert_eq!(speed.warning(at(lasting), "d", &config), None);
        speed.look(at(1 + lasting), took(bound, 100), &config);
        assert!(speed.is_too_slow(at(1 + lasting)));
        assert!(speed.warning(at(1 + lasting), "d", &config).is_some_and(|text| text.contains("3.000 s")));
        // It stays so for a while, however idle it is.
        let end = 1 + lasting + 60;
        speed.look(at(end - 1), took(0, 0), &config);
        assert!(speed.is_too_slow(at(end - 1)) && !speed.is_too_slow(at(end)));
        // One that is only slow is named, with figures.
        for second in 0..=lasting {
            speed.look(at(end + second), took(config.disk_slow_ms, 100), &config);
        }
        assert!(!speed.is_too_slow(at(end + lasting)));
        assert!(speed.warning(at(end + lasting), "d", &config).is_some_and(|text| text.contains("1.000 s")));
        // A few operations say nothing; a second time lasts twice as long.
        for second in 0..=lasting {
            speed.look(at(200 + second), took(bound, OPERATIONS_MIN - 1), &config);
        }
        assert!(!speed.is_too_slow(at(200 + lasting)));
        for second in 0..=lasting {
            speed.look(at(300 + second), took(bound, 100), &config);
        }
        assert!(speed.is_too_slow(at(300 + lasting + 119)) && !speed.is_too_slow(at(300 + lasting + 120)));
    }
}
