//! What the tests share: a small executor, directories that go away, both engines.
#![allow(dead_code, unreachable_pub, clippy::disallowed_methods)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ember_kv::{Committed, Kv, KvError, ReadMode, Tx};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread; fails after 20 s.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let started = Instant::now();
    // Polled again only when it wakes this thread: a lost wake-up shows.
    while started.elapsed() < Duration::from_secs(20) {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return value;
        }
        std::thread::park_timeout(Duration::from_secs(20));
    }
    panic!("the future did not complete");
}

/// Polls once.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(future).poll(&mut cx) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A directory that is removed at the end.
pub struct TempDir(PathBuf);

static NEXT: AtomicU64 = AtomicU64::new(0);

impl TempDir {
    pub fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ember-kv-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn get(tx: &mut Box<dyn Tx>, key: &str) -> Option<String> {
    let value = block_on(tx.get(key.as_bytes(), ReadMode::Serializable)).unwrap();
    value.map(|v| String::from_utf8(v).unwrap())
}

pub fn peek(kv: &dyn Kv, key: &str) -> Option<String> {
    let mut tx = kv.begin();
    let value = block_on(tx.get(key.as_bytes(), ReadMode::Snapshot)).unwrap();
    value.map(|v| String::from_utf8(v).unwrap())
}

pub fn put(kv: &dyn Kv, key: &str, value: &str) -> Committed {
    let mut tx = kv.begin();
    tx.set(key.as_bytes(), value.as_bytes());
    block_on(tx.commit()).unwrap()
}

pub fn commit(tx: Box<dyn Tx>) -> Result<Committed, KvError> {
    block_on(tx.commit())
}
