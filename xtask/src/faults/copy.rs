//! A real tree on the mount: copied in under a fault, compared with each pair of storage processes stopped.

use super::pause::pause;
use super::{Bench, WELL, programs};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::{missing_program, run as run_program, tree};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILES_MIN: u64 = 20_000;
const BYTES_MIN: u64 = 1 << 30;

/// Copies, kills, compares.
pub(super) fn run(bench: &Bench) -> Result<()> {
    if let Some(reason) = missing_program(&["rsync", "git", "tar", "cargo"]) {
        bail!("{reason}: `apt-get install rsync git tar`");
    }
    let cluster = bench.cluster("copy")?;
    let source = cluster.root().join("source");
    collect(&source, bench.seed)?;
    println!("tree: {}", tree::census(&source)?);
    cluster.up(&[])?;
    cluster.wait_health("OK", WELL)?;
    let copy = cluster.mount().join("tree");
    let (from, to) = (source.clone(), copy.clone());
    let copying = thread(move || tree::copy(&from, &to));
    pause(Duration::from_secs(3));
    ensure!(!copying.is_finished(), "the copy is too short to be disturbed");
    cluster.kill_storage(1, Signal::KILL)?;
    let noticed = cluster.wait_health("WARN", WELL)?;
    println!("storage process 2 killed during the copy, status WARN {:.1} s later", noticed.as_secs_f64());
    copying.join().ok().context("the copy panicked")?.context("the copy saw an error")?;
    println!("copy: no error");
    let well = cluster.wait_health("OK", WELL)?;
    println!("status OK {:.1} s after the copy", well.as_secs_f64());
    println!("{}", cluster.verify_replicas()?.trim_end());
    cluster.remount()?;
    tree::expect_equal(&source, &copy)?;
    println!("rsync after a remount: no difference");
    cluster.down()?;
    cluster.up(&["--no-restart"])?;
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        cluster.wait_health("OK", WELL)?;
        cluster.kill_storage(first, Signal::TERM)?;
        cluster.kill_storage(second, Signal::TERM)?;
        cluster.remount()?;
        let pair = format!("storage processes {} and {} stopped", first + 1, second + 1);
        tree::expect_equal(&source, &copy).with_context(|| pair.clone())?;
        println!("{pair}: no difference");
        cluster.up(&["--no-restart"])?;
    }
    cluster.wait_health("OK", WELL)?;
    println!("{}", cluster.verify_replicas()?.trim_end());
    programs::run(cluster.root(), &cluster.mount())
}

#[expect(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]
fn thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(work)
}

/// What a folder has, in order.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    found.sort();
    Ok(found)
}

/// Gathers a tree of real files: the crate registry's sources and the toolchain, filled up with made ones.
fn collect(source: &Path, seed: u64) -> Result<()> {
    std::fs::create_dir(source)?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let mut candidates: Vec<PathBuf> = home.into_iter().map(|home| home.join("registry/src")).collect();
    if let Ok(sysroot) = run_program("rustc", &["--print", "sysroot"]) {
        for part in ["lib", "bin", "share/man"] {
            candidates.push(Path::new(sysroot.trim()).join(part));
        }
    }
    let missing = |census: &tree::Census| census.files < FILES_MIN || census.bytes < BYTES_MIN;
    for (number, candidate) in candidates.iter().filter(|path| path.is_dir()).enumerate() {
        let part = source.join(format!("part-{number}"));
        std::fs::create_dir(&part)?;
        for child in children(candidate)? {
            if tree::census(source)?.files < FILES_MIN {
                tree::copy(&child, &part.join(child.file_name().context("name")?))?;
            }
        }
    }
    // Links and odd names are made in any case.
    tree::generate(&source.join("made"), 1000, 32 << 20, seed)?;
    let census = tree::census(source)?;
    let files = FILES_MIN.saturating_sub(census.files).max(1);
    let bytes = BYTES_MIN.saturating_sub(census.bytes);
    if missing(&census) {
        // Sizes are random: half as much again is enough.
        tree::generate(&source.join("filling"), (files / 4 * 5).max(1000), bytes / 2 * 3, seed + 1)?;
    }
    let census = tree::census(source)?;
    ensure!(!missing(&census), "the tree is too small: {census}");
    Ok(())
}
