//! `cargo xtask perf ep`: tokens to experts and back between processes, beside what as many processes copy in memory,
//! in turn in one run. Fails if a goal is missed.

use super::machine;
use crate::process::{cargo, output, root};
use anyhow::{Context, Result};
use serde::Deserialize;

/// Bytes delivered by a dispatch beside those copied, at least.
const GOAL: f64 = 0.6;

/// How long to measure.
#[derive(clap::Args)]
pub(crate) struct EpArgs {
    /// Processes.
    #[arg(long, default_value_t = 2)]
    ranks: u32,
    /// Rounds; medians count.
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Print only; don't write the page.
    #[arg(long)]
    print_only: bool,
}

/// What the example prints; all ranks together, in GB/s.
#[derive(Deserialize)]
struct Speeds {
    dispatch: f64,
    combine: f64,
    memcpy: f64,
}

/// Measures, prints, and writes the page.
pub(crate) fn run(args: &EpArgs) -> Result<()> {
    let (ranks, rounds) = (args.ranks.to_string(), args.rounds.to_string());
    let example =
        ["run", "--release", "--quiet", "-p", "ember-deepep", "--example", "ep", "--", &ranks, &rounds];
    let text = output(cargo(&example))?;
    let Speeds { dispatch, combine, memcpy } = serde_json::from_str(&text).with_context(|| text.clone())?;
    let (there, back) = (dispatch / memcpy, combine / memcpy);
    let met = if there < GOAL { "MISSED" } else { "met" };
    let table = format!(
        "| what | GB/s of payload, all ranks | beside memcpy | goal | |\n|---|---|---|---|---|\n\
         | memcpy by as many processes | {memcpy:.2} | 1 | | |\n\
         | dispatch | {dispatch:.2} | {there:.2} | ≥ {GOAL} | {met} |\n\
         | combine, sums included | {combine:.2} | {back:.2} | | |\n"
    );
    println!("{table}");
    if !args.print_only {
        let page = format!(
            "# Speed of dispatch and combine\n\n\
             Written by `cargo xtask perf ep`; figures of other machines differ, ratios less so.\n\n\
             - Machine: {}.\n\
             - {ranks} processes in shared memory, 4096 tokens of 7168 BF16 numbers each, 8 of 64 experts chosen at\n  \
             random. Medians of {rounds} rounds of each in turn; bytes are those of the rows that a rank\n  \
             receives, or sends back.\n\n{table}",
            machine::describe(&root())
        );
        let file = root().join("docs/performance/ep.md");
        std::fs::write(&file, page).with_context(|| file.display().to_string())?;
    }
    anyhow::ensure!(there >= GOAL, "the goal is missed");
    Ok(())
}
