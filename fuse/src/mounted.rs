//! Mounting, the negotiation with the kernel, and unmounting. All of it may block.

use crate::config::FuseConfig;
use crate::error::Error;
use ember_fuse_kernel::init::{Agreed, InitOptions, Negotiation, negotiate};
use ember_fuse_kernel::mount::{Mount, MountOptions, Unmount, clean_stale, mount};
use ember_fuse_kernel::{Channel, DevChannel, Errno, Op, Received, RecvBuffer, Reply, Slot};
use rustix::process::geteuid;
use std::path::Path;

/// Largest READ and WRITE, in bytes: what the kernel gives without an administrator's help.
const IO_MAX: u32 = 1 << 20;

/// A mount whose first request has been answered.
pub(crate) struct Mounted {
    pub(crate) mount: Mount,
    pub(crate) channel: DevChannel,
    pub(crate) agreed: Agreed,
}

/// Mounts on `point` and agrees with the kernel. What a dead server left there is taken away first.
pub(crate) fn start(point: &Path, config: &FuseConfig) -> Result<Mounted, Error> {
    if clean_stale(point)? {
        tracing::warn!(point = %point.display(), "took away a mount whose server had died");
    }
    let (mount, channel) = mount(point, &mount_options(config))?;
    match agree(&mount, &channel, config) {
        Ok(agreed) => {
            set_read_ahead(&mount, config.read_ahead_kib);
            Ok(Mounted { mount, channel, agreed })
        }
        Err(error) => {
            if let Err(also) = mount.unmount(Unmount::Lazy) {
                tracing::warn!(error = %also, "unmount after a failed start");
            }
            Err(error)
        }
    }
}

fn mount_options(config: &FuseConfig) -> MountOptions {
    MountOptions {
        allow_other: config.allow_other.unwrap_or_else(|| geteuid().is_root()),
        default_permissions: true,
        max_read: IO_MAX,
        read_only: config.read_only,
        suid: config.suid,
        dev: config.dev,
        allow_nonempty: config.allow_nonempty,
        ..MountOptions::default()
    }
}

fn agree(mount: &Mount, channel: &DevChannel, config: &FuseConfig) -> Result<Agreed, Error> {
    let want = InitOptions {
        max_write: IO_MAX,
        max_readahead: config.read_ahead_kib.saturating_mul(1024),
        max_background: config.background_max,
        ..InitOptions::default()
    };
    let mut buffer = RecvBuffer::new(IO_MAX);
    loop {
        let unmounted = || Error::Unmounted(mount.point().to_owned());
        if channel.recv(&mut buffer)? != Received::Request {
            return Err(unmounted());
        }
        let Ok(request) = buffer.request() else { return Err(unmounted()) };
        let unique = request.header.unique;
        let Op::Init(offer) = &request.op else {
            if request.wants_reply() {
                // A kernel that asks anything before INIT is not one.
                let _ = channel.reply(unique, &Reply::error(Errno::IO), &[])?;
            }
            continue;
        };
        let (out, agreed) = match negotiate(offer, &want) {
            Ok(Negotiation::Done(out, agreed)) => (out, Some(agreed)),
            Ok(Negotiation::Again(out)) => (out, None),
            Err(error) => {
                let _ = channel.reply(unique, &Reply::error(Errno::PROTO), &[])?;
                return Err(error.into());
            }
        };
        let _ = channel.reply(unique, &Reply::init(&out), &[])?;
        if let Some(agreed) = agreed {
            tracing::debug!(?agreed, "agreed with the kernel");
            return Ok(agreed);
        }
    }
}

fn set_read_ahead(mount: &Mount, kib: u32) {
    if !geteuid().is_root() {
        return;
    }
    if let Err(error) = mount.set_read_ahead(kib) {
        tracing::warn!(%error, "large sequential reads will be slower");
    }
}
