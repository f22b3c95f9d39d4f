//! fio with `--verify` on a folder, round after round, until it is told to stop.

use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::random::Random;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// One kind of load within a round. Every byte that it writes carries a CRC32C, and is read and compared while the
/// round goes on and again at its end.
struct Job {
    name: &'static str,
    block: &'static str,
    size: &'static str,
    pattern: &'static str,
    direct: u8,
    fsync: u32,
}

/// Direct jobs read from the cluster, buffered ones go through the page cache and its write-back.
const JOBS: [Job; 5] = [
    Job { name: "small-direct", block: "4k", size: "8m", pattern: "randwrite", direct: 1, fsync: 16 },
    Job { name: "medium-direct", block: "64k", size: "64m", pattern: "randwrite", direct: 1, fsync: 32 },
    Job { name: "large-direct", block: "1m", size: "128m", pattern: "write", direct: 1, fsync: 0 },
    Job { name: "small-buffered", block: "4k", size: "8m", pattern: "randwrite", direct: 0, fsync: 8 },
    Job { name: "medium-mixed", block: "16k", size: "32m", pattern: "randrw", direct: 1, fsync: 64 },
];

/// What all rounds came to.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Done {
    pub(super) rounds: u64,
    pub(super) written: u64,
    pub(super) read: u64,
    pub(super) writes: u64,
    pub(super) reads: u64,
}

/// fio that runs.
pub(super) struct Fio {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Done>>,
}

impl Fio {
    /// Begins in a new folder; the job file stands in `scratch`.
    #[expect(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]
    pub(super) fn start(folder: PathBuf, scratch: &Path, seed: u64) -> Result<Self> {
        std::fs::create_dir(&folder)?;
        let jobs = scratch.join("verify.fio");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(seed);
            let mut done = Done::default();
            while !flag.load(Ordering::Relaxed) {
                round(&folder, &jobs, random.below(1 << 31), &mut done)
                    .with_context(|| format!("fio, round {}", done.rounds + 1))?;
                done.rounds += 1;
            }
            Ok(done)
        });
        Ok(Self { stop, thread })
    }

    /// Whether it has ended by itself: with an error.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Lets the present round end, and says how all of them went.
    pub(super) fn stop(self) -> Result<Done> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(done) => done,
            Err(_) => bail!("the thread of fio panicked"),
        }
    }
}

fn job_file(folder: &Path, seed: u64) -> String {
    let mut text = format!(
        "[global]\ndirectory={}\nioengine=psync\nverify=crc32c\ndo_verify=1\nverify_fatal=1\nverify_backlog=64\n\
         randseed={seed}\nend_fsync=1\nthread=1\n",
        folder.display()
    );
    for job in &JOBS {
        let Job { name, block, size, pattern, direct, fsync } = job;
        text += &format!(
            "[{name}]\nbs={block}\nsize={size}\nrw={pattern}\ndirect={direct}\nfsync={fsync}\nfilename={name}\n"
        );
    }
    text
}

fn round(folder: &Path, jobs: &Path, seed: u64, done: &mut Done) -> Result<()> {
    std::fs::write(jobs, job_file(folder, seed))?;
    // Its notes on bad blocks go where it is started.
    let place = jobs.parent().context("folder of the job file")?;
    let output = Command::new("fio")
        .args(["--output-format=json", "--alloc-size=131072"])
        .arg(jobs)
        .current_dir(place)
        .stdin(Stdio::null())
        .output()
        .context("starting fio")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {}{}", output.status, err.trim(), tail(&out));
    ensure!(err.trim().is_empty(), "it complains: {}", err.trim());
    let start = out.find('{').with_context(|| format!("no report: {out}"))?;
    let report: Value = serde_json::from_str(&out[start..]).context("its report")?;
    let rows = report["jobs"].as_array().context("jobs of its report")?;
    ensure!(rows.len() == JOBS.len(), "{} jobs reported", rows.len());
    for row in rows {
        ensure!(row["error"] == 0, "job {} ends with error {}", row["jobname"], row["error"]);
        let number = |way: &str, what: &str| row[way][what].as_u64().unwrap_or(0);
        done.written += number("write", "io_bytes");
        done.read += number("read", "io_bytes");
        done.writes += number("write", "total_ios");
        done.reads += number("read", "total_ios");
    }
    Ok(())
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    text.get(from..).unwrap_or(text)
}
