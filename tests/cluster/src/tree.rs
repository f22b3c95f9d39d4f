//! Trees of files: made, copied, counted, compared.

use crate::random::Random;
use crate::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// Files in one directory of a generated tree.
const PER_DIRECTORY: u64 = 64;

/// What a tree has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Names of regular files.
    pub files: u64,
    /// Directories, the root not counted.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names of regular files beyond the first of each file.
    pub hard_links: u64,
    /// Bytes of regular files, each file counted once.
    pub bytes: u64,
}

impl std::fmt::Display for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { files, directories, symlinks, hard_links, bytes } = self;
        let mib = bytes >> 20;
        write!(
            f,
            "{files} files ({hard_links} hard links), {directories} directories, {symlinks} symbolic links, {mib} MiB"
        )
    }
}

/// Counts a tree.
pub fn census(root: &Path) -> Result<Census> {
    let mut census = Census::default();
    let mut seen = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                census.directories += 1;
                open.push(entry.path());
            } else if meta.is_symlink() {
                census.symlinks += 1;
            } else if meta.is_file() {
                census.files += 1;
                if seen.insert((meta.dev(), meta.ino())) {
                    census.bytes += meta.len();
                } else {
                    census.hard_links += 1;
                }
            }
        }
    }
    Ok(census)
}

/// Makes a tree of so many files and about so many bytes: a few large files, many small and some empty ones, hard
/// and symbolic links, odd names, modes and times.
pub fn generate(root: &Path, files: u64, bytes: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mean = (bytes / files.max(1)).max(1);
    let mut all: Vec<PathBuf> = Vec::new();
    for number in 0..files {
        let directory = root.join(format!("d{:03}/e{}", number / PER_DIRECTORY, number % 3));
        if number % PER_DIRECTORY < 3 {
            std::fs::create_dir_all(&directory)?;
        }
        let path = directory.join(OsStr::from_bytes(&odd_name(number)));
        // Half of the bytes lie in every 50th file.
        let length = match number {
            n if n % 41 == 7 => 0,
            n if n % 50 == 1 => random.below(mean * 50) as usize,
            _ => random.below(mean) as usize,
        };
        match (number % 23, all.last()) {
            (11, Some(first)) => std::fs::hard_link(first, &path)?,
            (17, Some(first)) => symlink(Path::new("../..").join(first.strip_prefix(root)?), &path)?,
            (19, _) => symlink("nowhere/at all", &path)?,
            _ => {
                std::fs::write(&path, random.bytes(length))?;
                dress(&path, number)?;
                all.push(path);
            }
        }
    }
    Ok(())
}

/// Owner, mode and time of a file; the owner first, since chown(2) takes set-id bits away.
fn dress(path: &Path, number: u64) -> Result<()> {
    if number % 31 == 4 && rustix::process::geteuid().is_root() {
        chown(path, Some(1000 + number as u32 % 7), Some(100))?;
    }
    let mode = [0o644, 0o600, 0o755, 0o444, 0o4755, 0o2755][(number % 6) as usize];
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000 + number * 977, 123_456_789);
    let file = std::fs::File::open(path)?;
    file.set_modified(time)?;
    Ok(())
}

fn odd_name(number: u64) -> Vec<u8> {
    let mut name = format!("file {number}").into_bytes();
    match number % 29 {
        3 => name.extend("äöü \u{1f525}".as_bytes()),
        5 => name.extend(b"\xff\xfe"),
        7 => name.extend(b"\n'\"\\*"),
        9 => name.resize(255, b'x'),
        _ => {}
    }
    name
}

/// `cp -a FROM TO`, where `to` doesn't exist yet.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    run("cp", &["-a", text(from)?, text(to)?]).map(|_| ())
}

/// What `rsync` would have to change to make `copy` equal to `original`: bytes, names, links, times, modes, owners.
pub fn differences(original: &Path, copy: &Path) -> Result<String> {
    let (from, to) = (format!("{}/", text(original)?), format!("{}/", text(copy)?));
    run("rsync", &["-aHn", "--checksum", "--delete", "--itemize-changes", &from, &to])
}

/// The error shows the first differences.
pub fn expect_equal(original: &Path, copy: &Path) -> Result<()> {
    let differences = differences(original, copy)?;
    if differences.is_empty() {
        return Ok(());
    }
    let first: Vec<&str> = differences.lines().take(12).collect();
    bail!("{} differences, the first:\n{}", differences.lines().count(), first.join("\n"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path that is not UTF-8")
}
