//! Mounting and unmounting: as root by mount(2), as anybody else by `fusermount3`.

mod helper;
mod info;
mod point;

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{getegid, geteuid};

pub use info::{MountInfo, mounts};
pub use point::{Probe, check_mount_point, clean_stale, probe, probe_within};

use crate::channel::{DevChannel, open_device};
use crate::error::{Error, PointProblem};

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What `df` and `mount` show as the device. No comma, backslash or NUL.
    pub fsname: String,
    /// The type is shown as `fuse.` and this. No comma, backslash or NUL.
    pub subtype: String,
    /// Other users than the mounting one may enter. As an ordinary user it needs `user_allow_other` in
    /// `/etc/fuse.conf`.
    pub allow_other: bool,
    /// The kernel checks permissions by mode, owner and group; else the server has to.
    pub default_permissions: bool,
    /// Largest READ, in bytes; best the `max_write` of [`crate::init::InitOptions`].
    pub max_read: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// Set-id bits of programs on the mount count.
    pub suid: bool,
    /// Device files on the mount work.
    pub dev: bool,
    /// Mount over a directory that has entries, hiding them.
    pub allow_nonempty: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            fsname: "ember".to_owned(),
            subtype: "ember".to_owned(),
            allow_other: false,
            default_permissions: true,
            max_read: 1 << 20,
            read_only: false,
            suid: false,
            dev: false,
            allow_nonempty: false,
        }
    }
}

/// A mount. Dropping it does not unmount: a later server may take the mount over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    point: PathBuf,
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Fails with [`Error::Busy`] while the mount is in use.
    Now,
    /// Takes the mount out of the tree now; it ends when nobody uses it any more.
    Lazy,
    /// Like lazy, but first fails all requests that wait for the server: for one that hangs. Root only.
    Force,
}

/// Mounts on `point` (see [`check_mount_point`] for what it must be). The channel's first request is INIT;
/// programs that touch the mount wait until it is answered.
pub fn mount(point: &Path, options: &MountOptions) -> Result<(Mount, DevChannel), Error> {
    for name in [&options.fsname, &options.subtype] {
        if name.is_empty() || name.contains([',', '\\', '\0']) {
            return Err(Error::BadName(name.len()));
        }
    }
    let point = check_mount_point(point, options.allow_nonempty)?;
    let channel = if geteuid().is_root() {
        mount_directly(&point, options)?
    } else {
        DevChannel::from_fd(helper::mount(&point, &helper_options(options))?)
    };
    Ok((Mount { point }, channel))
}

impl Mount {
    /// A mount that exists already, made by an earlier server.
    pub fn adopt(point: PathBuf) -> Self {
        Self { point }
    }

    /// The mount point, absolute.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts; all channels end.
    pub fn unmount(&self, how: Unmount) -> Result<(), Error> {
        unmount(&self.point, how)
    }

    /// Sets the kernel's read-ahead for this mount, in KiB. The kernel caps what INIT asks for at 128 KiB, so
    /// that large sequential reads need this. Root only.
    pub fn set_read_ahead(&self, kib: u32) -> Result<(), Error> {
        let info = info::find(&self.point)?.ok_or_else(|| Error::MountPoint {
            path: self.point.clone(),
            problem: PointProblem::NotMounted,
        })?;
        let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", info.major, info.minor);
        std::fs::write(&file, kib.to_string())
            .map_err(|source| Error::Io { what: format!("write of {file}"), source })
    }
}

/// Unmounts what is mounted on `point`. Never asks the file system itself, whose server may be gone.
pub fn unmount(point: &Path, how: Unmount) -> Result<(), Error> {
    let point = point::resolve(point)?;
    if !geteuid().is_root() {
        if how == Unmount::Force {
            return Err(Error::Unavailable {
                what: "only root can unmount by force".to_owned(),
                remedy: "stop the mount's server, then unmount lazily",
            });
        }
        return helper::unmount(&point, how == Unmount::Lazy);
    }
    let flags = UnmountFlags::NOFOLLOW
        | match how {
            Unmount::Now => UnmountFlags::empty(),
            Unmount::Lazy => UnmountFlags::DETACH,
            Unmount::Force => UnmountFlags::FORCE | UnmountFlags::DETACH,
        };
    match rustix::mount::unmount(&point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::Busy(point)),
        Err(Errno::INVAL) => Err(Error::MountPoint { path: point, problem: PointProblem::NotMounted }),
        Err(Errno::NOENT) => Err(Error::MountPoint { path: point, problem: PointProblem::Missing }),
        Err(Errno::PERM) => Err(not_permitted("unmount")),
        Err(errno) => Err(Error::io(format!("umount of {}", point.display()), errno)),
    }
}

fn not_permitted(what: &str) -> Error {
    Error::Unavailable {
        what: format!("no permission to {what} (root without CAP_SYS_ADMIN)"),
        remedy: "in a container, start it with `--device /dev/fuse --cap-add SYS_ADMIN` and, if AppArmor is \
                 in use, `--security-opt apparmor:unconfined`",
    }
}

fn mount_directly(point: &Path, options: &MountOptions) -> Result<DevChannel, Error> {
    let device = open_device()?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},max_read={}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw(),
        options.max_read
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    let kind = format!("fuse.{}", options.subtype);
    let data = CString::new(data).map_err(|e| Error::BadName(e.nul_position()))?;
    match rustix::mount::mount(options.fsname.as_str(), point, kind.as_str(), flags, data.as_c_str()) {
        Ok(()) => Ok(DevChannel::from_fd(device.into())),
        Err(Errno::PERM | Errno::ACCESS) => Err(not_permitted("mount")),
        Err(Errno::NODEV) => Err(Error::Unavailable {
            what: "the kernel has no FUSE".to_owned(),
            remedy: "load the module with `modprobe fuse`",
        }),
        Err(Errno::BUSY) => {
            Err(Error::MountPoint { path: point.to_owned(), problem: PointProblem::AlreadyMounted })
        }
        Err(errno) => Err(Error::io(format!("mount on {}", point.display()), errno)),
    }
}

fn helper_options(options: &MountOptions) -> String {
    let mut text = format!(
        "fsname={},subtype={},max_read={},{}",
        options.fsname,
        options.subtype,
        options.max_read,
        if options.read_only { "ro" } else { "rw" }
    );
    // suid and dev are not an ordinary user's to give.
    text.push_str(",nosuid,nodev");
    if options.allow_other {
        text.push_str(",allow_other");
    }
    if options.default_permissions {
        text.push_str(",default_permissions");
    }
    text
}
