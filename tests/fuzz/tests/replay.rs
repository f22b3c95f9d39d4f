//! Gives each target the stored inputs, then changes of them: for a second, five in CI, or as many as
//! `EMBER_FUZZ_SECONDS` says. `EMBER_FUZZ_SEED` chooses other changes.
#![allow(clippy::disallowed_methods)] // A test measures real time.

use ember_fuzz::mutate::Mutator;
use ember_fuzz::{TARGETS, allowance, corpus, target};
use peak_alloc::PeakAlloc;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// The allocator counts for the whole process, so only one target runs at a time (nextest: one a process).
static ONE: Mutex<()> = Mutex::new(());

fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs one input; the text says what it broke.
fn broken(name: &str, run: fn(&[u8]), input: &[u8]) -> Option<String> {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
        let text = panic.downcast_ref::<String>().cloned();
        return Some(
            text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default(),
        );
    }
    let took = MEMORY.peak_usage().saturating_sub(before);
    let most = allowance(name, input.len());
    (took > most).then(|| format!("{took} bytes allocated for {} bytes, at most {most} allowed", input.len()))
}

fn replay(name: &str) {
    let _one = ONE.lock();
    let (_, run) = *target(name).expect("a target of that name");
    let inputs = corpus::load(name).expect("stored inputs");
    for (file, input) in &inputs {
        if let Some(what) = broken(name, run, input) {
            panic!("corpus/{name}/{file}: {what}");
        }
    }
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, input)| input).collect();
    let seconds = if std::env::var_os("CI").is_some() { 5.0 } else { 1.0 };
    let (seconds, seed) = (number("EMBER_FUZZ_SECONDS", seconds), number("EMBER_FUZZ_SEED", 1.0) as u64);
    let (begin, mut mutator, mut runs) = (Instant::now(), Mutator::new(seed), 0_u64);
    while begin.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..16 {
            let input = mutator.next(&inputs);
            runs += 1;
            let Some(what) = broken(name, run, &input) else { continue };
            let path = std::env::temp_dir().join(format!("ember-fuzz-{name}-{runs}"));
            let kept = std::fs::File::create(&path).and_then(|mut file| file.write_all(&input));
            panic!("seed {seed}, run {runs}: {what}\nthe input is {} ({kept:?})", path.display());
        }
    }
    println!("{name}: {} stored inputs, {runs} changes of them, seed {seed}", inputs.len());
    assert!(runs > 0);
}

macro_rules! targets {
    ($($test:ident = $name:literal,)*) => {
        $(#[test] fn $test() { replay($name); })*
        const TESTED: &[&str] = &[$($name),*];
    };
}

targets! {
    wire_header = "wire-header",
    wire_handshake = "wire-handshake",
    wire_mgmtd = "wire-mgmtd",
    wire_meta = "wire-meta",
    wire_storage = "wire-storage",
    wire_ranks = "wire-ranks",
    net_frames = "net-frames",
    net_server = "net-server",
    net_client = "net-client",
    engine_superblock = "engine-superblock",
    engine_sums = "engine-sums",
    engine_records = "engine-records",
    engine_frame = "engine-frame",
    engine_directory = "engine-directory",
    kv_journal = "kv-journal",
    kv_files = "kv-files",
    kv_export = "kv-export",
    meta_records = "meta-records",
    mgmtd_records = "mgmtd-records",
    fuse_requests = "fuse-requests",
    config = "config",
}

#[test]
fn every_target_is_tested() {
    let known: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known, TESTED.iter().copied().collect());
}

#[test]
fn a_panic_and_an_absurd_allocation_are_noticed() {
    let _one = ONE.lock();
    assert_eq!(broken("x", |_| panic!("bad"), b"").as_deref(), Some("bad"));
    let greedy = broken("x", |_| drop(vec![1_u8; 64 << 20]), b"12345");
    assert!(greedy.expect("too much").contains("allocated for 5 bytes"));
    assert_eq!(broken("x", |_| {}, b""), None);
}

#[test]
fn the_same_seed_gives_the_same_changes() {
    let corpus = [b"one".to_vec(), b"another input".to_vec()];
    let changes = |seed| {
        let mut mutator = Mutator::new(seed);
        (0..200).map(|_| mutator.next(&corpus)).collect::<Vec<_>>()
    };
    assert_eq!(changes(5), changes(5));
    assert_ne!(changes(5), changes(6));
}
