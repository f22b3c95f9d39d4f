//! What makes a data directory a cluster: ids, secrets, sizes, format.

use crate::paths::DataDir;
use crate::usage::Failure;
use anyhow::{Context, Result};
use ember_native::FORMAT;
use ember_types::ClusterId;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `cluster.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    /// Format of the data directory.
    pub(crate) format: u32,
    /// The cluster's id.
    pub(crate) cluster: ClusterId,
    /// Storage nodes on this machine.
    pub(crate) storage_nodes: u32,
    /// Replicas of each chunk.
    pub(crate) replicas: u32,
    /// Targets on each disk.
    pub(crate) targets_per_disk: u32,
}

impl Cluster {
    /// Reads the cluster of a data directory. `None` if there is none yet.
    pub(crate) fn load(dir: &DataDir) -> Result<Option<Self>> {
        let path = dir.cluster_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let format: Format = toml::from_str(&text)
            .with_context(|| format!("{} is damaged: restore it from a copy", path.display()))?;
        if format.format != FORMAT {
            return Err(Failure::refused(format!(
                "{} has format {}, this release reads {FORMAT}: use the release that made it, or another --data",
                path.display(),
                format.format
            )));
        }
        let cluster = toml::from_str(&text)
            .with_context(|| format!("{} is damaged: restore it from a copy", path.display()))?;
        Ok(Some(cluster))
    }

    /// Reads the cluster of a data directory; that there is none is exit code 3.
    pub(crate) fn require(dir: &DataDir) -> Result<Self> {
        Self::load(dir)?.ok_or_else(|| Failure::no_cluster(dir))
    }

    /// Makes a new cluster: secrets first, `cluster.toml` last, so that a half-made one is none.
    pub(crate) fn create(
        dir: &DataDir,
        storage_nodes: u32,
        replicas: u32,
        targets_per_disk: u32,
    ) -> Result<Self> {
        let root = dir.root();
        if root.exists() && std::fs::read_dir(root)?.next().is_some() && !half_made(root)? {
            return Err(Failure::refused(format!(
                "{} is not empty and holds no EmberFS cluster: choose another --data",
                root.display()
            )));
        }
        for sub in [dir.run(), dir.logs(), dir.exports(), root.join("control")] {
            std::fs::create_dir_all(&sub).with_context(|| format!("making {}", sub.display()))?;
        }
        write_secret(&dir.secret_file())?;
        write_secret(&dir.token_file())?;
        let mut id = [0; 16];
        fill_random(&mut id)?;
        let cluster =
            Self { format: FORMAT, cluster: ClusterId(id), storage_nodes, replicas, targets_per_disk };
        cluster.save(dir)?;
        Ok(cluster)
    }

    fn save(&self, dir: &DataDir) -> Result<()> {
        let (path, tmp) = (dir.cluster_file(), dir.root().join("cluster.toml.new"));
        let mut file = std::fs::File::create(&tmp).with_context(|| format!("writing {}", tmp.display()))?;
        file.write_all(toml::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&tmp, &path)?;
        std::fs::File::open(dir.root())?.sync_all()?;
        Ok(())
    }
}

/// Whether a directory holds only what an interrupted creation leaves.
fn half_made(root: &Path) -> Result<bool> {
    const OURS: &[&str] =
        &["run", "logs", "exports", "control", "secret", "token", "cluster.toml.new", "ember.toml"];
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        if !OURS.iter().any(|ours| name == *ours) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| anyhow::anyhow!("random numbers from the system: {error}"))
}

fn write_secret(path: &Path) -> Result<()> {
    let mut secret = [0; 32];
    fill_random(&mut secret)?;
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    // A leftover of an interrupted creation may have other permissions.
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_native::read_secret;

    fn scratch(name: &str) -> DataDir {
        let path = std::env::temp_dir().join(format!("ember-cluster-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        DataDir::new(&path).unwrap()
    }

    #[test]
    fn a_cluster_is_found_again_and_its_secrets_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = scratch("again");
        assert_eq!(Cluster::load(&dir).unwrap(), None);
        let made = Cluster::create(&dir, 3, 3, 4).unwrap();
        assert_eq!(Cluster::load(&dir).unwrap(), Some(made));
        for file in [dir.secret_file(), dir.token_file()] {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            read_secret(&file).unwrap();
        }
        std::fs::remove_dir_all(dir.root()).unwrap();
    }

    #[test]
    fn a_foreign_directory_and_a_foreign_format_are_refused() {
        let dir = scratch("foreign");
        std::fs::create_dir_all(dir.root()).unwrap();
        std::fs::write(dir.root().join("thesis.txt"), "mine").unwrap();
        let error = Cluster::create(&dir, 3, 3, 4).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        std::fs::write(dir.cluster_file(), "format = 99\n").unwrap();
        let error = Cluster::load(&dir).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
        std::fs::remove_dir_all(dir.root()).unwrap();
    }
}
