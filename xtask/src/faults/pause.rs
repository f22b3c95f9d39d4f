//! The pause that a writer sees when a storage process dies.

use super::{Bench, WELL};
use anyhow::{Result, ensure};
use ember_cluster_tests::steady::SteadyWriter;
use rustix::process::Signal;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(10);

/// Kills each storage process in turn under a steady writer.
pub(super) fn run(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster("pause")?;
    cluster.up(&[])?;
    let mut worst = Duration::ZERO;
    for index in 0..3 {
        cluster.wait_health("OK", WELL)?;
        let writer = SteadyWriter::start(&cluster.mount().join(format!("steady-{index}")), PERIOD)?;
        pause(Duration::from_secs(2));
        cluster.kill_storage(index, Signal::KILL)?;
        cluster.wait_health("WARN", WELL)?;
        let back = cluster.wait_health("OK", WELL)?;
        pause(Duration::from_secs(2));
        let done = writer.stop()?;
        println!(
            "storage process {} killed: {} writes of 4 KiB with fsync, longest gap {:.2} s, all replicas back \
             {:.1} s later",
            index + 1,
            done.writes,
            done.longest.as_secs_f64(),
            back.as_secs_f64()
        );
        worst = worst.max(done.longest);
    }
    cluster.verify_replicas()?;
    println!(
        "longest gap between completed writes: {:.2} s (limit {} s)",
        worst.as_secs_f64(),
        LIMIT.as_secs()
    );
    ensure!(worst < LIMIT, "the longest gap is not under {} s", LIMIT.as_secs());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
