//! `ember-train` on a real cluster: a job goes on where it was killed, bit for bit, and doesn't notice that a storage
//! process dies.

use crate::common::mounted;
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::random::{Random, fresh_seed};
use ember_cluster_tests::{TestCluster, skip};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Text that the package base-files of Debian ships.
const TEXT: &str = "/usr/share/common-licenses";
const DATASET: &str = "/datasets/licences";
const STEPS: u64 = 12;

/// A small model on four ranks.
const SMALL: &[&str] = &[
    "--layers=2",
    "--heads=2",
    "--head=16",
    "--context=32",
    "--experts=4",
    "--slots=6",
    "--chunks=4",
    "--sequences=2",
    "--evaluate=4",
    "--steps=12",
    "--warmup=2",
    "--checkpoint-every=3",
    "--rebalance=4",
    "--evaluate-every=6",
    "--limit=60",
];

fn train(cluster: &TestCluster, command: &str, args: &[&str]) -> Command {
    let mut train = Command::new(cluster.binary().with_file_name("ember-train"));
    train.arg(command).arg("--cluster").arg(cluster.data()).args(args).stdin(Stdio::null());
    train
}

fn job(cluster: &TestCluster, name: &str, args: &[&str]) -> Command {
    let checkpoints = format!("--checkpoints=/checkpoints/{name}");
    let dataset = format!("--dataset={DATASET}");
    train(cluster, "run", &[&["--json", &dataset, &checkpoints], args].concat())
}

fn finished(mut command: Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    Ok(text)
}

/// A job whose steps are followed; its processes are a group of their own.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.process_group(0).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Self { child, lines })
    }
    /// Waits until so many steps are done, in all.
    fn until(&mut self, step: u64) -> Result<()> {
        for line in &mut self.lines {
            let line: Value = serde_json::from_str(&line?)?;
            if line["step"]["step"].as_u64().is_some_and(|done| done >= step) {
                return Ok(());
            }
        }
        bail!("the job has ended before step {step}")
    }
    fn kill(mut self) -> Result<()> {
        let group = Pid::from_raw(self.child.id().try_into()?).context("a process")?;
        kill_process_group(group, Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }
    fn end(mut self) -> Result<()> {
        for line in &mut self.lines {
            line?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the job has ended with {status}");
        Ok(())
    }
}

fn prepared(name: &str) -> Result<Option<TestCluster>> {
    let Some(cluster) = mounted(name)? else { return Ok(None) };
    if !Path::new(TEXT).is_dir() {
        skip(name, &format!("{TEXT} of Debian's base-files is not there"));
        return Ok(None);
    }
    cluster.wait_health("OK", Duration::from_secs(60))?;
    finished(train(&cluster, "prepare", &["--to", DATASET, TEXT]))?;
    Ok(Some(cluster))
}

/// Bytes of all files of a checkpoint, but for what says which job wrote it.
fn checkpoint(cluster: &TestCluster, name: &str, step: u64) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = cluster.mount().join(format!("checkpoints/{name}/step-{step:08}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}

/// The last losses on held-out text: of the model, and of bigrams.
fn held_out(lines: &str) -> Result<(f64, f64)> {
    let all = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let losses =
        |line: Value| Some((line["held_out"]["loss"].as_f64()?, line["held_out"]["bigram"].as_f64()?));
    all.filter_map(losses).next_back().with_context(|| format!("no loss on held-out text in\n{lines}"))
}

#[test]
fn a_killed_job_goes_on_bit_for_bit() -> Result<()> {
    let Some(cluster) = prepared("training")? else { return Ok(()) };
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);

    let mut whole = Running::start(job(&cluster, "whole", SMALL))?;
    whole.until(1 + random.below(STEPS - 4))?;
    cluster.kill_storage(random.below(3) as usize, Signal::KILL)?;
    whole.end()?;
    let expected = checkpoint(&cluster, "whole", STEPS)?;
    ensure!(expected.len() == 5, "four ranks and what they have in common");

    for _ in 0..2 {
        let mut killed = Running::start(job(&cluster, "killed", SMALL))?;
        // Some time into a step, or into the writing of a checkpoint.
        let step = 4 + random.below(STEPS - 6);
        if killed.until(step).is_ok() {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            killed.kill()?;
        }
    }
    finished(job(&cluster, "killed", SMALL))?;
    let found = checkpoint(&cluster, "killed", STEPS)?;
    for ((name, expected), (other, found)) in expected.iter().zip(&found) {
        ensure!(name == other && expected == found, "{name} differs, seed {seed}");
    }
    let left = std::fs::read_dir(cluster.mount().join("checkpoints/killed"))?;
    let names: Vec<_> = left.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    ensure!(names.len() == 3, "three checkpoints are kept, nothing half: {names:?}");
    Ok(())
}

#[test]
fn other_ranks_take_a_checkpoint_over_and_pages_are_found_again() -> Result<()> {
    let Some(cluster) = prepared("resharding")? else { return Ok(()) };
    let (before, _) = held_out(&finished(job(&cluster, "moving", SMALL))?)?;
    let slow = ["--steps=13", "--rate=0.000001", "--evaluate-every=13"];
    for ranks in [["--pipeline=2", "--expert=1"], ["--pipeline=1", "--expert=2"]] {
        let kind = if ranks[0] == "--pipeline=1" { "--kind=dualpipev" } else { "--kind=dualpipe" };
        // What is evaluated depends on the number of sequences, which must stay.
        let sequences = if ranks[1] == "--expert=1" { "--sequences=4" } else { "--sequences=2" };
        let folder = cluster.mount().join("checkpoints");
        let (from, to) = (folder.join("moving"), folder.join("moved"));
        ember_cluster_tests::run("cp", &["-r", &from.to_string_lossy(), &to.to_string_lossy()])?;
        let args = [SMALL, &ranks, &slow, &[kind, sequences]].concat();
        let args: Vec<&str> = last_of_each(&args);
        let (after, _) = held_out(&finished(job(&cluster, "moved", &args))?)?;
        ensure!((before - after).abs() < 0.02, "loss {before}, and with {ranks:?} {after}");
        std::fs::remove_dir_all(to)?;
    }

    let text = std::fs::read_to_string(format!("{TEXT}/GPL-3"))?;
    let generate = |tokens: &str| -> Result<Value> {
        let args = ["--checkpoints=/checkpoints/moving", "--pages=/pages", "--json", "--temperature=0"];
        let more = ["--prompt", &text[..300], "--tokens", tokens];
        Ok(serde_json::from_str(&finished(train(&cluster, "generate", &[&args[..], &more].concat()))?)?)
    };
    let (first, second) = (generate("40")?, generate("40")?);
    ensure!(first["found_tokens"] == 0 && first["pages_written"] == 5, "{first}");
    ensure!(second["found_tokens"] == 256 && second["text"] == first["text"], "{first}\n{second}");
    Ok(())
}

#[test]
fn the_model_becomes_better_than_bigrams() -> Result<()> {
    let Some(cluster) = prepared("learning")? else { return Ok(()) };
    let curve = cluster.root().join("loss.svg");
    let curve_arg = format!("--curve={}", curve.display());
    let args = [
        "--layers=2",
        "--context=64",
        "--chunks=4",
        "--sequences=4",
        "--evaluate=8",
        "--steps=60",
        "--warmup=10",
        "--rate=0.005",
        "--rebalance=20",
        "--evaluate-every=20",
        "--checkpoint-every=60",
        &curve_arg,
    ];
    let (loss, bigram) = held_out(&finished(job(&cluster, "learning", &args))?)?;
    eprintln!("loss {loss}, bigram model {bigram}");
    ensure!(loss < bigram - 0.1, "loss on held-out text {loss}, bigram model {bigram}");
    let svg = std::fs::read_to_string(&curve).with_context(|| curve.display().to_string())?;
    ensure!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 2, "{svg}");
    Ok(())
}

/// The command takes each option once: the last one counts.
fn last_of_each<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let name = |arg: &str| arg.split('=').next().unwrap_or("").to_owned();
    let later = |i: usize| args[i + 1..].iter().any(|other| name(other) == name(args[i]));
    (0..args.len()).filter(|i| !later(*i)).map(|i| args[i]).collect()
}
