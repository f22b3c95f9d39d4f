//! `ember-train run`: starts the ranks of a job, shows how it goes, and starts them again from the last checkpoint if
//! one dies.

use crate::bigram::Bigrams;
use crate::checkpoint;
use crate::curve::Curve;
use crate::data::Text;
use crate::job::{Report, Settings, Start};
use anyhow::{Context, Result, ensure};
use ember_native::FileSystem;
use indicatif::{ProgressBar, ProgressStyle};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// `ember-train run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Write the loss curve to this file, as SVG.
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
    /// Times that the ranks are started again after one has died.
    #[arg(long, default_value_t = 2)]
    restarts: usize,
    /// Print a line of JSON for each step, look and checkpoint instead of a progress bar.
    #[arg(long)]
    json: bool,
}

/// A process of the job. It is killed when this goes.
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(start: &Start) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("rank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a rank")?;
        let to = child.stdin.take().context("a pipe to a rank")?;
        let from = BufReader::new(child.stdout.take().context("a pipe from a rank")?);
        let mut process = Self { child, to, from };
        process.say(start)?;
        Ok(process)
    }
    fn say(&mut self, what: &impl serde::Serialize) -> Result<()> {
        writeln!(self.to, "{}", serde_json::to_string(what)?)?;
        Ok(self.to.flush()?)
    }
    /// Its next line; nothing when it has ended.
    fn hear<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line).with_context(|| format!("a rank says {line:?}"))?))
    }
}

/// A line of output; that nobody reads it any more is an error like others.
pub(crate) fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to the standard output")
}

/// What is shown.
struct Show {
    bar: Option<ProgressBar>,
    curve: Curve,
    svg: Option<PathBuf>,
}

impl Show {
    fn new(args: &Args, bigram: f64) -> Result<Self> {
        let style =
            ProgressStyle::with_template("{pos:>6}/{len} steps {wide_bar} {elapsed} left {eta}  {msg}")?;
        let bar = (!args.json).then(|| ProgressBar::new(args.settings.steps).with_style(style));
        let curve = Curve { train: Vec::new(), held_out: Vec::new(), bigram };
        Ok(Self { bar, curve, svg: args.curve.clone() })
    }
    fn line(&self, text: &str) -> Result<()> {
        if let Some(bar) = &self.bar {
            // Without a terminal the bar shows nothing, lines do.
            if bar.is_hidden() { say(text)? } else { bar.println(text) }
        }
        Ok(())
    }
    fn report(&mut self, report: &Report) -> Result<()> {
        match report {
            Report::Step { step, loss, norm } => {
                self.curve.train.push((*step, *loss));
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    bar.set_message(format!("loss {loss:.3}, gradient {norm:.2}"));
                }
            }
            Report::Placed { step, moves, imbalance: (before, after) } => self.line(&format!(
                "step {step}: {moves} replicas of experts moved, greatest load over mean {before:.2} -> {after:.2}"
            ))?,
            Report::HeldOut { step, loss } => {
                self.curve.held_out.push((*step, *loss));
                let bigram = self.curve.bigram;
                self.line(&format!("step {step}: loss on held-out text {loss:.4}, bigram model {bigram:.4}"))?;
            }
            Report::Checkpoint { step } => self.line(&format!("step {step}: checkpoint"))?,
        }
        if self.bar.is_none() {
            let mut line = serde_json::to_value(report)?;
            if let Report::HeldOut { .. } = report {
                line["held_out"]["bigram"] = self.curve.bigram.into();
            }
            say(&line.to_string())?;
        }
        Ok(())
    }
    fn save(&self) -> Result<()> {
        match &self.svg {
            Some(path) => std::fs::write(path, self.curve.svg()).with_context(|| path.display().to_string()),
            None => Ok(()),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let settings = &args.settings;
    settings.check()?;
    let fs = FileSystem::connect(&settings.cluster, "ember-train run")?;
    fs.make_directories(&settings.checkpoints)?;
    let context = settings.config.context;
    let train = Text::open(&fs, &settings.dataset, "train.bin", context)?;
    let held_out = Text::open(&fs, &settings.dataset, "held-out.bin", context)?;
    let places = held_out.spread(settings.evaluated())?;
    let bigram = Bigrams::of(&train.whole()?).loss(&held_out.load(&places)?);
    let mut show = Show::new(args, bigram)?;
    for turn in 0.. {
        checkpoint::tidy(&fs, &settings.checkpoints, settings.keep, true)?;
        let from = checkpoint::steps(&fs, &settings.checkpoints)?.last().copied();
        show.line(&from.map_or("beginning".into(), |step| format!("going on from step {step}")))?;
        match attempt(settings, from, &mut show) {
            Ok(()) => break,
            Err(error) if turn < args.restarts => show.line(&format!("{error:#}; starting again"))?,
            Err(error) => {
                return Err(error.context("the same command goes on from the last checkpoint"));
            }
        }
    }
    if let Some(bar) = &show.bar {
        bar.finish();
    }
    show.save()?;
    let last = show.curve.held_out.last();
    if let (Some((step, loss)), false) = (last, args.json) {
        say(&format!("held-out text after step {step}: {loss:.4} nats a byte, bigram model {bigram:.4}"))?;
    }
    Ok(())
}

/// Runs all ranks until they are done.
fn attempt(settings: &Settings, from: Option<u64>, show: &mut Show) -> Result<()> {
    let job = RandomState::new().build_hasher().finish();
    let start = |rank| Process::start(&Start { settings: settings.clone(), rank, job, from });
    let mut ranks = (0..settings.ranks.count()).map(start).collect::<Result<Vec<_>>>()?;
    let mut addresses: Vec<String> = Vec::new();
    for (rank, process) in ranks.iter_mut().enumerate() {
        addresses.push(process.hear()?.with_context(|| format!("rank {rank} hasn't begun"))?);
    }
    for process in &mut ranks {
        process.say(&addresses)?;
    }
    while let Some(report) = ranks[0].hear::<Report>()? {
        show.report(&report)?;
        if matches!(report, Report::HeldOut { .. }) {
            show.save()?;
        }
    }
    for (rank, process) in ranks.iter_mut().enumerate() {
        let status = process.child.wait()?;
        ensure!(status.success(), "rank {rank} has ended with {status}");
    }
    Ok(())
}
