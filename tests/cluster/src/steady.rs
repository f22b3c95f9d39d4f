//! A steady writer: 4 KiB with fsync each 100 ms, and the gaps between the writes that completed.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a write.
const BLOCK: usize = 4096;
/// Files written in turn, so that every storage process is the head of some chain in use.
const FILES: u64 = 8;

/// A writer that runs.
pub struct SteadyWriter {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Instant>>>,
}

/// What a writer has done.
#[derive(Clone, Debug)]
pub struct Steady {
    /// Writes that completed.
    pub writes: u64,
    /// The longest time between two that completed one after the other.
    pub longest: Duration,
    /// Gaps of more than a second: when they began, counted from the writer's start, and how long they were.
    pub gaps: Vec<(Duration, Duration)>,
}

/// Gaps this long are listed.
const GAP: Duration = Duration::from_secs(1);

impl SteadyWriter {
    /// Begins to write into a new folder, once each `period`.
    pub fn start(folder: &Path, period: Duration) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let (own, flag) = (folder.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || write(&own, period, &flag));
        Ok(Self { folder: folder.to_owned(), stop, thread })
    }

    /// Stops, reads everything back, and says how it went.
    pub fn stop(self) -> Result<Steady> {
        self.stop.store(true, Ordering::Relaxed);
        let times = match self.thread.join() {
            Ok(times) => times?,
            Err(_) => bail!("the steady writer panicked"),
        };
        for number in 0..times.len() as u64 {
            let mut block = [0; BLOCK];
            let path = self.folder.join(format!("steady-{}", number % FILES));
            File::open(&path)?.read_exact_at(&mut block, number / FILES * BLOCK as u64)?;
            if block != content(number) {
                bail!("{}: block {} is not what was written", path.display(), number / FILES);
            }
        }
        let begin = times.first().copied();
        let gaps = times.windows(2).map(|pair| (pair[0] - begin.unwrap_or(pair[0]), pair[1] - pair[0]));
        let longest = gaps.clone().map(|(_, gap)| gap).max().unwrap_or_default();
        Ok(Steady {
            writes: times.len() as u64,
            longest,
            gaps: gaps.filter(|(_, gap)| *gap >= GAP).collect(),
        })
    }
}

fn content(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    crate::random::Random::new(number).fill(&mut block);
    block
}

fn write(folder: &Path, period: Duration, stop: &AtomicBool) -> Result<Vec<Instant>> {
    let open = |number| File::create(folder.join(format!("steady-{number}")));
    let files = (0..FILES).map(open).collect::<std::io::Result<Vec<File>>>()?;
    let mut times = vec![];
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = times.len() as u64;
        let file = &files[(number % FILES) as usize];
        let place = number / FILES * BLOCK as u64;
        file.write_all_at(&content(number), place).with_context(|| format!("write {number}"))?;
        file.sync_all().with_context(|| format!("fsync {number}"))?;
        times.push(Instant::now());
        due = (due + period).max(Instant::now());
        std::thread::sleep(due - Instant::now().min(due));
    }
    Ok(times)
}
