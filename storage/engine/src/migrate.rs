//! Brings a directory of an older format version to this release's, before recovery reads it: all or nothing.
//!
//! A step says which files change. They are written beside the old ones (`migrate-NAME`), then the file
//! `migrating` lists them: from then on the change is carried to its end, also by the next start; before, what
//! was written is thrown away and the directory is as it was.

use crate::error::{EngineError, Result};
use crate::files::Files;
use crate::superblock::{self, FORMAT};
use ember_types::checksum::crc32c;

/// Lists what is to be renamed and removed.
const MARKER: &str = "migrating";
const STAGED: &str = "migrate-";

/// The steps of this release, each from one format version to the next. Version 1 is the first.
pub const MIGRATIONS: &[Migration] = &[Migration { from: 1, step: to_checksum_pages }];

/// Version 2 has checksum pages. Log and checkpoints of version 1 are read as they are: they hold all checksums,
/// and the first checkpoint, which ends recovery, puts them on pages.
fn to_checksum_pages(old: &OldTarget<'_>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for name in superblock::NAMES {
        let raised = old.read(name)?.and_then(|bytes| superblock::raised(&bytes, 1));
        changes.extend(raised.map(|content| Change { name: name.to_owned(), content: Some(content) }));
    }
    Ok(changes)
}

/// A step from one format version to the next one.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// The format version that it starts from; it makes the next one.
    pub from: u32,
    /// Says which files change, the superblocks among them. It changes nothing itself.
    pub step: fn(&OldTarget<'_>) -> Result<Vec<Change>>,
}

/// A file of the new format version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Its name in the target's directory.
    pub name: String,
    /// Its whole content, or `None`: it goes. It is held in memory: a step is for superblocks, log and
    /// checkpoints, not for data files.
    pub content: Option<Vec<u8>>,
}

/// The directory of an older format version, to be read.
#[derive(Clone, Copy)]
pub struct OldTarget<'a>(&'a Files);

impl OldTarget<'_> {
    /// Names of its files, sorted.
    pub fn list(&self) -> Result<Vec<String>> {
        self.0.list()
    }
    /// A file's bytes; `None` if it isn't there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.0.read_small(name)
    }
}

/// Whether a file's name is one of a migration.
pub(crate) fn is_ours(name: &str) -> bool {
    name == MARKER || name.starts_with(STAGED)
}

/// Ends or undoes a migration that was cut off, then runs the steps that the directory needs. A version that no
/// step starts from is left for [`superblock::read`] to refuse.
pub(crate) fn run(files: &Files, migrations: &[Migration]) -> Result<()> {
    recover(files)?;
    while let Some(version) = version(files)?.filter(|version| *version < FORMAT)
        && let Some(migration) = migrations.iter().find(|m| m.from == version)
    {
        let dir = files.dir();
        tracing::info!(%dir, from = version, to = version + 1, "bringing the target to a newer format");
        let changes = (migration.step)(&OldTarget(files))?;
        for change in &changes {
            if let Some(content) = &change.content {
                files.write_small(&format!("{STAGED}{}", change.name), content)?;
            }
        }
        files.write_small(MARKER, &encode(&changes))?;
        finish(files, &changes)?;
        if self::version(files)? != Some(version + 1) {
            let what = format!("the step from format version {version} did not make the next one");
            return Err(EngineError::corrupt(files.path(superblock::NAMES[0]), 8, what));
        }
    }
    Ok(())
}

/// The newest format version that a whole copy of the superblock names; `None` if there is no such copy.
fn version(files: &Files) -> Result<Option<u32>> {
    let mut newest = None;
    for name in superblock::NAMES {
        let bytes = files.read_small(name)?;
        newest = newest.max(bytes.and_then(|bytes| superblock::version(&bytes)));
    }
    Ok(newest)
}

fn recover(files: &Files) -> Result<()> {
    if let Some(bytes) = files.read_small(MARKER)? {
        let changes = decode(&bytes).ok_or_else(|| {
            EngineError::corrupt(files.path(MARKER), 0, "the list of a migration's files is damaged")
        })?;
        return finish(files, &changes);
    }
    let names = files.list()?;
    let staged: Vec<&String> = names.iter().filter(|name| name.starts_with(STAGED)).collect();
    if staged.is_empty() {
        return Ok(());
    }
    staged.into_iter().try_for_each(|name| files.remove(name))?;
    files.sync_dir()
}

/// Carries out what the marker lists. What is done already is done.
fn finish(files: &Files, changes: &[Change]) -> Result<()> {
    let names = files.list()?;
    for change in changes {
        let staged = format!("{STAGED}{}", change.name);
        match change.content {
            Some(_) if names.contains(&staged) => files.rename(&staged, &change.name)?,
            Some(_) => {}
            None => files.remove_if_there(&change.name)?,
        }
    }
    files.sync_dir()?;
    files.remove(MARKER)?;
    files.sync_dir()
}

/// A line a file, `=NAME` for one that is replaced and `-NAME` for one that goes, behind a line with the
/// CRC32C of the others.
fn encode(changes: &[Change]) -> Vec<u8> {
    let line =
        |change: &Change| format!("{}{}\n", if change.content.is_some() { '=' } else { '-' }, change.name);
    let lines: String = changes.iter().map(line).collect();
    format!("{:08x}\n{lines}", crc32c(lines.as_bytes())).into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Vec<Change>> {
    let (sum, lines) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    if sum != format!("{:08x}", crc32c(lines.as_bytes())) {
        return None;
    }
    let change = |line: &str| match line.split_at_checked(1)? {
        ("=", name) => Some(Change { name: name.to_owned(), content: Some(Vec::new()) }),
        ("-", name) => Some(Change { name: name.to_owned(), content: None }),
        _ => None,
    };
    lines.lines().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_list_is_noticed() {
        let changes = vec![
            Change { name: "superblock-a".into(), content: Some(Vec::new()) },
            Change { name: "old".into(), content: None },
        ];
        let good = encode(&changes);
        assert_eq!(decode(&good), Some(changes));
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert_eq!(decode(&bent), None, "byte {at}");
            assert_eq!(decode(&good[..at]), None, "cut at {at}");
        }
    }
}
