//! Settings.

use crate::error::StorageError;
use ember_engine::Durability;

ember_types::config! {
    /// The storage service.
    pub struct StorageConfig {
        /// Where it listens: `IP:PORT` or `unix:/path`, in the order in which others try them.
        pub listen: Vec<String> = Vec::new(),
        /// Directories that hold targets, one a disk. The order is part of the node's identity.
        pub disks: Vec<String> = Vec::new(),
        /// Operations that each disk has in flight at most.
        pub disk_depth: usize = 128,
        /// An operation of a disk that has not ended after so long, in milliseconds, takes its targets out of
        /// service until it has; 0 waits for ever.
        pub disk_timeout_ms: u64 = 5_000,
        /// A disk is reported as slow if the slowest of 100 operations takes so long, in milliseconds; 0 never.
        pub disk_slow_ms: u64 = 1_000,
        /// A disk that is so slow has its targets taken out of service where the rest of their chain is well, in
        /// milliseconds; 0 never.
        pub disk_demote_ms: u64 = 3_000,
        /// Time over which, and for which, a disk must be slow, in seconds; at most 60.
        pub disk_slow_window_s: u64 = 10,
        /// What the disks promise: "flush" (what they have taken is durable after a flush) or "plp" (they have
        /// power-loss protection: what they have taken is durable). "plp" saves flushes on ext4; on disks without
        /// protection it loses acknowledged writes when the power fails.
        pub durability: String = "flush".to_owned(),
        /// Bytes of a disk that updates leave free.
        pub reserve_bytes: u64 = 256 << 20,
        /// Bytes of memory, for each target, for the checksums of data that were used lately. A 1/1000 of the data
        /// is enough to have them all in memory.
        pub checksum_cache_bytes: u64 = 64 << 20,
        /// Free space below which no new chunks are made, in bytes; updates of existing ones go on.
        pub no_create_bytes: u64 = 512 << 20,
        /// How long tombstones of removed chunks are kept, in milliseconds: longer than any message lives.
        pub tombstone_ms: u64 = 600_000,
        /// Longest time for one message to another replica, in milliseconds.
        pub forward_timeout_ms: u64 = 4_000,
        /// Every stored byte is read and checked once in this time, in seconds; 0 switches the scrub off.
        pub scrub_period_s: u64 = 7 * 24 * 3600,
        /// Bytes per second that the scrub reads at most, on each disk.
        pub scrub_bytes_per_s: u64 = 32 << 20,
        /// Bytes per second that the resyncs of this node send at most, all together; 0 is no limit but what the
        /// requests of clients leave.
        pub resync_bytes_per_s: u64 = 0,
        /// Connections at once.
        pub connections_max: usize = 4096,
    }
}

impl StorageConfig {
    /// What the disks promise.
    pub(crate) fn durability(&self) -> Result<Durability, StorageError> {
        match self.durability.as_str() {
            "flush" => Ok(Durability::Flush),
            "plp" => Ok(Durability::Plp),
            other => {
                let what = format!("{other:?} is neither \"flush\" nor \"plp\"");
                Err(StorageError::Config { name: "durability", what })
            }
        }
    }
}
