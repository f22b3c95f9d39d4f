//! The crate's error, sorted by what the caller can do about it.

use std::io;
use std::path::PathBuf;

/// What went wrong with a mount or its channel. Malformed requests are [`crate::request::Malformed`], since
/// they concern one request and not the channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's FUSE cannot be used by this program, ever.
    #[error("the kernel speaks FUSE {major}.{minor}, but 7.31 or newer is needed; use Linux 6.1 or newer")]
    KernelTooOld {
        /// Major version of the kernel's ABI.
        major: u32,
        /// Minor version of the kernel's ABI.
        minor: u32,
    },
    /// The machine lacks FUSE, or does not let this user have it.
    #[error("{what}; {remedy}")]
    Unavailable {
        /// What is missing or forbidden.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The directory cannot be mounted on as it is.
    #[error("mount point {} {problem}; {}", path.display(), problem.remedy())]
    MountPoint {
        /// The path as resolved.
        path: PathBuf,
        /// What is wrong with it.
        problem: PointProblem,
    },
    /// The mount is in use, so that it cannot be taken away now.
    #[error("{} is in use: close its files and leave its directories, or unmount lazily", .0.display())]
    Busy(PathBuf),
    /// `fusermount3` refused; its own words are in the text.
    #[error("fusermount3 failed on {}: {message}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What the helper printed, on one line.
        message: String,
    },
    /// A name that no directory can hold was to be sent to the kernel.
    #[error("name of {0} bytes is empty, too long, or holds a slash or NUL")]
    BadName(usize),
    /// A system call failed in a way that no other variant explains.
    #[error("{what}: {source}")]
    Io {
        /// The call and its object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Self::Io { what: what.into(), source: errno.into() }
    }
}

/// What makes a directory unfit as a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointProblem {
    /// Nothing has that name.
    Missing,
    /// It is something else than a directory.
    NotADirectory,
    /// It has entries, which the mount would hide.
    NotEmpty,
    /// Another file system is mounted there and works.
    AlreadyMounted,
    /// A FUSE file system is mounted there whose server is gone.
    Stale,
    /// A FUSE file system is mounted there whose server does not answer.
    Hung,
    /// Nothing is mounted there, though it should be.
    NotMounted,
}

impl PointProblem {
    /// What the user can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Missing => "create the directory first",
            Self::NotADirectory => "name a directory",
            Self::NotEmpty => "name an empty directory",
            Self::AlreadyMounted => "unmount it first or name another directory",
            Self::Stale => "unmount it with `umount -l` (or `fusermount3 -u -z`) and try again",
            Self::Hung => "stop its server, or unmount it with `umount -f -l`",
            Self::NotMounted => "see /proc/self/mountinfo for what is mounted",
        }
    }
}

impl std::fmt::Display for PointProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "does not exist",
            Self::NotADirectory => "is not a directory",
            Self::NotEmpty => "is not empty",
            Self::AlreadyMounted => "is already mounted",
            Self::Stale => "has a stale mount (its server is gone)",
            Self::Hung => "has a mount that does not answer",
            Self::NotMounted => "is not mounted",
        })
    }
}
