//! Linearizability of a history, by the search of Wing and Gong with Lowe's memory of visited states.
//!
//! An operation whose outcome is unknown may take effect at any time after it was asked for, or never.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use ember_types::collections::FixedHashSet;
use ember_types::layout::SplitMix64;

/// A sequential model of an object.
pub trait Model {
    /// What the object holds.
    type State: Clone + Eq + Hash;
    /// What was asked, and what was answered if it was.
    type Op;
    /// The state after `op`, if `op` may be done in `state` with its answer.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// An operation in a history.
#[derive(Clone, Debug)]
pub struct Event<Op> {
    /// When it was asked for.
    pub begin: u64,
    /// When it was answered; `None` if its outcome is unknown.
    pub end: Option<u64>,
    /// What.
    pub op: Op,
}

/// What the search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. The index of an operation that no order reaches, for people.
    Violation(usize),
    /// The search gave up after its bound of steps.
    Undecided,
}

/// One end of an operation in the list of those not yet put in order.
struct Node {
    op: usize,
    is_return: bool,
    previous: usize,
    next: usize,
}

/// A doubly linked list of calls and returns in order of time; node 0 is its head.
struct List {
    nodes: Vec<Node>,
    call: Vec<usize>,
    answer: Vec<usize>,
}

impl List {
    fn new<Op>(history: &[Event<Op>]) -> Self {
        // A return comes before a call of the same time: operations that touch don't overlap.
        let mut ends: Vec<(u64, bool, usize)> = Vec::with_capacity(history.len() * 2);
        for (op, event) in history.iter().enumerate() {
            ends.push((event.begin, true, op));
            ends.push((event.end.unwrap_or(u64::MAX), event.end.is_none(), op));
        }
        let mut order: Vec<usize> = (0..ends.len()).collect();
        order.sort_by_key(|&i| (ends[i].0, ends[i].1, i));
        let mut nodes = vec![Node { op: usize::MAX, is_return: false, previous: 0, next: 0 }];
        let (mut call, mut answer) = (vec![0; history.len()], vec![0; history.len()]);
        for i in order {
            let (op, is_return) = (ends[i].2, i % 2 == 1);
            let at = nodes.len();
            nodes[at - 1].next = at;
            nodes.push(Node { op, is_return, previous: at - 1, next: 0 });
            match is_return {
                true => answer[op] = at,
                false => call[op] = at,
            }
        }
        Self { nodes, call, answer }
    }
    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.nodes[at].previous, self.nodes[at].next);
        self.nodes[previous].next = next;
        if next != 0 {
            self.nodes[next].previous = previous;
        }
    }
    fn relink(&mut self, at: usize) {
        let (previous, next) = (self.nodes[at].previous, self.nodes[at].next);
        self.nodes[previous].next = at;
        if next != 0 {
            self.nodes[next].previous = at;
        }
    }
    fn take(&mut self, op: usize) {
        self.unlink(self.call[op]);
        self.unlink(self.answer[op]);
    }
    fn give_back(&mut self, op: usize) {
        self.relink(self.answer[op]);
        self.relink(self.call[op]);
    }
}

fn digest<S: Hash>(taken: u128, state: &S) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, taken).hash(&mut hasher);
        state.hash(&mut hasher);
        hasher.finish()
    };
    (u128::from(half(1)) << 64) | u128::from(half(2))
}

/// Looks for an order of `history` that `model` allows from `initial` on, within `steps_max` steps.
pub fn check<M: Model>(model: &M, initial: M::State, history: &[Event<M::Op>], steps_max: u64) -> Verdict {
    let mut list = List::new(history);
    let mut random = SplitMix64(history.len() as u64);
    let keys: Vec<u128> =
        history.iter().map(|_| (u128::from(random.next()) << 64) | u128::from(random.next())).collect();
    let mut answered = history.iter().filter(|e| e.end.is_some()).count();
    let mut seen: FixedHashSet<u128> = FixedHashSet::default();
    let mut stack: Vec<(usize, M::State)> = Vec::new();
    let (mut state, mut taken, mut deepest) = (initial, 0_u128, (0, 0));
    let (mut at, mut steps) = (list.nodes[0].next, 0_u64);
    while answered > 0 {
        steps += 1;
        if steps > steps_max {
            return Verdict::Undecided;
        }
        let Node { op, is_return, next, .. } = list.nodes[at];
        if at != 0 && !is_return {
            let stepped = model.step(&state, &history[op].op);
            let after = stepped.filter(|after| seen.insert(digest(taken ^ keys[op], after)));
            match after {
                Some(after) => {
                    list.take(op);
                    stack.push((op, std::mem::replace(&mut state, after)));
                    taken ^= keys[op];
                    answered -= usize::from(history[op].end.is_some());
                    at = list.nodes[0].next;
                }
                None => at = next,
            }
            continue;
        }
        if at != 0 && stack.len() >= deepest.0 {
            deepest = (stack.len(), op);
        }
        let Some((op, before)) = stack.pop() else { return Verdict::Violation(deepest.1) };
        state = before;
        taken ^= keys[op];
        answered += usize::from(history[op].end.is_some());
        list.give_back(op);
        at = list.nodes[list.call[op]].next;
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register;
    enum Op {
        Write(u32),
        Read(u32),
    }
    impl Model for Register {
        type State = u32;
        type Op = Op;
        fn step(&self, state: &u32, op: &Op) -> Option<u32> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    fn event(begin: u64, end: u64, op: Op) -> Event<Op> {
        Event { begin, end: (end > 0).then_some(end), op }
    }
    fn verdict(history: &[Event<Op>]) -> Verdict {
        check(&Register, 0, history, 100_000)
    }

    #[test]
    fn histories_of_a_register() {
        use Op::{Read, Write};
        assert_eq!(verdict(&[]), Verdict::Linearizable);
        let overlapping = [event(1, 10, Write(1)), event(2, 3, Read(1)), event(4, 5, Read(1))];
        assert_eq!(verdict(&overlapping), Verdict::Linearizable);
        let back = [event(1, 10, Write(1)), event(2, 3, Read(1)), event(4, 5, Read(0))];
        assert_eq!(verdict(&back), Verdict::Violation(2));
        let lost = [event(1, 2, Write(1)), event(3, 4, Read(0))];
        assert_eq!(verdict(&lost), Verdict::Violation(1));
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never() {
        use Op::{Read, Write};
        let late = [event(1, 0, Write(1)), event(2, 3, Read(0)), event(5, 6, Read(1)), event(7, 8, Read(1))];
        assert_eq!(verdict(&late), Verdict::Linearizable);
        assert_eq!(verdict(&[event(1, 0, Write(1)), event(2, 3, Read(0))]), Verdict::Linearizable);
        let twice =
            [event(1, 0, Write(1)), event(2, 3, Read(1)), event(4, 5, Write(2)), event(6, 7, Read(1))];
        assert_eq!(verdict(&twice), Verdict::Violation(3));
    }

    #[test]
    fn a_long_history_is_decided_and_a_bound_is_kept() {
        use Op::{Read, Write};
        let mut history = Vec::new();
        for i in 0..400 {
            let t = u64::from(i) * 10 + 1;
            history.push(event(t, t + 25, Write(i)));
            history.push(event(t + 1, 0, Write(1000 + i)));
        }
        history.push(event(10_000, 10_001, Read(399)));
        assert_eq!(check(&Register, 0, &history, 1_000_000), Verdict::Linearizable);
        history.push(event(10_002, 10_003, Read(77_777)));
        assert_eq!(check(&Register, 0, &history, 10_000), Verdict::Undecided);
    }
}
