//! How a mount fails as a whole. Failures of requests go to the programs as errno.

use std::path::PathBuf;

/// Why a mount didn't come up or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mounting, unmounting or talking to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] ember_fuse_kernel::Error),
    /// A thread could not start, or it ended with a panic.
    #[error("thread of the mount: {0}")]
    Thread(#[from] std::io::Error),
    /// The cluster can't be reached or refuses this client.
    #[error("mount: {0}")]
    Cluster(#[from] ember_client::ClientError),
    /// The mount is there, but its root doesn't answer.
    #[error(
        "{} is mounted, but its root does not answer within {timeout_ms} ms; see `ember status` for the \
         metadata service",
        point.display()
    )]
    NotReady {
        /// The mount point.
        point: PathBuf,
        /// How long it was waited for.
        timeout_ms: u64,
    },
    /// The kernel ended the mount before it was set up.
    #[error("{} was unmounted while it was being set up", .0.display())]
    Unmounted(PathBuf),
}
