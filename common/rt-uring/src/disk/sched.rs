//! Which waiting operation goes to the device next. Pure.

use ember_rt::disk::Priority;
use std::collections::VecDeque;

/// Bytes from which on an operation is large.
const LARGE: usize = 128 << 10;
/// Bytes of large writes in flight at most: enough to keep a device busy, few enough that a frame of the log, for
/// which everybody waits, doesn't stand behind many of them in the device.
const LARGE_WRITES_MAX: usize = 4 << 20;
/// So many others may overtake a large write that could start.
const OVERTAKEN_MAX: u32 = 64;

/// How an operation waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Weight {
    pub(super) priority: Priority,
    /// Bytes of a large write, else 0.
    large: usize,
}

impl Weight {
    /// `written`: bytes that the operation writes.
    pub(super) fn new(priority: Priority, written: usize) -> Self {
        Self { priority, large: if written > LARGE { written } else { 0 } }
    }
}

/// Waiting operations of one priority.
struct Class<T> {
    /// All but large writes.
    others: VecDeque<T>,
    large: VecDeque<(usize, T)>,
    flying: usize,
}

impl<T> Class<T> {
    fn is_empty(&self) -> bool {
        self.others.is_empty() && self.large.is_empty()
    }
}

/// Waiting operations by priority, with a bound on those in flight.
///
/// Foreground goes first. Resync and scrub may fill half and a quarter of the depth, so that their bursts
/// leave room for the next client; and each has one operation in flight whenever it has work, so that none
/// waits for ever.
pub(super) struct Queues<T> {
    classes: [Class<T>; 3],
    depth: usize,
    large_bytes: usize,
    overtaken: u32,
}

fn class(priority: Priority) -> usize {
    match priority {
        Priority::Foreground => 0,
        Priority::Resync => 1,
        Priority::Scrub => 2,
    }
}

impl<T> Queues<T> {
    pub(super) fn new(depth: usize) -> Self {
        let class = || Class { others: VecDeque::new(), large: VecDeque::new(), flying: 0 };
        Self { classes: [class(), class(), class()], depth: depth.max(4), large_bytes: 0, overtaken: 0 }
    }
    pub(super) fn push(&mut self, weight: Weight, op: T) {
        let class = &mut self.classes[class(weight.priority)];
        match weight.large {
            0 => class.others.push_back(op),
            bytes => class.large.push_back((bytes, op)),
        }
    }
    /// Operations that wait.
    pub(super) fn len(&self) -> usize {
        self.classes.iter().map(|class| class.others.len() + class.large.len()).sum()
    }
    /// Whether the next large write of a class may start; one always may where the class has nothing in flight.
    fn large_fits(&self, class: usize) -> bool {
        let Class { large, flying, .. } = &self.classes[class];
        let fits = |(bytes, _): &(usize, T)| *flying == 0 || self.large_bytes + bytes <= LARGE_WRITES_MAX;
        large.front().is_some_and(fits)
    }
    fn can_start(&self, class: usize) -> bool {
        !self.classes[class].others.is_empty() || self.large_fits(class)
    }
    /// Takes the operation that may start now; it counts as in flight until [`Queues::ended`].
    pub(super) fn next(&mut self) -> Option<T> {
        if self.classes.iter().map(|class| class.flying).sum::<usize>() >= self.depth {
            return None;
        }
        let limits = [self.depth, self.depth / 2, self.depth / 4];
        let idle = |c: &usize| self.classes[*c].flying == 0 && !self.classes[*c].is_empty();
        let starved = [1, 2].into_iter().find(|c| idle(c) && self.can_start(*c));
        let may = |c: &usize| self.classes[*c].flying < limits[*c] && self.can_start(*c);
        let chosen = starved.or_else(|| (0..3).find(may))?;
        let large = self.large_fits(chosen);
        let class = &mut self.classes[chosen];
        class.flying += 1;
        if large && (class.others.is_empty() || self.overtaken >= OVERTAKEN_MAX) {
            self.overtaken = 0;
            let (bytes, op) = class.large.pop_front()?;
            self.large_bytes += bytes;
            return Some(op);
        }
        self.overtaken += u32::from(large);
        class.others.pop_front()
    }
    /// An operation that [`Queues::next`] gave out has ended.
    pub(super) fn ended(&mut self, weight: Weight) {
        self.classes[class(weight.priority)].flying -= 1;
        self.large_bytes -= weight.large;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Foreground, Resync, Scrub};

    #[test]
    fn foreground_first_others_bounded_none_starves() {
        let mut queues = Queues::new(8);
        for _ in 0..20 {
            queues.push(Weight::new(Scrub, 0), Scrub);
            queues.push(Weight::new(Resync, 0), Resync);
        }
        let count = |queues: &mut Queues<Priority>| {
            let mut started = [0; 3];
            while let Some(op) = queues.next() {
                started[class(op)] += 1;
            }
            started
        };
        assert_eq!(count(&mut queues), [0, 4, 2]);
        for _ in 0..20 {
            queues.push(Weight::new(Foreground, 0), Foreground);
        }
        assert_eq!(count(&mut queues), [2, 0, 0]);
        queues.ended(Weight::new(Resync, 0));
        queues.ended(Weight::new(Resync, 0));
        assert_eq!(count(&mut queues), [2, 0, 0]);
        queues.ended(Weight::new(Scrub, 0));
        queues.ended(Weight::new(Scrub, 0));
        assert_eq!(count(&mut queues), [1, 0, 1], "scrub keeps one in flight");
    }

    #[test]
    fn large_writes_are_few_and_let_others_pass_but_not_all() {
        let mut queues = Queues::new(128);
        let (large, small) = (Weight::new(Foreground, 1 << 20), Weight::new(Foreground, 4096));
        (0..16).for_each(|_| queues.push(large, "large"));
        (0..100).for_each(|_| queues.push(small, "small"));
        let started: Vec<&str> = std::iter::from_fn(|| queues.next()).collect();
        assert_eq!(started.iter().filter(|op| **op == "large").count(), 4, "4 MiB are in flight");
        assert_eq!(started.iter().position(|op| *op == "large"), Some(64));
        queues.ended(small);
        assert_eq!(queues.next(), None);
        queues.ended(large);
        assert_eq!(queues.next(), Some("large"));
        // One that is larger than the limit goes alone.
        let mut queues = Queues::new(8);
        let huge = Weight::new(Foreground, 64 << 20);
        (0..2).for_each(|_| queues.push(huge, ()));
        assert_eq!((queues.next(), queues.next()), (Some(()), None));
        // No class waits for ever.
        queues.push(Weight::new(Scrub, 1 << 20), ());
        assert_eq!((queues.next(), queues.next()), (Some(()), None));
        queues.ended(huge);
        assert_eq!(queues.next(), Some(()));
    }
}
