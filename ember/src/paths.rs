//! Where a cluster's files are.

use anyhow::{Context, Result};
use ember_rt::Addr;
use std::path::{Path, PathBuf};

/// The data directory of a cluster on one machine.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

/// A daemon of the cluster on this machine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Daemon {
    /// mgmtd and meta in one process.
    Control,
    /// A storage node, counted from 1.
    Storage(u32),
    /// A mount.
    Mount(PathBuf),
}

impl DataDir {
    /// Makes the path absolute; nothing is created.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("data directory {}", path.display()))?;
        Ok(Self(path))
    }
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
    /// What the cluster is: ids, sizes, format.
    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.0.join("cluster.toml")
    }
    /// The cluster secret, 64 hexadecimal digits, mode 0600.
    pub(crate) fn secret_file(&self) -> PathBuf {
        self.0.join("secret")
    }
    /// The root user's token, 64 hexadecimal digits, mode 0600.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.0.join("token")
    }
    /// Settings that differ from the defaults.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.0.join("ember.toml")
    }
    /// The embedded key-value store.
    pub(crate) fn kv(&self) -> PathBuf {
        self.0.join("control/kv")
    }
    /// Exports of the metadata, kept apart from the store.
    pub(crate) fn exports(&self) -> PathBuf {
        self.0.join("exports")
    }
    /// A storage node's disk.
    pub(crate) fn storage(&self, node: u32) -> PathBuf {
        self.0.join(format!("storage-{node}"))
    }
    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }
    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
    /// Held by the supervisor while it runs.
    pub(crate) fn supervisor_lock(&self) -> PathBuf {
        self.run().join("supervisor.lock")
    }
    /// What the supervisor is to keep running.
    pub(crate) fn wanted_file(&self) -> PathBuf {
        self.run().join("wanted.json")
    }
    /// Where a daemon's process id stands while it runs.
    pub(crate) fn pid_file(&self, daemon: &Daemon) -> PathBuf {
        self.run().join(format!("{}.pid", daemon.name()))
    }
    /// Where a daemon's output goes.
    pub(crate) fn log_file(&self, daemon: &Daemon) -> PathBuf {
        self.logs().join(format!("{}.log", daemon.name()))
    }
    /// Where a service listens.
    pub(crate) fn socket(&self, service: &str) -> Result<Addr> {
        Ok(ember_native::socket(&self.0, service)?)
    }
}

impl Daemon {
    /// Short name for files and messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Control => "control".into(),
            Self::Storage(node) => format!("storage-{node}"),
            Self::Mount(point) => format!("mount-{:016x}", path_hash(point)),
        }
    }
    /// What a person calls it.
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Control => "control".into(),
            Self::Storage(node) => format!("storage {node}"),
            Self::Mount(point) => format!("mount {}", point.display()),
        }
    }
}

/// FNV-1a (64 bits) of a path: names its files in `run/`.
fn path_hash(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
