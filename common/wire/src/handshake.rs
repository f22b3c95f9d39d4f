//! The first frames of a connection: the listener's challenge, the caller's hello, the listener's welcome.

use crate::codec::cbor_body;
use ember_types::{ClientId, ClusterId, NodeId, Status};
use minicbor::{Decode, Encode};

/// Oldest protocol that this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// Newest protocol that this build speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// A replica takes forwards that are not durable before it yet, and waits for [`DurableRequest`].
///
/// [`DurableRequest`]: crate::storage::DurableRequest
pub const EARLY_FORWARDS: u64 = 1;
/// Feature bits that this build understands.
pub const FEATURES: u64 = EARLY_FORWARDS;

/// Sent by the listener at once.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Challenge {
    /// Random; the proof is made over it.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub nonce: [u8; 32],
    /// Protocols that the listener speaks.
    #[n(1)]
    pub protocol_min: u16,
    /// Protocols that the listener speaks.
    #[n(2)]
    pub protocol_max: u16,
    /// The listener's cluster.
    #[n(3)]
    pub cluster: ClusterId,
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Caller {
    /// A node of the cluster: proves the cluster secret.
    #[n(0)]
    Node(#[n(0)] NodeId),
    /// A client: proves a user's token.
    #[n(1)]
    Client(#[n(0)] ClientId),
}

impl Caller {
    /// What the proof binds the caller's role to.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Client(_) => "client",
        }
    }
}

/// Sent by the caller.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The caller's cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// Protocols that the caller speaks.
    #[n(1)]
    pub protocol_min: u16,
    /// Protocols that the caller speaks.
    #[n(2)]
    pub protocol_max: u16,
    /// Feature bits that the caller understands.
    #[n(3)]
    pub features: u64,
    /// Who calls.
    #[n(4)]
    pub caller: Caller,
    /// Whose token: a user name. Empty for nodes.
    #[n(5)]
    pub user: String,
    /// [`ember_types::capability::handshake_proof`] over the nonce.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// Lane that the connection is meant for (0 if unknown).
    #[n(7)]
    pub lane: u32,
}

/// Ends the handshake.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// `Ok`, or why the connection is closed now.
    #[n(0)]
    pub status: Status,
    /// For people: what was wrong and what to do.
    #[n(1)]
    pub text: String,
    /// The protocol to speak.
    #[n(2)]
    pub protocol: u16,
    /// Feature bits that both understand.
    #[n(3)]
    pub features: u64,
    /// Who answers (0 if not a node).
    #[n(4)]
    pub node: NodeId,
}

cbor_body!(Challenge, Hello, Welcome);
