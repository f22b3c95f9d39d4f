//! What the supervisor is to keep running, and what it tells of it: two small files in `run/`.

use crate::paths::{Daemon, DataDir};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// `wanted.json`: written by commands, read by the supervisor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Whether a daemon that dies is started again.
    pub(crate) restart: bool,
    /// Number of storage nodes.
    pub(crate) storage_nodes: u32,
    /// Mount points.
    pub(crate) mounts: Vec<PathBuf>,
    /// Grows with every `up`: what is missing is started at once, also without `restart`.
    pub(crate) round: u64,
}

/// `state.json`: written by the supervisor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// The round that has been acted on.
    pub(crate) round: u64,
    /// A row a daemon.
    pub(crate) daemons: Vec<DaemonState>,
}

/// What the supervisor knows of a daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DaemonState {
    /// Its short name.
    pub(crate) name: String,
    /// Its process, if it runs.
    pub(crate) pid: Option<u32>,
    /// How it ended last, if it has ended since the round began.
    pub(crate) ended: Option<String>,
    /// How often it was started again.
    pub(crate) restarts: u64,
}

impl Wanted {
    /// Everything that should run, in the order of starting.
    pub(crate) fn daemons(&self) -> Vec<Daemon> {
        let storage = (1..=self.storage_nodes).map(Daemon::Storage);
        let mounts = self.mounts.iter().cloned().map(Daemon::Mount);
        std::iter::once(Daemon::Control).chain(storage).chain(mounts).collect()
    }
    /// Reads the file; nothing is wanted if it isn't there.
    pub(crate) fn load(dir: &DataDir) -> Result<Self> {
        load(&dir.wanted_file())
    }
    /// Replaces the file.
    pub(crate) fn save(&self, dir: &DataDir) -> Result<()> {
        save(&dir.wanted_file(), self)
    }
}

impl State {
    /// Reads the file; empty if it isn't there.
    pub(crate) fn load(dir: &DataDir) -> Result<Self> {
        load(&dir.run().join("state.json"))
    }
    /// Replaces the file.
    pub(crate) fn save(&self, dir: &DataDir) -> Result<()> {
        save(&dir.run().join("state.json"), self)
    }
}

fn load<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{} is damaged: remove it", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let tmp = path.with_extension("new");
    let mut file = File::create(&tmp).with_context(|| format!("writing {}", tmp.display()))?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    std::fs::rename(&tmp, path).with_context(|| format!("writing {}", path.display()))
}

/// Takes the supervisor's lock. `None` if another supervisor holds it.
pub(crate) fn lock_supervisor(dir: &DataDir) -> Result<Option<File>> {
    let path = dir.supervisor_lock();
    let mut file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?.try_clone()?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    file.set_len(0)?;
    (&file).write_all(std::process::id().to_string().as_bytes())?;
    Ok(Some(file))
}

/// The running supervisor's process id.
pub(crate) fn supervisor(dir: &DataDir) -> Result<Option<u32>> {
    if !dir.supervisor_lock().exists() {
        return Ok(None);
    }
    let file = File::options().write(true).open(dir.supervisor_lock());
    let file = file.with_context(|| format!("opening {}", dir.supervisor_lock().display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = std::fs::read_to_string(dir.supervisor_lock())?;
            Ok(text.trim().parse().ok())
        }
        Err(error) => Err(error).with_context(|| format!("locking {}", dir.supervisor_lock().display())),
    }
}
