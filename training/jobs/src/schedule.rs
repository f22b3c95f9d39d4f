//! `ember-train schedule`.

use crate::ranks::Named;
use anyhow::{Context, Result};
use ember_dualpipe::{Costs, DualPipeError, Kind, Pipeline, Simulation, simulate};
use serde_json::json;
use std::path::PathBuf;

/// Most ranks times micro-batches.
const SHOWN_MAX: usize = 1 << 17;

/// What to draw.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How stages are spread over ranks.
    #[arg(long, value_enum, default_value_t = Named::Dualpipe)]
    kind: Named,
    /// Ranks; with dualpipe an even number.
    #[arg(long, default_value_t = 8)]
    ranks: usize,
    /// Micro-batches of a step: at least twice the ranks; with dualpipe an even number.
    #[arg(long, default_value_t = 20)]
    chunks: usize,
    /// Leave the backward passes out.
    #[arg(long)]
    forward_only: bool,
    /// Time of a forward pass of one stage.
    #[arg(long, default_value_t = 1.0)]
    forward: f64,
    /// Time of a backward pass, weight gradients included.
    #[arg(long, default_value_t = 2.0)]
    backward: f64,
    /// Time of the weight gradients alone.
    #[arg(long, default_value_t = 1.0)]
    weight: f64,
    /// Time of a forward pass beside a backward pass.
    #[arg(long, default_value_t = 3.0)]
    overlapped: f64,
    /// Write a picture to this file; one that is there is replaced.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print numbers for programs instead of lines for people.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let kind = Kind::from(args.kind);
    if args.ranks.saturating_mul(args.chunks) > SHOWN_MAX {
        let rule = format!(
            "{} ranks with {} micro-batches are more than a picture can show",
            args.ranks, args.chunks
        );
        return Err(DualPipeError::Argument { argument: "chunks", rule }.into());
    }
    let pipeline = Pipeline::new(kind, args.ranks, args.chunks, args.forward_only)?;
    let costs = Costs {
        forward: args.forward,
        backward: args.backward,
        weight: args.weight,
        overlapped: args.overlapped,
    };
    let found = simulate(&pipeline, &costs)?;
    if let Some(file) = &args.svg {
        std::fs::write(file, found.svg()).with_context(|| format!("writing {}", file.display()))?;
    }
    let formula = (!args.forward_only).then(|| costs.bubble(&pipeline));
    if args.json {
        println!("{:#}", numbers(&pipeline, &found, formula));
        return Ok(());
    }
    println!("F forward, B backward, Bi backward for the input, W weights put off; module.micro-batch\n");
    print!("{}", found.text());
    println!(
        "\n{} stages on {} ranks, {} micro-batches: {} from begin to end",
        pipeline.stages(),
        pipeline.ranks(),
        pipeline.chunks(),
        found.makespan
    );
    let bubbles = || found.ranks.iter().map(|rank| rank.bubble);
    let (least, most) = (bubbles().fold(f64::MAX, f64::min), bubbles().fold(0.0, f64::max));
    println!("a rank waits for {least} to {most} of it");
    if let Some(formula) = formula {
        println!("(stages / 2 - 1) (overlapped + backward - 3 weight) is {formula}");
        let peak = found.ranks.iter().map(|rank| rank.peak_activations).max().unwrap_or(0);
        println!("activations of up to {peak} micro-batches are kept on a rank");
    }
    if let Some(file) = &args.svg {
        println!("picture: {}", file.display());
    }
    Ok(())
}

fn numbers(pipeline: &Pipeline, found: &Simulation, formula: Option<f64>) -> serde_json::Value {
    let ranks = found.ranks.iter().enumerate();
    let ranks: Vec<_> = ranks
        .map(|(rank, line)| json!({"rank": rank, "bubble": line.bubble, "peak_activations": line.peak_activations}))
        .collect();
    json!({
        "stages": pipeline.stages(),
        "chunks": pipeline.chunks(),
        "makespan": found.makespan,
        "bubble_formula": formula,
        "ranks": ranks,
    })
}
