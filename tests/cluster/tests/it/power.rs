//! Disks that lose power, and hang.

use crate::common::cluster;
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::power::PowerCluster;
use ember_cluster_tests::random::fresh_seed;
use ember_cluster_tests::steady::SteadyWriter;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_was_fsynced_survives_a_power_loss_of_everything() -> Result<()> {
    let Some(cluster) = cluster("power")? else { return Ok(()) };
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let mut power = PowerCluster::new(cluster)?;
    let done = power.rounds(seed, 1, &|line| eprintln!("{line}"))?;
    ensure!(done.loss.pages > 0, "nothing was lost: this proves nothing");
    Ok(())
}

#[test]
fn r10_a_disk_that_hangs_leaves_its_chains_and_comes_back_by_itself() -> Result<()> {
    let Some(cluster) = cluster("hang")? else { return Ok(()) };
    let power = PowerCluster::new(cluster)?;
    let (cluster, fs) = (power.cluster(), power.fs());
    power.up()?;
    cluster.wait_health("OK", SOON)?;
    let writer = SteadyWriter::start(&cluster.mount().join("steady"), Duration::from_millis(20))?;
    std::thread::sleep(Duration::from_millis(500));
    let pids = cluster.pids("storage")?;
    fs.hang("storage-2/");
    let begin = Instant::now();
    loop {
        let text = cluster.status()?["checks"].to_string();
        if text.contains("storage-2") && text.contains("hangs") {
            break;
        }
        ensure!(begin.elapsed() < SOON, "the disk that hangs is not named: {text}");
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("named after {:?}, {} requests hang", begin.elapsed(), fs.hung());
    std::thread::sleep(Duration::from_secs(1));
    fs.let_go();
    let back = cluster.wait_health("OK", SOON).context("after the disk answers again")?;
    let done = writer.stop()?;
    eprintln!("well {back:?} later; {} writes, the longest gap is {:?}", done.writes, done.longest);
    ensure!(done.longest < Duration::from_secs(10), "a gap of {:?}", done.longest);
    ensure!(cluster.pids("storage")? == pids, "a storage process was restarted");
    cluster.verify_replicas().map(|_| ())
}
