//! Linearizability of the history of one chunk: a search for an order of the operations that respects time
//! and explains every read.

use std::collections::BTreeSet;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate(usize),
    Cut(usize),
    Remove,
    /// `None`: absent.
    Read(Option<Vec<u8>>),
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub begun: u64,
    /// `u64::MAX`: never answered, may have happened or not.
    pub ended: u64,
    pub action: Action,
}

type State = Option<Vec<u8>>;

fn apply(state: &State, action: &Action) -> Option<State> {
    let mut bytes = state.clone().unwrap_or_default();
    Some(match action {
        Action::Write { offset, bytes: new } => {
            bytes.resize(bytes.len().max(offset + new.len()), 0);
            bytes[*offset..offset + new.len()].copy_from_slice(new);
            Some(bytes)
        }
        Action::Truncate(length) => {
            bytes.resize(*length, 0);
            Some(bytes)
        }
        Action::Cut(length) => {
            bytes.truncate(*length);
            state.as_ref().map(|_| bytes)
        }
        Action::Remove => None,
        Action::Read(seen) => return (seen == state).then(|| state.clone()),
    })
}

/// Whether the history can be explained.
pub fn is_linearizable(history: &[Operation]) -> bool {
    assert!(history.len() <= 128, "history of {} operations", history.len());
    let mut history = history.to_vec();
    history.sort_by_key(|op| op.begun);
    let needed: u128 =
        history.iter().enumerate().filter(|(_, op)| op.ended != u64::MAX).map(|(i, _)| 1 << i).sum();
    let mut tried: BTreeSet<(u128, State)> = BTreeSet::new();
    let mut stack: Vec<(u128, State)> = vec![(0, None)];
    while let Some((done, state)) = stack.pop() {
        if done & needed == needed {
            return true;
        }
        if !tried.insert((done, state.clone())) {
            continue;
        }
        let open = |i: &usize| done & (1 << i) == 0;
        let first_end = (0..history.len()).filter(open).map(|i| history[i].ended).min().unwrap_or(u64::MAX);
        for i in (0..history.len()).filter(open).take_while(|&i| history[i].begun <= first_end) {
            if let Some(next) = apply(&state, &history[i].action) {
                stack.push((done | 1 << i, next));
            }
        }
    }
    false
}
