//! The command line of the simulator.
#![forbid(unsafe_code)]

use clap::{ArgGroup, Parser};
use ember_sim::cluster::matrix;
use ember_sim::runner::Simulation;
use ember_sim::runner::{Outcome, Settings, catch_panics, run_seed, run_seeds};
use ember_sim::{chain, cluster, simulate};
use ember_types::mutants;
use std::process::ExitCode;

/// Runs whole clusters on virtual time, with faults, and checks that nothing acknowledged is lost.
///
/// Exit codes: 0 nothing found, 1 a property does not hold, 2 wrong usage.
#[derive(Parser, Debug)]
#[command(name = "ember-sim", group(ArgGroup::new("what").required(true).args(["seeds", "seed", "list_mutants"])))]
struct Args {
    /// Run this many seeds, from --first on, and print what happened.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Run one seed and print its trace hash.
    #[arg(long, value_name = "K")]
    seed: Option<u64>,
    /// Print the names of the planted bugs that the simulator finds.
    #[arg(long, conflicts_with_all = ["mutate", "trace"])]
    list_mutants: bool,
    /// Switch a planted bug on.
    #[arg(long, value_name = "NAME")]
    mutate: Option<String>,
    /// First seed of --seeds.
    #[arg(long, value_name = "K", default_value_t = 1, requires = "seeds")]
    first: u64,
    /// Number of threads; one for each processor if not given.
    #[arg(long, value_name = "N", requires = "seeds")]
    threads: Option<usize>,
    /// Run only a part of the simulation.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// What is simulated.
    #[arg(long, value_enum, default_value_t = Profile::Full)]
    profile: Profile,
    /// Print every message, disk operation and answer of --seed to standard error.
    #[arg(long, requires = "seed")]
    trace: bool,
}

/// A part of the simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// The replica protocol and the chain state machine on their own.
    Chain,
    /// The whole cluster.
    Cluster,
}

/// What is simulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Profile {
    /// Everything, under faults of all kinds.
    Full,
    /// A small cluster whose disks are struck on purpose, cell by cell of the fault matrix.
    Storage,
}

impl Args {
    /// `None` if the profile has no such part.
    fn simulation(&self) -> Option<Simulation> {
        match (self.profile, self.only) {
            (Profile::Full, None) => Some(simulate),
            (Profile::Full, Some(Part::Chain)) => Some(chain::simulate),
            (Profile::Full, Some(Part::Cluster)) => Some(cluster::simulate),
            (Profile::Storage, None | Some(Part::Cluster)) => Some(cluster::storage::simulate),
            (Profile::Storage, Some(Part::Chain)) => None,
        }
    }

    fn replay(&self, seed: u64, settings: Settings) -> String {
        let profile = if self.profile == Profile::Storage { " --profile storage" } else { "" };
        let only = match self.only {
            None => "",
            Some(Part::Chain) => " --only chain",
            Some(Part::Cluster) => " --only cluster",
        };
        let mutate = settings.mutant.map(|name| format!(" --mutate {name}")).unwrap_or_default();
        format!("{PROGRAM}{profile}{only} --seed {seed}{mutate}")
    }

    fn print_failure(&self, outcome: &Outcome, settings: Settings) {
        println!("violated: {}", outcome.failure.as_deref().unwrap_or_default());
        println!("seed {}: replay it by: {}", outcome.seed, self.replay(outcome.seed, settings));
    }
}

/// So many seeds hit every cell of the fault matrix.
const EVERY_CELL: u64 = 400;
const PROGRAM: &str = "cargo run -p ember-sim --release --";

fn one(args: &Args, simulation: Simulation, seed: u64, settings: Settings) -> ExitCode {
    let outcome = run_seed(simulation, seed, settings);
    if outcome.failure.is_some() {
        args.print_failure(&outcome, settings);
    }
    println!("{:016x}", outcome.hash);
    if outcome.failure.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn many(args: &Args, simulation: Simulation, count: u64, settings: Settings) -> ExitCode {
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let batch = run_seeds(simulation, args.first, count, threads, settings);
    let Some(failed) = &batch.failed else {
        print!("{}", batch.totals.table());
        let missed = matrix::missed(&batch.totals.counters);
        if args.profile == Profile::Full || count < EVERY_CELL || missed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("no seed hit: {}", missed.join("; "));
        return ExitCode::from(1);
    };
    if let Some(name) = settings.mutant {
        let clean = run_seed(simulation, failed.seed, Settings { mutant: None, ..settings });
        println!(
            "planted bug {name}: the seed {} without it",
            if clean.failure.is_some() { "fails too" } else { "passes" }
        );
    }
    args.print_failure(failed, settings);
    ExitCode::from(1)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list_mutants {
        mutants::simulated().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let known = |wanted: &String| mutants::simulated().find(|name| name == wanted);
    let mutant = args.mutate.as_ref().map(known);
    if mutant == Some(None) {
        eprintln!(
            "error: the simulator has no planted bug {:?}: --list-mutants prints their names",
            args.mutate.unwrap_or_default()
        );
        return ExitCode::from(2);
    }
    let settings = Settings { mutant: mutant.flatten(), log: args.trace };
    let Some(simulation) = args.simulation() else {
        eprintln!("error: --profile storage has no part `chain`: leave --only away");
        return ExitCode::from(2);
    };
    catch_panics();
    if args.trace {
        tracing_subscriber::fmt()
            .without_time()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_writer(std::io::stderr)
            .init();
    }
    match (args.seed, args.seeds) {
        (Some(seed), _) => one(&args, simulation, seed, settings),
        (None, Some(count)) => many(&args, simulation, count, settings),
        (None, None) => ExitCode::from(2),
    }
}
