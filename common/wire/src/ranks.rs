//! Messages between the ranks of a training job on several machines. See `docs/design/ranks.md`.

use crate::codec::cbor_body;
use minicbor::{Decode, Encode};

/// A part of a message; its bytes are the payload. The parts of a message come in order, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PartRequest {
    /// What the message is about, as the ranks agree.
    #[n(0)]
    pub channel: u32,
    /// Its number in that channel.
    #[n(1)]
    pub number: u32,
    /// Bytes of the whole message.
    #[n(2)]
    pub total: u64,
    /// Where the part begins in it.
    #[n(3)]
    pub offset: u64,
    /// CRC32C of the part's bytes.
    #[n(4)]
    pub checksum: u32,
}
cbor_body!(PartRequest);
