//! A real tree, copied in and compared, with parts of the cluster stopped.

use crate::common::cluster;
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::{missing_program, skip, tree};
use rustix::process::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_copied_tree_survives_the_stop_of_each_pair() -> Result<()> {
    if let Some(reason) = missing_program(&["rsync"]) {
        skip("copy", &reason);
        return Ok(());
    }
    let Some(cluster) = cluster("copy")? else { return Ok(()) };
    cluster.up(&["--no-restart"])?;
    let (source, copy) = (cluster.root().join("source"), cluster.mount().join("tree"));
    tree::generate(&source, 900, 30 << 20, 1)?;
    eprintln!("{}", tree::census(&source)?);
    tree::copy(&source, &copy)?;
    cluster.remount()?;
    tree::expect_equal(&source, &copy)?;
    cluster.verify_replicas()?;
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        cluster.wait_health("OK", SOON)?;
        let with = if first == 0 { Signal::TERM } else { Signal::KILL };
        cluster.kill_storage(first, with)?;
        cluster.kill_storage(second, with)?;
        cluster.remount()?;
        tree::expect_equal(&source, &copy).with_context(|| format!("without {first} and {second}"))?;
        cluster.up(&["--no-restart"])?;
    }
    cluster.wait_health("OK", SOON)?;
    cluster.verify_replicas().map(|_| ())
}

#[test]
fn a_copy_goes_on_when_a_storage_process_is_killed() -> Result<()> {
    if let Some(reason) = missing_program(&["rsync"]) {
        skip("copy-kill", &reason);
        return Ok(());
    }
    let Some(cluster) = cluster("copy-kill")? else { return Ok(()) };
    cluster.up(&[])?;
    cluster.wait_health("OK", SOON)?;
    let (source, copy) = (cluster.root().join("source"), cluster.mount().join("tree"));
    tree::generate(&source, 1200, 40 << 20, 2)?;
    let (from, to) = (source.clone(), copy.clone());
    let copying = std::thread::spawn(move || tree::copy(&from, &to));
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(!copying.is_finished(), "the copy is too short to be disturbed");
    cluster.kill_storage(1, Signal::KILL)?;
    cluster.wait_health("WARN", SOON)?;
    copying.join().ok().context("the copy panicked")?.context("the copy sees an error")?;
    cluster.wait_health("OK", SOON)?;
    cluster.remount()?;
    tree::expect_equal(&source, &copy)?;
    cluster.verify_replicas().map(|_| ())
}
