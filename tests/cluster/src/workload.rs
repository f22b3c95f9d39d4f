//! A write-and-fsync workload with a list of what was acknowledged, kept outside the mount, and the check that all
//! of it is there after a crash.
//!
//! Each worker makes whole files, appends to a log, overwrites blocks in place and replaces a file by rename. What
//! a file must hold follows from the seed, the worker and a number, so the list is small.

use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a block that is overwritten in place.
const BLOCK: usize = 4096;
/// Blocks of the file that is overwritten in place.
const BLOCKS: u64 = 64;
/// Bytes of a record of the log: not a divisor of anything.
const RECORD: usize = 1777;
/// Longest whole file in bytes: more than one chunk.
const WHOLE_MAX: u64 = 1_300_000;

/// What was acknowledged, in one worker's folder.
#[derive(Clone, Default, Debug)]
struct Worker {
    /// `(number, length)` of files written once.
    whole: Vec<(u64, usize)>,
    /// Records of the log.
    records: u64,
    /// Version of each block; 0 is never written.
    blocks: Vec<u64>,
    /// Version that was being written when the worker ended, and to which block.
    attempted: Option<(u64, u64)>,
    /// Version of the replaced file.
    replaced: u64,
    /// Operations that were acknowledged.
    done: u64,
    /// The longest an operation took.
    longest: Duration,
}

/// A workload that runs.
pub struct Workload {
    folder: PathBuf,
    seed: u64,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Worker, Result<()>)>>,
}

/// What a workload has done, and what must be there.
pub struct Acknowledged {
    folder: PathBuf,
    seed: u64,
    workers: Vec<Worker>,
    /// Operations whose fsync returned.
    pub operations: u64,
    /// The longest that an operation took.
    pub longest: Duration,
    /// Why workers ended before they were told to.
    pub errors: Vec<String>,
}

impl Workload {
    /// Begins in a new folder of the mount. `list` is a file outside it.
    pub fn start(folder: &Path, list: &Path, seed: u64, workers: usize) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let list = OpenOptions::new().append(true).create(true).open(list)?;
        let list = Arc::new(Mutex::new(list));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..workers {
            let own = folder.join(format!("worker-{number}"));
            let (list, stop) = (list.clone(), stop.clone());
            let seed = worker_seed(seed, number);
            threads.push(std::thread::spawn(move || {
                let mut worker = Worker { blocks: vec![0; BLOCKS as usize], ..Worker::default() };
                let result = work(&mut worker, &own, &list, seed, &stop);
                (worker, result)
            }));
        }
        Ok(Self { folder: folder.to_owned(), seed, stop, threads })
    }

    /// Stops the workers, or takes note of how they ended.
    pub fn stop(self) -> Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let mut workers = Vec::new();
        let mut errors = Vec::new();
        for thread in self.threads {
            let Ok((worker, result)) = thread.join() else { bail!("a worker panicked") };
            errors.extend(result.err().map(|error| format!("{error:#}")));
            workers.push(worker);
        }
        let operations = workers.iter().map(|worker| worker.done).sum();
        let longest = workers.iter().map(|worker| worker.longest).max().unwrap_or_default();
        Ok(Acknowledged { folder: self.folder, seed: self.seed, workers, operations, longest, errors })
    }
}

fn worker_seed(seed: u64, worker: usize) -> u64 {
    Random::new(seed ^ (worker as u64) << 32).number()
}

fn content(seed: u64, kind: u64, number: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed ^ kind.rotate_left(48) ^ number.rotate_left(20));
    random.number();
    random.bytes(length)
}

const WHOLE: u64 = 1;
const LOG: u64 = 2;
const BLOCKS_OF: u64 = 3;
const REPLACED: u64 = 4;

fn work(worker: &mut Worker, folder: &Path, list: &Mutex<File>, seed: u64, stop: &AtomicBool) -> Result<()> {
    std::fs::create_dir(folder)?;
    let mut random = Random::new(seed);
    let log = File::create(folder.join("log")).context("making the log")?;
    let blocks = File::create(folder.join("blocks")).context("making the blocks")?;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let number = worker.done + 1;
        let what = match random.below(8) {
            0..3 => whole(worker, folder, seed, number, &mut random)?,
            3..5 => {
                let record = content(seed, LOG, worker.records, RECORD);
                log.write_all_at(&record, worker.records * RECORD as u64).context("log")?;
                log.sync_all().context("fsync of the log")?;
                worker.records += 1;
                format!("log {}", worker.records)
            }
            5..7 => {
                let block = random.below(BLOCKS);
                worker.attempted = Some((block, number));
                blocks
                    .write_all_at(&content(seed, BLOCKS_OF, number, BLOCK), block * BLOCK as u64)
                    .context("overwrite")?;
                blocks.sync_data().context("fdatasync of the blocks")?;
                worker.blocks[block as usize] = number;
                worker.attempted = None;
                format!("block {block} {number}")
            }
            _ => replace(worker, folder, seed, number)?,
        };
        worker.done += 1;
        worker.longest = worker.longest.max(begin.elapsed());
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(list, "{} {what}", folder.display())?;
    }
    Ok(())
}

fn whole(worker: &mut Worker, folder: &Path, seed: u64, number: u64, random: &mut Random) -> Result<String> {
    let limit = if random.below(8) == 0 { WHOLE_MAX } else { 20_000 };
    let length = random.below(limit) as usize;
    let name = format!("whole-{number}");
    let mut file = File::create_new(folder.join(&name)).with_context(|| format!("making {name}"))?;
    file.write_all(&content(seed, WHOLE, number, length)).with_context(|| format!("writing {name}"))?;
    file.sync_all().with_context(|| format!("fsync of {name}"))?;
    worker.whole.push((number, length));
    Ok(format!("whole {number} {length}"))
}

fn replace(worker: &mut Worker, folder: &Path, seed: u64, number: u64) -> Result<String> {
    let new = folder.join("replaced.new");
    let mut file = File::create(&new).context("making replaced.new")?;
    file.write_all(&replaced_content(seed, number)).context("writing replaced.new")?;
    file.sync_all().context("fsync of replaced.new")?;
    std::fs::rename(&new, folder.join("replaced")).context("rename")?;
    File::open(folder)?.sync_all().context("fsync of the folder")?;
    worker.replaced = number;
    Ok(format!("replaced {number}"))
}

/// The version stands in front, so that it can be told which one is there.
fn replaced_content(seed: u64, version: u64) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(content(seed, REPLACED, version, 9000));
    bytes
}

impl Acknowledged {
    /// Where it wrote.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// Reads everything that was acknowledged.
    pub fn check(&self) -> Result<()> {
        for (number, worker) in self.workers.iter().enumerate() {
            let folder = self.folder.join(format!("worker-{number}"));
            let seed = worker_seed(self.seed, number);
            if worker.done > 0 {
                worker.check(&folder, seed).with_context(|| format!("in {}", folder.display()))?;
            }
        }
        Ok(())
    }
    /// An error if a worker saw one.
    pub fn expect_no_errors(&self) -> Result<()> {
        ensure!(self.errors.is_empty(), "the workload saw errors: {}", self.errors.join("; "));
        Ok(())
    }
}

impl Worker {
    fn check(&self, folder: &Path, seed: u64) -> Result<()> {
        for &(number, length) in &self.whole {
            let name = format!("whole-{number}");
            let found = std::fs::read(folder.join(&name)).with_context(|| format!("reading {name}"))?;
            same(&name, &found, &content(seed, WHOLE, number, length))?;
        }
        let log = std::fs::read(folder.join("log")).context("reading the log")?;
        let expected: Vec<u8> = (0..self.records).flat_map(|n| content(seed, LOG, n, RECORD)).collect();
        ensure!(log.len() >= expected.len(), "the log has {} of {} bytes", log.len(), expected.len());
        same("log", &log[..expected.len()], &expected)?;
        self.check_blocks(folder, seed)?;
        if self.replaced > 0 {
            let found = std::fs::read(folder.join("replaced")).context("reading the replaced file")?;
            ensure!(found.len() >= 8, "the replaced file has {} bytes", found.len());
            let version = u64::from_le_bytes(found[..8].try_into()?);
            ensure!(version >= self.replaced, "the replaced file is {version}, {} was", self.replaced);
            same("replaced", &found, &replaced_content(seed, version))?;
        }
        Ok(())
    }

    fn check_blocks(&self, folder: &Path, seed: u64) -> Result<()> {
        let file = File::open(folder.join("blocks")).context("opening the blocks")?;
        for (block, &version) in self.blocks.iter().enumerate().filter(|(_, version)| **version > 0) {
            let mut found = vec![0; BLOCK];
            file.read_exact_at(&mut found, (block * BLOCK) as u64)
                .with_context(|| format!("block {block}"))?;
            let attempt = self.attempted.filter(|&(at, _)| at == block as u64).map(|(_, version)| version);
            let newer = attempt.is_some_and(|attempt| found == content(seed, BLOCKS_OF, attempt, BLOCK));
            if !newer {
                same(&format!("block {block}"), &found, &content(seed, BLOCKS_OF, version, BLOCK))?;
            }
        }
        Ok(())
    }
}

fn same(name: &str, found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{name} has {} of {} bytes", found.len(), expected.len());
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let zeros = found[at..].iter().take_while(|&&byte| byte == 0).count();
        bail!("{name} differs at byte {at} of {} ({zeros} zeros follow)", found.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_checked() {
        let root = std::env::temp_dir().join(format!("ember-workload-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).unwrap();
        let workload = Workload::start(&root.join("w"), &root.join("list"), 7, 2).unwrap();
        std::thread::sleep(Duration::from_millis(600));
        let done = workload.stop().unwrap();
        done.expect_no_errors().unwrap();
        assert!(done.operations > 0);
        done.check().unwrap();
        let log = root.join("w/worker-0/log");
        let length = std::fs::metadata(&log).unwrap().len();
        if length > 0 {
            let file = OpenOptions::new().write(true).open(&log).unwrap();
            file.write_all_at(&[0xff; 16], length / 2).unwrap();
            assert!(done.check().is_err());
            file.set_len(length - 1).unwrap();
            assert!(format!("{:#}", done.check().unwrap_err()).contains("log"));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
