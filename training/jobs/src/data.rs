//! Datasets: text in EmberFS, read at random places.

use crate::model::numbers::Random;
use crate::run::say;
use anyhow::{Context, Result, ensure};
use ember_native::{File, FileSystem, Replace};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Text is divided into blocks of so many bytes...
const BLOCK: usize = 1024;
/// ... of which the last of so many is held out.
const ONE_IN: usize = 10;
const FORMAT: u32 = 1;

/// `dataset.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    format: u32,
    /// Where the text is from.
    files: Vec<PathBuf>,
    train_bytes: u64,
    held_out_bytes: u64,
}

/// `ember-train prepare`.
#[derive(clap::Args)]
pub(crate) struct PrepareArgs {
    /// Data directory of the cluster, as given to `ember up`.
    #[arg(long, value_name = "DIR")]
    cluster: PathBuf,
    /// Directory in EmberFS that the dataset becomes; it must not exist yet.
    #[arg(long, value_name = "PATH")]
    to: String,
    /// Text files on this machine, or directories of them.
    #[arg(required = true)]
    from: Vec<PathBuf>,
}

/// All files, those of directories in the order of their names.
fn files(of: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in of {
        let there = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        if !there.is_dir() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| path.display().to_string())?;
            // What a link leads to is found where it is.
            if !entry.file_type()?.is_symlink() {
                paths.push(entry.path());
            }
        }
        paths.sort();
        found.extend(files(&paths)?);
    }
    Ok(found)
}

/// Copies text into EmberFS and holds a part of it out.
pub(crate) fn prepare(args: &PrepareArgs) -> Result<()> {
    let files = files(&args.from)?;
    let mut text = Vec::new();
    for path in &files {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        ensure!(!bytes.contains(&0), "{} is no text: it has bytes of zero (is it packed?)", path.display());
        text.extend(bytes);
    }
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (i, block) in text.chunks(BLOCK).enumerate() {
        let to = if i % ONE_IN == ONE_IN - 1 { &mut held_out } else { &mut train };
        to.extend_from_slice(block);
    }
    ensure!(!held_out.is_empty(), "{} bytes of text are too few: {} are needed", text.len(), BLOCK * ONE_IN);
    let description = Description {
        format: FORMAT,
        files,
        train_bytes: train.len() as u64,
        held_out_bytes: held_out.len() as u64,
    };
    let fs = FileSystem::connect(&args.cluster, "ember-train prepare")?;
    let parent = args.to.trim_end_matches('/').rsplit_once('/').map_or("/", |(parent, _)| parent);
    fs.make_directories(if parent.is_empty() { "/" } else { parent })?;
    let part = format!("{}.part", args.to.trim_end_matches('/'));
    fs.remove_all(&part)?;
    fs.make_directories(&part)?;
    write(&fs, &format!("{part}/train.bin"), &train)?;
    write(&fs, &format!("{part}/held-out.bin"), &held_out)?;
    write(&fs, &format!("{part}/dataset.json"), &serde_json::to_vec_pretty(&description)?)?;
    let published = fs.rename(&part, args.to.trim_end_matches('/'), Replace::Refuse);
    published.with_context(|| format!("{} becomes {}: choose another --to", part, args.to))?;
    fs.sync_directory(if parent.is_empty() { "/" } else { parent })?;
    say(&format!(
        "{}: {} bytes to train with, {} held out, from {} files",
        args.to,
        description.train_bytes,
        description.held_out_bytes,
        description.files.len()
    ))
}

/// Writes a whole file; it is durable then.
pub(crate) fn write(fs: &FileSystem, path: &str, bytes: &[u8]) -> Result<()> {
    let file = fs.create(path)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    file.close()?;
    Ok(())
}

/// Reads a whole file.
pub(crate) fn read(fs: &FileSystem, path: &str) -> Result<Vec<u8>> {
    let file = fs.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.length())?];
    file.read_exact_at(0, &mut bytes)?;
    file.close()?;
    Ok(bytes)
}

/// Text of a dataset.
pub(crate) struct Text {
    file: File,
    /// Tokens of a sequence.
    context: usize,
}

/// Tokens, and those that follow each.
pub(crate) type Sequence = (Vec<u8>, Vec<u8>);

impl Text {
    /// `train.bin` or `held-out.bin` of a dataset.
    pub(crate) fn open(fs: &FileSystem, dataset: &str, name: &str, context: usize) -> Result<Self> {
        let described = format!("{dataset}/dataset.json");
        let description: Description = serde_json::from_slice(&read(fs, &described)?)
            .with_context(|| format!("{described} is damaged: prepare the dataset again"))?;
        ensure!(
            description.format == FORMAT,
            "{described} has format {}, not {FORMAT}: prepare the dataset again",
            description.format
        );
        let file = fs.open(&format!("{dataset}/{name}"))?;
        ensure!(
            file.length() > context as u64,
            "{dataset}/{name} has {} bytes, fewer than a sequence",
            file.length()
        );
        Ok(Self { file, context })
    }

    /// Where sequence `number` of a step begins.
    pub(crate) fn place(&self, seed: u64, step: u64, number: usize) -> u64 {
        let mut random = Random::named(seed, &format!("{step} {number}"));
        random.below(self.file.length() - self.context as u64)
    }

    /// Where `count` sequences begin that are spread evenly and don't overlap.
    pub(crate) fn spread(&self, count: usize) -> Result<Vec<u64>> {
        let apart = (self.file.length() - 1) / count as u64;
        ensure!(
            apart >= self.context as u64,
            "{} bytes of held-out text are too few for {count} sequences of {}: a lower --evaluate, or more text",
            self.file.length(),
            self.context
        );
        Ok((0..count as u64).map(|i| i * apart).collect())
    }

    /// The sequences that begin at these places.
    pub(crate) fn load(&self, places: &[u64]) -> Result<Vec<Sequence>> {
        let ranges: Vec<(u64, usize)> = places.iter().map(|place| (*place, self.context + 1)).collect();
        let texts = self.file.read_many(&ranges)?;
        let mut sequences = Vec::with_capacity(texts.len());
        for text in texts {
            ensure!(text.len() == self.context + 1, "the text has become shorter");
            sequences.push((text[..self.context].to_vec(), text[1..].to_vec()));
        }
        Ok(sequences)
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.file.length())?];
        self.file.read_exact_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A path in EmberFS is absolute and doesn't end in a slash.
pub(crate) fn check_path(name: &str, path: &str) -> Result<()> {
    let fits =
        path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && Path::new(path).is_absolute();
    ensure!(fits, "{name}: {path:?} is no absolute path of a directory in EmberFS");
    Ok(())
}
