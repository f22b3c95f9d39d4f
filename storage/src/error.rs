//! Why the service ends.

/// Why a storage node can't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It can't listen.
    #[error("cannot listen on {address}: {what}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        what: String,
    },
    /// Another process serves one of its targets.
    #[error("{what}")]
    InUse {
        /// Which one, and who.
        what: String,
    },
    /// A setting makes no sense.
    #[error("setting `{name}` of the storage service: {what}")]
    Config {
        /// Which one.
        name: &'static str,
        /// What is wrong with it.
        what: String,
    },
}
