//! A cluster whose data directory, KV engine and disks alike, lies on a file system that can lose power.

use crate::random::Random;
use crate::workload::{Acknowledged, Workload};
use crate::{TestCluster, drop_caches};
use anyhow::{Context, Result, bail, ensure};
use ember_lossyfs::{Loss, LossyFs, Mounted};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that the file system holds.
const CAPACITY: u64 = 64 << 30;
/// Threads of the workload.
const WORKERS: usize = 4;
/// How long a cluster may take to be well again.
const WELL: Duration = Duration::from_secs(120);
/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// Rounds whose files are kept, and checked after each loss.
const KEPT: usize = 2;

/// A cluster on a lossy file system. It ends before the file system does.
pub struct PowerCluster {
    cluster: TestCluster,
    fs: LossyFs,
    mounted: Option<Mounted>,
}

/// What the rounds came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Rounds {
    /// Operations whose fsync returned, all of them whole.
    pub operations: u64,
    /// What was lost that nobody had flushed.
    pub loss: Loss,
}

impl PowerCluster {
    /// Mounts the file system where the cluster's data directory will be; nothing is started.
    pub fn new(cluster: TestCluster) -> Result<Self> {
        let fs = LossyFs::new(CAPACITY);
        fs.spare("logs/");
        std::fs::create_dir_all(cluster.data())?;
        let mounted = Some(fs.mount(&cluster.data())?);
        Ok(Self { cluster, fs, mounted })
    }
    /// The cluster.
    pub fn cluster(&self) -> &TestCluster {
        &self.cluster
    }
    /// The file system below it.
    pub fn fs(&self) -> &LossyFs {
        &self.fs
    }

    /// Starts everything. What can't serve any more is told soon.
    pub fn up(&self) -> Result<()> {
        let said = self.cluster.root().join("up");
        let mut command = Command::new(self.cluster.binary());
        command.args(["up", "--detach", "--mount"]).arg(self.cluster.mount());
        command.arg("--data").arg(self.cluster.data()).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(std::fs::File::create(&said)?).spawn()?;
        let begin = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if begin.elapsed() < READY => std::thread::sleep(Duration::from_millis(20)),
                None => {
                    child.kill()?;
                    child.wait()?;
                    bail!("the cluster is not ready after {READY:?}");
                }
            }
        };
        ensure!(status.success(), "ember up: {status}\n{}", std::fs::read_to_string(&said)?);
        Ok(())
    }

    /// Power fails for everything at once: no process ends an operation on the disk after this moment, all are
    /// killed, and what was not flushed is gone. Then power is back; nothing is started.
    pub fn lose_power(&mut self, seed: u64) -> Result<Loss> {
        self.fs.power_off();
        self.cluster.kill_all()?;
        let mounted = self.mounted.take().context("the file system is mounted")?;
        mounted.unmount().context("unmounting the file system below the cluster")?;
        let loss = self.fs.power_on(seed);
        self.mounted = Some(self.fs.mount(&self.cluster.data())?);
        Ok(loss)
    }

    /// A workload of writes with fsync, a power loss in the midst of it, everything up again, everything whose fsync
    /// had returned whole: so many times. All replicas must be equal in the end. `tell` gets a line a round.
    pub fn rounds(&mut self, seed: u64, rounds: u32, tell: &dyn Fn(&str)) -> Result<Rounds> {
        let mut random = Random::new(seed);
        let list = self.cluster.root().join("acknowledged");
        let (mut sum, mut kept): (Rounds, Vec<Acknowledged>) = (Rounds::default(), Vec::new());
        self.up()?;
        for round in 1..=rounds {
            let folder = self.cluster.mount().join(format!("round-{round}"));
            let workload = Workload::start(&folder, &list, random.number(), WORKERS)?;
            std::thread::sleep(Duration::from_millis(300 + random.below(2500)));
            let loss = self.lose_power(random.number())?;
            let done = workload.stop()?;
            ensure!(done.operations > 0, "nothing was acknowledged: {:?}", done.errors);
            self.up().with_context(|| format!("up after round {round}, seed {seed}"))?;
            kept.push(done);
            for done in &kept {
                done.check().with_context(|| format!("round {round}, seed {seed}"))?;
            }
            let operations = kept.last().map_or(0, |done| done.operations);
            tell(&format!(
                "round {round}: {operations} fsynced operations whole; of {} files {} pages lost, {} changes of names \
                 forgotten",
                loss.files, loss.pages, loss.names
            ));
            sum.operations += operations;
            sum.loss.files += loss.files;
            sum.loss.pages += loss.pages;
            sum.loss.names += loss.names;
            if kept.len() > KEPT {
                std::fs::remove_dir_all(kept.remove(0).folder())?;
            }
        }
        self.cluster.wait_health("OK", WELL)?;
        self.cluster.remount()?;
        drop_caches()?;
        for done in &kept {
            done.check().with_context(|| format!("at the end, seed {seed}"))?;
        }
        self.cluster.verify_replicas()?;
        Ok(sum)
    }
}

impl Drop for PowerCluster {
    fn drop(&mut self) {
        // Nothing must wait for a disk that hangs when the processes are killed.
        self.fs.let_go();
        let _ = self.cluster.kill_all();
        if std::env::var_os("EMBER_KEEP").is_some() {
            let logs = self.cluster.root().join("logs");
            let copy = [Path::new("-r"), &self.cluster.data().join("logs"), &logs];
            let _ = Command::new("cp").args(copy).status();
        }
        let mount = self.cluster.mount();
        let _ = Command::new("umount").arg("-l").arg(mount).stderr(Stdio::null()).status();
        self.mounted = None;
    }
}
