//! Bad input of people: wrong flags, foreign directories, mount points that can't be used, garbage at the sockets.

use crate::common::{cluster, expect_exit, mounted, printed};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::TestCluster;
use ember_cluster_tests::random::Random;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn wrong_usage_ends_with_64_and_no_cluster_with_3() -> Result<()> {
    let cluster = TestCluster::new("usage")?;
    let wrong: &[&[&str]] = &[
        &["up", "--nonsense"],
        &["nonsense"],
        &["up", "--storage-nodes", "0"],
        &["up", "--storage-nodes", "many"],
        &["up", "--storage-nodes", "2", "--replicas", "3"],
        &["up", "--replicas", "0"],
        &["target", "fsck", "abc"],
        &["mount"],
    ];
    for args in wrong {
        expect_exit(&cluster.ember(args)?, 64, &[]).with_context(|| args.join(" "))?;
    }
    let absent: &[&[&str]] = &[
        &["status"],
        &["status", "--json"],
        &["down"],
        &["destroy", "--yes"],
        &["mount", "/nowhere"],
        &["target", "verify-replicas"],
        &["control"],
        &["storage", "--node", "1"],
    ];
    for args in absent {
        expect_exit(&cluster.ember(args)?, 3, &["no cluster", "ember up"]).with_context(|| args.join(" "))?;
    }
    ensure!(!cluster.data().exists(), "nothing was made");
    let version = Command::new(cluster.binary()).arg("--version").output()?;
    expect_exit(&version, 0, &["ember"])?;
    let shown = cluster.ember_ok(&["config", "show", "--defaults"])?;
    let sections = ["[mgmtd]", "[meta]", "[storage]", "[client]", "[fuse]", "[logs]"];
    ensure!(sections.iter().all(|section| shown.contains(section)), "all sections: {shown}");
    Ok(())
}

#[test]
fn features_that_are_not_there_are_named() -> Result<()> {
    let cluster = TestCluster::new("features")?;
    for (flag, feature) in [("--tls", "TLS"), ("--listen", "listen")] {
        let text = printed(&cluster.ember(&["up", flag])?);
        ensure!(text.to_lowercase().contains(&feature.to_lowercase()), "{flag}: {text}");
        expect_exit(&cluster.ember(&["up", flag])?, 64, &[])?;
    }
    Ok(())
}

#[test]
fn directories_that_are_not_ours_are_refused() -> Result<()> {
    let Some(cluster) = cluster("foreign")? else { return Ok(()) };
    let mount = cluster.mount();
    let up = ["up", "--detach", "--mount", mount.to_str().context("path")?];
    std::fs::create_dir(cluster.data())?;
    std::fs::write(cluster.data().join("thesis.txt"), "mine")?;
    expect_exit(&cluster.ember(&up)?, 2, &["not empty", "--data"])?;
    ensure!(std::fs::read_dir(cluster.data())?.count() == 1, "nothing was added");
    std::fs::remove_file(cluster.data().join("thesis.txt"))?;
    std::fs::write(mount.join("photo"), "mine")?;
    expect_exit(&cluster.ember(&up)?, 2, &["not empty"])?;
    ensure!(!cluster.data().join("cluster.toml").exists(), "no cluster was made");
    std::fs::remove_file(mount.join("photo"))?;
    cluster.up(&[])?;
    let other = TestCluster::new("foreign-other")?;
    let taken = other.ember(&up)?;
    expect_exit(&taken, 2, &["mounted"])?;
    let changed = cluster.ember(&["up", "--detach", "--replicas", "2"])?;
    expect_exit(&changed, 2, &["--replicas 3"])?;
    cluster.down()?;
    std::fs::write(cluster.data().join("ember.toml"), "[storage]\nno_such_setting = 1\n")?;
    expect_exit(&cluster.ember(&up)?, 2, &["no_such_setting", "ember.toml"])?;
    std::fs::remove_file(cluster.data().join("ember.toml"))?;
    let file = cluster.data().join("cluster.toml");
    let good = std::fs::read_to_string(&file)?;
    std::fs::write(&file, good.replace("format = 1", "format = 99"))?;
    for args in [&up[..], &["status"], &["down"]] {
        expect_exit(&cluster.ember(args)?, 2, &["format 99", "cluster.toml"])?;
    }
    std::fs::write(&file, &good[..good.len() / 2])?;
    expect_exit(&cluster.ember(&up)?, 1, &["cluster.toml", "damaged"])?;
    std::fs::write(&file, good)?;
    cluster.up(&[])
}

#[test]
fn a_disk_of_another_cluster_is_kept_as_it_is_and_the_replicas_are_made_anew() -> Result<()> {
    let Some(first) = mounted("disk-a")? else { return Ok(()) };
    std::fs::write(first.mount().join("file"), "kept")?;
    let second = TestCluster::new("disk-b")?;
    second.up(&[])?;
    first.down()?;
    second.down()?;
    let (own, others) = (first.data().join("storage-1"), second.data().join("storage-1"));
    std::fs::rename(&own, first.data().join("storage-1.own"))?;
    std::fs::rename(&others, &own)?;
    first.up(&[])?;
    first.wait_health("OK", Duration::from_secs(30))?;
    ensure!(std::fs::read_to_string(first.mount().join("file"))? == "kept", "its own data");
    let log = std::fs::read_to_string(first.data().join("logs/storage-1.log"))?;
    ensure!(log.contains("superblock-a") && log.contains("cluster"), "the disk is named: {log}");
    first.verify_replicas()?;
    first.down()?;
    std::fs::rename(&own, &others)?;
    second.up(&[])?;
    second.wait_health("OK", Duration::from_secs(30)).map(|_| ())
}

/// The Unix sockets of a cluster.
fn sockets(cluster: &TestCluster) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(cluster.data().join("run"))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect())
}

#[test]
fn garbage_at_the_sockets_harms_nobody() -> Result<()> {
    let Some(cluster) = mounted("garbage")? else { return Ok(()) };
    cluster.wait_health("OK", Duration::from_secs(30))?;
    std::fs::write(cluster.mount().join("file"), "kept")?;
    let before = (cluster.pids("storage")?, cluster.pids("mgmtd")?);
    let sockets = sockets(&cluster)?;
    ensure!(sockets.len() >= 5, "mgmtd, meta and three storage sockets: {sockets:?}");
    let mut random = Random::new(1);
    for socket in &sockets {
        for kind in 0..40 {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut bytes = random.bytes(64 + (kind * 97) % 5000);
            match kind % 5 {
                0 => bytes.clear(),
                1 => bytes.truncate(kind),
                // Ones all over: every length in it is absurd.
                2 => bytes.fill(0xff),
                3 => bytes[..4].copy_from_slice(b"EMBR"),
                _ => {}
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut rest = Vec::new();
            let closed = stream.read_to_end(&mut rest);
            let hung = closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            ensure!(!hung, "{} leaves the connection open after {} bytes", socket.display(), bytes.len());
        }
    }
    // Many that say nothing and stay.
    let silent: Vec<_> = sockets.iter().cycle().take(200).map(UnixStream::connect).collect();
    std::fs::write(cluster.mount().join("after"), "works")?;
    ensure!(std::fs::read_to_string(cluster.mount().join("file"))? == "kept", "the mount works");
    drop(silent);
    ensure!((cluster.pids("storage")?, cluster.pids("mgmtd")?) == before, "no process has died");
    cluster.wait_health("OK", Duration::from_secs(30)).map(|_| ())
}

#[test]
fn a_socket_or_port_in_use_is_named() -> Result<()> {
    let Some(cluster) = mounted("in-use")? else { return Ok(()) };
    // A second control of the same cluster: the first one's sockets and store are in use.
    let mut second = Command::new(cluster.binary());
    second.arg("control").arg("--data").arg(cluster.data()).stdin(Stdio::null());
    let output = second.output()?;
    ensure!(!output.status.success(), "a second control runs");
    ensure!(printed(&output).contains("in use"), "says so: {}", printed(&output));
    cluster.down()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = listener.local_addr()?;
    std::fs::write(cluster.data().join("ember.toml"), format!("[daemon]\nadmin = \"{taken}\"\n"))?;
    let output = cluster.ember(&["up", "--detach"])?;
    expect_exit(&output, 2, &["in use", &taken.to_string()])?;
    std::fs::remove_file(cluster.data().join("ember.toml"))?;
    // What a killed process leaves behind is no obstacle, and neither is a socket without one.
    drop(UnixListener::bind(cluster.data().join("run/leftover.sock"))?);
    cluster.up(&[])
}
