//! Settings of a client.

use ember_types::ClusterId;
use serde::{Deserialize, Serialize};

/// Settings of a client. Times are in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// Addresses of the mgmtd servers, `IP:PORT` or `unix:/path`.
    pub mgmtd: Vec<String>,
    /// The cluster to talk to.
    pub cluster: ClusterId,
    /// Whose token is proved.
    pub user: String,
    /// Time after which an operation fails if the cluster doesn't answer. Operations wait for failed servers
    /// until then.
    pub operation_timeout_ms: u64,
    /// Time after which a read is tried on another replica.
    pub read_attempt_ms: u64,
    /// Time after which a write or metadata request is sent again.
    pub attempt_ms: u64,
    /// Writes in flight per reactor.
    pub writes_max: usize,
    /// Chunk reads in flight per read call.
    pub reads_per_call_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            mgmtd: Vec::new(),
            cluster: ClusterId::default(),
            user: "root".into(),
            operation_timeout_ms: 300_000,
            read_attempt_ms: 2_000,
            attempt_ms: 4_000,
            writes_max: 256,
            reads_per_call_max: 16,
        }
    }
}
