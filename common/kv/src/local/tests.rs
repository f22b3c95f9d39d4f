//! What goes into one group together. The tests hold the committer's place while commits are handed over.

use super::{LocalKv, LocalOptions, lock};
use crate::api::{BoxFuture, Committed, KeyRange, Kv, RangeOptions, ReadMode};
use crate::error::KvError;
use ember_types::ClusterId;
use support::{TempDir, block_on};

#[path = "../../tests/support/mod.rs"]
mod support;

type Commit = BoxFuture<'static, Result<Committed, KvError>>;

fn open(dir: &TempDir) -> LocalKv {
    LocalKv::open(dir.path(), LocalOptions::new(ClusterId::from_u128(7))).unwrap()
}

fn setting(kv: &LocalKv, key: &str) -> Commit {
    let mut tx = kv.begin();
    tx.set(key.as_bytes(), b"set");
    tx.commit()
}

/// Hands commits over in this order, so that one group takes them all, and waits for their ends.
fn as_one_group(kv: &LocalKv, mut commits: Vec<Commit>) -> Vec<Committed> {
    let shared = &kv.0.shared;
    let place = lock(&shared.committer);
    for commit in &mut commits {
        assert!(support::poll_once(commit).is_none());
    }
    drop(place);
    shared.queue.hand_over();
    commits.into_iter().map(|commit| block_on(commit).unwrap()).collect()
}

#[test]
fn a_watch_sees_a_later_change_of_its_own_group() {
    let dir = TempDir::new();
    let kv = open(&dir);
    let mut open: Vec<_> = (0..20).map(|i| setting(&kv, &format!("filler{i}"))).collect();
    let mut tx = kv.begin();
    tx.set(b"w", b"mine");
    let watch = tx.watch(b"w");
    open.push(tx.commit());
    open.push(setting(&kv, "w"));
    as_one_group(&kv, open);
    assert_eq!(block_on(watch), Ok(()));
}

#[test]
fn concurrent_commits_share_a_flush() {
    let dir = TempDir::new();
    let kv = open(&dir);
    let open: Vec<_> = (0..200u32)
        .map(|i| {
            let mut tx = kv.begin();
            tx.atomic_add(b"n", 1);
            tx.set(&i.to_be_bytes(), b"1");
            tx.commit()
        })
        .collect();
    let stamps: Vec<_> = as_one_group(&kv, open).into_iter().map(|done| done.versionstamp).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b));
    let n = block_on(kv.begin().get(b"n", ReadMode::Snapshot)).unwrap().unwrap();
    assert_eq!(n, 200u64.to_le_bytes());
    let stats = kv.stats();
    assert_eq!((stats.commits, stats.largest_group, stats.groups), (200, 200, 1));
}

#[test]
fn later_transactions_of_a_group_see_earlier_ones() {
    let dir = TempDir::new();
    let kv = open(&dir);
    let open: Vec<_> = (0..100)
        .map(|i| {
            let mut tx = kv.begin();
            if i % 10 == 4 {
                tx.clear_range(KeyRange::prefix(b"k"));
            }
            tx.atomic_add(format!("k{}", i % 10).as_bytes(), i);
            tx.commit()
        })
        .collect();
    as_one_group(&kv, open);
    assert_eq!(kv.stats().largest_group, 100);
    let all = block_on(kv.begin().get_range(KeyRange::prefix(b"k"), RangeOptions::default())).unwrap();
    let sums: Vec<_> =
        all.iter().map(|(_, v)| u64::from_le_bytes(v.as_slice().try_into().unwrap())).collect();
    assert_eq!(sums, [94, 95, 96, 97, 98, 99]);
}

#[test]
fn a_commit_on_its_own_needs_no_other_thread() {
    let dir = TempDir::new();
    let kv = open(&dir);
    let mut commit = setting(&kv, "k");
    assert!(support::poll_once(&mut commit).is_some_and(|done| done.is_ok()), "it is done at once");
}
