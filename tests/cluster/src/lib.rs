//! Clusters of real processes for tests and fault runs: `ember up` in a directory of their own, with helpers to
//! kill, stop and look.
//!
//! It knows the product from outside only: the binary `ember`, its exit codes and `status --json`. It runs
//! outside the seam, on the real clock.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a driver of real processes, outside the seam")]

pub mod damage;
pub mod power;
pub mod random;
pub mod steady;
pub mod tree;
pub mod workload;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Why a test of a mount can't run here, for [`skip`]. `None` if it can.
pub fn no_fuse() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse is missing".into());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    None
}

/// Why a test that runs these programs can't run here: one of them isn't installed.
pub fn missing_program(names: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    names.iter().find(|name| !found(name)).map(|name| format!("the program {name} is not installed"))
}

/// Notes that a test was skipped, in the file that `EMBER_SKIPS` names and on standard error.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("EMBER_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{test}: {reason}");
        }
    }
}

/// The binary `ember`: `EMBER_BIN` if set, else the one beside this program (`target/PROFILE/ember`).
pub fn ember_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EMBER_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("ember")).find(|path| path.is_file());
    found.context("the binary `ember` isn't built: `cargo build -p ember`, or name it in EMBER_BIN")
}

/// Where test clusters live: `EMBER_TEST_DIR`, else the system's temporary directory.
pub fn scratch_root() -> PathBuf {
    std::env::var_os("EMBER_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A cluster in a scratch directory; stopped and deleted when dropped.
pub struct TestCluster {
    binary: PathBuf,
    root: PathBuf,
}

impl TestCluster {
    /// A scratch directory with an empty mount point; nothing is started.
    pub fn new(name: &str) -> Result<Self> {
        Self::within(ember_binary()?, &scratch_root(), name)
    }
    /// The same with a certain binary, in a directory of a certain folder.
    pub fn within(binary: PathBuf, folder: &Path, name: &str) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let root = folder.join(format!("ember-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(root.join("mnt")).with_context(|| format!("making {}", root.display()))?;
        Ok(Self { binary, root })
    }
    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }
    /// The scratch directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }
    /// The mount point.
    pub fn mount(&self) -> PathBuf {
        self.root.join("mnt")
    }
    /// Runs `ember ARGS… --data DATA`, whatever its exit code.
    pub fn ember(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--data").arg(self.data()).stdin(Stdio::null());
        command.output().with_context(|| format!("starting {command:?}"))
    }
    /// Runs `ember ARGS… --data DATA`; a failure is an error with what it printed.
    pub fn ember_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.ember(args)?;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if !output.status.success() {
            bail!("ember {}: {}\n{out}{err}", args.join(" "), output.status);
        }
        Ok(out)
    }
    /// `ember up --detach --mount MNT`, with more flags.
    pub fn up(&self, flags: &[&str]) -> Result<()> {
        let mount = self.mount();
        let mount = mount.to_str().context("path of the mount point")?;
        let args = [&["up", "--detach", "--mount", mount], flags].concat();
        self.ember_ok(&args).map(|_| ())
    }
    /// `ember down`.
    pub fn down(&self) -> Result<()> {
        self.ember_ok(&["down"]).map(|_| ())
    }
    /// Unmounts, drops the kernel's caches and mounts again: what is read then comes from the cluster.
    pub fn remount(&self) -> Result<()> {
        let mount = self.mount();
        let mount = mount.to_str().context("path of the mount point")?;
        self.ember_ok(&["umount", mount])?;
        drop_caches()?;
        self.ember_ok(&["mount", mount]).map(|_| ())
    }
    /// `ember status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.ember(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status: {}{}", text(&output.stdout), text(&output.stderr)))
    }
    /// `health` of the status.
    pub fn health(&self) -> Result<String> {
        Ok(self.status()?["health"].as_str().unwrap_or_default().to_owned())
    }
    /// Waits for a health, at most `limit`; returns how long it took.
    pub fn wait_health(&self, wanted: &str, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let status = self.status()?;
            if status["health"] == wanted {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > limit {
                bail!("health is not {wanted} after {limit:?}: {:#}", status["checks"]);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    /// Process ids of the live nodes of a role (`storage`, `mgmtd`, `meta`), in order of node id.
    pub fn pids(&self, role: &str) -> Result<Vec<i32>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let mut rows: Vec<(u64, i32)> = nodes
            .iter()
            .filter(|node| node["role"] == role)
            .filter_map(|node| {
                let pid = i32::try_from(node["pid"].as_i64()?).ok()?;
                Some((node["id"].as_u64()?, pid))
            })
            .collect();
        rows.sort_unstable();
        Ok(rows.into_iter().map(|(_, pid)| pid).collect())
    }
    /// Kills the n-th storage process (counted from 0) and waits until it is gone; returns its process id.
    pub fn kill_storage(&self, index: usize, with: Signal) -> Result<i32> {
        let pid = *self.pids("storage")?.get(index).context("no such storage process")?;
        signal(pid, with);
        wait_gone(pid, Duration::from_secs(60))?;
        Ok(pid)
    }
    /// Every process whose command line names the data directory.
    pub fn all_pids(&self) -> Result<Vec<i32>> {
        let data = self.data();
        let wanted = data.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let ours = line.split(|&b| b == 0).any(|arg| arg == wanted);
            if ours && pid != i32::try_from(std::process::id())? {
                found.push(pid);
            }
        }
        Ok(found)
    }
    /// `kill -9` of every process of the cluster, supervisor and mount included.
    pub fn kill_all(&self) -> Result<usize> {
        let pids = self.all_pids()?;
        for &pid in &pids {
            signal(pid, Signal::KILL);
        }
        for &pid in &pids {
            wait_gone(pid, Duration::from_secs(20))?;
        }
        Ok(pids.len())
    }
    /// `ember target verify-replicas`; an error says what differs.
    pub fn verify_replicas(&self) -> Result<String> {
        self.ember_ok(&["target", "verify-replicas"])
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::env::var_os("EMBER_KEEP").is_some() {
            return;
        }
        let _ = self.ember(&["destroy", "--yes"]);
        let _ = self.kill_all();
        let _ = Command::new("umount").arg("-l").arg(self.mount()).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Has the kernel forget clean pages, names and inodes.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits until a process is gone or a zombie.
pub fn wait_gone(pid: i32, limit: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return Ok(());
        }
        if begin.elapsed() > limit {
            bail!("process {pid} is still there after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program; a failure is an error with what it printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        bail!("{program} {}: {}\n{out}{err}", args.join(" "), output.status);
    }
    Ok(out)
}
