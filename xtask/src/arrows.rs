//! The arrows between crates, as `docs/ARCHITECTURE.md` draws them.

use crate::process::{cargo, output};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// `(crate, what it may depend on)`; what those may depend on is allowed too.
const ARROWS: &[(&str, &[&str])] = &[
    ("ember-types", &[]),
    ("ember-wire", &["ember-types"]),
    ("ember-rt", &["ember-types"]),
    ("ember-rt-uring", &["ember-rt"]),
    ("ember-net", &["ember-wire", "ember-rt"]),
    ("ember-kv", &["ember-types", "ember-rt"]),
    ("ember-daemon", &["ember-rt", "ember-rt-uring"]),
    ("ember-chain", &["ember-types"]),
    ("ember-craq", &["ember-types"]),
    ("ember-engine", &["ember-rt"]),
    ("ember-client", &["ember-net", "ember-rt"]),
    ("ember-native", &["ember-client", "ember-rt-uring"]),
    ("ember-mgmtd", &["ember-chain", "ember-kv", "ember-net", "ember-daemon"]),
    ("ember-meta-store", &["ember-types", "ember-kv"]),
    ("ember-meta", &["ember-meta-store", "ember-client", "ember-net", "ember-daemon"]),
    ("ember-storage", &["ember-craq", "ember-engine", "ember-net", "ember-daemon", "ember-client"]),
    ("ember-fuse-kernel", &[]),
    ("ember-fuse", &["ember-fuse-kernel", "ember-client", "ember-daemon"]),
    ("ember-cuda", &[]),
    ("ember-deepep", &["ember-cuda", "ember-heap", "ember-link", "ember-deepgemm"]),
    ("ember-deepgemm", &["ember-cuda"]),
    ("ember-dualpipe", &["ember-heap"]),
    ("ember-eplb", &[]),
    ("ember-flashmla", &["ember-cuda", "ember-deepgemm"]),
    ("ember-heap", &[]),
    ("ember-link", &["ember-net", "ember-rt-uring"]),
    (
        "ember-train",
        &["ember-native", "ember-deepep", "ember-deepgemm", "ember-dualpipe", "ember-eplb", "ember-flashmla"],
    ),
];

/// These may use every crate.
const MAY_USE_ALL: &[&str] = &[
    "ember",
    "xtask",
    "ember-sim",
    "ember-model-tests",
    "ember-cluster-tests",
    "ember-fuzz",
    "ember-lossyfs",
];

/// `(dependency, who may list it)`: the seam stays the seam.
const RESERVED: &[(&str, &[&str])] = &[
    ("tokio", &["ember-rt", "ember-rt-uring", "ember-daemon"]),
    ("tokio-uring", &["ember-rt-uring"]),
    ("io-uring", &["ember-rt-uring"]),
    ("fjall", &["ember-kv"]),
    ("axum", &["ember-daemon"]),
    ("cudarc", &["ember-cuda"]),
    ("libloading", &["ember-cuda"]),
    ("anyhow", &["ember", "ember-train", "xtask", "ember-sim", "ember-cluster-tests"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A crate of the workspace.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// The crates of the workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let text = output(cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]))
        .or_else(|_| output(cargo(&["metadata", "--no-deps", "--format-version", "1"])))?;
    let metadata: Metadata = serde_json::from_str(&text).context("output of cargo metadata")?;
    Ok(metadata.packages)
}

/// What a crate may depend on: its arrows, and theirs.
fn reachable(name: &str, arrows: &BTreeMap<&str, &[&str]>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name];
    while let Some(next) = open.pop() {
        for &to in arrows.get(next).copied().unwrap_or_default() {
            if found.insert(to.to_owned()) {
                open.push(to);
            }
        }
    }
    found
}

/// Complaints about dependencies; development dependencies are free.
pub(crate) fn check(packages: &[Package]) -> Vec<String> {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let mut complaints = Vec::new();
    for package in packages {
        let free = MAY_USE_ALL.contains(&package.name.as_str());
        if !free && !arrows.contains_key(package.name.as_str()) {
            complaints.push(format!("crate {} has no arrows in xtask/src/arrows.rs", package.name));
            continue;
        }
        let allowed = reachable(&package.name, &arrows);
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
            let name = &dependency.name;
            if ours.contains(name.as_str()) && !free && !allowed.contains(name) {
                complaints.push(format!("{} may not depend on {name}: no such arrow", package.name));
            }
            let reserved = RESERVED.iter().find(|(reserved, _)| reserved == name);
            if let Some((_, users)) = reserved
                && !users.contains(&package.name.as_str())
            {
                complaints.push(format!("{} may not list {name}: only {}", package.name, users.join(", ")));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Package {
        let dependencies = vec![Dependency { name: dependency.into(), kind: kind.map(Into::into) }];
        Package { name: name.into(), manifest_path: String::new(), dependencies }
    }

    #[test]
    fn a_forbidden_arrow_is_named() {
        let kv = package("ember-kv", "ember-net", None);
        let net = package("ember-net", "ember-types", None);
        let complaints = check(&[kv, net]);
        assert_eq!(complaints, ["ember-kv may not depend on ember-net: no such arrow"]);
        assert!(check(&[package("ember-kv", "tokio", None)])[0].contains("may not list tokio"));
        assert!(check(&[package("ember-kv", "ember-net", Some("dev"))]).is_empty());
        assert!(check(&[package("ember-new", "x", None)])[0].contains("no arrows"));
    }
}
