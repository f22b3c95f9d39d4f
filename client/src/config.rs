//! Settings of a client.

ember_types::config! {
    /// The client library, under mounts and tools.
    pub struct ClientConfig {
        /// Time after which an operation fails if the cluster doesn't answer; until then it waits for failed
        /// servers. In milliseconds.
        pub operation_timeout_ms: u64 = 300_000,
        /// Time after which a read is tried on another replica, in milliseconds.
        pub read_attempt_ms: u64 = 2_000,
        /// Time after which a write or metadata request is sent again, in milliseconds.
        pub attempt_ms: u64 = 4_000,
        /// Writes in flight per reactor.
        pub writes_max: usize = 256,
        /// Data of writes that were accepted and go on without anybody waiting, per reactor, in KiB; half for one file.
        /// What has no room is waited for. 0: every write is.
        pub write_behind_kib: u32 = 32_768,
        /// Chunk reads in flight per read call.
        pub reads_per_call_max: usize = 16,
    }
}
