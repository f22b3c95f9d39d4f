//! Checkpoints in EmberFS: a directory for each step, in which every rank writes the parameters that it owns, with
//! their moments, as a safetensors file (<https://huggingface.co/docs/safetensors>), and rank 0 what they have in
//! common, `state.json`. The directory has the name `step-N.part` until all is durable, and gets its own then.
//! Readers find each tensor by its name, whichever file it is in: the number of ranks may change.

use crate::data::{read, write};
use crate::model::Config;
use crate::optimizer::Owned;
use crate::ranks::{Ranks, Spec};
use anyhow::{Context, Result, bail, ensure};
use ember_native::{File, FileSystem, Replace};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

const FORMAT: u32 = 1;
/// Longer headers are damage.
const HEADER_MAX: u64 = 64 << 20;

/// What all ranks have in common at the end of a step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) format: u32,
    pub(crate) step: u64,
    pub(crate) config: Config,
    /// Of the job that wrote it.
    pub(crate) ranks: Ranks,
    /// `[layers][slots]`: which expert each slot holds.
    pub(crate) places: Vec<Vec<usize>>,
    /// `[layers][experts]`: added to the gates' scores.
    pub(crate) bias: Vec<Vec<f32>>,
    /// `[layers][experts]`: tokens since the slots were given out last.
    pub(crate) counts: Vec<Vec<u64>>,
}

impl State {
    /// Before the first step.
    pub(crate) fn new(config: &Config, ranks: &Ranks) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            config: config.clone(),
            ranks: ranks.clone(),
            places: first_places(config, ranks),
            bias: vec![vec![0.0; config.experts]; config.layers],
            counts: vec![vec![0; config.experts]; config.layers],
        }
    }
}

/// Places of the experts' replicas before any load is known.
pub(crate) fn first_places(config: &Config, ranks: &Ranks) -> Vec<Vec<usize>> {
    let slots: Vec<usize> = (0..ranks.slots).map(|slot| slot % config.experts).collect();
    vec![slots; config.layers]
}

fn directory(root: &str, step: u64) -> String {
    format!("{root}/step-{step:08}")
}
fn part(root: &str, step: u64) -> String {
    format!("{}.part", directory(root, step))
}
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}
fn file(rank: usize) -> String {
    format!("rank-{rank:04}.safetensors")
}

/// Steps of the checkpoints that are whole, in order.
pub(crate) fn steps(fs: &FileSystem, root: &str) -> Result<Vec<u64>> {
    if !fs.exists(root)? {
        return Ok(Vec::new());
    }
    let mut steps: Vec<u64> =
        fs.list(root)?.iter().filter_map(|entry| step_of(entry.name.to_str()?)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes what an interrupted job has left, and the oldest checkpoints but `keep`.
pub(crate) fn tidy(fs: &FileSystem, root: &str, keep: usize, interrupted: bool) -> Result<()> {
    let steps = steps(fs, root)?;
    for step in &steps[..steps.len().saturating_sub(keep)] {
        // Under another name first: a checkpoint is whole or not there.
        let gone = format!("{}.gone", directory(root, *step));
        fs.rename(&directory(root, *step), &gone, Replace::Refuse)?;
        fs.remove_all(&gone)?;
    }
    if interrupted {
        for entry in fs.list(root)? {
            let name = entry.name.to_string_lossy();
            if name.ends_with(".part") || name.ends_with(".gone") {
                fs.remove_all(&format!("{root}/{name}"))?;
            }
        }
    }
    Ok(())
}

/// What a rank writes: its parameters, by name and shape.
pub(crate) struct Shard {
    pub(crate) rank: usize,
    pub(crate) owned: Vec<(Spec, Owned)>,
    /// From rank 0.
    pub(crate) state: Option<State>,
}

const PARTS: [&str; 3] = ["", ".first", ".second"];

fn parts(of: &Owned) -> [&Vec<f32>; 3] {
    [&of.value, &of.first, &of.second]
}

impl Shard {
    /// What stands before the numbers, which follow each other in the order of [`parts`].
    fn header(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::with_capacity(self.owned.len() * PARTS.len());
        let mut end = 0;
        for (spec, owned) in &self.owned {
            for (name, numbers) in PARTS.iter().zip(parts(owned)) {
                let start = end;
                end += size_of_val(&numbers[..]);
                let info =
                    TensorInfo { dtype: Dtype::F32, shape: spec.shape.clone(), data_offsets: (start, end) };
                tensors.push((format!("{}{name}", spec.name), info));
            }
        }
        let mut json = serde_json::to_vec(&Metadata::new(None, tensors)?)?;
        // The numbers begin at a multiple of eight.
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
    }

    /// Writes it into the directory of a step that isn't public yet; it is durable then.
    pub(crate) fn write(self, fs: &FileSystem, root: &str, step: u64) -> Result<()> {
        let into = part(root, step);
        fs.make_directories(&into)?;
        let name = format!("{into}/{}", file(self.rank));
        let file = fs.create(&name)?;
        let header = self.header()?;
        let numbers = self.owned.iter().flat_map(|(_, owned)| parts(owned)).map(|numbers| numbers.as_bytes());
        file.write_parts_at(0, &[&header[..]].into_iter().chain(numbers).collect::<Vec<_>>())?;
        file.sync()?;
        file.close()?;
        if let Some(state) = &self.state {
            write(fs, &format!("{into}/state.json"), &serde_json::to_vec_pretty(state)?)?;
        }
        fs.sync_directory(&into)?;
        Ok(())
    }
}

/// Gives a checkpoint its name, when all ranks have written theirs.
pub(crate) fn publish(fs: &FileSystem, root: &str, step: u64) -> Result<()> {
    fs.rename(&part(root, step), &directory(root, step), Replace::Refuse)?;
    fs.sync_directory(root)?;
    Ok(())
}

/// A checkpoint to read from.
pub(crate) struct Checkpoint {
    path: String,
    pub(crate) state: State,
    files: Vec<File>,
    /// File, first byte and shape of each tensor.
    tensors: BTreeMap<String, (usize, u64, Vec<usize>)>,
}

impl Checkpoint {
    /// Opens the one of a step, whichever ranks have written it.
    pub(crate) fn open(fs: &FileSystem, root: &str, step: u64) -> Result<Self> {
        let path = directory(root, step);
        let name = format!("{path}/state.json");
        let state: State =
            serde_json::from_slice(&read(fs, &name)?).with_context(|| format!("{name} is damaged"))?;
        ensure!(state.format == FORMAT, "{name} has format {}, not {FORMAT}", state.format);
        let mut of = Self { path, state, files: Vec::new(), tensors: BTreeMap::new() };
        for rank in 0..of.state.ranks.count() {
            let name = format!("{}/{}", of.path, file(rank));
            of.add(fs.open(&name)?).with_context(|| format!("{name} is damaged"))?;
        }
        Ok(of)
    }

    fn add(&mut self, file: File) -> Result<()> {
        let mut length = [0; 8];
        file.read_exact_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= HEADER_MAX.min(file.length().saturating_sub(8)), "a header of {length} bytes");
        let mut header = vec![0; length as usize];
        file.read_exact_at(8, &mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header)?;
        let data = 8 + length;
        let all = data + metadata.data_len() as u64;
        ensure!(all == file.length(), "{} bytes instead of {all}", file.length());
        for (name, info) in metadata.tensors() {
            ensure!(info.dtype == Dtype::F32, "{name} has numbers of another kind than F32");
            let at = data + info.data_offsets.0 as u64;
            self.tensors.insert(name, (self.files.len(), at, info.shape.clone()));
        }
        self.files.push(file);
        Ok(())
    }

    fn tensor(&self, spec: &Spec, part: &str) -> Result<Vec<f32>> {
        let name = format!("{}{part}", spec.name);
        let Some((file, at, shape)) = self.tensors.get(&name) else { bail!("{} has no {name}", self.path) };
        ensure!(*shape == spec.shape, "{}: {name} has shape {shape:?}, not {:?}", self.path, spec.shape);
        let mut numbers = vec![0.0f32; spec.len()];
        self.files[*file].read_exact_at(*at, numbers.as_mut_bytes())?;
        Ok(numbers)
    }

    /// A parameter with its moments.
    pub(crate) fn owned(&self, spec: &Spec) -> Result<Owned> {
        let [value, first, second] = PARTS.map(|part| self.tensor(spec, part));
        Ok(Owned { value: value?, first: first?, second: second? })
    }
    /// A parameter alone.
    pub(crate) fn value(&self, spec: &Spec) -> Result<Vec<f32>> {
        self.tensor(spec, PARTS[0])
    }
}
