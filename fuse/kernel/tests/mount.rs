//! Real mounts of a file system in memory. Each test says so if it can't run here.

mod support;

use std::fs::{self, File, OpenOptions};

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ember_fuse_kernel::mount::{
    Mount, MountOptions, Probe, Unmount, check_mount_point, clean_stale, mount, mounts, probe, probe_within,
    unmount,
};
use ember_fuse_kernel::{
    Channel, Delivery, Error, Notification, Notified, NotifyQueue, Op, OwnedNotification, PointProblem,
    Received, RecvBuffer, Reply, Slot,
};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use support::{MemFs, Node, answer_init, skip_reason, test_dir};

const MIB: usize = 1 << 20;

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
    };
}

fn direct(path: &Path, write: bool) -> File {
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 4096) as u8).collect()
}

/// Reads without asking for attributes, which would refresh the cache.
fn first_bytes(path: &Path) -> [u8; 3] {
    let mut bytes = [0; 3];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Writes through a shared mapping.
#[allow(unsafe_code, reason = "mmap is what is tested")]
fn write_by_mmap(file: &File, len: usize, at: usize, text: &[u8]) {
    assert!(at + text.len() <= len);
    // SAFETY: a fresh mapping of `len` bytes of a file that is at least as long and that nobody cuts
    // meanwhile; it is written inside its bounds and not used after munmap.
    unsafe {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let map = mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0).unwrap();
        std::ptr::copy_nonoverlapping(text.as_ptr(), map.cast::<u8>().add(at), text.len());
        msync(map, len, MsyncFlags::SYNC).unwrap();
        munmap(map, len).unwrap();
    }
}

#[test]
fn programs_can_use_the_mount() {
    need_mount!();
    let mounted = MemFs::new().mount("use", &MountOptions::default(), 3);
    let root = mounted.mount.point().to_owned();
    assert_eq!(mounted.agreed.max_write as usize, MIB);
    let info = mounts().unwrap().into_iter().find(|m| m.point == root).unwrap();
    assert_eq!((info.kind.as_str(), info.source.as_str()), ("fuse.ember", "ember"));
    mounted.mount.set_read_ahead(1024).unwrap();

    let data = pattern(5 * MIB + 123);
    fs::create_dir(root.join("dir")).unwrap();
    let path = root.join("dir/file");
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(mounted.fs.largest_write.load(Ordering::Relaxed) as usize, MIB);

    let file = direct(&path, true);
    let mut buffer = vec![0; 2 * MIB];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == data[..2 * MIB]);
    assert_eq!(mounted.fs.largest_read.load(Ordering::Relaxed) as usize, MIB);
    file.write_all_at(&[9; 4096], 8192).unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap()[8192..12288] == [9; 4096]);

    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    write_by_mmap(&file, MIB, 5000, b"by mmap");
    drop(file);
    let mut seven = [0; 7];
    direct(&path, false).read_exact_at(&mut seven, 5000).unwrap();
    assert_eq!(&seven, b"by mmap");

    std::os::unix::fs::symlink("dir/file", root.join("link")).unwrap();
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("dir/file"));
    assert_eq!(fs::metadata(root.join("link")).unwrap().len(), data.len() as u64);
    fs::rename(&path, root.join("moved")).unwrap();
    assert!(!path.exists() && root.join("moved").exists());
    File::create(root.join("moved")).unwrap();
    assert_eq!(fs::metadata(root.join("moved")).unwrap().len(), 0);
    let stat = rustix::fs::statvfs(&root).unwrap();
    assert_eq!((stat.f_blocks, stat.f_namemax), (77, 255));
    let name = fs::write(root.join("x".repeat(300)), b"long names are the server's to refuse");
    assert!(name.is_ok());
    fs::remove_dir(root.join("dir")).unwrap();
    assert!(mounted.end().iter().sum::<u32>() > 20);
}

#[test]
fn large_directories_list_each_name_once() {
    need_mount!();
    let mounted = MemFs::new().mount("list", &MountOptions::default(), 2);
    let root = mounted.mount.point().to_owned();
    let names: Vec<String> = (0..3000).map(|i| format!("entry-{i:05}-{}", "y".repeat(i % 40))).collect();
    for name in &names {
        File::create(root.join(name)).unwrap();
    }
    let mut listed: Vec<_> = Vec::new();
    for entry in fs::read_dir(&root).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().is_file());
        listed.push(entry.file_name().into_string().unwrap());
        if listed.len() == 1000 {
            // Removing what was listed must not move what was not.
            names[..500].iter().for_each(|name| fs::remove_file(root.join(name)).unwrap());
        }
    }
    listed.sort();
    assert!(listed == names);
    assert!(mounted.fs.plus_entries.load(Ordering::Relaxed) > 0);
    mounted.end();
}

#[test]
fn requests_are_served_in_parallel() {
    need_mount!();
    let mounted = MemFs::new().mount("parallel", &MountOptions::default(), 2);
    let root = mounted.mount.point().to_owned();
    for name in ["a", "b"] {
        fs::write(root.join(name), "meet").unwrap();
    }
    // Direct reads can't be answered from the page cache; each waits in the server for the other.
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let path = root.join(name);
            scope.spawn(move || {
                let mut text = [0; 4];
                direct(&path, false).read_exact_at(&mut text, 0).unwrap();
                assert_eq!(&text, b"meet");
            });
        }
    });
    mounted.end();
}

#[test]
fn notifications_drop_what_the_kernel_caches() {
    need_mount!();
    let mounted = MemFs::new().mount("notify", &MountOptions::default(), 2);
    let root = mounted.mount.point().to_owned();
    fs::write(root.join("file"), "old").unwrap();
    let ino = fs::metadata(root.join("file")).unwrap().ino();
    assert_eq!(&first_bytes(&root.join("file")), b"old");
    mounted.fs.nodes.lock().unwrap().get_mut(&ino).unwrap().data = b"new".to_vec();
    assert_eq!(&first_bytes(&root.join("file")), b"old", "cached");

    let queue = NotifyQueue::new(16);
    queue.push(OwnedNotification::InvalInode { ino, offset: 0, len: 0 }).unwrap();
    queue.push(OwnedNotification::InvalInode { ino: 999_999, offset: 0, len: 0 }).unwrap();
    queue.close();
    queue.run(&mounted.first);
    assert_eq!(&first_bytes(&root.join("file")), b"new");

    // A name that moved on the server.
    let new = Node { mode: 0o100644, data: b"other".to_vec(), ..Node::default() };
    {
        let mut nodes = mounted.fs.nodes.lock().unwrap();
        nodes.insert(ino + 100, new);
        nodes.get_mut(&1).unwrap().names.insert(b"file".to_vec(), ino + 100);
    }
    assert_eq!(fs::metadata(root.join("file")).unwrap().ino(), ino);
    let entry = |name| Notification::InvalEntry { parent: 1, name, expire_only: false };
    assert_eq!(mounted.first.notify(&entry(b"file")).unwrap(), Notified::Done);
    assert_eq!(mounted.first.notify(&entry(b"never seen")).unwrap(), Notified::NotCached);
    assert_eq!(fs::metadata(root.join("file")).unwrap().ino(), ino + 100);

    let store = Notification::Store { ino: ino + 100, offset: 0, data: b"OTHER" };
    assert_eq!(mounted.first.notify(&store).unwrap(), Notified::Done);
    assert_eq!(fs::read(root.join("file")).unwrap(), b"OTHER");
    mounted.fs.nodes.lock().unwrap().get_mut(&1).unwrap().names.clear();
    let delete = Notification::Delete { parent: 1, child: ino + 100, name: b"file" };
    assert_eq!(mounted.first.notify(&delete).unwrap(), Notified::Done);
    assert!(!root.join("file").exists());
    for recent in [Notification::Resend, Notification::IncEpoch] {
        let outcome = mounted.first.notify(&recent).unwrap();
        assert!(matches!(outcome, Notified::Done | Notified::Unsupported), "{recent:?}: {outcome:?}");
    }
    mounted.end();
}

#[test]
fn a_reactor_can_poll_the_channel() {
    need_mount!();
    let dir = test_dir("poll");
    let (mounted, channel) = mount(&dir, &MountOptions::default()).unwrap();
    answer_init(&channel);
    channel.set_nonblocking(true).unwrap();
    let mut buffer = RecvBuffer::new(MIB as u32);
    assert_eq!(channel.try_recv(&mut buffer).unwrap(), Received::WouldBlock);
    assert_eq!(channel.reply(0xdead, &Reply::ok(), &[]).unwrap(), Delivery::Gone);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| fs::metadata(dir.join("x")).unwrap_err().raw_os_error());
        // The kernel may ask for the root's attributes before it looks the name up.
        loop {
            assert_eq!(channel.recv(&mut buffer).unwrap(), Received::Request);
            let request = buffer.request().unwrap();
            channel.reply(request.header.unique, &Reply::error(rustix::io::Errno::ACCESS), &[]).unwrap();
            if matches!(request.op, Op::Lookup { .. } | Op::Getattr(_)) {
                break;
            }
        }
        assert_eq!(asker.join().unwrap(), Some(rustix::io::Errno::ACCESS.raw_os_error()));
        while channel.try_recv(&mut buffer).unwrap() == Received::Request {}
    });
    mounted.unmount(Unmount::Now).unwrap();
    assert_eq!(channel.recv(&mut buffer).unwrap(), Received::Ended);
    assert_eq!(channel.try_recv(&mut buffer).unwrap(), Received::Ended);
    let late = channel.reply(1, &Reply::ok(), &[]).unwrap();
    assert!(matches!(late, Delivery::Gone | Delivery::Ended), "{late:?}");
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_mount_in_use_stays_unless_unmounted_lazily() {
    need_mount!();
    let mounted = MemFs::new().mount("busy", &MountOptions::default(), 1);
    let root = mounted.mount.point().to_owned();
    let open = File::create(root.join("open")).unwrap();
    assert!(matches!(mounted.mount.unmount(Unmount::Now), Err(Error::Busy(path)) if path == root));
    let again = check_mount_point(&root, true).unwrap_err();
    let problem = PointProblem::AlreadyMounted;
    assert!(matches!(again, Error::MountPoint { problem: p, .. } if p == problem), "{again}");
    drop(open);
    let mount = mounted.mount.clone();
    mounted.end();
    fs::create_dir(&root).unwrap();
    let gone = mount.unmount(Unmount::Now).unwrap_err();
    assert!(matches!(gone, Error::MountPoint { problem: PointProblem::NotMounted, .. }), "{gone}");
    fs::remove_dir(&root).unwrap();
}

#[test]
fn a_stale_mount_is_found_and_cleaned() {
    need_mount!();
    let dir = test_dir("stale");
    let (_, channel) = mount(&dir, &MountOptions::default()).unwrap();
    answer_init(&channel);
    drop(channel);
    assert_eq!(probe(&dir).unwrap(), Probe::Stale);
    let error = check_mount_point(&dir, false).unwrap_err();
    assert!(matches!(error, Error::MountPoint { problem: PointProblem::Stale, .. }), "{error}");
    assert!(error.to_string().contains("umount -l"));
    assert!(clean_stale(&dir).unwrap());
    assert!(!clean_stale(&dir).unwrap());
    assert_eq!(check_mount_point(&dir, false).unwrap(), dir);
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_mount_whose_server_does_not_answer_is_hung_not_stale() {
    need_mount!();
    let dir = test_dir("hung");
    let (mounted, channel) = mount(&dir, &MountOptions::default()).unwrap();
    let soon = Duration::from_millis(300);
    assert_eq!(probe_within(&dir, soon).unwrap(), Probe::Hung, "INIT is not answered");
    // A program that waits for the server is let go.
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| fs::metadata(dir.join("x")).map(|_| ()));
        mounted.unmount(Unmount::Force).unwrap();
        assert!(asker.join().unwrap().is_err());
    });
    let mut buffer = RecvBuffer::new(MIB as u32);
    assert_eq!(channel.recv(&mut buffer).unwrap(), Received::Ended);
    fs::remove_dir(&dir).unwrap();
}

const USER_DIR: &str = "EMBER_FUSE_TEST_USER_DIR";

#[test]
fn an_ordinary_user_mounts_by_the_helper() {
    need_mount!();
    if !["/bin", "/usr/bin", "/usr/local/bin"].iter().any(|d| Path::new(d).join("fusermount3").exists()) {
        skip("fusermount3 is not installed");
        return;
    }
    if fs::metadata("/dev/fuse").unwrap().mode() & 0o6 != 0o6 {
        skip("/dev/fuse is closed to ordinary users (0666 is usual)");
        return;
    }
    let nobody = 65534;
    let dir = test_dir("user");
    std::os::unix::fs::chown(&dir, Some(nobody), Some(nobody)).unwrap();
    // The build directory may be closed to other users.
    let program = dir.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::create_dir(dir.join("mnt")).unwrap();
    std::os::unix::fs::chown(dir.join("mnt"), Some(nobody), Some(nobody)).unwrap();
    let output = std::process::Command::new(&program)
        .args(["--exact", "--ignored", "--nocapture", "child_of_an_ordinary_user"])
        .env(USER_DIR, dir.join("mnt"))
        .env("TMPDIR", &dir)
        .current_dir("/")
        .uid(nobody)
        .gid(nobody)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
#[ignore = "run by an_ordinary_user_mounts_by_the_helper"]
fn child_of_an_ordinary_user() {
    let Some(dir) = std::env::var_os(USER_DIR) else { return };
    let dir = Path::new(&dir);
    let wish = MountOptions { allow_other: true, ..MountOptions::default() };
    match mount(dir, &wish) {
        Ok((mounted, _)) => mounted.unmount(Unmount::Now).unwrap(),
        Err(error) => assert!(error.to_string().contains("/etc/fuse.conf"), "{error}"),
    }
    let options = MountOptions::default();
    let (mounted, channel) = mount(dir, &options).unwrap();
    let agreed = answer_init(&channel);
    assert_eq!(agreed.max_write as usize, MIB);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = RecvBuffer::new(agreed.max_write);
            while channel.recv(&mut buffer).unwrap() == Received::Request {
                let request = buffer.request().unwrap();
                if request.wants_reply() {
                    let reply = Reply::error(rustix::io::Errno::DOM);
                    channel.reply(request.header.unique, &reply, &[]).unwrap();
                }
            }
        });
        let error = fs::metadata(dir.join("x")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::DOM.raw_os_error()));
        assert!(mount(dir, &options).unwrap_err().to_string().contains("already mounted"));
        mounted.unmount(Unmount::Now).unwrap();
    });
    let (_, channel) = mount(dir, &options).unwrap();
    answer_init(&channel);
    drop(channel);
    assert!(clean_stale(dir).unwrap());
    let error = unmount(dir, Unmount::Now).unwrap_err();
    assert!(matches!(error, Error::Helper { .. } | Error::MountPoint { .. }), "{error}");
    assert_eq!(Mount::adopt(dir.to_owned()).point(), dir);
}
