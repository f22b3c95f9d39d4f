//! Random interleaved transactions: replayed one after another in commit order, each must see what it saw.

mod support;

use std::collections::BTreeMap;

use ember_kv::{Committed, Durability, KeyRange, Kv, KvError, LocalKv, LocalOptions, MemKv, Tx};
use ember_kv::{RangeOptions, ReadMode};
use ember_types::ClusterId;
use proptest::prelude::*;
use support::{TempDir, block_on};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug)]
enum Op {
    Get(u8),
    Range { begin: u8, len: u8, limit: usize, reverse: bool },
    Set(u8, u8),
    Clear(u8),
    ClearRange(u8, u8),
    Add(u8, i64),
    StampedValue(u8),
}

/// Which client does it; `None` commits what the client has.
type Step = (usize, Option<Op>);

fn op() -> impl Strategy<Value = Op> {
    let key = 0u8..12;
    prop_oneof![
        4 => key.clone().prop_map(Op::Get),
        3 => (key.clone(), 0u8..12, 1usize..6, any::<bool>())
            .prop_map(|(begin, len, limit, reverse)| Op::Range { begin, len, limit, reverse }),
        4 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Set(k, v)),
        2 => key.clone().prop_map(Op::Clear),
        1 => (key.clone(), 0u8..6).prop_map(|(k, n)| Op::ClearRange(k, n)),
        3 => (key.clone(), -3i64..300).prop_map(|(k, d)| Op::Add(k, d)),
        1 => key.prop_map(Op::StampedValue),
    ]
}

fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0usize..4, prop::option::weighted(0.8, op())), 1..max)
}

fn key(k: u8) -> Vec<u8> {
    vec![b'a' + k]
}

fn span(begin: u8, len: u8) -> KeyRange {
    KeyRange::new(key(begin), key(begin + len))
}

/// What a read returned; `None` if it was refused as unreadable.
type Seen = Option<Vec<(Vec<u8>, Vec<u8>)>>;

type Done = Vec<(Op, Seen)>;

struct Open {
    tx: Box<dyn Tx>,
    done: Done,
}

fn perform(tx: &mut dyn Tx, op: &Op) -> Seen {
    match op {
        Op::Get(k) => match block_on(tx.get(&key(*k), ReadMode::Serializable)) {
            Ok(value) => return Some(value.into_iter().map(|v| (key(*k), v)).collect()),
            Err(error) => assert!(matches!(error, KvError::Misuse(_)), "{error}"),
        },
        Op::Range { begin, len, limit, reverse } => {
            let opts = RangeOptions { limit: *limit, reverse: *reverse, mode: ReadMode::Serializable };
            match block_on(tx.get_range(span(*begin, *len), opts)) {
                Ok(pairs) => return Some(pairs),
                Err(error) => assert!(matches!(error, KvError::Misuse(_)), "{error}"),
            }
        }
        Op::Set(k, v) => tx.set(&key(*k), &[*v]),
        Op::Clear(k) => tx.clear(&key(*k)),
        Op::ClearRange(k, n) => tx.clear_range(span(*k, *n)),
        Op::Add(k, d) => tx.atomic_add(&key(*k), *d),
        Op::StampedValue(k) => tx.set_versionstamped_value(&key(*k), &[0; 10], 0),
    }
    None
}

/// Does the same on a map and compares what it reads.
fn replay(map: &mut Map, done: &[(Op, Seen)], committed: &Committed) {
    for (op, seen) in done {
        match op {
            Op::Get(k) => {
                let value: Vec<_> = map.get(&key(*k)).map(|v| (key(*k), v.clone())).into_iter().collect();
                assert!(seen.is_none() || seen.as_ref() == Some(&value), "{op:?}: {seen:?}, not {value:?}");
            }
            Op::Range { begin, len, limit, reverse } => {
                let mut pairs: Vec<_> =
                    map.range(key(*begin)..key(begin + len)).map(|(k, v)| (k.clone(), v.clone())).collect();
                if *reverse {
                    pairs.reverse();
                }
                pairs.truncate(*limit);
                assert!(seen.is_none() || seen.as_ref() == Some(&pairs), "{op:?}: {seen:?}, not {pairs:?}");
            }
            Op::Set(k, v) => {
                map.insert(key(*k), vec![*v]);
            }
            Op::Clear(k) => {
                map.remove(&key(*k));
            }
            Op::ClearRange(k, n) => map.retain(|at, _| !span(*k, *n).contains(at)),
            Op::Add(k, d) => {
                let mut bytes = [0; 8];
                for (to, from) in bytes.iter_mut().zip(map.get(&key(*k)).into_iter().flatten()) {
                    *to = *from;
                }
                let sum = u64::from_le_bytes(bytes).wrapping_add(*d as u64);
                map.insert(key(*k), sum.to_le_bytes().to_vec());
            }
            Op::StampedValue(k) => {
                map.insert(key(*k), committed.versionstamp.to_vec());
            }
        }
    }
}

fn check(kv: &dyn Kv, steps: Vec<Step>) {
    let mut clients: Vec<Option<Open>> = (0..4).map(|_| None).collect();
    let mut history: Vec<(Committed, bool, Done)> = Vec::new();
    let commits = (0..4).map(|client| (client, None));
    for (client, op) in steps.into_iter().chain(commits) {
        let slot = &mut clients[client];
        if let Some(op) = op {
            let open = slot.get_or_insert_with(|| Open { tx: kv.begin(), done: Vec::new() });
            open.tx.set_durability(Durability::Ordered);
            let seen = perform(open.tx.as_mut(), &op);
            open.done.push((op, seen));
        } else if let Some(Open { tx, done }) = slot.take() {
            match block_on(tx.commit()) {
                Ok(committed) => history.push((committed, committed.versionstamp == [0; 10], done)),
                Err(error) => assert_eq!(error, KvError::Conflict),
            }
        }
    }
    // One that only read belongs after all commits up to its read version.
    history.sort_by_key(|(committed, read_only, _)| (committed.version, *read_only, committed.versionstamp));
    let mut map = Map::new();
    for (committed, _, done) in &history {
        replay(&mut map, done, committed);
    }
    let all = block_on(kv.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    assert_eq!(all, map.into_iter().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn mem_is_serializable(steps in steps(120)) {
        check(&MemKv::new(), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(6) })]
    #[test]
    fn local_is_serializable(steps in steps(250)) {
        let dir = TempDir::new();
        let kv = LocalKv::open(dir.path(), LocalOptions::new(ClusterId::from_u128(1))).unwrap();
        check(&kv, steps);
    }
}
