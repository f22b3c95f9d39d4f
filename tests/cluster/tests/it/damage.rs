//! Damaged files: named, refused where they are the last copy, healed where they are not.

use crate::common::{cluster, expect_exit, mounted, printed};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::{TestCluster, drop_caches};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
const FILES: u64 = 12;
const LENGTH: usize = 1_500_000;

fn content(number: u64) -> Vec<u8> {
    Random::new(number + 77).bytes(LENGTH)
}

fn fill(cluster: &TestCluster) -> Result<()> {
    for number in 0..FILES {
        std::fs::write(cluster.mount().join(format!("file-{number}")), content(number))?;
    }
    rustix::fs::sync();
    cluster.wait_health("OK", SOON).map(|_| ())
}

fn read_all(cluster: &TestCluster) -> Result<()> {
    for number in 0..FILES {
        let name = format!("file-{number}");
        let found = std::fs::read(cluster.mount().join(&name)).with_context(|| format!("reading {name}"))?;
        ensure!(found == content(number), "{name} is not what was written");
    }
    Ok(())
}

/// Reads everything, again and again with cold caches, until all replicas are equal.
fn heal(cluster: &TestCluster) -> Result<()> {
    let begin = Instant::now();
    loop {
        drop_caches()?;
        read_all(cluster)?;
        match cluster.verify_replicas() {
            Ok(_) => return Ok(()),
            Err(error) if begin.elapsed() > SOON => bail!("not healed after {SOON:?}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// The files of all targets of a storage node whose names begin so, the largest first.
fn files(cluster: &TestCluster, node: u32, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for target in std::fs::read_dir(cluster.data().join(format!("storage-{node}")))? {
        let target = target?.path();
        if !target.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(target)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push((entry.metadata()?.len(), entry.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x40], at)?;
    file.sync_all().map_err(Into::into)
}

#[test]
fn flipped_bytes_of_one_replica_are_never_read_and_are_healed() -> Result<()> {
    let Some(cluster) = mounted("flip")? else { return Ok(()) };
    fill(&cluster)?;
    cluster.down()?;
    let mut flips = 0;
    for path in files(&cluster, 2, "data-")? {
        // One byte in each block in use: whatever chunk lies there, its checksum fails.
        let length = std::fs::metadata(&path)?.len();
        let file = OpenOptions::new().read(true).open(&path)?;
        for at in (0..length).step_by(64 << 10) {
            let mut block = [0; 64];
            if file.read_at(&mut block, at)? == 64 && block.iter().any(|&byte| byte != 0) {
                flip(&path, at + 17)?;
                flips += 1;
            }
        }
    }
    ensure!(flips >= 12, "{flips} bytes flipped");
    cluster.up(&[])?;
    read_all(&cluster)?;
    heal(&cluster)?;
    cluster.wait_health("OK", SOON).map(|_| ())
}

#[test]
fn damaged_storage_files_are_named_and_healed_from_the_others() -> Result<()> {
    let Some(cluster) = mounted("storage-damage")? else { return Ok(()) };
    fill(&cluster)?;
    cluster.down()?;
    let cut = |path: &Path, by: u64| -> Result<()> {
        let length = std::fs::metadata(path)?.size();
        OpenOptions::new().write(true).open(path)?.set_len(length.saturating_sub(by)).map_err(Into::into)
    };
    let data = files(&cluster, 1, "data-")?;
    let superblocks = files(&cluster, 1, "superblock-")?;
    let checkpoints = files(&cluster, 1, "checkpoint-")?;
    let largest = data.first().context("no data file")?;
    // All but the first page: chunks fill a file from its start.
    cut(largest, std::fs::metadata(largest)?.len() - 4096)?;
    let own = |name: &Path| name.parent() != largest.parent();
    let other = superblocks.iter().find(|path| own(path)).context("superblock of another target")?;
    let target = other.parent().context("folder")?.to_owned();
    for path in superblocks.iter().filter(|path| path.starts_with(&target)) {
        cut(path, 1000)?;
    }
    let third = checkpoints.iter().find(|path| own(path) && !path.starts_with(&target));
    let third = third.context("checkpoint of a third target")?;
    flip(third, std::fs::metadata(third)?.len() / 2)?;
    cluster.up(&[])?;
    read_all(&cluster)?;
    heal(&cluster)?;
    cluster.wait_health("OK", SOON)?;
    let log = std::fs::read_to_string(cluster.data().join("logs/storage-1.log"))?;
    let name = largest.file_name().context("name")?.to_string_lossy().into_owned();
    ensure!(log.contains(&name) && log.contains("superblock-"), "the damaged files are not named: {log}");
    Ok(())
}

#[test]
fn a_disk_that_is_mounted_late_is_taken_in_without_a_restart() -> Result<()> {
    let Some(cluster) = mounted("late")? else { return Ok(()) };
    fill(&cluster)?;
    cluster.down()?;
    let (disk, away) = (cluster.data().join("storage-1"), cluster.root().join("away"));
    std::fs::create_dir(&away)?;
    let is_target = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("t-");
    let names = std::fs::read_dir(&disk)?.map(|entry| Ok(entry?.file_name()));
    let targets: Vec<_> = names.filter(|n| n.as_ref().is_ok_and(|n| is_target(n))).collect::<Result<_>>()?;
    ensure!(!targets.is_empty(), "no target in {}", disk.display());
    for name in &targets {
        std::fs::rename(disk.join(name), away.join(name))?;
    }
    cluster.up(&[])?;
    cluster.wait_health("WARN", SOON)?;
    expect_exit(&cluster.ember(&["status"])?, 1, &["is missing or empty: is the disk mounted?"])?;
    std::fs::write(cluster.mount().join("meanwhile"), content(99))?;
    for name in &targets {
        std::fs::rename(away.join(name), disk.join(name))?;
    }
    cluster.wait_health("OK", SOON)?;
    cluster.verify_replicas()?;
    read_all(&cluster)
}

#[test]
fn a_damaged_metadata_store_is_refused_and_an_import_brings_it_back() -> Result<()> {
    let Some(cluster) = mounted("meta-damage")? else { return Ok(()) };
    fill(&cluster)?;
    cluster.down()?;
    let exports = std::fs::read_dir(cluster.data().join("exports"))?.count();
    ensure!(exports >= 1, "down writes an export");
    let kv = cluster.data().join("control/kv");
    let damaged = damage_store(&kv)?;
    let mount = cluster.mount();
    let output = cluster.ember(&["up", "--detach", "--mount", mount.to_str().context("path")?])?;
    let text = printed(&output);
    ensure!(!output.status.success(), "up takes a damaged store: {text}");
    ensure!(damaged.iter().any(|name| text.contains(name)), "the file is named, one of {damaged:?}: {text}");
    ensure!(text.contains("ember meta import"), "the remedy is named: {text}");
    expect_exit(&cluster.ember(&["meta", "import"])?, 0, &["imported"])?;
    cluster.up(&[])?;
    read_all(&cluster)?;
    cluster.wait_health("OK", SOON)?;
    cluster.verify_replicas().map(|_| ())
}

/// Flips bytes in the middle of every file of the store; returns the files' names.
fn damage_store(kv: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut open = vec![kv.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let length = entry.metadata()?.len();
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if length > 64 {
                flip(&entry.path(), length / 2)?;
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    ensure!(!names.is_empty(), "the store in {} has no files", kv.display());
    Ok(names)
}

/// The directory of the only generation of each target of a storage node, in order.
fn targets(cluster: &TestCluster, node: u32) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(cluster.data().join(format!("storage-{node}")))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

#[test]
fn anothers_directory_is_kept_aside_and_a_removed_one_is_replaced_when_asked() -> Result<()> {
    let Some(cluster) = mounted("anothers")? else { return Ok(()) };
    fill(&cluster)?;
    cluster.down()?;
    let own = targets(&cluster, 1)?;
    let [first, second, ..] = own.as_slice() else { bail!("two targets a node are needed: {own:?}") };
    for name in ["superblock-a", "superblock-b"] {
        std::fs::copy(second.join(name), first.join(name))?;
    }
    cluster.up(&[])?;
    read_all(&cluster)?;
    cluster.wait_health("OK", SOON)?;
    ensure!(first.join("superblock-a").exists(), "the old content is kept");
    let log = std::fs::read_to_string(cluster.data().join("logs/storage-1.log"))?;
    for words in ["superblock-a, offset 32: is target", "point the storage node at its own data directory"] {
        ensure!(log.contains(words), "{words:?} is not in the log");
    }
    // Removed while the process lives: nothing that is written there would last.
    let gone = targets(&cluster, 2)?.pop().context("a target")?;
    std::fs::remove_dir_all(&gone)?;
    cluster.wait_health("WARN", SOON)?;
    let name = gone.file_name().context("name")?.to_string_lossy().into_owned();
    let id = name.split('-').nth(1).context("number of the target")?.to_owned();
    read_all(&cluster)?;
    cluster.ember_ok(&["target", "replace", &id]).or_else(|_| {
        // Refused until its node has said that it stopped.
        std::thread::sleep(Duration::from_secs(3));
        cluster.ember_ok(&["target", "replace", &id])
    })?;
    cluster.wait_health("OK", SOON)?;
    expect_exit(&cluster.ember(&["target", "scrub", "--all", "--wait"])?, 0, &["nothing damaged"])?;
    cluster.verify_replicas()?;
    read_all(&cluster)
}

#[test]
fn damage_that_no_scrub_can_repair_is_an_error_of_the_status_until_it_is_gone() -> Result<()> {
    let Some(cluster) = cluster("unrepaired")? else { return Ok(()) };
    // The only replica.
    cluster.up(&["--storage-nodes", "1", "--replicas", "1"])?;
    fill(&cluster)?;
    let targets = cluster.targets_of(0)?;
    let &(target, _) = targets.iter().max_by_key(|(_, used)| *used).context("no target")?;
    // Pending versions are committed, and the log is flushed.
    std::thread::sleep(Duration::from_secs(2));
    let piece = cluster.pieces(target)?.into_iter().next().context("no chunk")?;
    flip(&piece.file, piece.offset + 100)?;
    let id = target.to_string();
    let scrub = ["target", "scrub", &id, "--wait"];
    expect_exit(&cluster.ember(&scrub)?, 1, &["1 damaged, only 0 repaired"])?;
    cluster.wait_health("ERR", SOON)?;
    let row = format!("target {target}: 1 damaged chunks or files that its last scrub could not repair");
    let words = ["ERR  damage", &row, "no replica has them", "ember target scrub"];
    expect_exit(&cluster.ember(&["status"])?, 2, &words)?;
    let log = std::fs::read_to_string(cluster.data().join("logs/storage-1.log"))?;
    ensure!(log.contains(&piece.chunk), "the log names chunk {}", piece.chunk);
    // Restored from elsewhere, in place.
    for number in 0..FILES {
        let file = OpenOptions::new().write(true).open(cluster.mount().join(format!("file-{number}")))?;
        file.write_all_at(&content(number), 0)?;
        file.sync_all()?;
    }
    expect_exit(&cluster.ember(&scrub)?, 0, &["nothing damaged"])?;
    cluster.wait_health("OK", SOON).map(|_| ())
}
