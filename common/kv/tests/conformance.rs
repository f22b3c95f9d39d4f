//! One suite over every engine: the semantics of FoundationDB's transactions.
#![allow(clippy::disallowed_methods)] // Waiting for real time to pass.

mod support;

use std::sync::Arc;
use std::time::Duration;

use ember_kv::faulty::{CommitPlan, Faults, FaultyKv, Outcome};
use ember_kv::{
    Attempt, Durability, KeyRange, Kv, KvError, LocalKv, LocalOptions, MemKv, RangeOptions, ReadMode,
    RetryPolicy, Tx, run_attempts,
};
use ember_types::ClusterId;
use support::{TempDir, block_on, commit, get, peek, poll_once, put};

/// An empty store, and what makes its read versions too old.
struct Env {
    kv: Arc<dyn Kv>,
    age: Box<dyn Fn()>,
}

fn mem() -> Env {
    let kv = MemKv::with_window(1000);
    let aged = kv.clone();
    Env { kv: Arc::new(kv), age: Box::new(move || aged.advance(2000)) }
}

/// Runs a test on a fresh store in a directory of its own. Only the test of old age has a short one.
fn local(name: &str, test: fn(&Env)) {
    let dir = TempDir::new();
    let mut options = LocalOptions::new(ClusterId::from_u128(1));
    if name == "too_old" {
        options.tx_age = Duration::from_millis(500);
    }
    let kv = LocalKv::open(dir.path(), options).unwrap();
    test(&Env { kv: Arc::new(kv.clone()), age: Box::new(|| std::thread::sleep(Duration::from_millis(900))) });
    kv.close().unwrap();
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod on_mem { $(#[test] fn $name() { super::$name(&super::mem()); })* }
        mod on_local { $(#[test] fn $name() { super::local(stringify!($name), super::$name); })* }
    };
}

conformance!(
    reads_its_own_writes,
    range_reads_see_own_writes_and_clears,
    own_additions_show_in_reads,
    write_skew_on_points,
    write_skew_on_ranges,
    phantoms_conflict,
    range_conflict_ends_where_reading_stopped,
    reads_of_own_writes_do_not_conflict,
    snapshot_reads_do_not_conflict,
    blind_writes_do_not_conflict,
    read_only_commits_pass,
    explicit_conflicts,
    reads_see_one_version,
    atomic_add_semantics,
    atomic_adds_never_conflict,
    versionstamps_are_unique_and_increasing,
    versionstamped_keys_and_values,
    clear_range_is_half_open,
    watches_fire_after_a_change,
    watches_of_failed_transactions_are_cancelled,
    limits,
    misuse_is_refused,
    too_old,
    read_versions_can_be_set,
    long_ranges_in_both_directions,
    commit_unknown_applied_and_not,
    retry_is_bounded,
    empty_keys_and_values,
);

fn range(begin: &str, end: &str) -> KeyRange {
    KeyRange::new(begin.as_bytes(), end.as_bytes())
}

fn scan(tx: &mut Box<dyn Tx>, begin: &str, end: &str, opts: RangeOptions) -> Vec<String> {
    let pairs = block_on(tx.get_range(range(begin, end), opts)).unwrap();
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    pairs.iter().map(|(k, v)| format!("{}={}", text(k), text(v))).collect()
}

fn fill(kv: &dyn Kv, keys: &str) {
    let mut tx = kv.begin();
    for key in keys.chars() {
        tx.set(key.to_string().as_bytes(), b"0");
    }
    commit(tx).unwrap();
}

fn reads_its_own_writes(env: &Env) {
    put(&*env.kv, "a", "1");
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "a").as_deref(), Some("1"));
    tx.set(b"a", b"2");
    tx.set(b"b", b"3");
    assert_eq!(get(&mut tx, "a").as_deref(), Some("2"));
    tx.clear(b"a");
    assert_eq!(get(&mut tx, "a"), None);
    assert_eq!(peek(&*env.kv, "a").as_deref(), Some("1"));
    assert_eq!(peek(&*env.kv, "b"), None);
    commit(tx).unwrap();
    assert_eq!(peek(&*env.kv, "a"), None);
    assert_eq!(peek(&*env.kv, "b").as_deref(), Some("3"));
}

fn range_reads_see_own_writes_and_clears(env: &Env) {
    fill(&*env.kv, "abcdefgh");
    let mut tx = env.kv.begin();
    tx.set(b"bb", b"1");
    tx.clear(b"c");
    tx.clear_range(range("e", "g"));
    tx.set(b"f", b"2");
    tx.set(b"z", b"9");
    let all = scan(&mut tx, "a", "zz", RangeOptions::default());
    assert_eq!(all, ["a=0", "b=0", "bb=1", "d=0", "f=2", "g=0", "h=0", "z=9"]);
    let back = scan(&mut tx, "a", "zz", RangeOptions::limit(3).reversed());
    assert_eq!(back, ["z=9", "h=0", "g=0"]);
    assert_eq!(scan(&mut tx, "b", "d", RangeOptions::default()), ["b=0", "bb=1"]);
    assert_eq!(scan(&mut tx, "c", "z", RangeOptions::limit(2)), ["d=0", "f=2"]);
    assert!(scan(&mut tx, "x", "b", RangeOptions::default()).is_empty());
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    assert_eq!(scan(&mut tx, "a", "zz", RangeOptions::default()), all);
}

fn own_additions_show_in_reads(env: &Env) {
    let mut tx = env.kv.begin();
    tx.atomic_add(b"n", 5);
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    tx.atomic_add(b"n", 2);
    tx.atomic_add(b"m", 1);
    let n = block_on(tx.get(b"n", ReadMode::Serializable)).unwrap().unwrap();
    assert_eq!(n, 7u64.to_le_bytes());
    let all = block_on(tx.get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    assert_eq!(all, [(b"m".to_vec(), 1u64.to_le_bytes().to_vec()), (b"n".to_vec(), n)]);
    // Such a read depends on the store.
    let mut other = env.kv.begin();
    other.atomic_add(b"n", 1);
    commit(other).unwrap();
    assert_eq!(commit(tx), Err(KvError::Conflict));
}

fn write_skew_on_points(env: &Env) {
    fill(&*env.kv, "xy");
    let (mut a, mut b) = (env.kv.begin(), env.kv.begin());
    assert_eq!(get(&mut a, "x").as_deref(), Some("0"));
    assert_eq!(get(&mut b, "y").as_deref(), Some("0"));
    a.set(b"y", b"1");
    b.set(b"x", b"1");
    commit(a).unwrap();
    assert_eq!(commit(b), Err(KvError::Conflict));
    assert_eq!(peek(&*env.kv, "x").as_deref(), Some("0"));
}

fn write_skew_on_ranges(env: &Env) {
    fill(&*env.kv, "apq");
    let (mut a, mut b) = (env.kv.begin(), env.kv.begin());
    assert_eq!(scan(&mut a, "a", "c", RangeOptions::default()).len(), 1);
    assert_eq!(scan(&mut b, "p", "r", RangeOptions::default()).len(), 2);
    a.set(b"pp", b"1");
    b.set(b"aa", b"1");
    commit(b).unwrap();
    assert_eq!(commit(a), Err(KvError::Conflict));
}

fn phantoms_conflict(env: &Env) {
    let mut a = env.kv.begin();
    assert!(scan(&mut a, "a", "c", RangeOptions::default()).is_empty());
    assert_eq!(get(&mut a, "m"), None);
    a.set(b"out", b"1");
    put(&*env.kv, "b", "1");
    assert_eq!(commit(a), Err(KvError::Conflict));
    // A removal is a change too, also by a range.
    let mut a = env.kv.begin();
    assert_eq!(scan(&mut a, "a", "c", RangeOptions::default()).len(), 1);
    a.set(b"out", b"1");
    let mut b = env.kv.begin();
    b.clear_range(range("0", "z"));
    commit(b).unwrap();
    assert_eq!(commit(a), Err(KvError::Conflict));
}

fn range_conflict_ends_where_reading_stopped(env: &Env) {
    fill(&*env.kv, "abcdef");
    let mut tx = env.kv.begin();
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::limit(2)), ["a=0", "b=0"]);
    tx.set(b"out", b"1");
    put(&*env.kv, "c", "1");
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::limit(2).reversed()), ["out=1", "f=0"]);
    tx.set(b"out2", b"1");
    put(&*env.kv, "e", "1");
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::limit(2)).len(), 2);
    tx.set(b"out", b"2");
    put(&*env.kv, "aa", "1");
    assert_eq!(commit(tx), Err(KvError::Conflict));
}

fn reads_of_own_writes_do_not_conflict(env: &Env) {
    fill(&*env.kv, "ab");
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "b").as_deref(), Some("0"));
    tx.set(b"a", b"1");
    tx.clear_range(range("m", "p"));
    assert_eq!(get(&mut tx, "a").as_deref(), Some("1"));
    assert!(scan(&mut tx, "m", "n", RangeOptions::default()).is_empty());
    put(&*env.kv, "a", "2");
    put(&*env.kv, "mm", "2");
    commit(tx).unwrap();
    assert_eq!(peek(&*env.kv, "a").as_deref(), Some("1"));
    // The rest of a range around own writes still counts.
    let mut tx = env.kv.begin();
    tx.set(b"c", b"1");
    assert_eq!(scan(&mut tx, "b", "e", RangeOptions::default()), ["b=0", "c=1"]);
    put(&*env.kv, "d", "1");
    assert_eq!(commit(tx), Err(KvError::Conflict));
}

fn snapshot_reads_do_not_conflict(env: &Env) {
    fill(&*env.kv, "ab");
    let mut tx = env.kv.begin();
    assert!(block_on(tx.get(b"a", ReadMode::Snapshot)).unwrap().is_some());
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::default().snapshot()).len(), 2);
    tx.set(b"c", b"1");
    put(&*env.kv, "a", "1");
    put(&*env.kv, "aa", "1");
    commit(tx).unwrap();
}

fn blind_writes_do_not_conflict(env: &Env) {
    let (mut a, mut b) = (env.kv.begin(), env.kv.begin());
    block_on(a.get_read_version()).unwrap();
    a.set(b"k", b"a");
    b.set(b"k", b"b");
    commit(b).unwrap();
    commit(a).unwrap();
    assert_eq!(peek(&*env.kv, "k").as_deref(), Some("a"));
}

fn read_only_commits_pass(env: &Env) {
    let version = put(&*env.kv, "a", "1").version;
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "a").as_deref(), Some("1"));
    put(&*env.kv, "a", "2");
    let done = commit(tx).unwrap();
    assert_eq!((done.version, done.versionstamp), (version, [0; 10]));
}

fn explicit_conflicts(env: &Env) {
    let mut a = env.kv.begin();
    a.add_read_conflict(range("a", "c"));
    a.set(b"x", b"1");
    put(&*env.kv, "b", "1");
    assert_eq!(commit(a), Err(KvError::Conflict));
    let mut a = env.kv.begin();
    assert_eq!(get(&mut a, "q"), None);
    a.set(b"x", b"1");
    let mut b = env.kv.begin();
    b.add_write_conflict(range("p", "r"));
    assert!(commit(b).unwrap().version > 0);
    assert_eq!(commit(a), Err(KvError::Conflict));
    assert_eq!(peek(&*env.kv, "q"), None);
}

fn reads_see_one_version(env: &Env) {
    fill(&*env.kv, "ab");
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "a").as_deref(), Some("0"));
    let mut other = env.kv.begin();
    other.set(b"a", b"1");
    other.set(b"b", b"1");
    other.set(b"c", b"1");
    commit(other).unwrap();
    assert_eq!(get(&mut tx, "b").as_deref(), Some("0"));
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::default()), ["a=0", "b=0"]);
}

fn atomic_add_semantics(env: &Env) {
    let value = |key: &[u8]| block_on(env.kv.begin().get(key, ReadMode::Snapshot)).unwrap().unwrap();
    let mut tx = env.kv.begin();
    tx.atomic_add(b"new", 3);
    tx.set(b"short", &[1, 1]);
    tx.set(b"long", &[0xff; 12]);
    tx.atomic_add(b"short", 1);
    commit(tx).unwrap();
    assert_eq!(value(b"new"), 3u64.to_le_bytes());
    assert_eq!(value(b"short"), 258u64.to_le_bytes());
    let mut tx = env.kv.begin();
    tx.atomic_add(b"long", 1);
    tx.atomic_add(b"new", -4);
    commit(tx).unwrap();
    assert_eq!(value(b"long"), 0u64.to_le_bytes());
    assert_eq!(value(b"new"), u64::MAX.to_le_bytes());
}

fn atomic_adds_never_conflict(env: &Env) {
    let mut open: Vec<_> = (0..10).map(|_| env.kv.begin()).collect();
    for tx in &mut open {
        block_on(tx.get_read_version()).unwrap();
        tx.atomic_add(b"n", 1);
    }
    let waiting: Vec<_> = open.into_iter().map(|tx| tx.commit()).collect();
    for commit in waiting {
        block_on(commit).unwrap();
    }
    let n = block_on(env.kv.begin().get(b"n", ReadMode::Snapshot)).unwrap().unwrap();
    assert_eq!(n, 10u64.to_le_bytes());
}

fn versionstamps_are_unique_and_increasing(env: &Env) {
    let mut last = None;
    for i in 0..20 {
        let done = put(&*env.kv, "k", &i.to_string());
        assert_eq!(done.versionstamp[..8], done.version.to_be_bytes());
        assert!(last < Some(done.versionstamp));
        last = Some(done.versionstamp);
    }
}

fn versionstamped_keys_and_values(env: &Env) {
    let mut tx = env.kv.begin();
    tx.set_versionstamped_key(b"log/..........!", 4, b"entry");
    tx.set_versionstamped_value(b"last", b"<..........>", 1);
    let unreadable = |e: KvError| matches!(e, KvError::Misuse(_));
    assert!(block_on(tx.get(b"last", ReadMode::Serializable)).is_err_and(unreadable));
    let all = block_on(tx.get_range(KeyRange::prefix(b"log/"), RangeOptions::default()));
    assert!(all.is_err_and(unreadable));
    let done = commit(tx).unwrap();
    let mut key = b"log/".to_vec();
    key.extend(done.versionstamp);
    key.push(b'!');
    let mut tx = env.kv.begin();
    let log = block_on(tx.get_range(KeyRange::prefix(b"log/"), RangeOptions::default())).unwrap();
    assert_eq!(log, [(key.clone(), b"entry".to_vec())]);
    let last = block_on(tx.get(b"last", ReadMode::Serializable)).unwrap().unwrap();
    assert_eq!(last[1..11], done.versionstamp);
    // The stamped key is a write conflict for who read there.
    let mut reader = env.kv.begin();
    block_on(reader.get_range(KeyRange::prefix(b"log/"), RangeOptions::default())).unwrap();
    reader.set(b"seen", b"1");
    let mut tx = env.kv.begin();
    tx.set_versionstamped_key(b"log/..........!", 4, b"entry");
    commit(tx).unwrap();
    assert_eq!(commit(reader), Err(KvError::Conflict));
}

fn clear_range_is_half_open(env: &Env) {
    fill(&*env.kv, "abcd");
    let mut tx = env.kv.begin();
    tx.set(b"bb", b"1");
    tx.clear_range(range("b", "d"));
    tx.set(b"c", b"2");
    tx.clear_range(range("d", "d"));
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    assert_eq!(scan(&mut tx, "a", "z", RangeOptions::default()), ["a=0", "c=2", "d=0"]);
}

fn watches_fire_after_a_change(env: &Env) {
    put(&*env.kv, "w", "1");
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "w").as_deref(), Some("1"));
    let mut watch = tx.watch(b"w");
    commit(tx).unwrap();
    assert!(poll_once(&mut watch).is_none());
    put(&*env.kv, "other", "1");
    assert!(poll_once(&mut watch).is_none());
    put(&*env.kv, "w", "2");
    assert_eq!(block_on(watch), Ok(()));
    // A change between the read and the commit counts too.
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "w").as_deref(), Some("2"));
    let watch = tx.watch(b"w");
    put(&*env.kv, "w", "3");
    commit(tx).unwrap();
    assert_eq!(block_on(watch), Ok(()));
    // The transaction's own write does not.
    let mut tx = env.kv.begin();
    tx.set(b"w", b"4");
    let mut watch = tx.watch(b"w");
    commit(tx).unwrap();
    assert!(poll_once(&mut watch).is_none());
    let mut tx = env.kv.begin();
    tx.clear(b"w");
    commit(tx).unwrap();
    assert_eq!(block_on(watch), Ok(()));
}

fn watches_of_failed_transactions_are_cancelled(env: &Env) {
    let mut tx = env.kv.begin();
    let watch = tx.watch(b"w");
    drop(tx);
    assert_eq!(block_on(watch), Err(KvError::Cancelled));
    let mut tx = env.kv.begin();
    assert_eq!(get(&mut tx, "w"), None);
    let watch = tx.watch(b"w");
    tx.set(b"x", b"1");
    put(&*env.kv, "w", "1");
    assert_eq!(commit(tx), Err(KvError::Conflict));
    assert_eq!(block_on(watch), Err(KvError::Cancelled));
}

fn limits(env: &Env) {
    let attempt = |make: &dyn Fn(&mut Box<dyn Tx>)| {
        let mut tx = env.kv.begin();
        make(&mut tx);
        commit(tx)
    };
    let key = vec![b'k'; 10_000];
    attempt(&|tx| tx.set(&key, &[7; 100_000])).unwrap();
    let value = block_on(env.kv.begin().get(&key, ReadMode::Snapshot)).unwrap().unwrap();
    assert_eq!(value.len(), 100_000);
    assert_eq!(attempt(&|tx| tx.set(&[b'k'; 10_001], b"")), Err(KvError::KeyTooLarge { bytes: 10_001 }));
    assert_eq!(attempt(&|tx| tx.clear(&[b'k'; 10_001])), Err(KvError::KeyTooLarge { bytes: 10_001 }));
    let large = attempt(&|tx| tx.set(b"k", &[0; 100_001]));
    assert_eq!(large, Err(KvError::ValueTooLarge { bytes: 100_001 }));
    let many = |tx: &mut Box<dyn Tx>, n: u32| {
        for i in 0..n {
            tx.set(&i.to_be_bytes(), &[1; 99_900]);
        }
    };
    attempt(&|tx| many(tx, 99)).unwrap();
    assert!(matches!(attempt(&|tx| many(tx, 101)), Err(KvError::TooLarge { .. })));
    let all = block_on(env.kv.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    assert_eq!(all.len(), 100);
}

fn misuse_is_refused(env: &Env) {
    let refused = |make: &dyn Fn(&mut Box<dyn Tx>)| {
        let mut tx = env.kv.begin();
        make(&mut tx);
        matches!(commit(tx), Err(KvError::Misuse(_)))
    };
    assert!(refused(&|tx| tx.set(b"\xff", b"")));
    assert!(refused(&|tx| tx.set(b"\xff\xff/system", b"")));
    assert!(refused(&|tx| tx.clear_range(range("b", "a"))));
    assert!(refused(&|tx| tx.clear_range(KeyRange::new("a", [0xff, 0]))));
    assert!(refused(&|tx| tx.set_versionstamped_key(b"k123456789", 1, b"")));
    assert!(refused(&|tx| tx.set_versionstamped_value(b"k", b"", usize::MAX)));
    let mut tx = env.kv.begin();
    assert!(block_on(tx.get(b"\xff/x", ReadMode::Snapshot)).is_err());
    tx.clear_range(KeyRange::all());
    commit(tx).unwrap();
}

fn too_old(env: &Env) {
    put(&*env.kv, "a", "1");
    let (mut a, mut b, mut c) = (env.kv.begin(), env.kv.begin(), env.kv.begin());
    assert_eq!(get(&mut a, "a").as_deref(), Some("1"));
    assert_eq!(get(&mut b, "a").as_deref(), Some("1"));
    let version = block_on(c.get_read_version()).unwrap();
    a.set(b"b", b"1");
    c.set(b"c", b"1");
    (env.age)();
    put(&*env.kv, "z", "1");
    assert_eq!(commit(a), Err(KvError::TooOld));
    assert_eq!(block_on(b.get(b"a", ReadMode::Snapshot)), Err(KvError::TooOld));
    // Who read nothing depends on nothing.
    commit(c).unwrap();
    let mut d = env.kv.begin();
    d.set_read_version(version);
    assert_eq!(block_on(d.get(b"a", ReadMode::Snapshot)), Err(KvError::TooOld));
    assert!(KvError::TooOld.is_retryable());
}

fn read_versions_can_be_set(env: &Env) {
    let first = put(&*env.kv, "a", "1").version;
    let mut tx = env.kv.begin();
    assert_eq!(block_on(tx.get_read_version()).unwrap(), first);
    put(&*env.kv, "a", "2");
    let mut old = env.kv.begin();
    old.set_read_version(first);
    assert_eq!(get(&mut old, "a").as_deref(), Some("1"));
    old.set(b"b", b"1");
    assert_eq!(commit(old), Err(KvError::Conflict));
    let mut future = env.kv.begin();
    future.set_read_version(u64::MAX);
    assert_eq!(block_on(future.get(b"a", ReadMode::Snapshot)), Err(KvError::FutureVersion));
}

fn long_ranges_in_both_directions(env: &Env) {
    let key = |i: u32| format!("k{i:05}").into_bytes();
    let mut tx = env.kv.begin();
    for i in 0..3000 {
        tx.set(&key(i), b"");
    }
    commit(tx).unwrap();
    let mut tx = env.kv.begin();
    for i in (0..3000).step_by(3) {
        tx.clear(&key(i));
    }
    tx.set(&key(1), b"x");
    let expected: Vec<_> = (0..3000).filter(|i| i % 3 != 0).map(key).collect();
    let keys = |tx: &mut Box<dyn Tx>, opts| -> Vec<Vec<u8>> {
        block_on(tx.get_range(KeyRange::all(), opts)).unwrap().into_iter().map(|(k, _)| k).collect()
    };
    assert_eq!(keys(&mut tx, RangeOptions::default()), expected);
    assert_eq!(keys(&mut tx, RangeOptions::limit(1500)), expected[..1500]);
    let mut back = keys(&mut tx, RangeOptions::default().reversed());
    back.reverse();
    assert_eq!(back, expected);
    commit(tx).unwrap();
    assert_eq!(keys(&mut env.kv.begin(), RangeOptions::default()), expected);
}

struct Once(Outcome, std::sync::atomic::AtomicBool);

impl Faults for Once {
    fn on_commit(&self, _: Durability) -> CommitPlan {
        let first = !self.1.swap(true, std::sync::atomic::Ordering::Relaxed);
        CommitPlan { outcome: if first { self.0 } else { Outcome::Normal }, ..CommitPlan::default() }
    }
}

async fn no_pause(_: Duration) {}

fn commit_unknown_applied_and_not(env: &Env) {
    for (key, outcome) in [("a", Outcome::UnknownApplied), ("b", Outcome::UnknownNotApplied)] {
        let kv = FaultyKv::new(env.kv.clone(), Arc::new(Once(outcome, Default::default())));
        let mut tx = kv.begin();
        tx.set(key.as_bytes(), b"1");
        let error = commit(tx).unwrap_err();
        assert!(error.maybe_committed() && error.is_retryable());
        assert_eq!(peek(&*env.kv, key).is_some(), outcome == Outcome::UnknownApplied);
        // The loop tells its body, so that it can look for its own effect first.
        let kv = FaultyKv::new(env.kv.clone(), Arc::new(Once(outcome, Default::default())));
        let counted = async |tx: &mut dyn Tx, attempt: Attempt| {
            let done = tx.get(b"done", ReadMode::Serializable).await?.is_some();
            assert!(!done || attempt.maybe_committed);
            if !done {
                tx.set(b"done", b"");
                tx.atomic_add(b"n", 1);
            }
            Ok::<_, KvError>(attempt)
        };
        let policy = RetryPolicy::attempts(3);
        let (attempt, _) = block_on(run_attempts(&kv, no_pause, policy, counted)).unwrap();
        assert_eq!(attempt, Attempt { number: 2, maybe_committed: true });
        let n = block_on(env.kv.begin().get(b"n", ReadMode::Snapshot)).unwrap().unwrap();
        assert_eq!(n, 1u64.to_le_bytes());
        let mut tx = env.kv.begin();
        tx.clear_range(KeyRange::all());
        commit(tx).unwrap();
    }
}

fn retry_is_bounded(env: &Env) {
    let kv = env.kv.clone();
    let pauses = std::cell::RefCell::new(Vec::new());
    let sleep = |pause| {
        pauses.borrow_mut().push(pause);
        std::future::ready(())
    };
    let always = async |tx: &mut dyn Tx| {
        tx.get(b"hot", ReadMode::Serializable).await?;
        tx.set(b"x", b"");
        put(&*kv, "hot", "1");
        Ok::<_, KvError>(())
    };
    let result = block_on(ember_kv::run(&*env.kv, sleep, RetryPolicy::attempts(5), always));
    assert_eq!(result, Err(KvError::Conflict));
    let pauses = pauses.into_inner();
    assert_eq!(pauses.len(), 4);
    assert!(pauses.is_sorted() && pauses[0] < pauses[3]);
}

fn empty_keys_and_values(env: &Env) {
    let mut tx = env.kv.begin();
    tx.set(b"", b"empty");
    tx.set(b"\0", b"");
    commit(tx).unwrap();
    assert_eq!(peek(&*env.kv, "").as_deref(), Some("empty"));
    assert_eq!(peek(&*env.kv, "\0").as_deref(), Some(""));
    let mut tx = env.kv.begin();
    let all = block_on(tx.get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    assert_eq!(all.len(), 2);
    tx.clear(b"");
    commit(tx).unwrap();
    assert_eq!(peek(&*env.kv, ""), None);
}
