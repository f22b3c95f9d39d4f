//! The immediate operations of a disk: names, opening, small files, the lock. All below one directory.

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxFlags, flock, openat};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Size of a file system that says that it has no blocks at all.
const UNKNOWN_SIZE: u64 = 1 << 40;
/// Magic number of ext4 (and of ext2 and ext3, which its driver serves).
const EXT4: u64 = 0xef53;
/// Name of the lock file of a directory. Not listed.
const LOCK: &str = ".lock";
/// End of the names of small files that are being written. Not listed.
const TEMPORARY: &str = ".tmp~";
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIR_MODE: Mode = Mode::from_raw_mode(0o700);

/// A directory below which everything lies.
pub(super) struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

/// Refuses names that lead out of the root.
fn check(name: &str) -> io::Result<()> {
    match Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(()),
        false => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a path within a disk")))
        }
    }
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|err| {
            let err = io::Error::from(err);
            io::Error::new(err.kind(), format!("cannot open the directory {}: {err}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), fd })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds what was tried, and where, to an error; its kind stays.
    fn told(&self, what: &str, name: &str) -> impl Fn(Errno) -> io::Error {
        let at = self.path.join(name);
        move |err| {
            let err = io::Error::from(err);
            io::Error::new(err.kind(), format!("cannot {what} {}: {err}", at.display()))
        }
    }

    fn dir(&self, dir: &str) -> io::Result<OwnedFd> {
        check(dir)?;
        let name = if dir.is_empty() { "." } else { dir };
        openat(&self.fd, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(self.told("open the directory", dir))
    }

    /// Opens a file; the flag says whether it is direct.
    pub(super) fn open_file(&self, name: &str, flags: OFlags, direct: bool) -> io::Result<(OwnedFd, bool)> {
        check(name)?;
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        if direct {
            match openat(&self.fd, name, flags | OFlags::DIRECT, FILE_MODE) {
                Ok(fd) => return Ok((fd, true)),
                // The file system knows no O_DIRECT. It may have created the file before it found out.
                Err(Errno::INVAL) => {}
                Err(err) => return Err(self.told("open", name)(err)),
            }
            let again = openat(&self.fd, name, flags - OFlags::EXCL, FILE_MODE);
            return again.map(|fd| (fd, false)).map_err(self.told("open", name));
        }
        openat(&self.fd, name, flags, FILE_MODE).map(|fd| (fd, false)).map_err(self.told("open", name))
    }

    /// Whether files of this file system can be opened direct.
    pub(super) fn probe_direct(&self) -> bool {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::DIRECT | OFlags::CLOEXEC;
        // Where nameless files are unknown, the first file that is opened tells.
        !matches!(openat(&self.fd, ".", flags, FILE_MODE), Err(Errno::INVAL))
    }

    /// Whether the file system writes over bytes where they are and one flush is everybody's. ext4 does: an
    /// fdatasync flushes the whole device, a direct overwrite of written blocks changes nothing but times. Others
    /// aren't taken for it: btrfs, zfs and f2fs move what is overwritten, XFS does if a file was reflinked, a
    /// network file system may do anything.
    pub(super) fn overwrites_in_place(&self) -> bool {
        rustix::fs::fstatfs(&self.fd).is_ok_and(|stat| stat.f_type as u64 == EXT4)
    }

    /// Whether direct access to a file that was opened direct is what happens, on the file system of the directory:
    /// ext4 goes through the page cache all the same for files whose data it journals or encrypts.
    pub(super) fn is_really_direct(&self, fd: &OwnedFd) -> bool {
        let stat = |fd| rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let (Ok(root), Ok(stat)) = (stat(&self.fd), stat(fd)) else { return false };
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
        let same = (stat.stx_dev_major, stat.stx_dev_minor) == (root.stx_dev_major, root.stx_dev_minor);
        known && same && (1..=4096).contains(&stat.stx_dio_offset_align)
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let fd = self.dir(dir)?;
        let told = self.told("list", dir);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd).map_err(&told)? {
            let entry = entry.map_err(&told)?;
            let name = entry.file_name().to_str().map_err(|_| {
                let at = self.path.join(dir);
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: a name is not UTF-8", at.display()))
            })?;
            if !matches!(name, "." | ".." | LOCK) && !name.ends_with(TEMPORARY) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn create_dir(&self, dir: &str) -> io::Result<()> {
        check(dir)?;
        let mut made = PathBuf::new();
        for part in Path::new(dir).components() {
            made.push(part);
            match rustix::fs::mkdirat(&self.fd, &made, DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(err) => return Err(self.told("create the directory", dir)(err)),
            }
        }
        // A file of that name is not a directory.
        self.dir(dir).map(drop)
    }

    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        check(name)?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).map_err(self.told("remove", name))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check(from)?;
        check(to)?;
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(self.told("rename", from))
    }

    pub(super) fn sync_dir(&self, dir: &str) -> io::Result<()> {
        rustix::fs::fsync(self.dir(dir)?).map_err(self.told("sync the directory", dir))
    }

    pub(super) fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        check(name)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(self.told("read", name))?;
        let mut content = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut content).map_err(|err| {
            io::Error::new(err.kind(), format!("cannot read {}: {err}", self.path.join(name).display()))
        })?;
        Ok(content)
    }

    pub(super) fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        check(name)?;
        let temporary = format!("{name}{TEMPORARY}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let fd = openat(&self.fd, &temporary, flags, FILE_MODE).map_err(self.told("write", &temporary))?;
        let mut file = std::fs::File::from(fd);
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|err| {
            io::Error::new(err.kind(), format!("cannot write {}: {err}", self.path.join(name).display()))
        })?;
        self.rename(&temporary, name)?;
        let parent = Path::new(name).parent().and_then(Path::to_str).unwrap_or("");
        self.sync_dir(parent)
    }

    /// Takes the lock of a directory; it is held until the descriptor is closed.
    pub(super) fn lock(&self, dir: &str) -> io::Result<OwnedFd> {
        check(dir)?;
        let name = if dir.is_empty() { LOCK.to_owned() } else { format!("{dir}/{LOCK}") };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = openat(&self.fd, &name, flags, FILE_MODE).map_err(self.told("lock", dir))?;
        match flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = self.read_small(&name).unwrap_or_default();
                let holder = match String::from_utf8_lossy(&holder).trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                let text = format!(
                    "{} is in use by {holder}: stop it first, or choose another directory",
                    self.path.join(dir).display()
                );
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(err) => return Err(self.told("lock", dir)(err)),
        }
        let pid = format!("{}\n", rustix::process::getpid().as_raw_nonzero());
        rustix::fs::ftruncate(&fd, 0).map_err(self.told("lock", dir))?;
        rustix::io::pwrite(&fd, pid.as_bytes(), 0).map_err(self.told("lock", dir))?;
        Ok(fd)
    }

    pub(super) fn space(&self) -> io::Result<ember_rt::disk::Space> {
        let stat = rustix::fs::fstatvfs(&self.fd).map_err(self.told("measure", ""))?;
        let (total, available) = match stat.f_blocks {
            0 => (UNKNOWN_SIZE, UNKNOWN_SIZE),
            blocks => (blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)),
        };
        Ok(ember_rt::disk::Space {
            total,
            available,
            file_system: rustix::fs::fstat(&self.fd).map_err(self.told("measure", ""))?.st_dev,
        })
    }
}
