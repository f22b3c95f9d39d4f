//! Values: one format byte, then CBOR by field number (unknown fields are skipped, so that a newer version's
//! additions can be read).

use crate::error::{Error, Result};
use minicbor::{Decode, Encode};

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u8 = 1;

/// The value of a record.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = vec![FORMAT];
    if let Err(error) = minicbor::encode(value, &mut out) {
        unreachable!("writing to memory cannot fail: {error}");
    }
    out
}

/// Reads the value of a record; the error names its table and key.
pub fn decode<'b, T: Decode<'b, ()>>(table: &'static str, key: &[u8], value: &'b [u8]) -> Result<T> {
    let damaged = |what: String| Error::Damaged { table, key: key.escape_ascii().to_string(), what };
    match value.split_first() {
        Some((&FORMAT, body)) => {
            let mut decoder = minicbor::Decoder::new(body);
            let record = decoder.decode().map_err(|e| damaged(e.to_string()))?;
            match decoder.position() == body.len() {
                true => Ok(record),
                false => Err(damaged(format!("{} bytes too long", body.len() - decoder.position()))),
            }
        }
        Some((format, _)) => Err(damaged(format!("format {format}, this version reads {FORMAT}"))),
        None => Err(damaged("empty".to_owned())),
    }
}

/// A counter kept by atomic adds: eight bytes, little-endian.
pub(crate) fn counter(table: &'static str, key: &[u8], value: Option<&[u8]>) -> Result<u64> {
    match value {
        None => Ok(0),
        Some(bytes) => {
            let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::Damaged {
                table,
                key: key.escape_ascii().to_string(),
                what: format!("a counter of {} bytes", bytes.len()),
            })?;
            Ok(u64::from_le_bytes(bytes))
        }
    }
}
