//! Which waiting operation goes to the device next. Pure.

use ember_rt::disk::Priority;
use std::collections::VecDeque;

/// Waiting operations by priority, with a bound on those in flight.
///
/// Foreground goes first. Resync and scrub may fill half and a quarter of the depth, so that their bursts
/// leave room for the next client; and each has one operation in flight whenever it has work, so that none
/// waits for ever.
pub(super) struct Queues<T> {
    waiting: [VecDeque<T>; 3],
    flying: [usize; 3],
    depth: usize,
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
        Self { waiting: [const { VecDeque::new() }; 3], flying: [0; 3], depth: depth.max(4) }
    }
    pub(super) fn push(&mut self, priority: Priority, op: T) {
        self.waiting[class(priority)].push_back(op);
    }
    /// Operations that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }
    /// Takes the operation that may start now; it counts as in flight until [`Queues::ended`].
    pub(super) fn next(&mut self) -> Option<T> {
        if self.flying.iter().sum::<usize>() >= self.depth {
            return None;
        }
        let limits = [self.depth, self.depth / 2, self.depth / 4];
        let starved = [1, 2].into_iter().find(|&c| self.flying[c] == 0 && !self.waiting[c].is_empty());
        let chosen = starved
            .or_else(|| (0..3).find(|&c| self.flying[c] < limits[c] && !self.waiting[c].is_empty()))?;
        self.flying[chosen] += 1;
        self.waiting[chosen].pop_front()
    }
    /// An operation that [`Queues::next`] gave out has ended.
    pub(super) fn ended(&mut self, priority: Priority) {
        self.flying[class(priority)] -= 1;
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
            queues.push(Scrub, Scrub);
            queues.push(Resync, Resync);
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
            queues.push(Foreground, Foreground);
        }
        assert_eq!(count(&mut queues), [2, 0, 0]);
        queues.ended(Resync);
        queues.ended(Resync);
        assert_eq!(count(&mut queues), [2, 0, 0]);
        queues.ended(Scrub);
        queues.ended(Scrub);
        assert_eq!(count(&mut queues), [1, 0, 1], "scrub keeps one in flight");
    }
}
