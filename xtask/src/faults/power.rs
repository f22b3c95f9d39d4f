//! Power losses of a whole cluster under load, on a file system that forgets what was not flushed.

use super::Bench;
use anyhow::{Result, bail, ensure};
use ember_cluster_tests::power::PowerCluster;

/// Rounds within which a disk that lies about flushes must be found out.
const LIES: u32 = 10;

/// Disks that lie must be found out first: those of all storage nodes about their data files, then the KV engine's.
/// Then so many losses; everything whose fsync returned is read after each, and all replicas are compared at the end.
pub(super) fn run(bench: &Bench, rounds: u32) -> Result<()> {
    for (who, path) in [("storage, about data files,", "/data-"), ("the KV engine", "control/kv")] {
        lie(bench, who, path)?;
    }
    let mut power = PowerCluster::new(bench.cluster("power")?)?;
    let done = power.rounds(bench.seed, rounds, &|line| println!("{line}"))?;
    println!(
        "{rounds} power losses, {} pages of {} files and {} changes of names lost: all of {} operations whose fsync \
         returned are whole, all replicas are equal",
        done.loss.pages, done.loss.files, done.loss.names, done.operations
    );
    ensure!(done.loss.pages > 0, "nothing was lost: this proves nothing");
    Ok(())
}

/// Flushes of the files below `path` do nothing: a loss must be noticed.
fn lie(bench: &Bench, who: &str, path: &str) -> Result<()> {
    let mut power = PowerCluster::new(bench.cluster("lie")?)?;
    power.up()?;
    power.fs().lie(Some(path));
    match power.rounds(bench.seed, LIES, &|line| println!("a disk of {who} lies: {line}")) {
        Ok(done) => bail!("the disk of {who} lied about every flush, and nobody noticed: {done:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("round "), "a disk of {who} lies: {text}");
            println!("a disk of {who} lies: found, {text}");
            Ok(())
        }
    }
}
