//! Frames: what a log segment or a checkpoint file is made of. A frame is a batch of records that is there as
//! a whole or not at all.
//!
//! ```text
//! 0   magic "EFRM"      u32     24  number of the file    u64
//! 4   CRC32C of [8, end of padding)  32  target id        u64
//! 8   bytes of records  u32     40  kind: 1 log, 2 checkpoint  u32
//! 12  number of records u32     44  reserved, 0           u32
//! 16  sequence          u64     48  records, then zeros up to a multiple of 4096
//! ```

use crate::record::{Reader, Record};
use ember_rt::Buf;
use ember_types::checksum::crc32c;

const MAGIC: u32 = u32::from_le_bytes(*b"EFRM");
pub(crate) const HEADER: usize = 48;
/// Unit of frames, in bytes.
pub(crate) const ALIGN: usize = 4096;
/// Most bytes of records in one frame: what undoes the largest batch fits.
pub(crate) const PAYLOAD_MAX: usize = 64 << 20;

/// Which file a frame belongs to: a frame anywhere else is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameOf {
    pub(crate) target: u64,
    /// 1 log segment, 2 checkpoint.
    pub(crate) kind: u32,
    /// Number of the segment or checkpoint.
    pub(crate) file: u64,
}

pub(crate) const LOG: u32 = 1;
pub(crate) const CHECKPOINT: u32 = 2;

/// What the first 48 bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    checksum: u32,
    payload: usize,
    records: u32,
    pub(crate) sequence: u64,
}

impl FrameHeader {
    /// Reads a header; `None` if there is none of this file.
    pub(crate) fn parse(bytes: &[u8], of: FrameOf) -> Option<Self> {
        let mut r = Reader(bytes);
        let magic = r.u32().ok()?;
        let checksum = r.u32().ok()?;
        let payload = r.u32().ok()? as usize;
        let records = r.u32().ok()?;
        let sequence = r.u64().ok()?;
        let found = FrameOf { file: r.u64().ok()?, target: r.u64().ok()?, kind: r.u32().ok()? };
        (magic == MAGIC && found == of && payload <= PAYLOAD_MAX).then_some(Self {
            checksum,
            payload,
            records,
            sequence,
        })
    }
    /// Length of the frame with its padding, in bytes.
    pub(crate) fn length(&self) -> usize {
        (HEADER + self.payload).next_multiple_of(ALIGN)
    }
    /// Whether `frame`, of [`FrameHeader::length`] bytes, is whole.
    pub(crate) fn verify(&self, frame: &[u8]) -> bool {
        frame.len() == self.length() && crc32c(&frame[8..]) == self.checksum
    }
    /// The records of a verified frame; the offset within the frame of one that makes no sense.
    pub(crate) fn records(&self, frame: &[u8]) -> Result<Vec<Record>, (usize, &'static str)> {
        let end = HEADER + self.payload;
        let mut at = HEADER;
        let mut records = Vec::new();
        while at < end {
            let (record, length) = Record::decode(&frame[at..end]).map_err(|what| (at, what))?;
            records.push(record);
            at += length;
        }
        if records.len() != self.records as usize {
            return Err((12, "number of records differs"));
        }
        Ok(records)
    }
}

/// Builds a frame from encoded records.
pub(crate) fn build(of: FrameOf, sequence: u64, records: u32, payload: &[u8]) -> Buf {
    assert!(payload.len() <= PAYLOAD_MAX, "a frame of {} bytes", payload.len());
    let length = (HEADER + payload.len()).next_multiple_of(ALIGN);
    let mut buf = Buf::zeroed(length);
    let bytes = buf.bytes_mut();
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&records.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&of.file.to_le_bytes());
    bytes[32..40].copy_from_slice(&of.target.to_le_bytes());
    bytes[40..44].copy_from_slice(&of.kind.to_le_bytes());
    bytes[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let checksum = crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    buf
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_types::ChainVersion;

    #[test]
    fn a_frame_is_whole_or_nothing() {
        let of = FrameOf { target: 5, kind: LOG, file: 2 };
        let mut payload = Vec::new();
        let record = Record::Chain { version: ChainVersion(3) };
        record.encode(&mut payload);
        let frame = build(of, 7, 1, &payload);
        let header = FrameHeader::parse(&frame, of).unwrap();
        assert!(header.verify(&frame));
        assert_eq!(header.sequence, 7);
        assert_eq!(header.records(&frame), Ok(vec![record]));
        assert_eq!(FrameHeader::parse(&frame, FrameOf { file: 3, ..of }), None);
        for at in 0..frame.len() {
            let mut bent = frame.to_vec();
            bent[at] ^= 1 << (at % 8);
            assert!(!FrameHeader::parse(&bent, of).is_some_and(|h| h.verify(&bent)), "byte {at}");
        }
    }
}
