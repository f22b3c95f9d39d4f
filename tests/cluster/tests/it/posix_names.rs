//! Names through a mount: links, renames, directories, permissions, attributes.

use crate::common::{Cases, expect_errno, mounted};
use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[test]
fn names() -> Result<()> {
    let Some(cluster) = mounted("names")? else { return Ok(()) };
    let mut cases = Cases::new(&cluster);
    cases.run("rename over a file", rename_over);
    cases.run("rename over directories", rename_directories);
    cases.run("rename without replacing", rename_flags);
    cases.run("hard links", hard_links);
    cases.run("symbolic links", symbolic_links);
    cases.run("rmdir", remove_directories);
    cases.run("listing while deleting", listing_while_deleting);
    cases.run("names that are odd or too long", odd_names);
    cases.run("exclusive creation", exclusive_creation);
    cases.run("permissions of another user", permissions);
    cases.run("sticky directory", sticky);
    cases.run("set-group-id directory", set_group_id);
    cases.run("times", times);
    cases.run("fifo", fifo);
    cases.run("statfs", statfs);
    cases.run("a deep path", deep);
    cases.finish()
}

fn rename_over(dir: &Path) -> Result<()> {
    let (a, b) = (dir.join("a"), dir.join("b"));
    std::fs::write(&a, "new")?;
    std::fs::write(&b, "old and longer")?;
    let reader = File::open(&b)?;
    let inode = std::fs::metadata(&a)?.ino();
    std::fs::rename(&a, &b)?;
    ensure!(std::fs::read_to_string(&b)? == "new" && !a.exists(), "rename replaces");
    ensure!(std::fs::metadata(&b)?.ino() == inode, "the inode stays");
    let text = std::io::read_to_string(&reader)?;
    ensure!(text == "old and longer", "the replaced file is readable while open, got {text:?}");
    ensure!(reader.metadata()?.nlink() == 0, "it has no name any more");
    std::fs::rename(&b, &b)?;
    ensure!(b.exists(), "onto itself");
    expect_errno(std::fs::rename(dir.join("none"), &b), Errno::NOENT)
}

fn rename_directories(dir: &Path) -> Result<()> {
    for name in ["empty", "full", "full/inner", "moved"] {
        std::fs::create_dir(dir.join(name))?;
    }
    std::fs::write(dir.join("file"), "x")?;
    expect_errno(std::fs::rename(dir.join("moved"), dir.join("full")), Errno::NOTEMPTY)?;
    std::fs::rename(dir.join("moved"), dir.join("empty"))?;
    expect_errno(std::fs::rename(dir.join("file"), dir.join("empty")), Errno::ISDIR)?;
    expect_errno(std::fs::rename(dir.join("empty"), dir.join("file")), Errno::NOTDIR)?;
    expect_errno(std::fs::rename(dir.join("full"), dir.join("full/inner/self")), Errno::INVAL)?;
    let before = std::fs::metadata(dir)?.nlink();
    std::fs::rename(dir.join("full/inner"), dir.join("inner"))?;
    ensure!(std::fs::metadata(dir)?.nlink() == before + 1, "a directory moved here counts as a link");
    ensure!(std::fs::metadata(dir.join("inner/.."))?.ino() == std::fs::metadata(dir)?.ino(), "its parent");
    Ok(())
}

fn rename_flags(dir: &Path) -> Result<()> {
    let (a, b) = (dir.join("a"), dir.join("b"));
    std::fs::write(&a, "a")?;
    std::fs::write(&b, "b")?;
    let kept = rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE);
    ensure!(kept == Err(Errno::EXIST), "NOREPLACE: {kept:?}");
    rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).context("EXCHANGE")?;
    ensure!(std::fs::read_to_string(&a)? == "b" && std::fs::read_to_string(&b)? == "a", "exchanged");
    Ok(())
}

fn hard_links(dir: &Path) -> Result<()> {
    let (a, b) = (dir.join("a"), dir.join("sub/b"));
    std::fs::create_dir(dir.join("sub"))?;
    std::fs::write(&a, "shared")?;
    std::fs::hard_link(&a, &b)?;
    let (first, second) = (std::fs::metadata(&a)?, std::fs::metadata(&b)?);
    ensure!(first.ino() == second.ino() && second.nlink() == 2, "one inode, two names");
    std::fs::write(&b, "changed through b")?;
    ensure!(std::fs::read_to_string(&a)? == "changed through b", "one content");
    std::fs::remove_file(&a)?;
    ensure!(std::fs::metadata(&b)?.nlink() == 1, "one name left");
    ensure!(std::fs::read_to_string(&b)? == "changed through b", "the content stays");
    expect_errno(std::fs::hard_link(&b, &b), Errno::EXIST)?;
    expect_errno(std::fs::hard_link(dir.join("sub"), dir.join("link")), Errno::PERM)
}

fn symbolic_links(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir.join("real"))?;
    std::fs::write(dir.join("real/file"), "x")?;
    symlink("real", dir.join("link"))?;
    symlink("loop", dir.join("loop"))?;
    let long = "n/".repeat(2000);
    symlink(&long, dir.join("long"))?;
    ensure!(std::fs::read_to_string(dir.join("link/file"))? == "x", "followed");
    ensure!(std::fs::read_link(dir.join("long"))? == Path::new(&long), "4000 bytes");
    let meta = std::fs::symlink_metadata(dir.join("link"))?;
    ensure!(meta.is_symlink() && meta.len() == 4, "its length is that of its target");
    let looped = std::fs::read(dir.join("loop")).map(|_| ());
    expect_errno(looped, Errno::LOOP)?;
    std::fs::remove_file(dir.join("link"))?;
    ensure!(dir.join("real/file").exists(), "removing the link leaves the target");
    Ok(())
}

fn remove_directories(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir.join("d"))?;
    std::fs::write(dir.join("d/f"), "")?;
    expect_errno(std::fs::remove_dir(dir.join("d")), Errno::NOTEMPTY)?;
    expect_errno(std::fs::remove_dir(dir.join("d/f")), Errno::NOTDIR)?;
    let unlinked = rustix::fs::unlink(dir.join("d"));
    ensure!(unlinked == Err(Errno::ISDIR), "unlink of a directory: {unlinked:?}");
    std::fs::remove_file(dir.join("d/f"))?;
    std::fs::remove_dir(dir.join("d"))?;
    expect_errno(std::fs::create_dir(dir.join("d/e")), Errno::NOENT)
}

fn listing_while_deleting(dir: &Path) -> Result<()> {
    const FILES: usize = 5000;
    for number in 0..FILES {
        File::create(dir.join(format!("entry-{number:05}")))?;
    }
    let mut seen = BTreeSet::new();
    let mut removed = BTreeSet::new();
    for (count, entry) in std::fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name().into_string().unwrap_or_default();
        ensure!(seen.insert(name.clone()), "{name} is listed twice");
        if count == FILES / 3 {
            for number in (0..FILES).filter(|number| number % 3 != 0) {
                let name = format!("entry-{number:05}");
                std::fs::remove_file(dir.join(&name))?;
                removed.insert(name);
            }
        }
    }
    for number in 0..FILES {
        let name = format!("entry-{number:05}");
        ensure!(
            removed.contains(&name) || seen.contains(&name),
            "{name} is not listed, though never removed"
        );
    }
    let left = std::fs::read_dir(dir)?.count();
    ensure!(left == FILES - removed.len(), "{left} entries are left");
    std::fs::remove_dir_all(dir).context("recursive removal")?;
    std::fs::create_dir(dir).map_err(Into::into)
}

fn odd_names(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let longest = "x".repeat(255);
    for name in [&b"\xff\xfe"[..], b"with\nnewline", b"-rf", b" ", b"...", longest.as_bytes()] {
        let path = dir.join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, name)?;
        ensure!(std::fs::read(&path)? == name, "{name:?}");
    }
    ensure!(std::fs::read_dir(dir)?.count() == 6, "all are listed");
    let path = dir.join("x".repeat(256));
    expect_errno(std::fs::write(path, ""), Errno::NAMETOOLONG)
}

fn exclusive_creation(dir: &Path) -> Result<()> {
    let path = dir.join("once");
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| File::create_new(&path).is_ok())).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap_or(false))).sum()
    });
    ensure!(made == 1, "{made} of 8 made the file");
    Ok(())
}

/// Whether a shell command of another user succeeds.
fn as_user(uid: u32, dir: &Path, script: &str) -> Result<bool> {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir("/").env("D", dir).uid(uid).gid(uid);
    Ok(command.output()?.status.success())
}

fn permissions(dir: &Path) -> Result<()> {
    let mode = |path: &str, mode| std::fs::set_permissions(dir.join(path), PermissionsExt::from_mode(mode));
    std::fs::write(dir.join("secret"), "s")?;
    std::fs::write(dir.join("public"), "p")?;
    std::fs::create_dir(dir.join("closed"))?;
    std::fs::write(dir.join("closed/file"), "c")?;
    std::fs::create_dir(dir.join("open"))?;
    mode("", 0o755)?;
    mode("secret", 0o600)?;
    mode("public", 0o644)?;
    mode("closed", 0o700)?;
    mode("open", 0o777)?;
    let allowed = ["cat $D/public", "echo x > $D/open/mine && cat $D/open/mine && chmod 600 $D/open/mine"];
    let denied = [
        "cat $D/secret",
        "echo x >> $D/public",
        "ls $D/closed",
        "cat $D/closed/file",
        "echo x > $D/new",
        "rm -f $D/public",
        "chmod 777 $D/public",
        "chown 4322 $D/open/mine",
        "mv $D/public $D/open/",
        "ln $D/secret $D/open/link",
    ];
    for script in allowed {
        ensure!(as_user(4321, dir, script)?, "user 4321 may: {script}");
    }
    for script in denied {
        // Hard links to files of others are refused by the kernel where it protects them.
        let by_kernel = script.starts_with("ln ") && !kernel_protects_links();
        ensure!(by_kernel || !as_user(4321, dir, script)?, "user 4321 must not: {script}");
    }
    let mine = std::fs::metadata(dir.join("open/mine"))?;
    ensure!((mine.uid(), mine.gid(), mine.mode() & 0o7777) == (4321, 4321, 0o600), "owner and mode");
    Ok(())
}

fn kernel_protects_links() -> bool {
    std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.trim() == "1")
}

fn sticky(dir: &Path) -> Result<()> {
    let shared = dir.join("shared");
    std::fs::create_dir(&shared)?;
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777))?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
    ensure!(as_user(4321, &shared, "echo x > $D/a")?, "may create");
    ensure!(!as_user(4322, &shared, "rm -f $D/a")?, "another must not remove");
    ensure!(!as_user(4322, &shared, "mv $D/a $D/b")?, "nor rename");
    ensure!(as_user(4321, &shared, "mv $D/a $D/b && rm $D/b")?, "the owner may");
    Ok(())
}

fn set_group_id(dir: &Path) -> Result<()> {
    let team = dir.join("team");
    std::fs::create_dir(&team)?;
    std::os::unix::fs::chown(&team, Some(4321), Some(777))?;
    std::fs::set_permissions(&team, PermissionsExt::from_mode(0o2775))?;
    std::fs::write(team.join("file"), "")?;
    std::fs::create_dir(team.join("inner"))?;
    ensure!(std::fs::metadata(team.join("file"))?.gid() == 777, "files take the group");
    let inner = std::fs::metadata(team.join("inner"))?;
    ensure!(inner.gid() == 777 && inner.mode() & 0o2000 != 0, "directories take group and bit");
    Ok(())
}

fn times(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    std::fs::write(&path, "x")?;
    let set = |nanos| Timespec { tv_sec: 1_234_567_890, tv_nsec: nanos };
    let stamps = Timestamps { last_access: set(1), last_modification: set(987_654_321) };
    rustix::fs::utimensat(CWD, &path, &stamps, AtFlags::empty())?;
    let meta = std::fs::metadata(&path)?;
    ensure!((meta.atime(), meta.atime_nsec()) == (1_234_567_890, 1), "access time");
    ensure!((meta.mtime(), meta.mtime_nsec()) == (1_234_567_890, 987_654_321), "modification time");
    ensure!(meta.ctime() > 1_700_000_000, "change time is now");
    std::fs::write(&path, "y")?;
    ensure!(std::fs::metadata(&path)?.mtime() > 1_700_000_000, "a write renews it");
    let before = std::fs::metadata(dir)?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(dir.join("another"), "")?;
    let after = std::fs::metadata(dir)?;
    let stamp = |meta: &std::fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    ensure!(stamp(&after) > stamp(&before), "a new name renews the directory's time");
    Ok(())
}

fn fifo(dir: &Path) -> Result<()> {
    let path = dir.join("pipe");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?;
    ensure!(std::fs::metadata(&path)?.file_type().is_fifo(), "a fifo");
    let own = path.clone();
    let writer = std::thread::spawn(move || std::fs::write(own, "through the pipe"));
    ensure!(std::fs::read_to_string(&path)? == "through the pipe", "it passes bytes");
    writer.join().ok().context("writer")??;
    Ok(())
}

fn statfs(dir: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    ensure!(stat.f_namemax == 255, "longest name: {}", stat.f_namemax);
    ensure!(stat.f_blocks > 0 && stat.f_bavail > 0, "space: {} of {}", stat.f_bavail, stat.f_blocks);
    ensure!(stat.f_bavail <= stat.f_blocks && stat.f_files > 0, "inodes: {}", stat.f_files);
    Ok(())
}

fn deep(dir: &Path) -> Result<()> {
    let mut path = dir.to_owned();
    for level in 0..60 {
        path.push(format!("level-{level}"));
    }
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("leaf"), "x")?;
    let moved = dir.join("moved");
    std::fs::rename(dir.join("level-0"), &moved)?;
    let leaf = moved.join(path.strip_prefix(dir.join("level-0"))?).join("leaf");
    ensure!(std::fs::read_to_string(leaf)? == "x", "found under its new name");
    std::fs::remove_dir_all(&moved).map_err(Into::into)
}
