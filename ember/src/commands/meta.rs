//! `ember meta export` and `ember meta import`.

use crate::cluster::Cluster;
use crate::exports;
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::line;
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_kv::Kv;
use ember_kv::local::{LocalKv, LocalOptions};
use ember_meta_store::Space;
use ember_types::ClusterId;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Ids skipped by an import: more than a cluster makes between two exports.
const IDS_SKIPPED: u64 = 1 << 32;

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
    let (kv, fresh) = (dir.kv(), dir.kv().with_file_name("kv.new"));
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
    }
    LocalKv::import(&fresh, LocalOptions::new(cluster.cluster), &mut open()?, &file)?;
    skip_ids(&fresh, cluster.cluster)?;
    let aside = set_aside(&kv)?;
    std::fs::rename(&fresh, &kv).with_context(|| format!("renaming {}", fresh.display()))?;
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

/// An export is older than what storage holds: ids that were handed out since then, and forgotten by the import,
/// must not be handed out again (R3).
fn skip_ids(path: &Path, cluster: ClusterId) -> Result<()> {
    let kv = LocalKv::open(path, LocalOptions::new(cluster))?;
    let store = kv.clone();
    ember_rt_uring::run_reactor(&ember_rt_uring::Options::default(), |_| async move {
        let mut tx = store.begin();
        Space::new(&mut *tx).reserve_ids(IDS_SKIPPED).await?;
        tx.commit().await?;
        anyhow::Ok(())
    })??;
    kv.close()?;
    Ok(())
}
