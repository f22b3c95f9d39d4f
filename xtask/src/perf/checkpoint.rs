//! `cargo xtask perf checkpoint`: checkpoints of a training job beside plain writes of the native client, in turn on
//! one cluster. Fails if a goal is missed.

use super::machine;
use crate::faults::release_binary;
use crate::process::{cargo, output, root};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::{TestCluster, no_fuse};
use serde::Deserialize;
use std::process::Command;
use std::time::Duration;

/// Bytes a second beside those of the native client's writes, at least.
const GOAL: f64 = 0.8;
/// Bytes that the native client writes in a run.
const WRITTEN: u64 = 1 << 30;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct CheckpointArgs {
    /// Replicas of the cluster.
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Runs of each; medians count.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Print only; don't write the page.
    #[arg(long)]
    print_only: bool,
}

/// What both programs print.
#[derive(Deserialize)]
struct Outcome {
    bytes: u64,
    seconds: f64,
}

impl Outcome {
    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).with_context(|| text.to_owned())
    }
    fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds
    }
}

/// A model whose checkpoint has about a gigabyte, on four ranks.
const MODEL: &[&str] = &["--hidden=512", "--inner=1024", "--layers=8", "--experts=8", "--slots=8"];

/// Measures, prints, and writes the page.
pub(crate) fn run(args: &CheckpointArgs) -> Result<()> {
    if let Some(reason) = no_fuse() {
        bail!("{reason}; it takes root and /dev/fuse");
    }
    output(cargo(&["build", "--release", "--quiet", "-p", "ember-train"]))?;
    let folder = root().join("target/perf");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let cluster = TestCluster::within(release_binary()?, &std::fs::canonicalize(&folder)?, "checkpoint")?;
    let replicas = args.replicas.to_string();
    cluster.up(&["--storage-nodes", &replicas, "--replicas", &replicas])?;
    cluster.wait_health("OK", Duration::from_secs(120))?;
    let (mut plain, mut written) = (Vec::new(), Vec::new());
    let mut size = 0;
    // The first round fills the space that the others write over or anew.
    for round in 0..=args.runs.max(1) {
        let (write, checkpoint) = (plain_write(&cluster)?, checkpoint(&cluster)?);
        println!(
            "native client {:.0} MiB/s, checkpoint {:.0} MiB/s",
            write.mib_per_s(),
            checkpoint.mib_per_s()
        );
        size = checkpoint.bytes;
        if round > 0 {
            plain.push(write.mib_per_s());
            written.push(checkpoint.mib_per_s());
        }
    }
    let (plain, written) = (median(plain), median(written));
    let ratio = written / plain;
    let met = if ratio < GOAL { "MISSED" } else { "met" };
    let table = format!(
        "| what | MiB/s | ratio | goal | |\n|---|---|---|---|---|\n\
         | native client, 1 MiB writes, depth 16 | {plain:.0} | 1 | | |\n\
         | checkpoint of four ranks | {written:.0} | {ratio:.2} | ≥ {GOAL} | {met} |\n"
    );
    println!("\n{table}");
    if !args.print_only {
        let page = format!(
            "# Speed of checkpoints\n\n\
             Written by `cargo xtask perf checkpoint`; other machines have other figures, ratios differ less.\n\n\
             - Machine: {}.\n\
             - Cluster: {replicas} storage processes, {replicas} replicas of every chunk, all on one disk.\n\
             - A checkpoint has {} MiB in four safetensors files, written by four clients at once; its time is\n  \
             that from numbers in memory to a directory that has its name, durable on all replicas.\n\
             - The native client (`ember bench write`) writes {} MiB to one file. Medians of {} runs\n  \
             in turn.\n\n{table}",
            machine::describe(&folder),
            size >> 20,
            WRITTEN >> 20,
            args.runs
        );
        let file = root().join("docs/performance/checkpoint.md");
        std::fs::write(&file, page).with_context(|| file.display().to_string())?;
    }
    ensure!(ratio >= GOAL, "the goal is missed");
    Ok(())
}

fn plain_write(cluster: &TestCluster) -> Result<Outcome> {
    let size = WRITTEN.to_string();
    let words = ["bench", "write", "--file", "plain", "--block", "1048576", "--depth", "16"];
    Outcome::parse(&cluster.ember_ok(&[&words[..], &["--size", &size, "--seconds", "3600"]].concat())?)
}

fn checkpoint(cluster: &TestCluster) -> Result<Outcome> {
    let mut bench = Command::new(cluster.binary().with_file_name("ember-train"));
    bench.args(["bench", "--to", "/checkpoints", "--cluster"]).arg(cluster.data()).args(MODEL);
    let outcome = Outcome::parse(&output(bench)?)?;
    std::fs::remove_dir_all(cluster.mount().join("checkpoints"))?;
    Ok(outcome)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
