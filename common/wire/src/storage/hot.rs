//! The hot bodies: reads, updates and forwards. Each starts with a fixed struct whose `size` field says how
//! long the sender's version of it is: longer is newer, and what is missing is zero.

use crate::codec::{Body, WireError};
use ember_types::{
    Capability, ChainId, ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DataId, Generation,
    Sequence, Status, TargetId, WriterRecord, WriterTag,
};
use minicbor::{Decode, Encode};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most block checksums in one body: those of the largest chunk.
const CHECKSUMS_MAX: usize = (64 << 20) / 4096;

/// Reads a fixed struct that says its own size, and the bytes behind it.
fn sized<T: FromBytes + IntoBytes + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let short = WireError::Short { got: bytes.len(), want: size_of::<T>() };
    let said = bytes.get(..2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))).ok_or(short.clone())?;
    if said < 2 || said > bytes.len() {
        return Err(short);
    }
    let mut value = T::new_zeroed();
    let known = said.min(size_of::<T>());
    value.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
    Ok((value, &bytes[said..]))
}

fn checksums(bytes: &[u8]) -> Result<Vec<u32>, WireError> {
    if !bytes.len().is_multiple_of(4) || bytes.len() / 4 > CHECKSUMS_MAX {
        return Err(WireError::Range("block checksums"));
    }
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn put_checksums(blocks: &[u32], out: &mut Vec<u8>) {
    out.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedVersion {
    number: U64,
    chain_version: U64,
    attempt: U32,
}

impl From<ChunkVersion> for FixedVersion {
    fn from(v: ChunkVersion) -> Self {
        Self { number: v.number.into(), chain_version: v.chain_version.0.into(), attempt: v.attempt.into() }
    }
}

impl From<FixedVersion> for ChunkVersion {
    fn from(v: FixedVersion) -> Self {
        Self {
            number: v.number.get(),
            chain_version: ChainVersion(v.chain_version.get()),
            attempt: v.attempt.get(),
        }
    }
}

/// To whom a request is addressed (R18): a replica that is not exactly this one refuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Encode, Decode)]
pub struct Address {
    /// The chain.
    #[n(0)]
    pub chain: ChainId,
    /// The chain's version as the asker knows it.
    #[n(1)]
    pub chain_version: ChainVersion,
    /// The target.
    #[n(2)]
    pub target: TargetId,
    /// Its generation.
    #[n(3)]
    pub generation: Generation,
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedAddress {
    chain: U32,
    generation: U32,
    chain_version: U64,
    target: U64,
}

impl From<Address> for FixedAddress {
    fn from(a: Address) -> Self {
        Self {
            chain: a.chain.0.into(),
            generation: a.generation.0.into(),
            chain_version: a.chain_version.0.into(),
            target: a.target.0.into(),
        }
    }
}

impl From<FixedAddress> for Address {
    fn from(a: FixedAddress) -> Self {
        Self {
            chain: ChainId(a.chain.get()),
            chain_version: ChainVersion(a.chain_version.get()),
            target: TargetId(a.target.get()),
            generation: Generation(a.generation.get()),
        }
    }
}

/// [`ReadRequest::flags`]: pending data will do (relaxed read).
pub const READ_PENDING: u32 = 1;

/// Reads bytes of one chunk. The payload of the answer starts at `offset` and ends at the chunk's length or
/// after `length` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// The replica.
    pub to: Address,
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte within the chunk.
    pub offset: u32,
    /// Most bytes to read.
    pub length: u32,
    /// `READ_*` bits.
    pub flags: u32,
    /// The right to read.
    pub capability: Capability,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedRead {
    size: U16,
    reserved: U16,
    flags: U32,
    to: FixedAddress,
    data: U64,
    index: U32,
    chunk_reserved: U32,
    offset: U32,
    length: U32,
    capability: Capability,
}
const _: () = assert!(size_of::<FixedRead>() == 120);

impl Body for ReadRequest {
    fn write(&self, out: &mut Vec<u8>) {
        let fixed = FixedRead {
            size: (size_of::<FixedRead>() as u16).into(),
            reserved: U16::ZERO,
            flags: self.flags.into(),
            to: self.to.into(),
            data: self.chunk.data.0.into(),
            index: self.chunk.index.into(),
            chunk_reserved: U32::ZERO,
            offset: self.offset.into(),
            length: self.length.into(),
            capability: self.capability,
        };
        out.extend_from_slice(fixed.as_bytes());
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (fixed, _): (FixedRead, _) = sized(bytes)?;
        Ok(Self {
            to: fixed.to.into(),
            chunk: ChunkId::new(DataId(fixed.data.get()), fixed.index.get()),
            offset: fixed.offset.get(),
            length: fixed.length.get(),
            flags: fixed.flags.get(),
            capability: fixed.capability,
        })
    }
}

/// Answer to [`ReadRequest`]. The payload covers whole 4 KiB blocks: it starts at `offset` rounded down to a
/// block and ends at a block's end or the chunk's length, so that the checksums cover it exactly; the asker
/// cuts out what it wanted. `NotFound` means that the chunk is absent on a serving target (R18).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadResponse {
    /// How it ended.
    pub status: Status,
    /// Length of the chunk's committed content, in bytes.
    pub chunk_length: u32,
    /// The version that was read.
    pub version: ChunkVersion,
    /// Version of the chain at the replica; with `StaleRouting` the asker needs at least this.
    pub chain_version: ChainVersion,
    /// CRC32C of each block of the payload.
    pub checksums: Vec<u32>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedReadResponse {
    size: U16,
    status: U16,
    chunk_length: U32,
    version: FixedVersion,
    chain_version: U64,
}

impl Body for ReadResponse {
    fn write(&self, out: &mut Vec<u8>) {
        let fixed = FixedReadResponse {
            size: (size_of::<FixedReadResponse>() as u16).into(),
            status: self.status.code().into(),
            chunk_length: self.chunk_length.into(),
            version: self.version.into(),
            chain_version: self.chain_version.0.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        put_checksums(&self.checksums, out);
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (fixed, rest): (FixedReadResponse, _) = sized(bytes)?;
        Ok(Self {
            status: Status::from_code(fixed.status.get()),
            chunk_length: fixed.chunk_length.get(),
            version: fixed.version.into(),
            chain_version: ChainVersion(fixed.chain_version.get()),
            checksums: checksums(rest)?,
        })
    }
}

/// What to do with a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub enum UpdateKind {
    /// Put the payload at `offset`; the chunk grows if needed, and a gap before it reads as zeros.
    #[n(0)]
    Write {
        /// First byte within the chunk.
        #[n(0)]
        offset: u32,
    },
    /// Cut or extend to `length` bytes; an extension reads as zeros.
    #[n(1)]
    Truncate {
        /// Length of the chunk afterwards.
        #[n(0)]
        length: u32,
    },
    /// Remove the chunk, leaving a tombstone.
    #[n(2)]
    Remove,
    /// The payload is the chunk's whole content: how a syncing successor gets it.
    #[n(3)]
    Whole,
    /// Cut to `length` if the chunk exists and is longer; never creates or extends. Asked by meta (R19).
    #[n(4)]
    Cut {
        /// Most bytes that stay.
        #[n(0)]
        length: u32,
    },
}

impl UpdateKind {
    fn parts(self) -> (u16, u32) {
        match self {
            Self::Write { offset } => (0, offset),
            Self::Truncate { length } => (1, length),
            Self::Remove => (2, 0),
            Self::Whole => (3, 0),
            Self::Cut { length } => (4, length),
        }
    }
    fn from_parts(kind: u16, number: u32) -> Result<Self, WireError> {
        Ok(match kind {
            0 => Self::Write { offset: number },
            1 => Self::Truncate { length: number },
            2 => Self::Remove,
            3 => Self::Whole,
            4 => Self::Cut { length: number },
            _ => return Err(WireError::Range("kind of update")),
        })
    }
}

/// Changes one chunk; sent to the head. The payload is the data of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateRequest {
    /// The head.
    pub to: Address,
    /// The chunk.
    pub chunk: ChunkId,
    /// What to do.
    pub kind: UpdateKind,
    /// Largest length that the chunk may have: the layout's chunk size.
    pub chunk_size: u32,
    /// Exactly once (R12).
    pub tag: WriterTag,
    /// The right to do it.
    pub capability: Capability,
    /// CRC32C of each 4 KiB of the payload, counted from the payload's first byte.
    pub checksums: Vec<u32>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedUpdate {
    size: U16,
    kind: U16,
    kind_number: U32,
    to: FixedAddress,
    data: U64,
    index: U32,
    chunk_reserved: U32,
    client: [u8; 16],
    channel: U32,
    chunk_size: U32,
    sequence: U64,
    capability: Capability,
}
const _: () = assert!(size_of::<FixedUpdate>() == 144);

impl Body for UpdateRequest {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, kind_number) = self.kind.parts();
        let fixed = FixedUpdate {
            size: (size_of::<FixedUpdate>() as u16).into(),
            kind: kind.into(),
            kind_number: kind_number.into(),
            to: self.to.into(),
            data: self.chunk.data.0.into(),
            index: self.chunk.index.into(),
            chunk_reserved: U32::ZERO,
            client: self.tag.client.0,
            channel: self.tag.channel.0.into(),
            chunk_size: self.chunk_size.into(),
            sequence: self.tag.sequence.0.into(),
            capability: self.capability,
        };
        out.extend_from_slice(fixed.as_bytes());
        put_checksums(&self.checksums, out);
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (fixed, rest): (FixedUpdate, _) = sized(bytes)?;
        Ok(Self {
            to: fixed.to.into(),
            chunk: ChunkId::new(DataId(fixed.data.get()), fixed.index.get()),
            kind: UpdateKind::from_parts(fixed.kind.get(), fixed.kind_number.get())?,
            chunk_size: fixed.chunk_size.get(),
            tag: WriterTag {
                client: ClientId(fixed.client),
                channel: ChannelId(fixed.channel.get()),
                sequence: Sequence(fixed.sequence.get()),
            },
            capability: fixed.capability,
            checksums: checksums(rest)?,
        })
    }
}

/// Answer to [`UpdateRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct UpdateResponse {
    /// How it ended.
    #[n(0)]
    pub status: Status,
    /// The version that the update made.
    #[n(1)]
    pub version: ChunkVersion,
    /// Length of the chunk after it.
    #[n(2)]
    pub chunk_length: u32,
    /// Version of the chain at the replica; with `StaleRouting` the asker needs at least this.
    #[n(3)]
    pub chain_version: ChainVersion,
}

/// Passes an update to the successor. The payload is the data of a write, or the whole content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForwardRequest {
    /// The successor.
    pub to: Address,
    /// Who forwards.
    pub from: TargetId,
    /// The chunk.
    pub chunk: ChunkId,
    /// What to do.
    pub kind: UpdateKind,
    /// Largest length that the chunk may have.
    pub chunk_size: u32,
    /// The committed version that the update applies to (R5).
    pub base: ChunkVersion,
    /// The version that it makes.
    pub version: ChunkVersion,
    /// Length of the chunk after it.
    pub length: u32,
    /// CRC32C of the whole chunk after it (R14).
    pub checksum: u32,
    /// Whose update it is (R12).
    pub tag: WriterTag,
    /// CRC32C of each 4 KiB of the payload, counted from the payload's first byte.
    pub checksums: Vec<u32>,
    /// Records of other writers of the chunk, with a whole chunk (R12).
    pub writers: Vec<WriterRecord>,
    /// Grows when the sender sends again what may still arrive: a lower one is late and refused.
    pub epoch: u32,
    /// Not every replica before the successor holds it yet: it is committed after [`DurableRequest`] alone. Sent only
    /// to peers with the feature [`EARLY_FORWARDS`].
    ///
    /// [`DurableRequest`]: super::DurableRequest
    /// [`EARLY_FORWARDS`]: crate::handshake::EARLY_FORWARDS
    pub early: bool,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedForward {
    size: U16,
    kind: U16,
    kind_number: U32,
    to: FixedAddress,
    from: U64,
    data: U64,
    index: U32,
    chunk_reserved: U32,
    chunk_size: U32,
    base: FixedVersion,
    version: FixedVersion,
    length: U32,
    checksum: U32,
    client: [u8; 16],
    channel: U32,
    sequence: U64,
    checksums: U32,
    epoch: U32,
    early: U32,
}

impl Body for ForwardRequest {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, kind_number) = self.kind.parts();
        let fixed = FixedForward {
            size: (size_of::<FixedForward>() as u16).into(),
            kind: kind.into(),
            kind_number: kind_number.into(),
            to: self.to.into(),
            from: self.from.0.into(),
            data: self.chunk.data.0.into(),
            index: self.chunk.index.into(),
            chunk_reserved: U32::ZERO,
            chunk_size: self.chunk_size.into(),
            base: self.base.into(),
            version: self.version.into(),
            length: self.length.into(),
            checksum: self.checksum.into(),
            client: self.tag.client.0,
            channel: self.tag.channel.0.into(),
            sequence: self.tag.sequence.0.into(),
            checksums: (self.checksums.len() as u32).into(),
            epoch: self.epoch.into(),
            early: u32::from(self.early).into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        put_checksums(&self.checksums, out);
        if !self.writers.is_empty() {
            crate::codec::write_cbor(&self.writers, out);
        }
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (fixed, rest): (FixedForward, _) = sized(bytes)?;
        let split = (fixed.checksums.get() as usize).saturating_mul(4);
        let blocks = rest.get(..split).ok_or(WireError::Range("number of block checksums"))?;
        let writers = match &rest[split..] {
            [] => Vec::new(),
            bytes => crate::codec::read_cbor(bytes)?,
        };
        Ok(Self {
            to: fixed.to.into(),
            from: TargetId(fixed.from.get()),
            chunk: ChunkId::new(DataId(fixed.data.get()), fixed.index.get()),
            kind: UpdateKind::from_parts(fixed.kind.get(), fixed.kind_number.get())?,
            chunk_size: fixed.chunk_size.get(),
            base: fixed.base.into(),
            version: fixed.version.into(),
            length: fixed.length.get(),
            checksum: fixed.checksum.get(),
            tag: WriterTag {
                client: ClientId(fixed.client),
                channel: ChannelId(fixed.channel.get()),
                sequence: Sequence(fixed.sequence.get()),
            },
            checksums: checksums(blocks)?,
            writers,
            epoch: fixed.epoch.get(),
            early: fixed.early.get() != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use ember_types::layout::SplitMix64;

    fn forward() -> ForwardRequest {
        let version = |number| ChunkVersion { number, chain_version: ChainVersion(4), attempt: 2 };
        let tag = WriterTag { client: ClientId::from_u128(77), channel: ChannelId(3), sequence: Sequence(9) };
        ForwardRequest {
            to: Address {
                chain: ChainId(1),
                chain_version: ChainVersion(4),
                target: TargetId(12),
                generation: Generation(1),
            },
            from: TargetId(11),
            chunk: ChunkId::new(DataId(5), 6),
            kind: UpdateKind::Write { offset: 4096 },
            chunk_size: 1 << 20,
            base: version(7),
            version: version(8),
            length: 8192,
            checksum: 0xdead_beef,
            tag,
            checksums: vec![1, 2, 3],
            writers: vec![WriterRecord { tag, version: version(8), length: 5, status: Status::Ok }],
            epoch: 3,
            early: true,
        }
    }

    fn update() -> UpdateRequest {
        let f = forward();
        UpdateRequest {
            to: f.to,
            chunk: f.chunk,
            kind: UpdateKind::Cut { length: 3 },
            chunk_size: f.chunk_size,
            tag: f.tag,
            capability: Capability::NONE,
            checksums: vec![9],
        }
    }

    #[test]
    fn hot_bodies_survive_the_wire() {
        assert_eq!(decode(&encode(&forward())), Ok(forward()));
        assert_eq!(decode(&encode(&update())), Ok(update()));
        let f = forward();
        let read = ReadRequest {
            to: f.to,
            chunk: f.chunk,
            offset: 1,
            length: 2,
            flags: READ_PENDING,
            capability: Capability::NONE,
        };
        assert_eq!(decode(&encode(&read)), Ok(read));
        let answer = ReadResponse {
            status: Status::StaleRouting,
            chunk_length: 5,
            version: f.version,
            chain_version: ChainVersion(9),
            checksums: vec![4, 5],
        };
        assert_eq!(decode(&encode(&answer)), Ok(answer));
    }

    #[test]
    fn a_longer_struct_of_a_newer_release_is_read() {
        let old = encode(&update());
        let mut new = old.clone();
        let said = u16::from_le_bytes([new[0], new[1]]);
        new[..2].copy_from_slice(&(said + 8).to_le_bytes());
        new.splice(usize::from(said)..usize::from(said), [7; 8]);
        assert_eq!(decode(&new), Ok(update()));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_but_never_panic() {
        let mut random = SplitMix64(1);
        let samples = [encode(&forward()), encode(&update())];
        for round in 0..20_000 {
            let mut bytes = samples[round % 2].clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            let _ = decode::<ForwardRequest>(&bytes);
            let _ = decode::<UpdateRequest>(&bytes);
            let _ = decode::<ReadRequest>(&bytes);
            let _ = decode::<ReadResponse>(&bytes);
            let _ = decode::<crate::meta::Request>(&bytes);
            let _ = decode::<crate::mgmtd::HeartbeatRequest>(&bytes);
        }
    }
}
