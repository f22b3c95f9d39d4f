//! Tasks of the repository: `cargo xtask tidy|test|kernels|gpu|python|model|crash|mutants|faults|perf`.
//!
//! It is not part of the product. Every task prints what it does, ends with exit code 0 only if all of it held,
//! and runs from any folder of the checkout.
#![forbid(unsafe_code)]

mod arrows;
mod crash;
mod faults;
mod fuzz;
mod gpu;
mod gpu_attention;
mod kernels;
mod lengths;
mod model;
mod mutants;
mod perf;
mod process;
mod python;
mod suite;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the EmberFS repository")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Checks the house rules that a program can see: arrows between crates, lengths, the docs' code map.
    Tidy,
    /// Runs everything that CI runs, and prints what ran and what was skipped.
    Test {
        /// Stop after the first step that fails.
        #[arg(long)]
        fail_fast: bool,
        /// Run the tests that take minutes, too.
        #[arg(long)]
        full: bool,
    },
    /// Plants each bug in turn, runs the test or the simulation that is to find it, and fails if one survives.
    Mutants(mutants::MutantArgs),
    /// Explores the protocol's pure code within bounds, to the end, and shows that a wrong rule is found.
    Model(model::ModelArgs),
    /// Searches with libFuzzer for inputs that break a decoder of disk, wire or user bytes.
    Fuzz(fuzz::FuzzArgs),
    /// Loses power at every write and flush of random histories of the chunk engine.
    Crash(crash::CrashArgs),
    /// Kills processes of a real cluster and checks what users see of it.
    Faults(faults::FaultArgs),
    /// Compiles every GPU kernel, without a GPU, and compares registers and instructions with the manifest.
    Kernels(kernels::KernelArgs),
    /// Builds the Python wheel and runs its tests.
    Python,
    /// Compares every GPU kernel with the CPU and measures it; ends with code 3 where there is no Hopper GPU.
    Gpu(gpu::GpuArgs),
    /// Measures the mount and the native client against fio on the same disk.
    Perf(perf::PerfArgs),
}

fn main() -> ExitCode {
    match run(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Tidy => tidy::run(),
        Task::Test { fail_fast, full } => suite::run(fail_fast, full),
        Task::Mutants(args) => mutants::run(&args),
        Task::Model(args) => model::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Crash(args) => crash::run(&args),
        Task::Faults(args) => faults::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Python => python::run(),
        Task::Gpu(args) => gpu::run(&args),
        Task::Perf(args) => perf::run(&args),
    }
}
