//! The disk driver on a real file system.
#![allow(missing_docs)]

use ember_rt::disk::{Completion, DiskQueue, FileId, Op, OpKind, OpenMode, Priority};
use ember_rt::{Buf, Rt, SharedBuf};
use ember_rt_uring::{Options, run_reactor};
use std::path::PathBuf;
use std::time::Duration;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let base = std::env::temp_dir();
        let path = base.join(format!("ember-disk-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const NEW: OpenMode = OpenMode { create: true, exclusive: true, direct: true };

fn on_queue<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Rt, DiskQueue, FileId) -> F) {
    let dir = Dir::new(name);
    run_reactor(&Options::default(), async |rt: Rt| {
        let queue = DiskQueue::start(&rt, rt.disks().open(&dir.0).unwrap(), 64);
        let file = queue.disk().open_file("data", NEW).unwrap();
        test(rt, queue, file).await;
    })
    .unwrap();
}

fn pattern(len: usize, seed: u8) -> Buf {
    let mut buf = Buf::scratch(len);
    for (i, byte) in buf.bytes_mut().iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add((i >> 12) as u8).wrapping_add(seed);
    }
    buf
}

#[test]
fn what_was_written_is_read_back() {
    on_queue("roundtrip", async |_rt, queue, file| {
        let data: SharedBuf = pattern(1 << 20, 3).into();
        queue.allocate(file, 0, 4 << 20).await.unwrap();
        assert_eq!(queue.disk().file_len(file).unwrap(), 4 << 20);
        queue.write(file, Priority::Foreground, 8192, data.clone()).await.unwrap();
        queue.sync(file).await.unwrap();
        let read = queue.read(file, Priority::Foreground, 8192, 1 << 20).await.unwrap();
        assert_eq!(&read[..], &data[..]);
        let zeros = queue.read(file, Priority::Scrub, 0, 8192).await.unwrap();
        assert!(zeros.iter().all(|&byte| byte == 0));
        queue.punch(file, 8192, 4096).await.unwrap();
        let hole = queue.read(file, Priority::Resync, 8192, 8192).await.unwrap();
        assert!(hole[..4096].iter().all(|&byte| byte == 0));
        assert_eq!(&hole[4096..], &data[4096..8192]);
        queue.disk().set_file_len(file, 8192).unwrap();
        let short = queue.read(file, Priority::Foreground, 4096, 8192).await.unwrap();
        assert_eq!(short.len(), 4096, "a read at the end of the file is short");
    });
}

#[test]
fn buffered_files_take_any_offset() {
    on_queue("buffered", async |_rt, queue, _| {
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let file = queue.disk().open_file("log", mode).unwrap();
        queue.write(file, Priority::Foreground, 5, b"hello"[..].into()).await.unwrap();
        let read = queue.read(file, Priority::Foreground, 0, 100).await.unwrap();
        assert_eq!(&read[..], b"\0\0\0\0\0hello");
    });
}

#[test]
fn unaligned_direct_access_is_an_error_and_nothing_else() {
    on_queue("unaligned", async |_rt, queue, file| {
        if !queue.disk().warnings().is_empty() {
            return;
        }
        let err = queue.read(file, Priority::Foreground, 7, 4096).await.unwrap_err();
        assert!(err.to_string().contains("data: direct access to 4096 bytes at 7"), "{err}");
        let unaligned = SharedBuf::from(Buf::zeroed(8192)).slice(1..4097);
        assert!(queue.write(file, Priority::Foreground, 0, unaligned).await.is_err());
        let err = queue.read(FileId(99), Priority::Foreground, 0, 4096).await.unwrap_err();
        assert!(err.to_string().contains("not open"), "{err}");
        queue.write(file, Priority::Foreground, 0, Buf::zeroed(4096).into()).await.unwrap();
    });
}

#[test]
fn many_operations_of_every_priority_end() {
    on_queue("many", async |_rt, queue, file| {
        queue.write(file, Priority::Foreground, 0, pattern(1 << 20, 9).into()).await.unwrap();
        let expected = pattern(1 << 20, 9);
        let reads = (0..600_u64).map(|i| {
            let queue = queue.clone();
            let priority = [Priority::Foreground, Priority::Resync, Priority::Scrub][i as usize % 3];
            let (at, expected) = ((i * 7 % 256) as usize * 4096, &expected);
            async move {
                let read = queue.read(file, priority, at as u64, 4096).await.unwrap();
                assert_eq!(&read[..], &expected[at..at + 4096]);
            }
        });
        ember_rt::select::join_all(reads).await;
    });
}

#[test]
fn a_forgotten_operation_keeps_its_buffer_until_it_has_ended() {
    on_queue("forgotten", async |rt, queue, file| {
        queue.write(file, Priority::Foreground, 0, pattern(8 << 20, 1).into()).await.unwrap();
        for round in 0..50_u64 {
            let read = queue.read(file, Priority::Foreground, 0, 8 << 20);
            let _ = rt.timeout(Duration::from_micros(round * 20), read).await;
        }
        queue.disk().close_file(file);
        let mode = OpenMode { direct: true, ..OpenMode::default() };
        let file = queue.disk().open_file("data", mode).unwrap();
        let read = queue.read(file, Priority::Foreground, 0, 4096).await.unwrap();
        assert_eq!(&read[..], &pattern(4096, 1)[..]);
    });
}

#[test]
fn dropping_a_disk_waits_for_its_writes() {
    let dir = Dir::new("drop");
    run_reactor(&Options::default(), async |rt: Rt| {
        let disk = rt.disks().open(&dir.0).unwrap();
        let file = disk.open_file("data", NEW).unwrap();
        let kind = OpKind::Write { offset: 0, data: pattern(4 << 20, 5).into() };
        disk.submit(Op { token: 1, file, priority: Priority::Foreground, kind });
        let mut out: Vec<Completion> = Vec::new();
        disk.poll(&mut out);
        drop(disk);
    })
    .unwrap();
    assert_eq!(std::fs::read(dir.0.join("data")).unwrap(), &pattern(4 << 20, 5)[..]);
}

#[test]
fn a_locked_directory_names_its_holder() {
    let dir = Dir::new("lock");
    run_reactor(&Options::default(), async |rt: Rt| {
        let first = rt.disks().open(&dir.0).unwrap();
        first.create_dir("target").unwrap();
        first.lock("target").unwrap();
        first.lock("target").unwrap();
        let second = rt.disks().open(&dir.0).unwrap();
        let refused = second.lock("target").unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        assert!(first.list("target").unwrap().is_empty());
        drop(first);
        second.lock("target").unwrap();
    })
    .unwrap();
}

#[test]
fn names_small_files_and_space() {
    let dir = Dir::new("names");
    run_reactor(&Options::default(), async |rt: Rt| {
        let disk = rt.disks().open(&dir.0).unwrap();
        disk.create_dir("a/b").unwrap();
        disk.create_dir("a/b").unwrap();
        disk.write_small("a/b/super", b"one").unwrap();
        disk.write_small("a/b/super", b"two").unwrap();
        assert_eq!(disk.read_small("a/b/super").unwrap(), b"two");
        std::fs::write(dir.0.join("a/b/super.tmp~"), b"torn").unwrap();
        assert_eq!(disk.list("a/b").unwrap(), ["super"]);
        assert_eq!(disk.list("").unwrap(), ["a"]);
        disk.rename("a/b/super", "a/moved").unwrap();
        disk.sync_dir("a").unwrap();
        assert_eq!(disk.list("a").unwrap(), ["b", "moved"]);
        disk.remove_file("a/moved").unwrap();
        let missing = disk.read_small("a/moved").unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        assert!(missing.to_string().contains("a/moved"), "{missing}");
        for bad in ["../x", "/etc/passwd", "a/../../x"] {
            assert_eq!(disk.read_small(bad).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        }
        disk.open_file("once", NEW).unwrap();
        assert_eq!(disk.open_file("once", NEW).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        let space = disk.space().unwrap();
        assert!(space.available > 0 && space.available <= space.total);
        let none = rt.disks().open(&dir.0.join("none")).err().unwrap();
        assert!(none.to_string().contains("none"), "{none}");
    })
    .unwrap();
}
