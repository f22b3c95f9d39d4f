//! Minutes of faults in random order under fio with `--verify`: killed, stopped, emptied and damaged storage processes.

use super::bitrot::now;
use super::fio::Fio;
use super::pause::pause;
use super::{Bench, WELL};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::damage::{files, flip, places_in_data};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::steady::{Steady, SteadyWriter};
use ember_cluster_tests::{TestCluster, missing_program, signal, wait_gone};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Storage processes.
const NODES: u64 = 3;
/// Longest stall that a writer may see.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Pause between the writes of the probe.
const PROBE: Duration = Duration::from_millis(100);
/// How long a stopped process stays stopped.
const STOPPED: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// `kill -9`; the supervisor starts it again.
    Kill,
    /// SIGSTOP for a while.
    Stop,
    /// `kill -9`, its directory emptied, and each of its targets replaced.
    Empty,
    /// One bit of a file.
    Flip,
}

struct Run<'a> {
    cluster: &'a TestCluster,
    random: Random,
    begin: Instant,
}

/// Runs for so many minutes; every kind of event comes once before any comes again.
pub(super) fn run(bench: &Bench, minutes: u64) -> Result<()> {
    if let Some(reason) = missing_program(&["fio"]) {
        bail!("{reason}: `apt-get install fio`");
    }
    ensure!(minutes > 0, "at least one minute");
    let cluster = bench.cluster("faults")?;
    cluster.up(&[])?;
    cluster.wait_health("OK", WELL)?;
    let mut run = Run { cluster: &cluster, random: Random::new(bench.seed), begin: now() };
    let fio = Fio::start(cluster.mount().join("fio"), cluster.root(), run.random.number())?;
    let probe = SteadyWriter::start(&cluster.mount().join("probe"), PROBE)?;
    run.begin = now();
    let faults = run.faults(Duration::from_secs(minutes * 60), &fio);
    run.say("no more faults; fio ends its round");
    let (fio, probe) = (fio.stop(), probe.stop());
    let events = faults.and_then(|events| {
        run.say("all that is left of the flipped bits is scrubbed");
        print!("{}", cluster.ember_ok(&["target", "scrub", "--all", "--wait"])?);
        cluster.wait_health("OK", WELL)?;
        Ok(events)
    });
    report(&cluster, fio, probe, events)
}

fn report(
    cluster: &TestCluster,
    fio: Result<super::fio::Done>,
    probe: Result<Steady>,
    events: Result<Vec<Event>>,
) -> Result<()> {
    let mut failed = Vec::new();
    match &fio {
        Ok(done) => println!(
            "fio: {} rounds, {} MiB in {} writes, {} MiB in {} reads, every one verified: no error",
            done.rounds,
            done.written >> 20,
            done.writes,
            done.read >> 20,
            done.reads
        ),
        Err(error) => failed.push(format!("fio: {error:#}")),
    }
    match &probe {
        Ok(probe) => {
            println!("probe: {} writes of 4 KiB with fsync, all read back", probe.writes);
            for (at, gap) in &probe.gaps {
                println!("  stall of {:.2} s at {:.1} s", gap.as_secs_f64(), at.as_secs_f64());
            }
            println!("longest stall: {:.2} s (under {} s)", probe.longest.as_secs_f64(), STALL_MAX.as_secs());
            if probe.longest >= STALL_MAX {
                failed.push("the longest stall is too long".into());
            }
        }
        Err(error) => failed.push(format!("probe: {error:#}")),
    }
    match &events {
        Ok(events) => {
            let count = |kind| events.iter().filter(|event| **event == kind).count();
            println!(
                "{} processes killed, {} stopped for {} s, {} emptied and replaced, {} bits flipped",
                count(Event::Kill),
                count(Event::Stop),
                STOPPED.as_secs(),
                count(Event::Empty),
                count(Event::Flip)
            );
        }
        Err(error) => failed.push(format!("{error:#}")),
    }
    match cluster.verify_replicas() {
        Ok(text) => println!("{}", text.trim_end()),
        Err(error) => failed.push(format!("{error:#}")),
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

impl Run<'_> {
    fn say(&self, text: &str) {
        println!("{:>6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }

    fn faults(&mut self, time: Duration, fio: &Fio) -> Result<Vec<Event>> {
        let mut done = Vec::new();
        let mut left: Vec<Event> = Vec::new();
        loop {
            pause(Duration::from_millis(2000 + self.random.below(4000)));
            if self.begin.elapsed() >= time {
                ensure!(done.len() >= 4, "{} events only: not every kind had its turn", done.len());
                return Ok(done);
            }
            ensure!(!fio.has_failed(), "fio has ended");
            if left.is_empty() {
                left = vec![Event::Kill, Event::Stop, Event::Empty, Event::Flip];
            }
            let event = left.swap_remove(self.random.below(left.len() as u64) as usize);
            let index = self.random.below(NODES) as usize;
            self.strike(event, index)
                .with_context(|| format!("{event:?} of storage process {}", index + 1))?;
            let back = self.cluster.wait_health("OK", WELL)?;
            self.say(&format!("health OK, {:.1} s later", back.as_secs_f64()));
            done.push(event);
        }
    }

    fn strike(&mut self, event: Event, index: usize) -> Result<()> {
        let number = index + 1;
        let pid = *self.cluster.pids("storage")?.get(index).context("no such storage process")?;
        match event {
            Event::Kill => {
                self.say(&format!("kill -9 of storage process {number}"));
                signal(pid, Signal::KILL);
                wait_gone(pid, WELL)?;
                self.noticed()
            }
            Event::Stop => {
                self.say(&format!("SIGSTOP to storage process {number}"));
                signal(pid, Signal::STOP);
                pause(STOPPED);
                signal(pid, Signal::CONT);
                self.say(&format!("SIGCONT to storage process {number}"));
                self.noticed()
            }
            Event::Empty => self.empty(index, pid),
            Event::Flip => self.flip(index),
        }
    }

    /// Health is not OK for a while: mgmtd has taken the process' targets out of service.
    fn noticed(&self) -> Result<()> {
        self.cluster.wait_health("WARN", WELL).map(|_| ())
    }

    fn empty(&mut self, index: usize, pid: i32) -> Result<()> {
        let targets = self.cluster.targets_of(index)?;
        self.say(&format!("kill -9 of storage process {}, its directory is emptied", index + 1));
        signal(pid, Signal::KILL);
        wait_gone(pid, WELL)?;
        for entry in std::fs::read_dir(self.cluster.disk_of(index))? {
            let path = entry?.path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path)?;
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        self.noticed()?;
        for (target, _) in &targets {
            self.replace(*target)?;
        }
        self.say(&format!("`ember target replace` given for {} targets", targets.len()));
        Ok(())
    }

    /// Refused as long as the target counts as serving, until its lease has run out.
    fn replace(&self, target: u64) -> Result<()> {
        let begin = now();
        loop {
            let output = self.cluster.ember(&["target", "replace", &target.to_string()])?;
            if output.status.success() {
                return Ok(());
            }
            if begin.elapsed() > WELL {
                bail!("target {target} is not replaced: {}", String::from_utf8_lossy(&output.stderr));
            }
            pause(Duration::from_millis(500));
        }
    }

    /// A bit of a chunk of one of the process' targets. What is known of their places may be out of date when it is
    /// flipped: then it is one that nobody needs.
    fn flip(&mut self, index: usize) -> Result<()> {
        let targets = self.cluster.targets_of(index)?;
        let (target, _) = targets[self.random.below(targets.len() as u64) as usize];
        let (file, at) = match self.cluster.pieces(target) {
            Ok(pieces) if !pieces.is_empty() => {
                let place = places_in_data(&pieces, 1, &mut self.random)?.remove(0);
                (place.0, place.1)
            }
            // Its files changed while they were looked at.
            _ => {
                let found = files(&self.cluster.target_dir(index, target)?, "data-")?;
                let file = found.last().context("no data file")?.clone();
                let length = std::fs::metadata(&file)?.len();
                (file, self.random.below(length.max(1)))
            }
        };
        flip(&file, at, 1 << self.random.below(8))?;
        let name = file.strip_prefix(self.cluster.data()).unwrap_or(&file).display().to_string();
        self.say(&format!("a bit of {name} flipped at {at}"));
        Ok(())
    }
}
