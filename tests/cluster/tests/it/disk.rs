//! Disks that are read-only, full or not there when a node starts, and a node that another process is already.

use crate::common::{cluster, expect_errno, mounted, printed};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::{TestCluster, run, skip};
use rustix::io::Errno;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
const FILES: u64 = 8;

fn content(number: u64) -> Vec<u8> {
    Random::new(number + 5).bytes(700_000)
}

/// Whether every member of every chain serves.
fn all_serve(status: &Value) -> bool {
    let chains = status["chains"].as_array().cloned().unwrap_or_default();
    let members = chains.iter().filter_map(|chain| chain["targets"].as_array()).flatten();
    let states: Vec<&Value> = members.map(|member| &member["state"]).collect();
    !states.is_empty() && states.iter().all(|state| **state == "serving")
}

fn wait_until(cluster: &TestCluster, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let status = cluster.status()?;
        if holds(&status) {
            return Ok(begin.elapsed());
        }
        ensure!(begin.elapsed() < SOON, "{what}: not after {SOON:?}: {:#}", status["checks"]);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A file system in memory, unmounted in the end.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts it and moves what is at `at` into it.
    fn below(at: &Path) -> Result<Self> {
        let aside = at.with_extension("aside");
        std::fs::rename(at, &aside)?;
        std::fs::create_dir(at)?;
        run("mount", &["-t", "tmpfs", "-o", "size=160m", "none", text(at)?])?;
        let mounted = Self(at.to_owned());
        run("cp", &["-a", "--sparse=always", text(&aside.join("."))?, text(at)?])?;
        std::fs::remove_dir_all(&aside)?;
        Ok(mounted)
    }
    fn remount(&self, option: &str) -> Result<()> {
        run("mount", &["-o", &format!("remount,{option}"), text(&self.0)?]).map(|_| ())
    }
    /// Moves it to another place.
    fn move_to(&mut self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        run("mount", &["--move", text(&self.0)?, text(to)?])?;
        self.0 = to.to_owned();
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

/// Fills a file system to its last byte.
fn fill(ballast: &Path) -> Result<()> {
    let mut file = File::create(ballast)?;
    let block = vec![1; 4096];
    loop {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => bail!("filling {}: {error}", ballast.display()),
        }
    }
}

fn read_all(cluster: &TestCluster) -> Result<()> {
    for number in 0..FILES {
        let found = std::fs::read(cluster.mount().join(format!("file-{number}")))?;
        ensure!(found == content(number), "file-{number} is not what was written");
    }
    Ok(())
}

/// Why no file system can be mounted here; `None` if one can.
fn no_tmpfs(scratch: &Path) -> Result<Option<String>> {
    let at = scratch.join("try");
    std::fs::create_dir(&at)?;
    let tried = run("mount", &["-t", "tmpfs", "-o", "size=1m", "none", text(&at)?]).map(|_| Mounted(at));
    Ok(tried.err().map(|error| format!("{error:#}")))
}

/// Of four nodes, one has a disk that is read-only, one a full one, and the disk of a third is not mounted.
#[test]
fn a_disk_that_is_read_only_full_or_gone_at_the_start_is_named_and_comes_back() -> Result<()> {
    let name = "disks";
    let Some(cluster) = cluster(name)? else { return Ok(()) };
    if let Some(reason) = no_tmpfs(cluster.root())? {
        skip(name, &reason);
        return Ok(());
    }
    cluster.up(&["--storage-nodes", "4", "--replicas", "4"])?;
    wait_until(&cluster, "every target serves", all_serve)?;
    for number in 0..FILES {
        std::fs::write(cluster.mount().join(format!("file-{number}")), content(number))?;
    }
    rustix::fs::sync();
    // What a killed process leaves has to be recovered.
    cluster.kill_all()?;
    run("umount", &["--lazy", text(&cluster.mount())?])?;
    std::fs::write(cluster.data().join("ember.toml"), "[storage]\nreserve_bytes = 0\n")?;
    let disk = |number: u32| cluster.data().join(format!("storage-{number}"));
    let (read_only, full) = (Mounted::below(&disk(1))?, Mounted::below(&disk(2))?);
    let mut gone = Mounted::below(&disk(3))?;
    read_only.remount("ro")?;
    fill(&full.0.join("ballast"))?;
    gone.move_to(&cluster.root().join("elsewhere"))?;
    // It would wait for the others for a while.
    let mount = cluster.mount();
    let mut up = Command::new(cluster.binary());
    up.args(["up", "--detach", "--mount", text(&mount)?, "--data"]).arg(cluster.data()).stdout(Stdio::null());
    let mut up = up.spawn()?;
    let begin = Instant::now();
    while !mount.join("file-0").exists() {
        ensure!(begin.elapsed() < SOON, "the mount doesn't come");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Those that work do.
    read_all(&cluster)?;
    std::fs::write(cluster.mount().join("meanwhile"), content(99))?;
    File::open(cluster.mount().join("meanwhile"))?.sync_all()?;
    let said = printed(&cluster.ember(&["status"])?);
    for (number, words, remedy) in [
        (1, "Read-only file system", "make its file system writable"),
        (2, "No space left on device", "give the disk room"),
        (3, "is missing or empty: is the disk mounted?", "ember target replace"),
    ] {
        let path = disk(number).display().to_string();
        let row = said.lines().find(|line| line.contains("WARN targets") && line.contains(words));
        let row = row.with_context(|| format!("{words:?} is not in: {said}"))?;
        ensure!(row.contains(&path) && row.contains("t-"), "the file is not named: {row}");
        ensure!(said.contains(remedy), "the remedy {remedy:?} is not in: {said}");
    }
    ensure!(std::fs::read_dir(disk(3))?.count() == 0, "something was made where no disk is mounted");
    read_only.remount("rw")?;
    std::fs::remove_file(full.0.join("ballast"))?;
    gone.move_to(&disk(3))?;
    let took = wait_until(&cluster, "every target serves again", all_serve)?;
    eprintln!("every target serves {:.1} s after its disk was well", took.as_secs_f64());
    let generations = cluster.status()?["targets"].as_array().cloned().unwrap_or_default();
    ensure!(generations.iter().all(|target| target["generation"] == 1), "nothing was replaced");
    cluster.verify_replicas()?;
    read_all(&cluster)?;
    ensure!(std::fs::read(cluster.mount().join("meanwhile"))? == content(99), "meanwhile");
    ensure!(up.wait()?.success(), "`ember up` failed");
    cluster.down()
}

/// mgmtd takes the registration of a node's new process for the word that the one before has ended, and takes its
/// targets out at once (R1): a process that finds them locked must not register.
#[test]
fn r01_a_second_process_of_a_node_does_not_register_while_the_first_one_serves() -> Result<()> {
    let Some(cluster) = mounted("second")? else { return Ok(()) };
    cluster.wait_health("OK", SOON)?;
    std::fs::write(cluster.mount().join("file"), "kept")?;
    let before = cluster.status()?;
    let first = cluster.pids("storage")?[0];
    // What would have stopped it first.
    std::fs::remove_file(cluster.data().join("run/storage-1.sock"))?;
    let mut second = Command::new(cluster.binary());
    second.args(["storage", "--node", "1", "--data"]).arg(cluster.data()).stdin(Stdio::null());
    let mut second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let begin = Instant::now();
    while second.try_wait()?.is_none() {
        if begin.elapsed() > Duration::from_secs(10) {
            second.kill()?;
            bail!("two processes are one node: {}", printed(&second.wait_with_output()?));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = second.wait_with_output()?;
    let said = printed(&output);
    ensure!(!output.status.success(), "it ends well: {said}");
    let holder = format!("is in use by process {first}");
    ensure!(said.contains(&holder) && said.contains("storage-1/t-"), "{holder:?} is not in: {said}");
    let after = cluster.status()?;
    ensure!(before["chains"] == after["chains"], "a chain has changed: {:#}", after["chains"]);
    ensure!(cluster.pids("storage")?[0] == first, "the first one is the node");
    ensure!(std::fs::read_to_string(cluster.mount().join("file"))? == "kept", "it serves");
    Ok(())
}

/// write(2) returns before such writes are done: who writes to full disks learns it from fsync(2) or close(2), once.
#[test]
fn a_write_that_fails_after_it_returned_is_told_by_fsync_or_close() -> Result<()> {
    let Some(cluster) = cluster("told")? else { return Ok(()) };
    std::fs::create_dir_all(cluster.data())?;
    std::fs::write(cluster.data().join("ember.toml"), "[storage]\nreserve_bytes = 1_000_000_000_000_000\n")?;
    cluster.up(&[])?;
    let path = cluster.mount().join("file");
    let mut file = File::create_new(&path)?;
    let other = File::open(&path)?;
    file.write_all(&content(1)[..100_000]).context("it is accepted")?;
    for (name, file) in [("the writer", &file), ("another", &other)] {
        expect_errno(file.sync_all(), Errno::NOSPC).with_context(|| format!("fsync of {name}"))?;
        file.sync_all().with_context(|| format!("second fsync of {name}"))?;
    }
    let copied = Command::new("cp").arg(cluster.binary()).arg(cluster.mount().join("copy")).output()?;
    let said = printed(&copied);
    ensure!(!copied.status.success() && said.contains("No space left on device"), "cp says: {said}");
    cluster.down()
}
