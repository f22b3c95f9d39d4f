//! Commits a second of the local engine: `cargo run --release --example commit_rate -- DIR [SECONDS]`.
#![allow(clippy::disallowed_methods)] // A measurement: threads and real time.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ember_kv::{Durability, Kv, KvError, LocalKv, LocalOptions, ReadMode};
use ember_types::ClusterId;

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Reads one key and writes two, as a small metadata operation does.
fn transaction(kv: &LocalKv, i: u64, durability: Durability) -> Result<(), KvError> {
    let key = [b"i".as_slice(), &i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()].concat();
    let mut tx = kv.begin();
    tx.set_durability(durability);
    block_on(tx.get(&key, ReadMode::Serializable))?;
    tx.set(&key, &[7; 100]);
    tx.set(&[key.as_slice(), b"/name"].concat(), &[8; 16]);
    block_on(tx.commit()).map(|_| ())
}

fn measure(dir: &Path, committers: u64, durability: Durability, time: Duration) -> Result<(), KvError> {
    let kv = LocalKv::open(dir, LocalOptions::new(ClusterId::from_u128(1)))?;
    let (done, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..committers)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        transaction(&kv, next.fetch_add(1, Ordering::Relaxed), durability)?;
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(time);
        done.store(true, Ordering::Relaxed);
        running.into_iter().try_for_each(|t| t.join().unwrap_or(Err(KvError::Closed(None))))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let stats = kv.stats();
    let rate = stats.commits as f64 / seconds;
    let group = stats.commits as f64 / stats.groups.max(1) as f64;
    println!("{durability:?}, {committers} committers: {rate:.0} commits/s, {group:.1} per batch");
    kv.close()
}

fn main() -> Result<(), KvError> {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next() else {
        eprintln!("usage: commit_rate DIR [SECONDS]");
        std::process::exit(64);
    };
    let time = Duration::from_secs(args.next().and_then(|s| s.parse().ok()).unwrap_or(3));
    for durability in [Durability::Durable, Durability::Ordered] {
        for committers in [1, 32] {
            let place = Path::new(&dir).join(format!("{durability:?}-{committers}"));
            measure(&place, committers, durability, time)?;
        }
    }
    Ok(())
}
