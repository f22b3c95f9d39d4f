//! `ember meta export` and `ember meta import`.

use crate::cluster::Cluster;
use crate::exports;
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::line;
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_kv::local::{LocalKv, LocalOptions};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

fn require_stopped(dir: &DataDir) -> Result<()> {
    if process::find(dir, &Daemon::Control).is_some_and(process::is_alive) {
        let text =
            format!("the metadata store is in use: `ember down --data {}` first", dir.root().display());
        return Err(Failure::refused(text));
    }
    Ok(())
}

/// Writes the metadata of a stopped cluster to a file.
pub(crate) fn export(dir: &DataDir, file: &Path) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    require_stopped(dir)?;
    let kv = LocalKv::open(&dir.kv(), LocalOptions::new(cluster.cluster))?;
    let summary = kv.export_file(file)?;
    kv.close()?;
    line(&format!("{} keys, {} bytes written to {}", summary.pairs, summary.bytes, file.display()));
    Ok(usage::OK)
}

/// Replaces the metadata of a stopped cluster by an export. The old store is kept under another name.
pub(crate) fn import(dir: &DataDir, file: Option<&Path>) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    require_stopped(dir)?;
    let file = match file {
        Some(file) => file.to_owned(),
        None => exports::newest(&dir.exports())?.ok_or_else(|| {
            Failure::refused(format!("{} holds no export: name one", dir.exports().display()))
        })?,
    };
    let open =
        || File::open(&file).map(BufReader::new).with_context(|| format!("opening {}", file.display()));
    // Read to its end before anything is touched.
    let summary = ember_kv::local::verify_export(&mut open()?, &file)?;
    if summary.cluster_id != cluster.cluster {
        return Err(Failure::refused(format!(
            "{} is an export of cluster {}, this is {}",
            file.display(),
            summary.cluster_id,
            cluster.cluster
        )));
    }
    let kv = dir.kv();
    let aside = set_aside(&kv)?;
    LocalKv::import(&kv, LocalOptions::new(cluster.cluster), &mut open()?, &file)?;
    line(&format!("{} keys imported from {}", summary.pairs, file.display()));
    if let Some(aside) = aside {
        line(&format!("the old store is kept in {}", aside.display()));
    }
    Ok(usage::OK)
}

/// Renames the store to the first free name `kv.old-N`.
fn set_aside(kv: &Path) -> Result<Option<PathBuf>> {
    if !kv.exists() {
        return Ok(None);
    }
    let free = (1..10_000).map(|n| kv.with_file_name(format!("kv.old-{n}"))).find(|path| !path.exists());
    let aside = free.context("too many old stores: remove some")?;
    std::fs::rename(kv, &aside).with_context(|| format!("renaming {}", kv.display()))?;
    Ok(Some(aside))
}
