//! The frame: a fixed 64-byte header, a body, a raw payload. Byte boxes are in `docs/design/wire.md`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 64;
/// Most bytes of a body.
pub const BODY_MAX: usize = 4 << 20;
/// Most bytes of a payload: the largest chunk and a page.
pub const PAYLOAD_MAX: usize = (64 << 20) + 4096;
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"EMB1";
/// Header layout that this crate writes.
pub const HEADER_VERSION: u16 = 1;

/// [`Header::flags`]: the frame answers a request.
pub const FLAG_RESPONSE: u16 = 1;
/// [`Header::flags`]: the asker has gone; the request with this id may be dropped. No body.
pub const FLAG_CANCEL: u16 = 2;

/// The first 64 bytes of a frame, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`HEADER_VERSION`].
    pub version: U16,
    /// `FLAG_*` bits.
    pub flags: U16,
    /// Number of the method.
    pub method: U16,
    /// Status of a response (0 in requests).
    pub status: U16,
    /// Time left for the request when it was sent, in milliseconds.
    pub deadline_ms: U32,
    /// Matches responses to requests.
    pub request_id: U64,
    /// Bytes of the body.
    pub body_len: U32,
    /// Bytes of the payload.
    pub payload_len: U32,
    /// CRC32C of the body.
    pub body_checksum: U32,
    /// CRC32C of the payload, or 0 where the body carries block checksums.
    pub payload_checksum: U32,
    /// Zero.
    pub reserved: [u8; 20],
    /// CRC32C of the bytes before it.
    pub checksum: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

impl Header {
    /// Fills in the constants and the checksum.
    pub fn seal(mut self) -> Self {
        self.magic = MAGIC;
        self.version = HEADER_VERSION.into();
        self.reserved = [0; 20];
        self.checksum = crc32c::crc32c(&self.as_bytes()[..HEADER_SIZE - 4]).into();
        self
    }
    /// An all-zero header to be filled in and sealed.
    pub fn empty() -> Self {
        Self::read_from_bytes(&[0; HEADER_SIZE]).expect("64 bytes")
    }
    /// Reads and checks a header; the text says what is wrong with it.
    pub fn check(bytes: &[u8; HEADER_SIZE]) -> Result<Self, String> {
        let header = Self::read_from_bytes(bytes).map_err(|_| "64 bytes expected".to_owned())?;
        if header.magic != MAGIC {
            return Err(format!("magic {:02x?} instead of {MAGIC:02x?}: not an EmberFS peer", header.magic));
        }
        let checksum = crc32c::crc32c(&bytes[..HEADER_SIZE - 4]);
        if header.checksum.get() != checksum {
            return Err(format!("header checksum {:08x}, computed {checksum:08x}", header.checksum));
        }
        if header.version.get() != HEADER_VERSION {
            return Err(format!("header version {}, this is {HEADER_VERSION}", header.version));
        }
        if header.body_len.get() as usize > BODY_MAX {
            return Err(format!("body of {} bytes, at most {BODY_MAX} allowed", header.body_len));
        }
        if header.payload_len.get() as usize > PAYLOAD_MAX {
            return Err(format!("payload of {} bytes, at most {PAYLOAD_MAX} allowed", header.payload_len));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_header_is_refused() {
        let mut header = Header::empty();
        header.method = 3.into();
        header.request_id = 77.into();
        header.body_len = 10.into();
        let header = header.seal();
        let mut bytes = [0; HEADER_SIZE];
        bytes.copy_from_slice(header.as_bytes());
        assert_eq!(Header::check(&bytes), Ok(header));
        for bit in 0..HEADER_SIZE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::check(&bad).is_err(), "bit {bit}");
        }
        let mut long = header;
        long.body_len = (BODY_MAX as u32 + 1).into();
        bytes.copy_from_slice(long.seal().as_bytes());
        assert!(Header::check(&bytes).unwrap_err().contains("at most"));
    }
}
