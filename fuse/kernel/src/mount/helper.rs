//! `fusermount3`, the set-user-id program of the package fuse3: mounts for ordinary users and passes the
//! descriptor back over a socket.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use crate::error::Error;

const HELPER: &str = "fusermount3";
/// The helper only makes a few system calls, unless something it looks at hangs.
const DEADLINE: Duration = Duration::from_secs(20);
/// More than the helper prints; the rest is not read.
const OUTPUT_MAX: u64 = 8192;

/// Mounts and returns the descriptor of the device.
pub(super) fn mount(point: &Path, options: &str) -> Result<OwnedFd, Error> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::io("socketpair", e))?;
    let mut command = Command::new(HELPER);
    // The socket is the helper's standard input: so it is inherited by this child alone.
    command.env("_FUSE_COMMFD", "0").stdin(Stdio::from(theirs)).arg("-o").arg(options).arg("--").arg(point);
    let mut child = spawn(command)?;
    let received = receive_fd(&ours);
    if received.is_err() {
        stop(&mut child, "kill after a failed receive");
    }
    let message = finish(child);
    match (received, message) {
        (Ok(Some(fd)), _) => Ok(fd),
        (Err(error), Ok(message)) if message.is_empty() => Err(error),
        (_, Ok(message)) | (_, Err(message)) => Err(explain(point, message)),
    }
}

/// Unmounts.
pub(super) fn unmount(point: &Path, lazy: bool) -> Result<(), Error> {
    let mut command = Command::new(HELPER);
    command.stdin(Stdio::null()).arg("-u");
    if lazy {
        command.arg("-z");
    }
    command.arg("--").arg(point);
    match finish(spawn(command)?) {
        Ok(_) => Ok(()),
        Err(message) if message.contains("busy") => Err(Error::Busy(point.to_owned())),
        Err(message) => Err(explain(point, message)),
    }
}

fn explain(path: &Path, message: String) -> Error {
    if message.contains("user_allow_other") {
        return Error::Unavailable {
            what: "the option allow_other is not allowed to ordinary users here".to_owned(),
            remedy: "add the line `user_allow_other` to /etc/fuse.conf, or mount without it",
        };
    }
    if message.contains("/dev/fuse: Permission denied") {
        return Error::Unavailable {
            what: "/dev/fuse is closed to ordinary users here".to_owned(),
            remedy: "open it with `chmod 0666 /dev/fuse`, or run as root",
        };
    }
    Error::Helper { path: path.to_owned(), message }
}

fn spawn(mut command: Command) -> Result<Child, Error> {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            Error::Unavailable {
                what: format!("{HELPER} is not installed, which mounting without root needs"),
                remedy: "install the package fuse3, or run as root",
            }
        } else {
            Error::Io { what: format!("start of {HELPER}"), source }
        }
    })
}

/// Waits for the end within the deadline and returns what the helper said, as an error if it failed.
fn finish(mut child: Child) -> Result<String, String> {
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // The pipe ends with the helper. While it says nothing the wait is bounded; it says little.
        if !readable(&stderr) {
            stop(&mut child, "kill after the deadline");
            return Err(format!("did not end within {} s", DEADLINE.as_secs()));
        }
        let mut bytes = Vec::new();
        if stderr.by_ref().take(OUTPUT_MAX).read_to_end(&mut bytes).is_ok() {
            text = String::from_utf8_lossy(&bytes).trim().replace('\n', "; ");
        }
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(text),
        Ok(status) if text.is_empty() => Err(status.to_string()),
        Ok(_) => Err(text),
        Err(error) => Err(error.to_string()),
    }
}

fn stop(child: &mut Child, what: &str) {
    if let Err(error) = child.kill() {
        tracing::warn!(%error, "{what} of {HELPER}");
    }
}

fn readable(fd: impl std::os::fd::AsFd) -> bool {
    let timeout = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// The descriptor that the helper sends with one byte; `None` if it closed the socket without.
fn receive_fd(socket: &OwnedFd) -> Result<Option<OwnedFd>, Error> {
    if !readable(socket) {
        return Err(Error::io(format!("answer of {HELPER}"), Errno::TIMEDOUT));
    }
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io(format!("answer of {HELPER}"), errno)),
        }
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Ok(fds.next());
        }
    }
    Ok(None)
}
