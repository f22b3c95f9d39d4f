//! Several reactors wait for one descriptor; each event wakes one of them.
#![allow(missing_docs)]

use ember_rt::select::{Either, select};
use ember_rt::sync::oneshot;
use ember_rt_uring::{Options, Readable, spawn_reactor};
use rustix::io::Errno;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const THREADS: usize = 3;
const EVENTS: usize = 60;

#[derive(Default)]
struct Seen {
    wakes: AtomicUsize,
    bytes: AtomicUsize,
}

async fn wait_and_read(socket: Arc<UnixStream>, seen: Arc<Seen>, stop: oneshot::Receiver<()>) {
    let readable = Readable::new(socket).unwrap();
    let work = async {
        loop {
            match rustix::io::read(readable.get(), &mut [0; 1]) {
                Ok(read) => {
                    seen.bytes.fetch_add(read, Ordering::SeqCst);
                }
                Err(Errno::AGAIN) => {
                    readable.ready().await.unwrap();
                    seen.wakes.fetch_add(1, Ordering::SeqCst);
                }
                Err(err) => panic!("{err}"),
            }
        }
    };
    match select(stop, work).await {
        Either::Left(stopped) => stopped.unwrap(),
        Either::Right(never) => never,
    }
}

#[test]
fn an_event_wakes_one_of_the_reactors_that_wait() {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    let (reader, seen) = (Arc::new(reader), Arc::new(Seen::default()));
    let (mut stops, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..THREADS {
        let (stopper, stop) = oneshot::channel();
        let (socket, seen) = (reader.clone(), seen.clone());
        let started =
            spawn_reactor("reader", Options::default(), move |_| wait_and_read(socket, seen, stop)).unwrap();
        stops.push(stopper);
        threads.push(started);
    }
    let pause = || rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
    for sent in 0..EVENTS {
        // Time for everybody to wait again.
        let _ = pause();
        writer.write_all(&[1]).unwrap();
        while seen.bytes.load(Ordering::SeqCst) <= sent {
            let _ = pause();
        }
    }
    let wakes = seen.wakes.load(Ordering::SeqCst);
    for stop in stops {
        stop.send(()).unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(wakes >= EVENTS / 2, "{wakes} wakes");
    assert!(wakes < EVENTS * 3 / 2, "{wakes} wakes for {EVENTS} events: all wake for each");
}
