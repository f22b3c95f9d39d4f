//! The daemon behind a real mount, over a cluster in memory.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::disallowed_methods, reason = "tests run outside the seam, on the real clock")]

mod support;

use ember_fuse::FuseConfig;
use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Cluster, logs, skip_reason};

/// Says that this test is skipped, also in the file that `EMBER_SKIPS` names.
fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test of a mount");
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("EMBER_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        writeln!(file.unwrap(), "{test}: {reason}").unwrap();
    }
}

macro_rules! need_mount {
    () => {
        if let Some(reason) = skip_reason() {
            skip(&reason);
            return;
        }
        logs();
    };
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 4096 + i / 65536) as u8).collect()
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn slow_attributes() -> FuseConfig {
    FuseConfig { attr_timeout_ms: 3_600_000, entry_timeout_ms: 3_600_000, ..FuseConfig::default() }
}

#[test]
fn files_keep_what_is_written() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    let path = mounted.path("file");
    let data = pattern(3_000_000);
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(fs::metadata(&path).unwrap().len(), data.len() as u64);

    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"middle", 1_000_001).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"end").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3_000_003);
    file.sync_all().unwrap();
    assert!(cluster.world.lock().unwrap().meta.syncs > 0);
    let mut some = [0; 8];
    file.read_exact_at(&mut some, 1_000_000).unwrap();
    assert_eq!(&some[1..7], b"middle");
    // A hole.
    file.write_all_at(b"far", 10_000_000).unwrap();
    file.read_exact_at(&mut some, 5_000_000).unwrap();
    assert_eq!(some, [0; 8]);
    file.set_len(2_000_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2_000_000);
    file.set_len(2_000_010).unwrap();
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(1_999_999)).unwrap();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail.len(), 11);
    assert_eq!(tail[1..], [0; 10]);
    drop(file);

    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b"one").unwrap();
    log.write_all(b"two").unwrap();
    drop(log);
    let whole = fs::read(&path).unwrap();
    assert_eq!((whole.len(), &whole[2_000_010..]), (2_000_016, &b"onetwo"[..]));
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    mounted.end().unwrap();
    assert!(cluster.world.lock().unwrap().meta.sessions.is_empty(), "every open was closed");
}

#[test]
fn direct_and_mapped_files() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    let path = mounted.path("file");
    let data = pattern(2 << 20);
    let direct = OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).custom_flags(direct);
    let file = options.open(&path).unwrap();
    file.write_all_at(&data, 0).unwrap();
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    // Not aligned to anything.
    file.write_all_at(b"odd", 12_345).unwrap();
    let mut odd = [0; 5];
    file.read_exact_at(&mut odd, 12_344).unwrap();
    assert_eq!(&odd[1..4], b"odd");

    let len = 1 << 20;
    let mapped = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    mapping::write(&mapped, len, 70_000, b"by mmap");
    let mut seven = [0; 7];
    file.read_exact_at(&mut seven, 70_000).unwrap();
    assert_eq!(&seven, b"by mmap");
    assert_eq!(mapping::read(&mapped, len)[12_345..12_348], *b"odd");
    drop((file, mapped));
    mounted.end().unwrap();
}

/// The only user of mmap here.
mod mapping {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    use std::fs::File;

    #[allow(unsafe_code, reason = "mmap is what is tested")]
    pub(super) fn write(file: &File, len: usize, at: usize, text: &[u8]) {
        assert!(at + text.len() <= len);
        // SAFETY: a fresh mapping of `len` bytes of a file that is at least as long and that nobody cuts
        // meanwhile; it is used inside its bounds and not after munmap.
        unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let map = mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0).unwrap();
            std::ptr::copy_nonoverlapping(text.as_ptr(), map.cast::<u8>().add(at), text.len());
            msync(map, len, MsyncFlags::SYNC).unwrap();
            munmap(map, len).unwrap();
        }
    }

    #[allow(unsafe_code, reason = "mmap is what is tested")]
    pub(super) fn read(file: &File, len: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe {
            let map = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0).unwrap();
            let bytes = std::slice::from_raw_parts(map.cast::<u8>(), len).to_vec();
            munmap(map, len).unwrap();
            bytes
        }
    }
}

#[test]
fn names() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    let at = |name: &str| mounted.path(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/a"), "a").unwrap();
    assert_eq!(errno(fs::create_dir(at("dir"))), Some(Errno::EXIST.raw_os_error()));
    assert_eq!(errno(fs::remove_dir(at("dir"))), Some(Errno::NOTEMPTY.raw_os_error()));
    assert_eq!(errno(fs::metadata(at("none"))), Some(Errno::NOENT.raw_os_error()));
    symlink("dir/a", at("link")).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("dir/a"));
    assert_eq!(fs::read(at("link")).unwrap(), b"a");
    fs::hard_link(at("dir/a"), at("hard")).unwrap();
    assert_eq!(fs::metadata(at("hard")).unwrap().nlink(), 2);
    fs::write(at("b"), "b").unwrap();
    let rename = |old: &str, new: &str, flags| {
        rustix::fs::renameat_with(rustix::fs::CWD, at(old), rustix::fs::CWD, at(new), flags)
    };
    assert_eq!(rename("b", "hard", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("b", "hard", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(at("b")).unwrap(), fs::read(at("hard")).unwrap()), (b"a".to_vec(), b"b".to_vec()));
    assert_eq!(rename("b", "hard", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    fs::rename(at("b"), at("dir/c")).unwrap();
    assert!(!at("b").exists());
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, Mode::from(0o600), 0)
        .unwrap();
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    let umask = rustix::process::umask(Mode::from(0o027));
    fs::create_dir(at("masked")).unwrap();
    rustix::process::umask(umask);
    assert_eq!(fs::metadata(at("masked")).unwrap().permissions().mode() & 0o7777, 0o750);
    // Removed, but open: it can still be read and written.
    let mut open = OpenOptions::new().read(true).write(true).open(at("dir/a")).unwrap();
    fs::remove_file(at("dir/a")).unwrap();
    open.write_all(b"still").unwrap();
    assert_eq!(open.metadata().unwrap().len(), 5);
    drop(open);
    let stat = rustix::fs::statvfs(&mounted.point).unwrap();
    assert_eq!((stat.f_namemax, stat.f_blocks * stat.f_frsize), (255, 1 << 40));
    mounted.end().unwrap();
}

#[test]
fn listings() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    let dir = mounted.path("dir");
    fs::create_dir(&dir).unwrap();
    let names: BTreeSet<String> = (0..1500).map(|i| format!("{i:04}{}", "x".repeat(i % 60))).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    let listed: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed.len(), names.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    for entry in fs::read_dir(&dir).unwrap() {
        assert!(entry.unwrap().metadata().unwrap().is_file());
    }
    let open = File::open(&dir).unwrap();
    let raw: Vec<_> = rustix::fs::Dir::read_from(&open).unwrap().map(|e| e.unwrap()).collect();
    let ino = |name: &str| raw.iter().find(|e| e.file_name().to_bytes() == name.as_bytes()).unwrap().ino();
    assert_eq!(ino("."), fs::metadata(&dir).unwrap().ino());
    assert_eq!(ino(".."), fs::metadata(&mounted.point).unwrap().ino());
    open.sync_all().unwrap();
    // Removing while listing loses nobody else.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    drop(open);
    mounted.end().unwrap();
}

#[test]
fn attributes() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    let path = mounted.path("file");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4755, 12, 34));
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_ne!(meta.atime(), meta.mtime());
    // Extended attributes, reservations and locks across machines are not there, and say so.
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&path, "user.x", &mut value), Err(Errno::OPNOTSUPP));
    let reserve = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 4096);
    assert_eq!(reserve, Err(Errno::OPNOTSUPP));
    let unnamed = rustix::fs::open(&mounted.point, OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o600));
    assert_eq!(unnamed.err(), Some(Errno::OPNOTSUPP));
    file.lock().unwrap();
    drop(file);
    mounted.end().unwrap();
}

#[test]
fn a_slow_file_holds_up_nobody_else() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig { threads: 2, ..FuseConfig::default() });
    let (slow, fast) = (mounted.path("slow"), mounted.path("fast"));
    fs::write(&slow, pattern(100_000)).unwrap();
    fs::write(&fast, "fast").unwrap();
    let ino = fs::metadata(&slow).unwrap().ino();
    let data = cluster.world.lock().unwrap().meta.inodes[&ember_types::InodeId(ino)].attributes.data;
    cluster.faults.stalled_data.store(data.0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..20)
            .map(|i| {
                let slow = &slow;
                scope.spawn(move || {
                    let mut some = [0; 10];
                    let mut options = OpenOptions::new();
                    options.read(true).custom_flags(OFlags::DIRECT.bits() as i32);
                    options.open(slow).unwrap().read_exact_at(&mut some, i * 1000).unwrap();
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        for i in 0..50 {
            fs::write(mounted.path("other"), format!("{i}")).unwrap();
            assert_eq!(fs::read(&fast).unwrap(), b"fast");
        }
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        cluster.faults.stalled_data.store(0, Ordering::SeqCst);
    });
    mounted.end().unwrap();
}

#[test]
fn requests_wait_for_a_service_that_is_away() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(FuseConfig::default());
    cluster.faults.meta_stalled.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let path = mounted.path("file");
        let writer = scope.spawn(move || fs::write(&path, "waits"));
        // Longer than one attempt of the client.
        std::thread::sleep(Duration::from_millis(4500));
        assert!(!writer.is_finished());
        cluster.faults.meta_stalled.store(false, Ordering::SeqCst);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"waits");
    mounted.end().unwrap();
}

#[test]
fn an_open_sees_what_another_client_has_closed() {
    need_mount!();
    let cluster = Cluster::start();
    // Attributes and names never expire: only the open itself can bring news.
    let (here, there) = (cluster.mount(slow_attributes()), cluster.mount(slow_attributes()));
    fs::write(here.path("file"), "old").unwrap();
    assert_eq!(fs::read(there.path("file")).unwrap(), b"old");
    fs::write(here.path("file"), "new and longer").unwrap();
    assert_eq!(fs::read(there.path("file")).unwrap(), b"new and longer");
    for round in 0..5 {
        // Same length: the pages must go.
        fs::write(here.path("file"), format!("{round} one one one")).unwrap();
        assert_eq!(fs::read_to_string(there.path("file")).unwrap(), format!("{round} one one one"));
        assert_eq!(fs::metadata(there.path("file")).unwrap().len(), 13);
    }
    // Appends from both sides in turn.
    for round in 0..6 {
        let side = if round % 2 == 0 { &here } else { &there };
        let mut log = OpenOptions::new().append(true).open(side.path("file")).unwrap();
        log.write_all(b"+").unwrap();
    }
    assert_eq!(fs::read_to_string(here.path("file")).unwrap(), "4 one one one++++++");
    here.end().unwrap();
    there.end().unwrap();
}

#[test]
fn pages_are_kept_over_an_open_if_nothing_has_changed() {
    need_mount!();
    let cluster = Cluster::start();
    let mounted = cluster.mount(slow_attributes());
    let path = mounted.path("file");
    fs::write(&path, pattern(300_000)).unwrap();
    let read = || {
        let mut bytes = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 300_000);
        cluster.faults.reads.load(Ordering::SeqCst)
    };
    read();
    let first = read();
    assert_eq!((read(), read()), (first, first));
    mounted.end().unwrap();
}

#[test]
fn shutdown_waits_for_a_user_of_the_mount_and_then_goes_on() {
    need_mount!();
    let cluster = Cluster::start();
    let config = FuseConfig { shutdown_grace_ms: 300, ..FuseConfig::default() };
    let mounted = cluster.mount(config);
    let point = mounted.point.clone();
    let mut open = File::create(mounted.path("open")).unwrap();
    mounted.end().unwrap();
    assert!(!point.exists());
    assert!(errno(open.write_all(b"late")).is_some());
    drop(open);
    let mounted = cluster.mount(FuseConfig::default());
    ember_fuse_kernel::mount::unmount(&mounted.point, ember_fuse_kernel::mount::Unmount::Now).unwrap();
    mounted.ended().unwrap();
}
