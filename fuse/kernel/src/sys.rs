//! The only unsafe code of the crate: one ioctl of the FUSE device that no safe wrapper has.
#![allow(unsafe_code, reason = "FUSE_DEV_IOC_CLONE has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io;
use rustix::ioctl::{Setter, ioctl};

use crate::abi::DEV_IOC_CLONE;

/// Connects the freshly opened device `new` to the mount that `old` serves.
pub(crate) fn clone_device(new: impl AsFd, old: impl AsFd) -> io::Result<()> {
    let old = old.as_fd().as_raw_fd() as u32;
    // SAFETY: the kernel reads a u32 behind the pointer, which `Setter` owns, and writes nothing, whatever
    // the direction in the ioctl's number says; on descriptors that aren't FUSE devices it fails.
    unsafe { ioctl(new, Setter::<DEV_IOC_CLONE, u32>::new(old)) }
}
