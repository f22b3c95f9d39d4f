//! The command line of the model checker.
#![forbid(unsafe_code)]

use clap::Parser;
use ember_model_tests::craq::Bounds;
use ember_model_tests::run::{AMNESIA, CRAQ, Outcome, WRONG, explore};
use std::process::ExitCode;
use std::time::Duration;

/// Distinct states that the configuration with amnesia must have.
const STATES_MIN: usize = 10_000_000;

/// Explores the replica protocol within bounds, to the end.
///
/// Exit codes: 0 everything holds, 1 a property does not hold, the bounds were not explored to the end, or there are
/// too few states; 2 wrong usage.
#[derive(Parser, Debug)]
#[command(name = "ember-model")]
struct Args {
    /// Stop each configuration after about so many states, counting those reached again: a trial, which fails
    /// unless all end before.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// Run this configuration alone.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Switch a planted bug on.
    #[arg(long, value_name = "NAME")]
    mutate: Option<String>,
    /// Number of threads; one for each processor if not given.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn print(bounds: &Bounds, outcome: &Outcome) {
    println!("{bounds}");
    println!(
        "  {} distinct states ({} reached), depth {}, {:.1} s, {}",
        outcome.states,
        outcome.reached,
        outcome.depth,
        outcome.took.as_secs_f64(),
        match (&outcome.violation, outcome.complete) {
            (Some(_), _) => "stopped at a violation",
            (None, true) => "bounds explored to the end, no violation",
            (None, false) => "no violation, NOT explored to the end",
        }
    );
    for name in &outcome.missed {
        println!("  never happened: {name}");
    }
    if let Some((what, steps)) = &outcome.violation {
        println!("  violated: {what}");
        for (i, step) in steps.iter().enumerate() {
            println!("  {:>4} {step}", i + 1);
        }
    }
}

/// Peak memory of this process in MiB, if the system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let cap = args.states.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if !ember_types::mutants::activate(args.mutate.as_deref()) {
        eprintln!("error: no planted bug is called {:?}", args.mutate.unwrap_or_default());
        return ExitCode::from(2);
    }
    let mutant: Option<&'static str> = args.mutate.map(|name| &*name.leak());
    // A panic of the model's code is a violation like others, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut states, mut ok, mut took) = (0, true, Duration::ZERO);
    let wanted = |bounds: &&Bounds| args.only.as_deref().is_none_or(|name| name == bounds.name);
    if !CRAQ.iter().any(|bounds| wanted(&bounds)) {
        let names: Vec<&str> = CRAQ.iter().map(|bounds| bounds.name).collect();
        eprintln!("error: no configuration has that name; there are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    for bounds in CRAQ.iter().filter(wanted) {
        let bounds = Bounds { mutant, ..*bounds };
        let outcome = explore(bounds, threads, cap);
        print(&bounds, &outcome);
        states += outcome.states;
        took += outcome.took;
        ok &= outcome.complete && outcome.missed.is_empty();
        if bounds.name == AMNESIA && outcome.complete && outcome.states < STATES_MIN {
            println!("  fewer than {STATES_MIN} distinct states");
            ok = false;
        }
    }
    if args.only.is_none() && mutant.is_none() {
        let outcome = explore(WRONG, threads, None);
        print(&WRONG, &outcome);
        let found = outcome.violation.is_some();
        println!("the wrong rule {}", if found { "is found" } else { "is NOT found" });
        ok &= found;
    }
    if let Some(cap) = cap {
        println!("a trial: each configuration ends after about {cap} states, and one that does fails");
    }
    let memory = peak_mib().map(|mib| format!(", {mib} MiB at most")).unwrap_or_default();
    println!(
        "{states} distinct states in all, {:.0} s, {threads} threads{memory}: {}",
        took.as_secs_f64(),
        if ok { "ok" } else { "FAILED" }
    );
    if ok { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
