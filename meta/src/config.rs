//! Settings.

ember_types::config! {
    /// The metadata service.
    pub struct MetaConfig {
        /// Where it listens: `host:port` or `unix:/path`, in the order in which others try them.
        pub listen: Vec<String> = Vec::new(),
        /// When an operation is answered: "ordered" (committed; a machine's crash may lose the last
        /// milliseconds, in order; fsync waits for the disk) or "strict" (durable).
        pub durability: String = "ordered".to_owned(),
        /// How long a capability lasts, in milliseconds. Clients renew at half of it; data of removed files go
        /// only after it.
        pub capability_ms: u64 = 30_000,
        /// Bound on the error of cluster time, in milliseconds (R20).
        pub clock_error_ms: u64 = 1_000,
        /// Metadata requests at once; more are told to come again.
        pub requests_max: usize = 4_096,
        /// Most operations that share one transaction.
        pub batch_max: usize = 128,
        /// How often a conflicting transaction is tried.
        pub attempts_max: u32 = 64,
        /// Ids reserved at once.
        pub id_range: u64 = 4_096,
        /// Chain table that new files lie on.
        pub chain_table: u32 = 1,
        /// Bytes per chunk of new files: a power of two from 65536 to 67108864.
        pub chunk_size: u32 = 1 << 20,
        /// Chains that a new file is striped over.
        pub stripe: u32 = 4,
        /// How often removed files are looked for, in milliseconds.
        pub collect_period_ms: u64 = 1_000,
        /// Removed files whose data go at once.
        pub collect_max: usize = 16,
        /// How often dead writers and old records are looked for, in milliseconds.
        pub sweep_period_ms: u64 = 5_000,
        /// How long answers are kept for repeats, in milliseconds.
        pub answers_kept_ms: u64 = 1_800_000,
        /// Longest time that storage gets for one step of a removal, cut or question, in milliseconds.
        pub storage_timeout_ms: u64 = 10_000,
    }
}
