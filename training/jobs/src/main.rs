//! `ember-train`: training jobs on EmberFS, and what the training libraries do, as commands.
//!
//! `prepare` puts text into the file system, `run` trains a language model on it, `schedule` draws the order in which
//! the ranks of a pipeline work. Exit codes: 0 done, 1 failed, 2 wrong arguments.
#![forbid(unsafe_code)]

mod bench;
mod bigram;
mod checkpoint;
mod clock;
mod curve;
mod data;
mod exchange;
mod generate;
mod job;
mod model;
mod optimizer;
mod placing;
mod rank;
mod ranks;
mod run;
mod schedule;
mod worker;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ember-train", version, about = "Training jobs on EmberFS")]
enum Command {
    /// Puts text into EmberFS, to train on.
    Prepare(data::PrepareArgs),
    /// Trains a mixture-of-experts language model on the processors of this machine.
    Run(Box<run::Args>),
    /// Goes on from a text with a trained model, and keeps the keys of what it has read in EmberFS.
    Generate(generate::Args),
    /// Measures how fast checkpoints are written.
    Bench(bench::Args),
    /// A process of a job; `run` starts it.
    #[command(hide = true)]
    Rank,
    /// Draws the order in which the ranks of a DualPipe or DualPipeV pipeline work, and says how long that takes.
    Schedule(schedule::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Prepare(args) => data::prepare(&args),
        Command::Run(args) => run::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Rank => rank::run(),
        Command::Schedule(args) => schedule::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ember-train: {error:#}");
            match error.downcast_ref::<ember_dualpipe::DualPipeError>() {
                Some(ember_dualpipe::DualPipeError::Argument { .. }) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
