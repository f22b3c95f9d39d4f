//! Capabilities: what meta mints at open and storage checks on every request.

use crate::id::{ClientId, DataId, InodeId};
use crate::time::ClusterTime;
use hmac::{Hmac, KeyInit, Mac};
use minicbor::{Decode, Encode};
use sha2::Sha256;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian};

/// What a capability allows, as bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct Rights(#[n(0)] pub u32);

impl Rights {
    /// Read chunks.
    pub const READ: Self = Self(1);
    /// Write and extend chunks.
    pub const WRITE: Self = Self(2);
    /// Remove and shorten chunks: minted by meta for itself only (R3).
    pub const REMOVE: Self = Self(4);

    /// Both sets of rights.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether every right in `wanted` is held.
    pub const fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// A right to some data, signed with the cluster secret. 64 bytes, little-endian, as it stands in storage
/// requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Capability {
    inode: little_endian::U64,
    data: little_endian::U64,
    client: [u8; 16],
    expiry_ms: little_endian::U64,
    epoch: little_endian::U32,
    rights: little_endian::U32,
    mac: [u8; 16],
}

const _: () = assert!(size_of::<Capability>() == 64);

impl<C> Encode<C> for Capability {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(self.as_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Capability {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::read_from_bytes(d.bytes()?)
            .map_err(|_| minicbor::decode::Error::message("a capability has 64 bytes"))
    }
}

impl Capability {
    /// The capability of an internal request that carries none: refused by storage.
    pub const NONE: Self = Self {
        inode: little_endian::U64::ZERO,
        data: little_endian::U64::ZERO,
        client: [0; 16],
        expiry_ms: little_endian::U64::ZERO,
        epoch: little_endian::U32::ZERO,
        rights: little_endian::U32::ZERO,
        mac: [0; 16],
    };

    /// The inode it was opened as.
    pub fn inode(&self) -> InodeId {
        InodeId(self.inode.get())
    }
    /// The data it covers.
    pub fn data(&self) -> DataId {
        DataId(self.data.get())
    }
    /// Who may use it.
    pub fn client(&self) -> ClientId {
        ClientId(self.client)
    }
    /// When it ends, in cluster time.
    pub fn expiry(&self) -> ClusterTime {
        ClusterTime(self.expiry_ms.get())
    }
    /// Revocation epoch under which it was minted; storage refuses one below the routing's.
    pub fn epoch(&self) -> u32 {
        self.epoch.get()
    }
    /// What it allows.
    pub fn rights(&self) -> Rights {
        Rights(self.rights.get())
    }
}

/// The key that signs and checks capabilities, derived from the cluster secret.
#[derive(Clone)]
pub struct CapabilityKey(Hmac<Sha256>);

impl std::fmt::Debug for CapabilityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CapabilityKey(secret)")
    }
}

impl CapabilityKey {
    /// Derives the key. `secret` is the cluster secret (32 random bytes).
    pub fn new(secret: &[u8; 32]) -> Self {
        let mut keyed = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes any key length");
        keyed.update(b"ember capability v1");
        Self(keyed)
    }

    /// Signs a capability for `client` on the data of an inode, until `expiry`.
    pub fn mint(
        &self,
        inode: InodeId,
        data: DataId,
        client: ClientId,
        rights: Rights,
        expiry: ClusterTime,
        epoch: u32,
    ) -> Capability {
        let mut cap = Capability {
            inode: inode.0.into(),
            data: data.0.into(),
            client: client.0,
            expiry_ms: expiry.0.into(),
            epoch: epoch.into(),
            rights: rights.0.into(),
            mac: [0; 16],
        };
        let signature = self.signature(&cap);
        cap.mac.copy_from_slice(&signature[..16]);
        cap
    }

    /// Whether the signature is this key's. Expiry, epoch and rights are the caller's to check.
    pub fn verify(&self, cap: &Capability) -> bool {
        let mut keyed = self.0.clone();
        keyed.update(&cap.as_bytes()[..48]);
        keyed.verify_truncated_left(&cap.mac).is_ok()
    }

    fn signature(&self, cap: &Capability) -> [u8; 32] {
        let mut keyed = self.0.clone();
        keyed.update(&cap.as_bytes()[..48]);
        keyed.finalize().into_bytes().into()
    }
}

/// The client token of the handshake: proves that the peer knows a secret without sending it.
/// `nonce` is the listener's challenge.
pub fn handshake_proof(token: &[u8; 32], nonce: &[u8; 32], role: &str) -> [u8; 32] {
    let mut keyed = Hmac::<Sha256>::new_from_slice(token).expect("HMAC takes any key length");
    keyed.update(b"ember handshake v1");
    keyed.update(role.as_bytes());
    keyed.update(nonce);
    keyed.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_or_altered_capability_is_refused() {
        let key = CapabilityKey::new(&[7; 32]);
        let cap = key.mint(
            InodeId(9),
            DataId(10),
            ClientId::from_u128(11),
            Rights::READ.and(Rights::WRITE),
            ClusterTime(12),
            13,
        );
        assert!(key.verify(&cap));
        assert!(!CapabilityKey::new(&[8; 32]).verify(&cap));
        assert!(!key.verify(&Capability::NONE));
        for byte in 0..64 {
            let mut bytes = [0; 64];
            bytes.copy_from_slice(cap.as_bytes());
            bytes[byte] ^= 1;
            assert!(!key.verify(&Capability::read_from_bytes(&bytes).unwrap()), "byte {byte}");
        }
        assert!(cap.rights().allows(Rights::READ));
        assert!(!cap.rights().allows(Rights::REMOVE));
    }
}
