//! The native client beside a mount, on a real cluster.

use crate::common::mounted;
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::TestCluster;
use ember_native::{FileSystem, NativeError, Replace, Status};
use rustix::process::Signal;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn connect(cluster: &TestCluster) -> Result<FileSystem> {
    cluster.wait_health("OK", SOON)?;
    Ok(FileSystem::connect(&cluster.data(), "test")?)
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).flat_map(|i| (i * 0x9e37_79b9).to_le_bytes()).take(length).collect()
}

#[test]
fn files_are_written_read_renamed_and_seen_by_a_mount() -> Result<()> {
    let Some(cluster) = mounted("native")? else { return Ok(()) };
    let fs = connect(&cluster)?;
    fs.make_directories("/a/b/c")?;
    fs.make_directories("/a/b/c/")?;
    let bytes = pattern((5 << 20) + 12345);
    let file = fs.create_new("/a/b/c/file")?;
    file.write_at(100, &bytes)?;
    ensure!(file.length() == bytes.len() as u64 + 100);
    file.sync()?;
    file.close()?;
    let mount = cluster.mount();
    let seen = std::fs::read(mount.join("a/b/c/file"))?;
    ensure!(seen[..100] == [0; 100] && seen[100..] == bytes, "the mount sees what was written");

    std::fs::write(mount.join("a/other"), &bytes[..70_000])?;
    symlink("../a/./other", mount.join("a/link"))?;
    let file = fs.open("/a/b/../link")?;
    let mut found = vec![0; 70_000];
    file.read_exact_at(0, &mut found)?;
    ensure!(found == bytes[..70_000], "and the other way round");
    ensure!(file.read_at(69_990, &mut found)? == 10, "less at the end");
    ensure!(file.read_at(1 << 40, &mut found)? == 0, "nothing behind it");
    ensure!(file.read_exact_at(69_990, &mut found).is_err());
    let ranges: Vec<(u64, usize)> = (0..200).map(|i| (i * 321, 1000)).collect();
    for ((offset, _), range) in ranges.iter().zip(file.read_many(&ranges)?) {
        let end = (*offset as usize + 1000).min(70_000);
        ensure!(range == bytes[*offset as usize..end], "range at {offset}");
    }

    let exists = fs.create_new("/a/other").err().context("it is there")?;
    ensure!(exists.is_exists(), "{exists}");
    let refused = fs.rename("/a/other", "/a/b/c/file", Replace::Refuse).err().context("refused")?;
    ensure!(refused.is_exists(), "{refused}");
    fs.rename("/a/other", "/a/b/c/file", Replace::Exchange)?;
    ensure!(fs.attributes("/a/other")?.length == bytes.len() as u64 + 100);
    fs.rename("/a/other", "/a/b/c/file", Replace::Replace)?;
    ensure!(!fs.exists("/a/other")? && fs.exists("/a/b/c/file")?);
    let left = fs.create("/a/b/c/file")?;
    ensure!(left.length() == 0, "an existing file is emptied");
    drop(left);

    symlink("round", mount.join("round"))?;
    let loop_error = fs.open("/round").err().context("a link to itself")?;
    ensure!(loop_error.status() == Some(Status::SymlinkLoop), "{loop_error}");
    for (path, status) in [
        ("/a", Status::IsDirectory),
        ("/nothing", Status::NotFound),
        ("/a/b/c/file/", Status::NotDirectory),
        ("relative", Status::InvalidArgument),
    ] {
        let error = fs.open(path).err().context(path)?;
        ensure!(error.status() == Some(status), "{error}");
    }
    fs.remove_all("/a")?;
    fs.remove_all("/a")?;
    ensure!(!fs.exists("/a")?);
    fs.remove("/round")?;
    Ok(())
}

#[test]
fn a_large_directory_is_listed_and_threads_work_at_once() -> Result<()> {
    let Some(cluster) = mounted("native-many")? else { return Ok(()) };
    let fs = connect(&cluster)?;
    fs.make_directories("/many")?;
    std::thread::scope(|scope| {
        let work = |thread: usize| {
            let fs = fs.clone();
            move || -> Result<()> {
                for i in 0..200 {
                    let path = format!("/many/{thread}-{i}");
                    let file = fs.create(&path)?;
                    file.write_at(0, path.as_bytes())?;
                    file.close()?;
                    let mut found = vec![0; path.len()];
                    fs.open(&path)?.read_exact_at(0, &mut found)?;
                    ensure!(found == path.as_bytes(), "{path}");
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    let mut entries = fs.list("/many")?;
    ensure!(entries.len() == 800, "{} entries", entries.len());
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries.dedup_by(|a, b| a.name == b.name);
    ensure!(entries.len() == 800 && entries.iter().all(|entry| entry.length > 7));
    fs.remove_all("/many")?;
    Ok(())
}

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
