//! Exports of the metadata, kept apart from the store: written each hour and at the end, the last 24 kept.

use anyhow::{Context, Result};
use ember_kv::local::LocalKv;
use std::path::{Path, PathBuf};

/// Exports that are kept.
const KEPT: usize = 24;
const PREFIX: &str = "meta-";
const SUFFIX: &str = ".export";

/// Writes an export named after the time, and removes the oldest beyond the number that is kept.
pub(crate) fn write(kv: &LocalKv, dir: &Path, now_ms: u64) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join(format!("{PREFIX}{now_ms:015}{SUFFIX}"));
    kv.export_file(&path)?;
    let all = list(dir)?;
    for old in &all[..all.len().saturating_sub(KEPT)] {
        std::fs::remove_file(old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(path)
}

/// The newest export.
pub(crate) fn newest(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(list(dir)?.pop())
}

/// All exports, oldest first.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_kv::local::LocalOptions;
    use ember_types::ClusterId;

    #[test]
    fn the_last_24_are_kept_and_the_newest_is_found() {
        let root = std::env::temp_dir().join(format!("ember-exports-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).unwrap();
        let dir = root.join("exports");
        assert_eq!(newest(&dir).unwrap(), None);
        let kv = LocalKv::open(&root.join("kv"), LocalOptions::new(ClusterId::from_u128(1))).unwrap();
        for hour in 0..30 {
            write(&kv, &dir, hour * 3_600_000).unwrap();
        }
        let left = list(&dir).unwrap();
        assert_eq!(left.len(), KEPT);
        assert_eq!(newest(&dir).unwrap(), left.last().cloned());
        assert!(left[0].to_string_lossy().contains(&format!("{:015}", 6 * 3_600_000)));
        kv.close().unwrap();
        std::fs::remove_dir_all(&root).unwrap();
    }
}
