//! Settings of a mount.

use std::time::Duration;

ember_types::config! {
    /// A mount on this machine.
    pub struct FuseConfig {
        /// Threads that answer the kernel, each with its own connections to the cluster. 0: as many as the
        /// machine has cores, at least 2 and at most 4.
        pub threads: usize = 0,
        /// Requests that one thread has in progress at most; more wait in the kernel. Each may hold up to 1 MiB
        /// of data.
        pub requests_max: usize = 512,
        /// How long the kernel may keep attributes without asking again, in milliseconds. A length or time
        /// changed by another machine shows up after that time, or at the next open.
        pub attr_timeout_ms: u64 = 1000,
        /// How long the kernel may keep a name without asking again, in milliseconds. A name changed by another
        /// machine shows up after that time.
        pub entry_timeout_ms: u64 = 1000,
        /// How long the kernel may keep that a name doesn't exist, in milliseconds.
        pub negative_timeout_ms: u64 = 0,
        /// Read-ahead of sequential reads, in KiB. Takes effect only if root mounts; else the kernel's own limit
        /// of 128 KiB holds.
        pub read_ahead_kib: u32 = 4096,
        /// Requests that the kernel has under way at most for read-ahead, asynchronous I/O and written-back
        /// pages.
        pub background_max: u16 = 128,
        /// Nothing can be written through this mount.
        pub read_only: bool = false,
        /// Whether other users than the mounting one may enter; permissions are checked in either case. Unset:
        /// yes if root mounts. For ordinary users it needs `user_allow_other` in `/etc/fuse.conf`.
        pub allow_other: Option<bool> = None,
        /// Whether set-user-id and set-group-id bits of programs on the mount count.
        pub suid: bool = false,
        /// Whether device files on the mount work.
        pub dev: bool = false,
        /// Mount over a directory that has entries, hiding them.
        pub allow_nonempty: bool = false,
        /// Time within which the mounted root must answer, in milliseconds.
        pub start_timeout_ms: u64 = 60_000,
        /// Time that programs get at shutdown to leave a mount that is in use, in milliseconds. Then what they
        /// do there fails with ENOTCONN.
        pub shutdown_grace_ms: u64 = 10_000,
    }
}

/// Threads that are started if the config leaves it open.
const THREADS_AUTO: std::ops::RangeInclusive<usize> = 2..=4;
/// More than that serve nobody.
const THREADS_MAX: usize = 256;

impl FuseConfig {
    pub(crate) fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self.threads {
            0 => cores.clamp(*THREADS_AUTO.start(), *THREADS_AUTO.end()),
            threads => threads.min(THREADS_MAX),
        }
    }
    pub(crate) fn attr_ttl(&self) -> Duration {
        Duration::from_millis(self.attr_timeout_ms)
    }
    pub(crate) fn entry_ttl(&self) -> Duration {
        Duration::from_millis(self.entry_timeout_ms)
    }
    pub(crate) fn negative_ttl(&self) -> Duration {
        Duration::from_millis(self.negative_timeout_ms)
    }
}
