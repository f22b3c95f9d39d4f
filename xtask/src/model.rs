//! `cargo xtask model`: explores the pure protocol code within bounds, to the end.

use crate::process::cargo;
use anyhow::{Context, Result, bail};

/// What to explore.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Stop each configuration after about so many states: a trial, which fails unless all end before.
    #[arg(long, value_name = "N")]
    states: Option<u64>,
    /// Explore this configuration alone.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// Builds the model checker and runs it; it prints its figures, and fails if a property does not hold, if the
/// bounds were not explored to the end, or if the wrong rule is not found.
pub(crate) fn run(args: &ModelArgs) -> Result<()> {
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "ember-model-tests", "--"]);
    if let Some(states) = args.states {
        command.args(["--states", &states.to_string()]);
    }
    if let Some(name) = &args.only {
        command.args(["--only", name]);
    }
    let status = command.status().context("starting the model checker")?;
    if !status.success() {
        bail!("the model checker: {status}");
    }
    Ok(())
}
