//! Rates of direct reads from a file of 1 GiB in the given directory, which is made there and removed.

use ember_rt::disk::{DiskQueue, OpenMode, Priority};
use ember_rt::select::join_all;
use ember_rt::{Buf, Rt};
use ember_rt_uring::run_reactor;
use std::path::Path;

const SIZE: u64 = 1 << 30;

async fn measure(
    rt: &Rt,
    queue: &DiskQueue,
    file: ember_rt::disk::FileId,
    len: usize,
    depth: usize,
    all: usize,
) {
    let before = rt.now();
    let workers = (0..depth).map(|_| async {
        for _ in 0..all / depth {
            let at = rt.random_below(SIZE / len as u64) * len as u64;
            let read = queue.read(file, Priority::Foreground, at, len).await;
            assert_eq!(read.ok().map(|buf| buf.len()), Some(len));
        }
    });
    join_all(workers).await;
    let passed = rt.now().since(before).as_secs_f64();
    let (rate, gigabytes) = (all as f64 / passed, len as f64 * all as f64 / passed / 1e9);
    println!("{len} bytes at depth {depth}: {rate:.0} reads/s, {gigabytes:.2} GB/s");
}

fn main() {
    let dir = std::env::args().nth(1).expect("a directory");
    run_reactor(&Default::default(), async |rt: Rt| {
        let queue = DiskQueue::start(&rt, rt.disks().open(Path::new(&dir)).expect("a directory"), 64);
        let mode = OpenMode { create: true, direct: true, exclusive: false };
        let file = queue.disk().open_file("rates.data", mode).expect("a file");
        for at in (0..SIZE).step_by(4 << 20) {
            let data = Buf::zeroed(4 << 20).into();
            queue.write(file, Priority::Foreground, at, data).await.expect("space for 1 GiB");
        }
        queue.sync(file).await.expect("a sync");
        println!("warnings: {:?}", queue.disk().warnings());
        measure(&rt, &queue, file, 4096, 1, 5_000).await;
        measure(&rt, &queue, file, 4096, 32, 100_000).await;
        measure(&rt, &queue, file, 1 << 20, 16, 2_000).await;
        queue.disk().remove_file("rates.data").expect("removal");
    })
    .expect("a reactor");
}
