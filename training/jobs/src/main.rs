//! `ember-train`: what the training libraries do, as commands.
//!
//! `schedule` draws the order in which the ranks of a pipeline work. Exit codes: 0 done, 1 failed, 2 wrong arguments.
#![forbid(unsafe_code)]

mod schedule;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ember-train", version, about = "Training libraries on EmberFS, as commands")]
enum Command {
    /// Draws the order in which the ranks of a DualPipe or DualPipeV pipeline work, and says how long that takes.
    Schedule(schedule::Args),
}

fn main() -> ExitCode {
    let Command::Schedule(args) = Command::parse();
    match schedule::run(&args) {
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
