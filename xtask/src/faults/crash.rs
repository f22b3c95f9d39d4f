//! `kill -9` of everything, and of the process with mgmtd and meta.

use super::pause::pause;
use super::{Bench, WELL};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::workload::{Acknowledged, Workload};
use ember_cluster_tests::{signal, wait_gone};
use rustix::process::Signal;
use std::time::Duration;

const WORKERS: usize = 4;

/// Kills every process at a random moment, so many times; all rounds' files are checked after each and at the end.
pub(super) fn run(bench: &Bench, rounds: u32) -> Result<()> {
    let cluster = bench.cluster("crash")?;
    let list = cluster.root().join("acknowledged");
    let mut random = Random::new(bench.seed);
    let mut all: Vec<Acknowledged> = Vec::new();
    cluster.up(&[])?;
    for round in 1..=rounds {
        let folder = cluster.mount().join(format!("round-{round}"));
        let workload = Workload::start(&folder, &list, random.number(), WORKERS)?;
        pause(Duration::from_millis(300 + random.below(3000)));
        let killed = cluster.kill_all()?;
        let done = workload.stop()?;
        cluster.up(&[]).with_context(|| format!("up after round {round}"))?;
        done.check().with_context(|| format!("round {round}, seed {}", bench.seed))?;
        println!("round {round}: {killed} processes killed, {} fsynced operations whole", done.operations);
        ensure!(done.operations > 0, "nothing was acknowledged: {:?}", done.errors);
        all.push(done);
    }
    cluster.wait_health("OK", WELL)?;
    for (round, done) in all.iter().enumerate() {
        done.check().with_context(|| format!("round {} at the end, seed {}", round + 1, bench.seed))?;
    }
    println!("{}", cluster.verify_replicas()?.trim_end());
    let operations: u64 = all.iter().map(|done| done.operations).sum();
    println!("{rounds} rounds: all of {operations} operations whose fsync returned are whole");
    Ok(())
}

/// Kills the process with mgmtd and meta three times under load.
pub(super) fn control(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster("control")?;
    cluster.up(&[])?;
    cluster.wait_health("OK", WELL)?;
    let list = cluster.root().join("acknowledged");
    let workload = Workload::start(&cluster.mount().join("load"), &list, bench.seed, WORKERS)?;
    for round in 1..=3 {
        pause(Duration::from_secs(3));
        let control = *cluster.pids("mgmtd")?.first().context("no control process")?;
        signal(control, Signal::KILL);
        wait_gone(control, WELL)?;
        pause(Duration::from_secs(1));
        let back = cluster.wait_health("OK", WELL)?;
        println!("round {round}: control killed, health OK {:.1} s later", 1.0 + back.as_secs_f64());
    }
    pause(Duration::from_secs(2));
    let done = workload.stop()?;
    println!(
        "{} operations without an error, the longest waited {:.1} s",
        done.operations,
        done.longest.as_secs_f64()
    );
    done.expect_no_errors()?;
    done.check()?;
    cluster.remount()?;
    done.check()?;
    println!("{}", cluster.verify_replicas()?.trim_end());
    Ok(())
}
