//! `kill -9` of everything, and of the process that everything asks.

use crate::common::{cluster, mounted};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::random::{Random, fresh_seed};
use ember_cluster_tests::steady::SteadyWriter;
use ember_cluster_tests::workload::Workload;
use ember_cluster_tests::{signal, wait_gone};
use rustix::process::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_was_fsynced_survives_the_kill_of_every_process() -> Result<()> {
    let Some(cluster) = cluster("crash")? else { return Ok(()) };
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    for round in 0..3 {
        cluster.up(&[]).with_context(|| format!("up in round {round}"))?;
        let folder = cluster.mount().join(format!("round-{round}"));
        let workload = Workload::start(&folder, &cluster.root().join("acknowledged"), random.number(), 3)?;
        std::thread::sleep(Duration::from_millis(800 + random.below(1500)));
        let killed = cluster.kill_all()?;
        let done = workload.stop()?;
        eprintln!("round {round}: {killed} processes killed, {} operations", done.operations);
        ensure!(done.operations > 0, "nothing was acknowledged: {:?}", done.errors);
        cluster.up(&[]).with_context(|| format!("up after round {round}"))?;
        done.check().with_context(|| format!("round {round}, seed {seed}"))?;
    }
    cluster.wait_health("OK", SOON)?;
    cluster.verify_replicas().map(|_| ())
}

#[test]
fn requests_wait_while_control_is_killed() -> Result<()> {
    let Some(cluster) = mounted("control")? else { return Ok(()) };
    cluster.wait_health("OK", SOON)?;
    let seed = fresh_seed();
    let workload = Workload::start(&cluster.mount().join("load"), &cluster.root().join("list"), seed, 3)?;
    std::thread::sleep(Duration::from_secs(2));
    let control = *cluster.pids("mgmtd")?.first().context("no control process")?;
    signal(control, Signal::KILL);
    wait_gone(control, SOON)?;
    std::thread::sleep(Duration::from_secs(2));
    cluster.wait_health("OK", SOON)?;
    std::thread::sleep(Duration::from_secs(2));
    let done = workload.stop()?;
    eprintln!("{} operations, the longest took {:?}", done.operations, done.longest);
    done.expect_no_errors()?;
    done.check()?;
    cluster.remount()?;
    done.check()?;
    cluster.verify_replicas().map(|_| ())
}

#[test]
fn writes_pause_for_less_than_ten_seconds_when_a_storage_process_dies() -> Result<()> {
    let Some(cluster) = mounted("pause")? else { return Ok(()) };
    cluster.wait_health("OK", SOON)?;
    let writer = SteadyWriter::start(&cluster.mount().join("steady"), Duration::from_millis(100))?;
    std::thread::sleep(Duration::from_secs(1));
    cluster.kill_storage(2, Signal::KILL)?;
    cluster.wait_health("WARN", SOON)?;
    cluster.wait_health("OK", SOON)?;
    let done = writer.stop()?;
    eprintln!("{} writes, the longest gap is {:?}", done.writes, done.longest);
    ensure!(done.longest < Duration::from_secs(10), "a gap of {:?}", done.longest);
    Ok(())
}
