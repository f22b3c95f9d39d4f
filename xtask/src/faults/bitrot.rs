//! Bytes flipped all over one target while it runs: a scrub repairs all of them, and nobody reads a wrong byte.

use super::pause::pause;
use super::{Bench, WELL};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::damage::{Place, files, flip, places_in_data, places_in_files};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::{TestCluster, drop_caches};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are flipped, in all and in log and checkpoint.
const FLIPS: u64 = 1000;
const FLIPS_LOG: u64 = 25;
const FLIPS_CHECKPOINT: u64 = 25;
const LARGE_FILES: u64 = 12;
const LARGE_BYTES: usize = 32 << 20;
const SMALL_FILES: u64 = 600;
/// Small writes into the large files, so that chunks lie in several pieces.
const OVERWRITES: u64 = 400;
/// Which storage process suffers.
const VICTIM: usize = 1;

/// What a file of the data set holds.
#[derive(Clone)]
struct Known {
    path: PathBuf,
    content: Vec<u8>,
}

/// Flips, scrubs, compares.
pub(super) fn run(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster("bitrot")?;
    let mut random = Random::new(bench.seed);
    // What dies stays dead, so that its files can be looked at.
    cluster.up(&["--no-restart"])?;
    cluster.wait_health("OK", WELL)?;
    let mut known = fill(&cluster.mount(), &mut random)?;
    // A restart writes checkpoints of all that; what comes then stands in the log.
    cluster.down()?;
    cluster.up(&["--no-restart"])?;
    cluster.wait_health("OK", WELL)?;
    overwrite(&mut known, &mut random)?;
    let known = Arc::new(known);
    let bytes: usize = known.iter().map(|file| file.content.len()).sum();
    println!("{} files with {} MiB written and fsynced", known.len(), bytes >> 20);
    // Pending versions are committed, and the last batch of the log is confirmed.
    pause(Duration::from_secs(4));
    let own = cluster.targets_of(VICTIM)?;
    let &(target, used) = own.iter().max_by_key(|(_, used)| *used).context("no target")?;
    println!(
        "storage process {} has {} targets; target {target} holds {} MiB",
        VICTIM + 1,
        own.len(),
        used >> 20
    );
    let dir = cluster.target_dir(VICTIM, target)?;
    let pieces = cluster.pieces(target)?;
    let mut places = places_in_data(&pieces, FLIPS - FLIPS_LOG - FLIPS_CHECKPOINT, &mut random)?;
    places.extend(places_in_files(&files(&dir, "log-")?, FLIPS_LOG, &mut random)?);
    places.extend(places_in_files(&files(&dir, "checkpoint-")?, FLIPS_CHECKPOINT, &mut random)?);
    let reader = Reader::start(known.clone());
    pause(Duration::from_secs(1));
    for (file, at, _) in &places {
        flip(file, *at, 1 << random.below(8))?;
    }
    say_flips(&places);
    let scrubbed = scrub_until_sound(&cluster, target, &places);
    let read = reader.stop();
    scrubbed?;
    println!("reads meanwhile: {} files compared, all of them right", read?);
    check_stopped(&cluster, target)?;
    cluster.up(&["--no-restart"])?;
    cluster.wait_health("OK", WELL)?;
    println!("{}", cluster.verify_replicas()?.trim_end());
    drop_caches()?;
    known.iter().try_for_each(compare)?;
    println!("all files are right at the end");
    Ok(())
}

fn say_flips(places: &[Place]) {
    let chunks: BTreeSet<&String> = places.iter().filter_map(|(_, _, chunk)| chunk.as_ref()).collect();
    let in_data = places.iter().filter(|(_, _, chunk)| chunk.is_some()).count();
    let data: BTreeSet<&PathBuf> =
        places.iter().filter(|place| place.2.is_some()).map(|place| &place.0).collect();
    println!(
        "{} bytes flipped: {in_data} in {} live chunks ({} data files), {FLIPS_LOG} in the log, {FLIPS_CHECKPOINT} in \
         checkpoints",
        places.len(),
        chunks.len(),
        data.len()
    );
}

/// A scrub that finds and repairs the damage, and a second one that finds none.
fn scrub_until_sound(cluster: &TestCluster, target: u64, places: &[Place]) -> Result<()> {
    let chunks: BTreeSet<&String> = places.iter().filter_map(|place| place.2.as_ref()).collect();
    let begin = now();
    print!("first scrub: {}", cluster.ember_ok(&["target", "scrub", &target.to_string(), "--wait"])?);
    let first = scrubbed(cluster, target)?;
    print!("second scrub: {}", cluster.ember_ok(&["target", "scrub", &target.to_string(), "--wait"])?);
    let second = scrubbed(cluster, target)?;
    let number = |value: &Value, name: &str| value[name].as_u64().unwrap_or(u64::MAX);
    println!(
        "{:.1} s; the target counts {} damaged chunks and files found by scrubs, {} chunks repaired by scrub and \
         readers, {} slots quarantined",
        begin.elapsed().as_secs_f64(),
        second["found"],
        second["repaired"],
        second["quarantined_slots"]
    );
    ensure!(
        number(&second, "repaired") >= chunks.len() as u64,
        "fewer chunks were repaired than damaged: {second}"
    );
    ensure!(
        number(&first["last"], "found") == number(&first["last"], "repaired"),
        "not all repaired: {first}"
    );
    ensure!(number(&second["last"], "found") == 0, "the second scrub still finds damage: {second}");
    ensure!(number(&second["last"], "chunks") >= chunks.len() as u64, "the scrub left chunks out: {second}");
    Ok(())
}

/// What status says of the scrub of a target, once it is there: mgmtd hears of it with a heartbeat.
fn scrubbed(cluster: &TestCluster, target: u64) -> Result<Value> {
    pause(Duration::from_millis(1500));
    let status = cluster.status()?;
    let targets = status["targets"].as_array().context("targets")?;
    let row = targets.iter().find(|row| row["id"] == target).context("the target in status")?;
    ensure!(row["scrub"]["last"].is_object(), "status tells of no finished scrub: {row}");
    Ok(row["scrub"].clone())
}

/// Kills the target's process, so that what its files hold is what they held, and checks them.
fn check_stopped(cluster: &TestCluster, target: u64) -> Result<()> {
    cluster.kill_storage(VICTIM, Signal::KILL)?;
    println!("killed, then fsck: {}", cluster.ember_ok(&["target", "fsck", &target.to_string()])?.trim_end());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "measures real processes, outside the seam")]
pub(super) fn now() -> Instant {
    Instant::now()
}

fn fill(mount: &Path, random: &mut Random) -> Result<Vec<Known>> {
    let folder = mount.join("data");
    std::fs::create_dir(&folder)?;
    let mut known = Vec::new();
    for number in 0..LARGE_FILES + SMALL_FILES {
        let length = match number < LARGE_FILES {
            true => LARGE_BYTES - random.below(100_000) as usize,
            false => 1 + random.below(60_000) as usize,
        };
        known.push(Known { path: folder.join(format!("file-{number}")), content: random.bytes(length) });
    }
    for file in &known {
        std::fs::write(&file.path, &file.content)?;
        std::fs::File::open(&file.path)?.sync_all()?;
    }
    Ok(known)
}

fn overwrite(known: &mut [Known], random: &mut Random) -> Result<()> {
    for _ in 0..OVERWRITES {
        let file = &mut known[random.below(LARGE_FILES) as usize];
        let length = 1 + random.below(20_000) as usize;
        let at = random.below((file.content.len() - length) as u64) as usize;
        let bytes = random.bytes(length);
        file.content[at..at + length].copy_from_slice(&bytes);
        let open = std::fs::OpenOptions::new().write(true).open(&file.path)?;
        open.write_all_at(&bytes, at as u64)?;
    }
    known.iter().try_for_each(|file| Ok(std::fs::File::open(&file.path)?.sync_all()?))
}

fn compare(file: &Known) -> Result<()> {
    let found = std::fs::read(&file.path).with_context(|| file.path.display().to_string())?;
    if found == file.content {
        return Ok(());
    }
    let at = found.iter().zip(&file.content).position(|(a, b)| a != b).unwrap_or(found.len());
    bail!("{} is wrong from byte {at} on", file.path.display())
}

/// Reads all files again and again, each time from the cluster.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Reader {
    #[expect(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]
    fn start(known: Arc<Vec<Known>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut read = 0;
            loop {
                drop_caches()?;
                for file in known.iter() {
                    if flag.load(Ordering::Relaxed) {
                        return Ok(read);
                    }
                    compare(file)?;
                    read += 1;
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(read) => read,
            Err(_) => bail!("the reader panicked"),
        }
    }
}
