//! The life of a cluster: up, again, down, destroyed; two side by side; what dies and what comes back.

use crate::common::{cluster, expect_exit, mounted, printed};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::{run, signal, wait_gone};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_second_up_and_an_up_after_down_find_the_data() -> Result<()> {
    let Some(cluster) = mounted("life")? else { return Ok(()) };
    let (file, mount) = (cluster.mount().join("file"), cluster.mount());
    std::fs::write(&file, "kept")?;
    for secret in ["secret", "token"] {
        let mode = std::fs::metadata(cluster.data().join(secret))?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{secret} has mode {mode:o}");
    }
    cluster.wait_health("OK", SOON)?;
    let status = cluster.status()?;
    let count = |field: &str| status[field].as_array().map_or(0, Vec::len);
    ensure!(count("nodes") == 5 && count("targets") >= 3 && count("chains") >= 1, "{status:#}");
    ensure!(status["nodes"][0]["data_dir"].is_string() && count("checks") > 0, "{status:#}");
    expect_exit(&cluster.ember(&["status"])?, 0, &["OK"])?;
    cluster.up(&[]).context("a second up")?;
    ensure!(cluster.status()?["nodes"] != status["nodes"] || count("nodes") == 5, "the same nodes");
    ensure!(std::fs::read_to_string(&file)? == "kept", "after a second up");
    cluster.down()?;
    ensure!(!file.exists() && cluster.all_pids()?.is_empty(), "down leaves neither mount nor process");
    expect_exit(&cluster.ember(&["status"])?, 2, &["stopped", "ember up"])?;
    cluster.down().context("a second down")?;
    cluster.up(&[])?;
    ensure!(std::fs::read_to_string(&file)? == "kept", "after down and up");
    let second = cluster.root().join("second");
    let second = second.to_str().context("path")?;
    cluster.ember_ok(&["mount", second])?;
    std::fs::write(&file, "changed")?;
    ensure!(std::fs::read_to_string(format!("{second}/file"))? == "changed", "through the second mount");
    cluster.ember_ok(&["umount", second])?;
    ensure!(mount.join("file").exists(), "the first mount stays");
    let before = cluster.data();
    cluster.ember_ok(&["destroy", "--yes"])?;
    ensure!(!before.exists() && cluster.all_pids()?.is_empty(), "destroy leaves nothing");
    expect_exit(&cluster.ember(&["status"])?, 3, &["no cluster"])
}

/// In memory, with neither O_DIRECT, nor fallocate, nor a size of its own.
fn with_ramfs(at: &Path, test: impl FnOnce() -> Result<()>) -> Result<()> {
    std::fs::create_dir_all(at)?;
    let at = at.to_str().context("path of the data directory")?;
    run("mount", &["-t", "ramfs", "none", at])?;
    let result = test();
    run("umount", &["--lazy", at])?;
    result
}

#[test]
fn a_file_system_without_o_direct_and_fallocate_will_do_with_a_warning() -> Result<()> {
    let Some(cluster) = cluster("plain")? else { return Ok(()) };
    let use_it = || -> Result<()> {
        cluster.up(&[])?;
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        std::fs::write(cluster.mount().join("file"), &content)?;
        cluster.remount()?;
        ensure!(std::fs::read(cluster.mount().join("file"))? == content, "what was written");
        expect_exit(&cluster.ember(&["status"])?, 1, &["WARN", "doesn't support O_DIRECT", "fallocate"])?;
        cluster.ember_ok(&["target", "verify-replicas"]).map(|_| ())
    };
    with_ramfs(&cluster.data(), || {
        let used = use_it();
        cluster.down()?;
        used
    })
}

#[test]
fn two_clusters_side_by_side_do_not_meet() -> Result<()> {
    let Some(first) = mounted("side-a")? else { return Ok(()) };
    let Some(second) = mounted("side-b")? else { return Ok(()) };
    std::fs::write(first.mount().join("file"), "first")?;
    std::fs::write(second.mount().join("file"), "second")?;
    first.down()?;
    ensure!(std::fs::read_to_string(second.mount().join("file"))? == "second", "the second goes on");
    second.wait_health("OK", SOON)?;
    first.up(&[])?;
    ensure!(std::fs::read_to_string(first.mount().join("file"))? == "first", "the first is its own");
    Ok(())
}

#[test]
fn a_daemon_that_dies_is_started_again_unless_told_otherwise() -> Result<()> {
    let Some(cluster) = mounted("restart")? else { return Ok(()) };
    cluster.wait_health("OK", SOON)?;
    let before = cluster.kill_storage(0, Signal::KILL)?;
    cluster.wait_health("WARN", SOON)?;
    let took = cluster.wait_health("OK", SOON)?;
    eprintln!("back to OK after {took:?}");
    ensure!(cluster.pids("storage")?[0] != before, "another process");
    cluster.down()?;
    cluster.up(&["--no-restart"])?;
    cluster.wait_health("OK", SOON)?;
    let dead = cluster.kill_storage(1, Signal::TERM)?;
    cluster.wait_health("WARN", SOON)?;
    let text = printed(&cluster.ember(&["status"])?);
    // The supervisor knows at once, mgmtd when the lease has ended.
    let named = text.contains("storage 2 is not running") || text.contains("node 102 ");
    ensure!(named && text.contains("ember up"), "says what is missing: {text}");
    std::thread::sleep(Duration::from_secs(7));
    ensure!(cluster.pids("storage")?[1] == dead, "it stays dead");
    cluster.up(&["--no-restart"]).context("a second up")?;
    cluster.wait_health("OK", SOON)?;
    ensure!(cluster.pids("storage")?[1] != dead, "a second up starts what is missing");
    // Before mgmtd can have noticed: the lease of the old process, which still runs, doesn't make the new one ready.
    let dead = cluster.kill_storage(1, Signal::KILL)?;
    cluster.up(&["--no-restart"]).context("an up right after a death")?;
    ensure!(cluster.pids("storage")?[1] != dead, "up waits until what it started has registered");
    Ok(())
}

#[test]
fn a_mount_whose_daemon_is_killed_comes_back() -> Result<()> {
    let Some(cluster) = mounted("mount")? else { return Ok(()) };
    let file = cluster.mount().join("file");
    std::fs::write(&file, "kept")?;
    let pid = cluster.status()?["mounts"][0]["pid"].as_i64().context("pid of the mount")?;
    signal(i32::try_from(pid)?, Signal::KILL);
    wait_gone(i32::try_from(pid)?, SOON)?;
    let begin = Instant::now();
    while std::fs::read_to_string(&file).ok().as_deref() != Some("kept") {
        ensure!(begin.elapsed() < SOON, "the mount isn't back");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
