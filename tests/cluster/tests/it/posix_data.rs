//! Bytes through a mount: sparse files, appends, direct I/O, mappings, truncation, locks, large files.

use crate::common::{Cases, expect_errno, mounted};
use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::random::Random;
use ember_cluster_tests::{TestCluster, run};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn data() -> Result<()> {
    let Some(cluster) = mounted("data")? else { return Ok(()) };
    let mut cases = Cases::new(&cluster);
    cases.run("sparse files", sparse);
    cases.run("appends of several programs", appends);
    cases.run("appends of two descriptors", two_appenders);
    cases.run("direct I/O", direct);
    cases.run("truncation", truncation);
    cases.run("truncation at open", truncation_at_open);
    cases.run("a removed file while it is open", removed_while_open);
    cases.run("writes at random places", random_writes);
    cases.run("a stream of small writes", stream);
    cases.run("two readers and a writer", close_to_open);
    cases.run("locks of two programs", locks);
    cases.run("what is not supported says so", unsupported);
    cases.run("copies within the kernel", copy_range);
    cases.run("shared mappings", |dir| mappings(&cluster, dir));
    large_file(&cluster)?;
    cases.finish()
}

fn sparse(dir: &Path) -> Result<()> {
    let path = dir.join("sparse");
    let file = File::create_new(&path)?;
    file.write_all_at(b"end", 5 << 30)?;
    file.write_all_at(b"middle", (3 << 20) - 3)?;
    let meta = std::fs::metadata(&path)?;
    ensure!(meta.len() == (5 << 30) + 3, "its length is {}", meta.len());
    let file = File::open(&path)?;
    let mut around = [1; 12];
    file.read_exact_at(&mut around, (3 << 20) - 6)?;
    ensure!(&around == b"\0\0\0middle\0\0\0", "holes are zeros: {around:?}");
    let mut hole = vec![1; 2 << 20];
    file.read_exact_at(&mut hole, 1 << 32)?;
    ensure!(hole.iter().all(|&byte| byte == 0), "a hole of whole chunks is zeros");
    let mut end = [1; 16];
    let got = file.read_at(&mut end, (5 << 30) - 4)?;
    ensure!(got == 7 && &end[..7] == b"\0\0\0\0end", "short read at the end: {got}");
    ensure!(file.read_at(&mut end, 6 << 30)? == 0, "nothing behind the end");
    Ok(())
}

fn appends(dir: &Path) -> Result<()> {
    let path = dir.join("log");
    File::create(&path)?;
    let script = "i=0; while [ $i -lt 200 ]; do echo \"$N line $i of some length\" >> $F; i=$((i+1)); done";
    let start = |name: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("N", name).env("F", &path).spawn()
    };
    let children = [start("one")?, start("two")?, start("three")?];
    for mut child in children {
        ensure!(child.wait()?.success(), "an appending program fails");
    }
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.lines().count() == 600, "{} of 600 lines", text.lines().count());
    ensure!(text.lines().all(|line| line.ends_with("of some length")), "no line is torn");
    Ok(())
}

fn two_appenders(dir: &Path) -> Result<()> {
    let path = dir.join("log");
    let open = || OpenOptions::new().append(true).create(true).open(&path);
    let (mut a, mut b) = (open()?, open()?);
    for _ in 0..50 {
        a.write_all(b"aaaa")?;
        b.write_all(b"bbbb")?;
    }
    let text = std::fs::read_to_string(&path)?;
    ensure!(text == "aaaabbbb".repeat(50), "{} bytes, in order", text.len());
    Ok(())
}

fn direct(dir: &Path) -> Result<()> {
    let path = dir.join("direct");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT;
    let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644))?);
    // Room to find a page boundary in.
    let mut memory = vec![0_u8; (2 << 20) + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..start + (2 << 20)];
    Random::new(9).fill(buffer);
    let written = buffer.to_vec();
    file.write_all_at(buffer, 0)?;
    file.write_all_at(&buffer[4096..8192], 3 << 20)?;
    buffer.fill(0);
    file.read_exact_at(buffer, 0)?;
    ensure!(buffer == &written[..], "read back directly");
    let buffered = std::fs::read(&path)?;
    ensure!(buffered[..2 << 20] == written[..], "read back through the cache");
    ensure!(buffered[3 << 20..] == written[4096..8192], "behind a hole");
    File::options().write(true).open(&path)?.write_all_at(b"buffered", 100)?;
    file.read_exact_at(&mut buffer[..4096], 0)?;
    ensure!(&buffer[100..108] == b"buffered", "sees what was written through the cache");
    Ok(())
}

fn truncation(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let bytes = Random::new(3).bytes(3_500_000);
    std::fs::write(&path, &bytes)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    for (length, up) in [(2_500_001_usize, 3_000_000_usize), (1 << 20, 1 << 21), (1, 5000), (0, 4096)] {
        file.set_len(length as u64)?;
        ensure!(file.metadata()?.len() == length as u64, "cut to {length}");
        let cut = std::fs::read(&path)?;
        ensure!(cut == bytes[..length], "bytes after the cut to {length}: {} of them", cut.len());
        file.set_len(up as u64)?;
        let grown = std::fs::read(&path)?;
        ensure!(grown.len() == up, "grown to {up}, {} bytes read", grown.len());
        ensure!(grown[..length] == bytes[..length], "what was kept of {length}");
        let old = grown[length..].iter().position(|&byte| byte != 0);
        ensure!(old.is_none(), "cut {length}, grown {up}: byte {old:?} beyond the cut is not zero");
        file.set_len(length as u64)?;
    }
    expect_errno(File::open(&path)?.set_len(7), Errno::INVAL)?;
    file.write_all_at(b"again", 1 << 20)?;
    ensure!(std::fs::read(&path)?[1 << 20..] == *b"again", "written behind the cut");
    Ok(())
}

fn truncation_at_open(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    std::fs::write(&path, vec![7; 2_000_000])?;
    let reader = File::open(&path)?;
    std::fs::write(&path, "short")?;
    ensure!(std::fs::read_to_string(&path)? == "short", "O_TRUNC empties it first");
    let mut old = Vec::new();
    (&reader).read_to_end(&mut old)?;
    ensure!(old == b"short", "an open reader sees the new content: {} bytes", old.len());
    Ok(())
}

fn removed_while_open(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let bytes = Random::new(4).bytes(2_000_000);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    file.write_all_at(&bytes, 0)?;
    std::fs::remove_file(&path)?;
    // Longer than an order to remove data takes to be carried out.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 0).context("reading a removed file")?;
    ensure!(found == bytes, "its bytes are there");
    file.write_all_at(b"more", 2_000_000)?;
    file.sync_all().context("fsync of a removed file")?;
    ensure!(file.metadata()?.len() == 2_000_004 && file.metadata()?.nlink() == 0, "length and links");
    std::fs::write(&path, "another")?;
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == bytes, "a new file of that name is another");
    Ok(())
}

fn random_writes(dir: &Path) -> Result<()> {
    const LENGTH: u64 = 6 << 20;
    let path = dir.join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    let mut model = Vec::new();
    let mut random = Random::new(5);
    for step in 0..400 {
        let at = random.below(LENGTH);
        let limit = if step % 20 == 0 { 2_500_000 } else { 30_000 };
        let length = random.below(limit) as usize;
        if step % 3 == 0 {
            let mut found = Vec::new();
            file.seek(std::io::SeekFrom::Start(at))?;
            (&file).take(length as u64).read_to_end(&mut found)?;
            let end = model.len().min(at as usize + length);
            let expected = model.get(at as usize..end).unwrap_or_default();
            ensure!(found == expected, "step {step}: read of {length} at {at}, {} bytes", found.len());
            continue;
        }
        let bytes = random.bytes(length);
        file.write_all_at(&bytes, at)?;
        let end = at as usize + length;
        if length > 0 && model.len() < end {
            model.resize(end, 0);
        }
        if length > 0 {
            model[at as usize..end].copy_from_slice(&bytes);
        }
    }
    file.sync_all()?;
    ensure!(std::fs::read(&path)? == model, "the whole file");
    Ok(())
}

/// write(2) returns before such writes are done; nobody on this machine may notice.
fn stream(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    let (mut model, mut random) = (Vec::new(), Random::new(6));
    for step in 0..3000_u32 {
        let length = if step % 50 == 0 { random.below(700_000) } else { random.below(9000) };
        let bytes = random.bytes(length as usize);
        file.write_all(&bytes)?;
        model.extend(&bytes);
        match step % 500 {
            17 => ensure!(std::fs::metadata(&path)?.len() == model.len() as u64, "length in step {step}"),
            101 => {
                let mut other = Command::new("cmp").arg(&path).arg("-").stdin(Stdio::piped()).spawn()?;
                other.stdin.take().context("stdin")?.write_all(&model)?;
                ensure!(other.wait()?.success(), "another program reads in step {step}");
            }
            207 => {
                model.truncate(model.len() / 2);
                file.set_len(model.len() as u64)?;
                file.seek(std::io::SeekFrom::End(0))?;
            }
            _ => {}
        }
    }
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    file.set_modified(long_ago)?;
    drop(file);
    ensure!(std::fs::metadata(&path)?.modified()? == long_ago, "no write comes after its time was set");
    ensure!(std::fs::read(&path)? == model, "the whole file");
    Ok(())
}

fn close_to_open(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    for round in 0..50_u32 {
        let text = format!("round {round} {}", "x".repeat((round as usize * 131) % 5000));
        std::fs::write(&path, &text)?;
        let printed = run("cat", &[path.to_str().context("path")?])?;
        ensure!(printed == text, "another program sees round {round}");
        ensure!(std::fs::metadata(&path)?.len() == text.len() as u64, "length in round {round}");
    }
    Ok(())
}

fn locks(dir: &Path) -> Result<()> {
    let path = dir.join("lock");
    let file = File::create(&path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).context("first lock")?;
    let other = |path: &Path| {
        let status = Command::new("flock").arg("-n").arg(path).arg("true").stderr(Stdio::null()).status();
        status.map(|status| status.success())
    };
    ensure!(!other(&path)?, "another program must not get the lock");
    rustix::fs::flock(&file, FlockOperation::Unlock)?;
    ensure!(other(&path)?, "after unlocking it gets it");
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).context("record lock")?;
    Ok(())
}

fn unsupported(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    std::fs::write(&path, "x")?;
    let set = rustix::fs::setxattr(&path, "user.colour", b"red", rustix::fs::XattrFlags::empty());
    ensure!(set == Err(Errno::OPNOTSUPP), "setxattr: {set:?}");
    let mut value = [0_u8; 64];
    let got = rustix::fs::getxattr(&path, "user.colour", &mut value);
    ensure!(matches!(got, Err(Errno::OPNOTSUPP | Errno::NODATA)), "getxattr: {got:?}");
    let file = OpenOptions::new().write(true).open(&path)?;
    for flags in [FallocateFlags::empty(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE] {
        let made = rustix::fs::fallocate(&file, flags, 0, 4096);
        ensure!(made == Err(Errno::OPNOTSUPP), "fallocate {flags:?}: {made:?}");
    }
    ensure!(file.metadata()?.len() == 1, "nothing has changed");
    Ok(())
}

fn copy_range(dir: &Path) -> Result<()> {
    let bytes = Random::new(6).bytes(3_000_000);
    std::fs::write(dir.join("a"), &bytes)?;
    std::fs::copy(dir.join("a"), dir.join("b"))?;
    ensure!(std::fs::read(dir.join("b"))? == bytes, "std::fs::copy");
    let mut file = File::open(dir.join("a"))?;
    let end = rustix::fs::seek(&file, SeekFrom::Hole(0));
    ensure!(matches!(end, Ok(3_000_000) | Err(Errno::OPNOTSUPP)), "SEEK_HOLE: {end:?}");
    file.rewind()?;
    let mut out = File::create(dir.join("c"))?;
    std::io::copy(&mut file, &mut out)?;
    ensure!(std::fs::read(dir.join("c"))? == bytes, "std::io::copy");
    Ok(())
}

/// A program that maps files shared, reads and writes through the mapping, and compares.
fn mappings(cluster: &TestCluster, dir: &Path) -> Result<()> {
    let source = cluster.root().join("mapper.rs");
    let program = cluster.root().join("mapper");
    std::fs::write(&source, include_str!("../../fixtures/mapper.rs"))?;
    let (source, out) = (source.to_str().context("path")?, program.to_str().context("path")?);
    run("rustc", &["--edition", "2024", "-o", out, source])?;
    run(out, &[dir.to_str().context("path")?])?;
    let expected: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8 ^ 0x5a).collect();
    let found = std::fs::read(dir.join("mapped"))?;
    if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
        bail!("byte {at} of the mapped file differs");
    }
    ensure!(found.len() == expected.len(), "{} bytes", found.len());
    Ok(())
}

/// 300 MiB, read again from the cluster after a remount.
fn large_file(cluster: &TestCluster) -> Result<()> {
    const PIECE: usize = 4 << 20;
    let path = cluster.mount().join("large");
    let piece = |number: u64| Random::new(number ^ 0xabcd).bytes(PIECE);
    let mut file = File::create(&path)?;
    for number in 0..75 {
        file.write_all(&piece(number)).with_context(|| format!("piece {number} of the large file"))?;
    }
    file.sync_all()?;
    drop(file);
    cluster.remount()?;
    let mut file = File::open(&path)?;
    let mut found = vec![0; PIECE];
    for number in 0..75 {
        file.read_exact(&mut found)?;
        ensure!(found == piece(number), "piece {number} of the large file differs");
    }
    ensure!(file.read(&mut found)? == 0, "it ends there");
    std::fs::remove_file(&path).map_err(Into::into)
}
