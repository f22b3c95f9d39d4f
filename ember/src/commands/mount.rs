//! `ember mount` and `ember umount`: wishes for the supervisor.

use crate::cluster::Cluster;
use crate::commands::{up, wait};
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::line;
use crate::usage::{self, Failure};
use crate::wanted::{Wanted, supervisor};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// How long an unmount may take before it is reported as busy.
const UMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// Mounts, and returns when the mount works.
pub(crate) fn mount(dir: &DataDir, point: &Path) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    if supervisor(dir)?.is_none() {
        return Err(Failure::refused(format!(
            "the cluster in {} isn't running: `ember up --data {0} --mount {1}`",
            dir.root().display(),
            point.display()
        )));
    }
    let restart = Wanted::load(dir)?.restart;
    let point = up::mount_point(dir, point)?;
    let round = up::want(dir, &cluster, Some(point.clone()), restart)?;
    wait::ready(dir, &cluster, round)?;
    line(&format!("mounted on {}", point.display()));
    Ok(usage::OK)
}

/// Unmounts, and returns when the mount is gone.
pub(crate) fn umount(dir: &DataDir, point: &Path) -> Result<u8> {
    Cluster::require(dir)?;
    let point = std::path::absolute(point).with_context(|| format!("mount point {}", point.display()))?;
    let mut wanted = Wanted::load(dir)?;
    let daemon = Daemon::Mount(point.clone());
    let running = process::find(dir, &daemon);
    if !wanted.mounts.contains(&point) && running.is_none() {
        return Err(Failure::refused(format!("{} is not mounted by this cluster", point.display())));
    }
    wanted.mounts.retain(|mounted| *mounted != point);
    wanted.save(dir)?;
    if supervisor(dir)?.is_none()
        && let Some(pid) = running
    {
        process::signal(pid, rustix::process::Signal::TERM);
    }
    if let Some(pid) = running
        && !process::wait_gone(pid, UMOUNT_LIMIT)
    {
        let text = format!("{} is still in use: end the programs that use it", point.display());
        return Err(Failure::refused(text));
    }
    line(&format!("unmounted {}", point.display()));
    Ok(usage::OK)
}
