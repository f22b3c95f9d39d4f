//! The pause that a writer sees when a storage process dies or stands still.

use super::{Bench, WELL};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::steady::SteadyWriter;
use ember_cluster_tests::{TestCluster, signal};
use rustix::process::Signal;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(10);

/// How long a stopped process stays stopped.
const STOPPED: Duration = Duration::from_secs(12);

/// How a storage process fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// SIGKILL: its connections end.
    Killed,
    /// SIGSTOP: it keeps its connections and says nothing. The chain goes on without it once its lease has run out.
    Stopped,
}

/// Kills each storage process in turn under a steady writer, and then stops each of them.
pub(super) fn run(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster("pause")?;
    cluster.up(&[])?;
    let mut worst = Duration::ZERO;
    for how in [How::Killed, How::Stopped] {
        for index in 0..3 {
            worst = worst.max(fail(&cluster, how, index)?);
        }
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

/// One process fails; the longest gap between completed writes.
fn fail(cluster: &TestCluster, how: How, index: usize) -> Result<Duration> {
    cluster.wait_health("OK", WELL)?;
    let name = match how {
        How::Killed => "killed",
        How::Stopped => "stopped",
    };
    let writer = SteadyWriter::start(&cluster.mount().join(format!("{name}-{index}")), PERIOD)?;
    pause(Duration::from_secs(2));
    match how {
        How::Killed => {
            cluster.kill_storage(index, Signal::KILL)?;
        }
        How::Stopped => {
            let pid = *cluster.pids("storage")?.get(index).context("no such storage process")?;
            signal(pid, Signal::STOP);
            pause(STOPPED);
            signal(pid, Signal::CONT);
        }
    }
    cluster.wait_health("WARN", WELL)?;
    let back = cluster.wait_health("OK", WELL)?;
    pause(Duration::from_secs(2));
    let done = writer.stop()?;
    println!(
        "storage process {} {name}: {} writes of 4 KiB with fsync, longest gap {:.2} s, all replicas back {:.1} s \
         later",
        index + 1,
        done.writes,
        done.longest.as_secs_f64(),
        back.as_secs_f64()
    );
    Ok(done.longest)
}

#[expect(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
