//! Damage done to a target's files behind its back.

use crate::TestCluster;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a chunk on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The file.
    pub file: PathBuf,
    /// Where they are in it.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Whose they are, as text.
    pub chunk: String,
}

/// Inverts some bits of a byte, which are not 0.
pub fn flip(path: &Path, at: u64, bits: u8) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).with_context(|| format!("{}, offset {at}", path.display()))?;
    file.write_all_at(&[byte[0] ^ bits], at)?;
    file.sync_data().map_err(Into::into)
}

impl TestCluster {
    /// The targets of a storage process (counted from 0), with the bytes that their chunks occupy.
    pub fn targets_of(&self, index: usize) -> Result<Vec<(u64, u64)>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let mut ids: Vec<u64> = nodes
            .iter()
            .filter(|node| node["role"] == "storage")
            .filter_map(|node| node["id"].as_u64())
            .collect();
        ids.sort_unstable();
        let node = *ids.get(index).context("no such storage process")?;
        let targets = status["targets"].as_array().cloned().unwrap_or_default();
        let own = targets.iter().filter(|target| target["node"] == node);
        Ok(own.filter_map(|t| Some((t["id"].as_u64()?, t["used_bytes"].as_u64()?))).collect())
    }

    /// Where the bytes of a target's chunks lie.
    pub fn pieces(&self, target: u64) -> Result<Vec<Piece>> {
        let text = self.ember_ok(&["target", "map", &target.to_string()])?;
        let piece = |line: &str| {
            // The file's name may have spaces.
            let mut words = line.rsplitn(4, ' ');
            let chunk = words.next()?.to_owned();
            let (length, offset) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(Piece { file: words.next()?.into(), offset, length, chunk })
        };
        text.lines().map(|line| piece(line).with_context(|| format!("not a piece: {line}"))).collect()
    }

    /// The directory of a storage process (counted from 0).
    pub fn disk_of(&self, index: usize) -> PathBuf {
        self.data().join(format!("storage-{}", index + 1))
    }

    /// The directory of the newest generation of a target.
    pub fn target_dir(&self, index: usize, target: u64) -> Result<PathBuf> {
        let prefix = format!("t-{target}-g");
        let mut newest: Option<(u32, PathBuf)> = None;
        for entry in std::fs::read_dir(self.disk_of(index))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(generation) = name.strip_prefix(&prefix).and_then(|g| g.parse().ok()) else { continue };
            if newest.as_ref().is_none_or(|(known, _)| *known < generation) {
                newest = Some((generation, entry.path()));
            }
        }
        newest.map(|(_, path)| path).with_context(|| format!("target {target} has no directory"))
    }
}

/// The files of a folder whose names begin so, the newest last.
pub fn files(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && !name.ends_with(".tmp") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// How far a segment of the log is written: up to its last page that isn't zeros.
fn written(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path)?;
    let last = bytes.iter().rposition(|&byte| byte != 0);
    Ok(last.map_or(0, |last| last as u64 + 1))
}

/// A place to flip: file, offset, and the chunk if it is one's.
pub type Place = (PathBuf, u64, Option<String>);

/// So many places in the bytes of a target's chunks, spread evenly over all of them.
pub fn places_in_data(pieces: &[Piece], count: u64, random: &mut Random) -> Result<Vec<Place>> {
    let total: u64 = pieces.iter().map(|piece| piece.length).sum();
    ensure!(total >= count, "{total} bytes are too few");
    let mut places = Vec::new();
    for i in 0..count {
        // One in each of so many equal parts of all bytes.
        let (from, to) = (total * i / count, total * (i + 1) / count);
        let mut at = from + random.below(to - from);
        let piece = pieces.iter().find(|piece| {
            let here = at < piece.length;
            if !here {
                at -= piece.length;
            }
            here
        });
        let piece = piece.context("a place beyond the end")?;
        places.push((piece.file.clone(), piece.offset + at, Some(piece.chunk.clone())));
    }
    Ok(places)
}

/// So many places in what is written of these files, in turn.
pub fn places_in_files(files: &[PathBuf], count: u64, random: &mut Random) -> Result<Vec<Place>> {
    let ends = files.iter().map(|path| written(path)).collect::<Result<Vec<u64>>>()?;
    let used: Vec<(&PathBuf, u64)> = files.iter().zip(ends).filter(|(_, end)| *end > 0).collect();
    ensure!(!used.is_empty(), "nothing is written in {files:?}");
    let place = |i: u64| {
        let (path, end) = used[(i % used.len() as u64) as usize];
        (path.clone(), random.below(end), None)
    };
    Ok((0..count).map(place).collect())
}
