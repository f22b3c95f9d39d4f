//! House rules that a program can see.

use crate::arrows;
use crate::lengths;
use crate::process::root;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Crates that may contain unsafe code, each in one module that says why.
const UNSAFE: &[&str] =
    &["common/rt-uring", "fuse/kernel", "training/cuda", "training/deepgemm", "training/heap"];
/// Marks of unfinished work, written so that this file doesn't contain them.
const MARKS: &[&[&str]] =
    &[&["to", "do!("], &["unimplem", "ented!("], &["FIX", "ME"], &["XX", "X"], &["HA", "CK"]];
/// Sections that the architecture page must have.
const SECTIONS: &[&str] = &["## Code map", "## Arrows", "## Invariants"];

/// Runs all checks; the error counts the complaints, which are printed.
pub(crate) fn run() -> Result<()> {
    let packages = arrows::packages()?;
    let mut complaints = arrows::check(&packages);
    let files = sources()?;
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root()).unwrap_or(file);
        complaints.extend(lengths::check(name, &text));
        complaints.extend(marks(name, &text));
    }
    for package in &packages {
        complaints.extend(forbids_unsafe(Path::new(&package.manifest_path))?);
    }
    complaints.extend(code_map(&packages)?);
    for complaint in &complaints {
        println!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints", complaints.len());
    }
    println!("tidy: {} crates and {} source files are in order", packages.len(), files.len());
    Ok(())
}

/// Every Rust source of the checkout, in order.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            let skipped = ["target", ".git", "ember-data", "mnt"].iter().any(|skip| name == *skip);
            if kind.is_dir() && !skipped {
                open.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn marks(name: &Path, text: &str) -> Vec<String> {
    let marks: Vec<String> = MARKS.iter().map(|parts| parts.concat()).collect();
    let hit = |line: &str| marks.iter().find(|mark| line.contains(mark.as_str())).cloned();
    let found = text.lines().enumerate().filter_map(|(i, line)| hit(line).map(|mark| (i + 1, mark)));
    found.map(|(line, mark)| format!("{}:{line}: {mark} in the tree", name.display())).collect()
}

fn forbids_unsafe(manifest: &Path) -> Result<Vec<String>> {
    let dir = manifest.parent().unwrap_or(manifest);
    let name = dir.strip_prefix(root()).unwrap_or(dir);
    if UNSAFE.iter().any(|allowed| name == Path::new(allowed)) {
        return Ok(Vec::new());
    }
    let entry = ["src/lib.rs", "src/main.rs"].map(|file| dir.join(file)).into_iter().find(|f| f.exists());
    let Some(entry) = entry else {
        return Ok(vec![format!("{}: no src/lib.rs or src/main.rs", name.display())]);
    };
    let text = std::fs::read_to_string(&entry)?;
    let forbids = text.contains("#![forbid(unsafe_code)]");
    Ok(if forbids { Vec::new() } else { vec![format!("{}: does not forbid unsafe code", name.display())] })
}

/// The architecture page names every crate's folder, and no folder that isn't there.
fn code_map(packages: &[arrows::Package]) -> Result<Vec<String>> {
    let page = root().join("docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let mut complaints: Vec<String> = SECTIONS
        .iter()
        .filter(|section| !text.contains(*section))
        .map(|section| format!("docs/ARCHITECTURE.md: no section {section:?}"))
        .collect();
    let rows: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| `")?.split_once('`').map(|(path, _)| path.trim_end_matches('/'))
        })
        .collect();
    for package in packages {
        let manifest = Path::new(&package.manifest_path);
        let dir = manifest.parent().unwrap_or(manifest);
        let name = dir.strip_prefix(root()).unwrap_or(dir).display().to_string();
        if !rows.contains(&name.as_str()) {
            complaints.push(format!("docs/ARCHITECTURE.md: the code map lacks `{name}`"));
        }
    }
    for row in rows {
        if !root().join(row).exists() {
            complaints.push(format!("docs/ARCHITECTURE.md: the code map names `{row}`, which isn't there"));
        }
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_unfinished_work_is_named() {
        let text = format!("fine\nlet x = {}\n", MARKS[0].concat());
        assert_eq!(marks(Path::new("a.rs"), &text).len(), 1);
    }

    #[test]
    fn the_tree_is_tidy() {
        run().unwrap();
    }
}
