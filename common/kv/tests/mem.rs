//! The engine in memory: what a power loss takes, and delays around it.

mod support;

use std::sync::Arc;
use std::sync::Mutex;

use ember_kv::faulty::{CommitPlan, Faults, FaultyKv, Hold, Release, hold};
use ember_kv::{Durability, Kv, KvError, MemKv, ReadMode};
use support::{block_on, commit, get, peek, poll_once, put};

fn put_ordered(kv: &MemKv, key: &str) -> u64 {
    let mut tx = kv.begin();
    tx.set(key.as_bytes(), b"1");
    tx.set_durability(Durability::Ordered);
    commit(tx).unwrap().version
}

#[test]
fn power_loss_takes_ordered_commits_after_the_last_durable_one() {
    let kv = MemKv::new();
    put_ordered(&kv, "a");
    put(&kv, "b", "1");
    put_ordered(&kv, "c");
    put_ordered(&kv, "b2");
    let mut tx = kv.begin();
    tx.clear(b"a");
    tx.set_durability(Durability::Ordered);
    commit(tx).unwrap();
    kv.power_loss(|durable, _| durable);
    assert_eq!(peek(&kv, "a").as_deref(), Some("1"));
    assert_eq!(peek(&kv, "b").as_deref(), Some("1"));
    assert_eq!((peek(&kv, "c"), peek(&kv, "b2")), (None, None));
}

#[test]
fn a_power_loss_may_keep_a_prefix_and_sync_protects() {
    let kv = MemKv::new();
    put(&kv, "a", "1");
    let kept = put_ordered(&kv, "b");
    put_ordered(&kv, "c");
    assert_eq!(kv.power_loss(|_, latest| latest - 1), kept);
    assert_eq!((peek(&kv, "b").is_some(), peek(&kv, "c")), (true, None));
    put_ordered(&kv, "d");
    block_on(kv.sync()).unwrap();
    kv.power_loss(|_, _| 0);
    assert!(peek(&kv, "d").is_some());
}

#[test]
fn transactions_open_at_a_power_loss_fail_and_no_version_is_used_twice() {
    let kv = MemKv::new();
    put(&kv, "a", "1");
    let lost = put_ordered(&kv, "b");
    let mut tx = kv.begin();
    assert!(get(&mut tx, "b").is_some());
    let watch = kv.begin().watch(b"a");
    tx.set(b"c", b"1");
    kv.power_loss(|durable, _| durable);
    assert_eq!(commit(tx), Err(KvError::TooOld));
    assert_eq!(block_on(watch), Err(KvError::Cancelled));
    assert!(put(&kv, "d", "1").version > lost);
}

#[test]
fn old_versions_are_forgotten() {
    let kv = MemKv::with_window(10);
    for i in 0..100 {
        put(&kv, "k", &i.to_string());
        put(&kv, "gone", "1");
        let mut tx = kv.begin();
        tx.clear(b"gone");
        commit(tx).unwrap();
    }
    assert_eq!(peek(&kv, "k").as_deref(), Some("99"));
    assert_eq!(peek(&kv, "gone"), None);
}

#[derive(Default)]
struct Holding(Mutex<Vec<Release>>);

impl Holding {
    fn hold(&self) -> Option<Hold> {
        let (release, held) = hold();
        self.0.lock().unwrap().push(release);
        Some(held)
    }

    fn release(&self) {
        self.0.lock().unwrap().remove(0).release();
    }
}

impl Faults for Holding {
    fn on_read(&self) -> Option<Hold> {
        self.hold()
    }

    fn on_commit(&self, durability: Durability) -> CommitPlan {
        assert_eq!(durability, Durability::Ordered);
        CommitPlan { before: self.hold(), after: self.hold(), ..CommitPlan::default() }
    }
}

#[test]
fn operations_wait_for_the_callers_release() {
    let inner = MemKv::new();
    let faults = Arc::new(Holding::default());
    let kv = FaultyKv::new(Arc::new(inner.clone()), faults.clone());
    let mut tx = kv.begin();
    {
        let mut read = tx.get(b"k", ReadMode::Snapshot);
        assert!(poll_once(&mut read).is_none());
        faults.release();
        assert_eq!(poll_once(&mut read), Some(Ok(None)));
    }
    tx.set_durability(Durability::Ordered);
    tx.set(b"k", b"v");
    let mut commit = tx.commit();
    assert!(poll_once(&mut commit).is_none());
    assert_eq!(peek(&inner, "k"), None);
    faults.release();
    assert!(poll_once(&mut commit).is_none());
    assert_eq!(peek(&inner, "k").as_deref(), Some("v"));
    faults.release();
    assert!(poll_once(&mut commit).unwrap().is_ok());
}
