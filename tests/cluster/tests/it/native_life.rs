//! The native client when something of its cluster isn't there.

use crate::common::{cluster, mounted};
use crate::native::{connect, pattern};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::signal;
use ember_native::{FileSystem, NativeError, Options, Status};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_storage_process_that_dies_is_waited_out_and_a_cluster_that_is_down_is_named() -> Result<()> {
    let Some(cluster) = mounted("native-down")? else { return Ok(()) };
    let fs = connect(&cluster)?;
    let file = fs.create("/file")?;
    let bytes = pattern(32 << 20);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| (0..4).try_for_each(|i| file.write_at(i * 3, &bytes)));
        std::thread::sleep(Duration::from_millis(100));
        cluster.kill_storage(2, Signal::KILL)?;
        writer.join().expect("no thread panics")?;
        Ok(())
    })?;
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(9, &mut found)?;
    ensure!(found == bytes, "the last write counts");
    file.close()?;
    drop(fs);
    cluster.down()?;
    let error = FileSystem::connect(&cluster.data(), "test").err().context("nobody is there")?;
    ensure!(error.to_string().contains("ember up"), "{error}");
    let error = FileSystem::connect(Path::new("/proc"), "test").err().context("no cluster")?;
    ensure!(matches!(error, NativeError::Place { .. }), "{error}");
    Ok(())
}

/// Options with a short time for operations.
fn hasty() -> Options {
    Options { description: "test".into(), operation_timeout: Some(Duration::from_secs(4)) }
}

#[test]
fn calls_of_a_cluster_that_is_stopped_end_with_errors() -> Result<()> {
    let Some(cluster) = mounted("native-stop")? else { return Ok(()) };
    connect(&cluster)?;
    let fs = FileSystem::connect_with(&cluster.data(), &hasty())?;
    let file = fs.create("/file")?;
    let bytes = pattern(4 << 20);
    file.write_at(0, &bytes)?;
    file.sync()?;
    let failures = std::thread::scope(|scope| -> Result<Vec<NativeError>> {
        let until_it_fails =
            |call: &'static (dyn Fn(&FileSystem, &ember_native::File) -> ember_native::Result<()> + Sync)| {
                let (fs, file) = (&fs, &file);
                scope.spawn(move || {
                    loop {
                        if let Err(error) = call(fs, file) {
                            return error;
                        }
                    }
                })
            };
        let threads = [
            until_it_fails(&|_, file| file.write_at(5, &[7; 3 << 20])),
            until_it_fails(&|_, file| file.read_exact_at(0, &mut [0; 100])),
            until_it_fails(&|_, file| file.read_many(&[(0, 1 << 20); 100]).map(|_| ())),
            until_it_fails(&|fs, _| fs.create("/other")?.close()),
            until_it_fails(&|fs, _| fs.list("/").map(|_| ())),
        ];
        std::thread::sleep(Duration::from_millis(300));
        cluster.down()?;
        Ok(threads.map(|thread| thread.join().expect("no thread panics")).into())
    })?;
    for error in &failures {
        ensure!(
            error.status().is_some_and(|status| status.is_retryable() || status == Status::Timeout),
            "{error}"
        );
    }
    ensure!(fs.exists("/file").is_err() && file.sync().is_err());
    ensure!(file.close().is_err(), "what isn't known to be settled is told");
    drop(fs);
    cluster.up(&[])?;
    let mut found = vec![0; 5];
    connect(&cluster)?.open("/file")?.read_exact_at(0, &mut found)?;
    ensure!(found == bytes[..5], "what was synced is there");
    Ok(())
}

#[test]
fn a_wrong_token_is_named() -> Result<()> {
    let Some(cluster) = mounted("native-token")? else { return Ok(()) };
    let other = cluster.root().join("other");
    std::fs::create_dir_all(&other)?;
    std::fs::copy(cluster.data().join("cluster.toml"), other.join("cluster.toml"))?;
    symlink(cluster.data().join("run"), other.join("run"))?;
    let missing = FileSystem::connect(&other, "test").err().context("there is no token")?;
    ensure!(missing.to_string().contains("token"), "{missing}");
    std::fs::write(other.join("token"), "0".repeat(64))?;
    let refused = FileSystem::connect(&other, "test").err().context("refused")?;
    ensure!(refused.status() == Some(Status::HandshakeRefused), "{refused}");
    ensure!(refused.to_string().contains("`token`"), "{refused}");
    Ok(())
}

/// Names the data directory to the process that [`a_process_that_stood_still_must_connect_again`] starts.
const STANDS_STILL: &str = "EMBER_NATIVE_STANDS_STILL";

#[test]
fn a_process_that_stood_still_must_connect_again() -> Result<()> {
    if let Some(data) = std::env::var_os(STANDS_STILL) {
        return stand_still(&PathBuf::from(data));
    }
    let Some(cluster) = cluster("native-session")? else { return Ok(()) };
    std::fs::create_dir_all(cluster.data())?;
    std::fs::write(cluster.data().join("ember.toml"), "[mgmtd]\nclient_session_ms = 4000\n")?;
    cluster.up(&[])?;
    connect(&cluster)?.create("/file")?.close()?;
    let name = "native_life::a_process_that_stood_still_must_connect_again";
    let mut other = Command::new(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(STANDS_STILL, cluster.data())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = BufReader::new(other.stdout.take().context("piped")?);
    let mut line = String::new();
    while !line.contains("connected") {
        line.clear();
        ensure!(out.read_line(&mut line)? > 0, "it has ended early");
    }
    let pid = i32::try_from(other.id())?;
    signal(pid, Signal::STOP);
    std::thread::sleep(Duration::from_secs(9));
    signal(pid, Signal::CONT);
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    ensure!(other.wait()?.success(), "{rest}");
    Ok(())
}

fn stand_still(data: &Path) -> Result<()> {
    let fs = FileSystem::connect_with(data, &hasty())?;
    let file = fs.open("/file")?;
    println!("connected");
    let error = loop {
        match fs.exists("/file") {
            Ok(_) => std::thread::sleep(Duration::from_millis(10)),
            Err(error @ NativeError::Ended(_)) => break error,
            // On the way to the end.
            Err(_) => {}
        }
    };
    ensure!(error.to_string().contains("session") && error.to_string().contains("connect again"), "{error}");
    let error = file.read_at(0, &mut [0; 10]).err();
    ensure!(matches!(error, Some(NativeError::Ended(_)) | None), "an empty file, or the end: {error:?}");
    ensure!(matches!(file.close(), Err(NativeError::Ended(_))));
    drop(fs);
    FileSystem::connect(data, "again")?.attributes("/file")?;
    Ok(())
}
