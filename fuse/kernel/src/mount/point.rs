//! What a mount point must be, and what becomes of one whose server died.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;

use super::info::find;
use super::{Unmount, unmount};
use crate::error::{Error, PointProblem};

/// How a mount answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No FUSE file system is mounted there.
    NotFuse,
    /// Its server answers.
    Alive,
    /// Its server is gone ("Transport endpoint is not connected").
    Stale,
    /// Its server did not answer in time.
    Hung,
}

/// How long a living server may take to tell the attributes of its root.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks that one can mount on `path` and returns it absolute and without symbolic links.
pub fn check_mount_point(path: &Path, allow_nonempty: bool) -> Result<PathBuf, Error> {
    let fail = |path: PathBuf, problem| Err(Error::MountPoint { path, problem });
    let mut path = resolve(path)?;
    // A mount of a dead server must not be touched before this.
    if find(&path)?.is_none() {
        path = match std::fs::canonicalize(&path) {
            Ok(path) => path,
            Err(error) if is_missing(&error) => return fail(path, PointProblem::Missing),
            Err(source) => return Err(Error::Io { what: format!("look-up of {}", path.display()), source }),
        };
    }
    if find(&path)?.is_some() {
        return match probe(&path)? {
            Probe::Stale => fail(path, PointProblem::Stale),
            Probe::Hung => fail(path, PointProblem::Hung),
            Probe::Alive | Probe::NotFuse => fail(path, PointProblem::AlreadyMounted),
        };
    }
    let io = |what, source| Error::Io { what: format!("{what} of {}", path.display()), source };
    if !std::fs::metadata(&path).map_err(|e| io("stat", e))?.is_dir() {
        return fail(path, PointProblem::NotADirectory);
    }
    if !allow_nonempty && std::fs::read_dir(&path).map_err(|e| io("listing", e))?.next().is_some() {
        return fail(path, PointProblem::NotEmpty);
    }
    Ok(path)
}

/// [`probe_within`] 5 s.
pub fn probe(path: &Path) -> Result<Probe, Error> {
    probe_within(path, PROBE_TIMEOUT)
}

/// Asks what is mounted on `path`; a server that does not answer within `timeout` is [`Probe::Hung`].
pub fn probe_within(path: &Path, timeout: Duration) -> Result<Probe, Error> {
    let path = resolve(path)?;
    if !find(&path)?.is_some_and(|mount| mount.is_fuse()) {
        return Ok(Probe::NotFuse);
    }
    // A thread that waits for a locked-up server can't be stopped; it ends with the mount or the process.
    let (sender, receiver) = mpsc::sync_channel(1);
    let asked = path.clone();
    std::thread::Builder::new()
        .name("fuse-probe".to_owned())
        .spawn(move || {
            // Not stat(2): the kernel answers that from its cache for a while after the server's death. The
            // receiver may have given up, and then nobody wants the answer.
            let _ = sender.send(rustix::fs::statfs(&asked).map(|_| ()));
        })
        .map_err(|source| Error::Io { what: "start of a thread".to_owned(), source })?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(())) => Ok(Probe::Alive),
        Ok(Err(error)) => Ok(match error {
            Errno::NOTCONN | Errno::CONNABORTED => Probe::Stale,
            // Refusing (say, another user without allow_other) is an answer too.
            _ => Probe::Alive,
        }),
        Err(_) => Ok(Probe::Hung),
    }
}

/// Takes a mount away whose server is gone. False: there was none. Living and hung mounts stay.
pub fn clean_stale(path: &Path) -> Result<bool, Error> {
    if probe(path)? != Probe::Stale {
        return Ok(false);
    }
    unmount(path, Unmount::Lazy)?;
    Ok(true)
}

/// Makes a path absolute without looking at its last component, behind which a dead server may be.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let io = |source| Error::Io { what: format!("look-up of {}", path.display()), source };
    let absolute = std::path::absolute(path).map_err(io)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return if absolute.parent().is_none() {
            Ok(absolute)
        } else {
            std::fs::canonicalize(path).map_err(io)
        };
    };
    match std::fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if is_missing(&error) => {
            Err(Error::MountPoint { path: absolute, problem: PointProblem::Missing })
        }
        Err(error) => Err(io(error)),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &Path) -> PointProblem {
        match check_mount_point(path, false) {
            Err(Error::MountPoint { problem, .. }) => problem,
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    #[test]
    fn bad_mount_points_are_told_apart() {
        let dir = std::env::temp_dir().join(format!("ember-point-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("full/entry")).unwrap();
        std::fs::create_dir_all(dir.join("empty")).unwrap();
        std::fs::write(dir.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("empty", dir.join("link")).unwrap();
        assert_eq!(problem(&dir.join("none")), PointProblem::Missing);
        assert_eq!(problem(&dir.join("none/below")), PointProblem::Missing);
        assert_eq!(problem(&dir.join("file")), PointProblem::NotADirectory);
        assert_eq!(problem(&dir.join("full")), PointProblem::NotEmpty);
        assert_eq!(problem(Path::new("/proc")), PointProblem::AlreadyMounted);
        assert_eq!(problem(Path::new("/")), PointProblem::AlreadyMounted);
        let empty = std::fs::canonicalize(dir.join("empty")).unwrap();
        assert_eq!(check_mount_point(&dir.join("link"), false).unwrap(), empty);
        assert_eq!(check_mount_point(&dir.join("full/../empty/."), false).unwrap(), empty);
        assert!(check_mount_point(&dir.join("full"), true).is_ok());
        assert_eq!(probe(&empty).unwrap(), Probe::NotFuse);
        assert!(!clean_stale(&empty).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
