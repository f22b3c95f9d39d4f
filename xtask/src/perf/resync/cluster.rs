//! Two storage processes with a replica each; the second one is emptied and filled again.

use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::{TestCluster, signal, wait_gone};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The storage process that is emptied.
const EMPTIED: u64 = 2;
/// Name of the file.
const FILE: &str = "resync.data";
/// How often the cluster is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long anything but the filling itself may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The cluster and its data.
pub(super) struct Pair {
    pub(super) cluster: TestCluster,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Id of the node that is emptied.
    node: u64,
}

/// A resync that has begun.
pub(super) struct Begun<'a> {
    pair: &'a Pair,
    since: Instant,
    up: Child,
}

#[expect(clippy::disallowed_methods, reason = "a driver of real processes, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a driver of real processes, outside the seam")]
fn pause() {
    std::thread::sleep(LOOK);
}

fn rows<'a>(status: &'a Value, list: &str) -> Vec<&'a Value> {
    status[list].as_array().into_iter().flatten().collect()
}

impl Pair {
    /// Makes the cluster and writes the data while the second node is away.
    pub(super) fn start(binary: PathBuf, folder: &Path, bytes: u64) -> Result<Self> {
        let cluster = TestCluster::within(binary, folder, "resync")?;
        let words = ["up", "--detach", "--no-restart", "--storage-nodes", "2", "--replicas", "2"];
        cluster.ember_ok(&words)?;
        let status = cluster.status()?;
        let storage = rows(&status, "nodes").into_iter().filter(|node| node["role"] == "storage");
        let node = storage.filter_map(|node| node["id"].as_u64()).max().context("storage nodes")?;
        let pair = Self { cluster, bytes, node };
        pair.wait("all serve", |status| pair.serving(status))?;
        pair.stop()?;
        println!("writing {} GiB while the second replica is away", bytes >> 30);
        let size = bytes.to_string();
        let words = ["bench", "write", "--file", FILE, "--block", "1048576", "--depth", "16"];
        pair.cluster.ember_ok(&[&words[..], &["--size", &size, "--seconds", "3600"]].concat())?;
        Ok(pair)
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let begin = now();
        while !wanted(&self.cluster.status()?) {
            ensure!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
            pause();
        }
        Ok(())
    }

    fn own<'a>(&self, status: &'a Value) -> Vec<&'a Value> {
        rows(status, "targets").into_iter().filter(|target| target["node"] == self.node).collect()
    }
    fn serving(&self, status: &Value) -> bool {
        let targets = rows(status, "targets");
        !targets.is_empty() && targets.iter().all(|target| target["public_state"] == "serving")
    }
    fn syncing(&self, status: &Value) -> bool {
        self.own(status).iter().any(|target| target["public_state"] == "syncing")
    }

    /// Targets of a node.
    pub(super) fn targets(&self) -> Result<u64> {
        Ok(self.own(&self.cluster.status()?).len().max(1) as u64)
    }

    /// Kills the second node.
    fn stop(&self) -> Result<()> {
        let status = self.cluster.status()?;
        let nodes = rows(&status, "nodes");
        let node = nodes.iter().find(|node| node["id"] == self.node);
        let pid = node.and_then(|node| node["pid"].as_i64()).context("the second storage process")?;
        let pid = i32::try_from(pid)?;
        signal(pid, Signal::KILL);
        wait_gone(pid, LIMIT)?;
        self.wait("the second replica is out of service", |status| {
            self.own(status).iter().all(|target| target["public_state"] == "offline")
        })
    }

    /// Kills the second node and empties its targets.
    pub(super) fn empty(&self) -> Result<()> {
        if self.own(&self.cluster.status()?).iter().any(|target| target["public_state"] != "offline") {
            self.stop()?;
        }
        let disk = self.cluster.data().join(format!("storage-{EMPTIED}"));
        for entry in std::fs::read_dir(&disk).with_context(|| disk.display().to_string())? {
            let path = entry?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("t-")) {
                std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        for target in self.own(&self.cluster.status()?) {
            let id = target["id"].as_u64().context("id of a target")?.to_string();
            self.cluster.ember_ok(&["target", "replace", &id])?;
        }
        Ok(())
    }

    /// Starts the second node and waits until the first of its targets begins to sync.
    pub(super) fn begin(&self) -> Result<Begun<'_>> {
        // It waits for more than is waited for here.
        let mut up = Command::new(self.cluster.binary());
        up.args(["up", "--detach", "--no-restart", "--data"]).arg(self.cluster.data());
        up.stdin(Stdio::null()).stdout(Stdio::null());
        let up = up.spawn().with_context(|| format!("starting {up:?}"))?;
        let begin = now();
        while !self.syncing(&self.cluster.status()?) {
            ensure!(begin.elapsed() < LIMIT, "nothing syncs within {LIMIT:?}");
            pause();
        }
        Ok(Begun { pair: self, since: now(), up })
    }

    /// Bytes that the syncing targets have been sent; `None` if none syncs.
    pub(super) fn bytes_sent(&self) -> Result<Option<u64>> {
        let status = self.cluster.status()?;
        if !self.syncing(&status) {
            return Ok(None);
        }
        Ok(Some(self.own(&status).iter().filter_map(|target| target["resync"]["bytes_sent"].as_u64()).sum()))
    }

    /// Random reads of the file; what `ember bench` prints.
    pub(super) fn read(&self, block: u64, depth: u32, seconds: u64) -> Result<String> {
        let numbers = [block, u64::from(depth), self.bytes, seconds].map(|number| number.to_string());
        let [block, depth, size, seconds] = &numbers;
        self.cluster.ember_ok(&[
            "bench",
            "read",
            "--file",
            FILE,
            "--random",
            "--block",
            block,
            "--depth",
            depth,
            "--size",
            size,
            "--seconds",
            seconds,
        ])
    }

    /// The largest file that the first node holds.
    pub(super) fn largest_file(&self) -> Result<PathBuf> {
        let disk = self.cluster.data().join("storage-1");
        let mut largest = (0, None);
        for target in std::fs::read_dir(&disk).with_context(|| disk.display().to_string())? {
            let target = target?.path();
            for file in target.is_dir().then(|| std::fs::read_dir(&target)).into_iter().flatten().flatten() {
                let file = file?;
                let length = file.metadata()?.len();
                if length > largest.0 {
                    largest = (length, Some(file.path()));
                }
            }
        }
        largest.1.context("the first node holds no file")
    }
}

impl Begun<'_> {
    /// Waits until everything serves; how long it took since the beginning.
    pub(super) fn end(mut self) -> Result<f64> {
        let mut moved = (now(), None);
        loop {
            let status = self.pair.cluster.status()?;
            if self.pair.serving(&status) {
                let took = self.since.elapsed().as_secs_f64();
                self.up.wait()?;
                return Ok(took);
            }
            let sent = self.pair.bytes_sent()?;
            if sent != moved.1 {
                moved = (now(), sent);
            } else if moved.0.elapsed() > LIMIT {
                bail!("the resync stands still: {:#}", status["targets"]);
            }
            pause();
        }
    }

    /// Ends it half-way.
    pub(super) fn leave(mut self) -> Result<()> {
        self.up.kill()?;
        self.up.wait()?;
        self.pair.stop()
    }
}
