//! `cargo xtask crash`: the crash test of the engine, long. It is `storage/engine/examples/crash.rs`, on the
//! code of `storage/engine/tests`.

use crate::process::cargo;
use anyhow::{Result, bail};
use clap::Args;

/// Random histories of the engine with power loss at every write and flush.
#[derive(Args)]
pub(crate) struct CrashArgs {
    /// Distinct pairs of crash point and lost set, at least.
    #[arg(long, default_value_t = 1_000_000)]
    points: u64,
    /// The first history's seed; the next one is seed + 1.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Histories at a time.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Leave out the check that every missing flush is noticed.
    #[arg(long)]
    no_missing_flushes: bool,
}

pub(crate) fn run(args: &CrashArgs) -> Result<()> {
    let mut command =
        cargo(&["run", "--quiet", "--release", "-p", "ember-engine", "--example", "crash", "--"]);
    for (name, value) in [("--points", args.points), ("--seed", args.seed), ("--threads", args.threads)] {
        command.args([name, &value.to_string()]);
    }
    command.args(args.no_missing_flushes.then_some("--no-missing-flushes"));
    let status = command.status()?;
    if !status.success() {
        bail!("crash test: {status}");
    }
    Ok(())
}
