//! `cargo run --release -p ember-engine --example crash -- [--points N] [--seed S] [--threads T]`: the crash
//! test of the engine, long. Prints what it did; exit code 1 if something acknowledged was lost, or if leaving
//! out the flushes of some kind is not noticed.
#![allow(missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use support::crash::{Plan, Report, run};
use support::disk::FlushClass;
use support::model::{Kind, Violation};

/// Histories in which a missing flush must be noticed.
const HISTORIES_MAX: u64 = 500;

struct Args {
    points: u64,
    seed: u64,
    threads: u64,
    classes: bool,
}

fn args() -> Result<Args, String> {
    let mut args = Args { points: 1_000_000, seed: 1, threads: 2, classes: true };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut number = || {
            let value = given.next().ok_or(format!("{name} needs a number"))?;
            value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"))
        };
        match name.as_str() {
            "--points" => args.points = number()?,
            "--seed" => args.seed = number()?,
            "--threads" => args.threads = number()?.max(1),
            "--no-missing-flushes" => args.classes = false,
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(args)
}

/// Histories from `seed` on, until `points` distinct points are done or one is inconsistent.
fn search(args: &Args) -> (Report, Option<(u64, Violation)>) {
    let next = AtomicU64::new(args.seed);
    let state = Mutex::new((Report::default(), None));
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        let (report, result) = run(seed, Plan::new());
        let mut state = state.lock().unwrap();
        state.0.add(&report);
        if let Err(violation) = result {
            state.1.get_or_insert((seed, violation));
        }
        if state.1.is_some() || state.0.distinct >= args.points {
            return;
        }
        if state.0.histories.is_multiple_of(100) {
            println!("  {} histories, {} points", state.0.histories, state.0.distinct);
        }
    };
    std::thread::scope(|scope| (0..args.threads).for_each(|_| drop(scope.spawn(work))));
    state.into_inner().unwrap()
}

/// How the missing flushes of one kind show: the first history in which something acknowledged is lost.
fn without(class: FlushClass) -> Option<(u64, u64, Violation)> {
    let plan = Plan { skip: Some(class), ..Plan::new() };
    let mut points = 0;
    (0..HISTORIES_MAX).find_map(|seed| {
        let (report, result) = run(seed, plan);
        points += report.distinct;
        let found = result.err().filter(|v| !matches!(v.kind, Kind::Panic | Kind::Healed));
        found.map(|violation| (seed, points, violation))
    })
}

/// Leaves out the flushes of each kind in turn; the number of kinds that nobody misses.
fn missing_flushes(threads: u64) -> usize {
    // Anything else: no flush of a fault-free run, or one that has nothing to flush.
    let all = FlushClass::ALL.iter().copied().filter(|class| *class != FlushClass::Other);
    let (classes, begin) = (Mutex::new(all), now());
    let (kinds, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || loop {
        let Some(class) = classes.lock().unwrap().next() else { return };
        kinds.fetch_add(1, Ordering::Relaxed);
        let name = class.name();
        match without(class) {
            Some((seed, points, violation)) => {
                println!("without {name:<38} {:?} in history {seed}, {points} points", violation.kind);
            }
            None => {
                missed.fetch_add(1, Ordering::Relaxed);
                println!("without {name:<38} NOT FOUND in {HISTORIES_MAX} histories");
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (kinds, missed) = (kinds.into_inner(), missed.into_inner());
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{} of {kinds} kinds of flush are missed when they are left out, {seconds:.0} s",
        kinds - missed
    );
    missed as usize
}

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(error) => {
            println!("{error}");
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|_| {}));
    println!("seed {}, {} points, {} threads", args.seed, args.points, args.threads);
    let begin = now();
    let (report, violation) = search(&args);
    println!(
        "{} histories, {} boundaries ({} with every subset lost), {} crash points drawn,\n\
         {} distinct pairs of crash point and lost set, {} recoveries ({} torn tails, {} updates dropped),\n\
         {} compactions, {:.0} s",
        report.histories,
        report.boundaries,
        report.complete,
        report.points,
        report.distinct,
        report.recoveries,
        report.torn,
        report.dropped,
        report.compacted,
        begin.elapsed().as_secs_f64()
    );
    if let Some((seed, violation)) = violation {
        println!("INCONSISTENT ({:?}): {}", violation.kind, violation.what);
        println!("again: cargo xtask crash --points 1 --threads 1 --seed {seed}");
        return ExitCode::FAILURE;
    }
    println!("none inconsistent");
    let missed = if args.classes { missing_flushes(args.threads) } else { 0 };
    ExitCode::from(u8::from(missed > 0))
}
