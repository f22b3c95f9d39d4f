//! The native client beside a mount, on a real cluster.

use crate::common::mounted;
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::TestCluster;
use ember_native::{FileKind, FileSystem, Replace, Status};
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

pub(crate) fn connect(cluster: &TestCluster) -> Result<FileSystem> {
    cluster.wait_health("OK", SOON)?;
    Ok(FileSystem::connect(&cluster.data(), "test")?)
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
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
    ensure!(fs.remove_all("/").is_err() && fs.exists("/")?);
    Ok(())
}

/// What a call must fail with.
fn fails<T>(result: ember_native::Result<T>, status: Status) -> Result<()> {
    let error = result.err().with_context(|| format!("{status} expected"))?;
    ensure!(
        error.status() == Some(status) && error.errno() == Some(status.errno()),
        "{status} expected: {error}"
    );
    Ok(())
}

#[test]
fn links_slashes_and_modes_are_those_of_a_local_file_system() -> Result<()> {
    let Some(cluster) = mounted("native-paths")? else { return Ok(()) };
    let (fs, mount) = (connect(&cluster)?, cluster.mount());
    fs.make_directories("/d/sub")?;
    symlink("sub", mount.join("d/to-sub"))?;
    symlink("/d/later", mount.join("d/to-later"))?;
    fails(fs.open("/d/to-later"), Status::NotFound)?;
    fails(fs.create_new("/d/to-later"), Status::Exists)?;
    fails(fs.make_directories("/d/to-later"), Status::NotFound)?;
    fs.create("/d/to-later")?.write_at(0, b"made through a link")?;
    ensure!(std::fs::read_to_string(mount.join("d/later"))? == "made through a link");
    ensure!(fs.attributes("/d/to-sub/../later")?.length == 19);
    let up = std::fs::metadata(mount.join("d/later"))?;
    // What this process would make itself.
    std::fs::write(cluster.root().join("own"), "")?;
    let own = std::fs::metadata(cluster.root().join("own"))?;
    ensure!((up.mode(), up.uid(), up.gid()) == (own.mode(), own.uid(), own.gid()), "{:o}", up.mode());

    for path in ["/d/later/", "/d/new/", "/d/new/."] {
        fails(fs.create(path), Status::IsDirectory)?;
    }
    fails(fs.create("/d/sub"), Status::IsDirectory)?;
    fails(fs.open("/d/later/."), Status::NotDirectory)?;
    fails(fs.open("/d/later/x"), Status::NotDirectory)?;
    fails(fs.make_directories("/d/later/x"), Status::NotDirectory)?;
    fails(fs.remove("/d/later/"), Status::NotDirectory)?;
    fails(fs.remove("/d/sub"), Status::IsDirectory)?;
    fails(fs.rename("/d/later", "/d/moved/", Replace::Refuse), Status::NotDirectory)?;
    fails(fs.remove_all("/d/to-sub/"), Status::NotDirectory)?;
    fails(fs.remove("/d/.."), Status::InvalidArgument)?;
    fails(fs.list("/d/later"), Status::NotDirectory)?;
    fails(fs.open("/d/later")?.write_at(0, b"x"), Status::BadHandle)?;

    fs.create("/d/sub/kept")?.close()?;
    fs.remove_all("/d/to-sub")?;
    ensure!(fs.exists("/d/sub/kept")? && !fs.exists("/d/to-sub")?, "a link goes, not what it leads to");
    Ok(())
}

#[test]
fn a_checkpoint_is_written_by_many_read_meanwhile_and_published_at_once() -> Result<()> {
    let Some(cluster) = mounted("native-publish")? else { return Ok(()) };
    let (fs, mount) = (connect(&cluster)?, cluster.mount());
    let shard = |rank: usize| pattern((3 << 20) + rank * 1000);
    fs.make_directories("/step.part/")?;
    fs.make_directories("/step")?;
    std::fs::write(mount.join("step/old"), "old")?;
    let whole = pattern(8 << 20);
    std::fs::write(mount.join("data"), &whole)?;
    let data = fs.open("/data")?;
    std::thread::scope(|scope| -> Result<()> {
        let write = |rank: usize| {
            let (fs, bytes) = (fs.clone(), shard(rank));
            move || -> Result<()> {
                let file = fs.create_new(&format!("/step.part/{rank}"))?;
                let (first, rest) = bytes.split_at(777);
                file.write_parts_at(0, &[first, rest])?;
                file.sync()?;
                Ok(file.close()?)
            }
        };
        let read = |thread: u64| {
            let (data, whole) = (&data, &whole);
            move || -> Result<()> {
                let ranges: Vec<_> =
                    (0..500).map(|i| ((i * 7919 + thread) * 977 % (8 << 20), 3000)).collect();
                for ((offset, length), found) in ranges.iter().zip(data.read_many(&ranges)?) {
                    let from = *offset as usize;
                    ensure!(found == whole[from..whole.len().min(from + length)], "bytes at {offset}");
                }
                let mut found = vec![0; whole.len()];
                data.read_exact_at(0, &mut found)?;
                ensure!(found == *whole, "all bytes");
                Ok(())
            }
        };
        let mut threads: Vec<_> = (0..4).map(|rank| scope.spawn(write(rank))).collect();
        threads.extend((0..4).map(|thread| scope.spawn(read(thread))));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    fails(fs.rename("/step.part", "/step", Replace::Replace), Status::NotEmpty)?;
    fails(fs.rename("/step.part", "/step", Replace::Refuse), Status::Exists)?;
    fs.rename("/step.part", "/step", Replace::Exchange)?;
    fs.sync_directory("/")?;
    ensure!(fs.list("/step.part")?.len() == 1 && fs.list("/step")?.len() == 4);
    for rank in 0..4 {
        ensure!(std::fs::read(mount.join(format!("step/{rank}")))? == shard(rank), "shard {rank}");
    }
    // Many large ranges share the room of a call.
    let ranges = vec![(0, 5 << 20); 40];
    ensure!(data.read_many(&ranges)?.iter().all(|found| *found == whole[..5 << 20]));
    fails(data.read_exact_at(8 << 20, &mut [0]), Status::InvalidArgument)?;
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
    let writing = fs.create("/many/0-0")?;
    writing.write_at(0, &[1; 1000])?;
    let entries = fs.list("/many")?;
    let names: BTreeSet<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    ensure!(entries.len() == 800 && names.len() == 800, "{} entries", entries.len());
    ensure!(entries.iter().all(|entry| entry.length > 7 && entry.kind == FileKind::File));
    let longest = entries.iter().max_by_key(|entry| entry.length).context("one")?;
    ensure!(
        longest.length == 1000 && longest.name == "0-0",
        "what is written here counts at once: {longest:?}"
    );
    drop(writing);
    std::thread::scope(|scope| {
        let work = |thread: usize| {
            let fs = &fs;
            move || {
                (thread * 1150..(thread + 1) * 1150)
                    .try_for_each(|i| fs.create(&format!("/many/e{i}"))?.close())
            }
        };
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    let names: BTreeSet<_> = fs.list("/many")?.into_iter().map(|entry| entry.name).collect();
    ensure!(names.len() == 10_000, "{} entries", names.len());
    ensure!(std::fs::read_dir(cluster.mount().join("many"))?.count() == 10_000, "the mount sees them all");
    fs.make_directories("/many/below/it")?;
    fs.create("/many/below/it/file")?.close()?;
    fs.remove_all("/many")?;
    ensure!(!fs.exists("/many")?);
    Ok(())
}
