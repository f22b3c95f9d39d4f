//! Bodies to bytes and back.

use crate::header::BODY_MAX;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes that are no message. The connection that sent them is closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Not the CBOR of the expected message.
    #[error("malformed body: {0}")]
    Cbor(String),
    /// A fixed struct is shorter than its first version.
    #[error("body of {got} bytes, at least {want} expected")]
    Short {
        /// Bytes there.
        got: usize,
        /// Bytes needed.
        want: usize,
    },
    /// A field is out of its range.
    #[error("field {0} is out of range")]
    Range(&'static str),
}

/// A message that can be a body.
pub trait Body: Sized {
    /// Appends the message's bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads a message; it must not read beyond `bytes`.
    fn read(bytes: &[u8]) -> Result<Self, WireError>;
}

/// The bytes of a message.
pub fn encode<T: Body>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    debug_assert!(out.len() <= BODY_MAX, "body of {} bytes", out.len());
    out
}

/// Reads a message.
pub fn decode<T: Body>(bytes: &[u8]) -> Result<T, WireError> {
    T::read(bytes)
}

/// CBOR of any message that derives it.
pub fn write_cbor<T: minicbor::Encode<()>>(message: &T, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = minicbor::encode(message, out);
}

/// Reads CBOR; bytes after the message are refused.
pub fn read_cbor<'b, T: minicbor::Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, WireError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().map_err(|e| WireError::Cbor(e.to_string()))?;
    match decoder.position() == bytes.len() {
        true => Ok(message),
        false => {
            Err(WireError::Cbor(format!("{} bytes after the message", bytes.len() - decoder.position())))
        }
    }
}

/// Implements [`Body`] by CBOR.
macro_rules! cbor_body {
    ($($name:ty),* $(,)?) => {
        $(impl $crate::codec::Body for $name {
            fn write(&self, out: &mut Vec<u8>) {
                $crate::codec::write_cbor(self, out);
            }
            fn read(bytes: &[u8]) -> Result<Self, $crate::codec::WireError> {
                $crate::codec::read_cbor(bytes)
            }
        })*
    };
}
pub(crate) use cbor_body;

/// Reads a fixed struct that starts `bytes`; returns it and the bytes behind it. Bytes that a newer sender
/// added to the struct are not supported by this helper: the struct's own `size` field says where it ends.
pub fn read_fixed<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    T::read_from_prefix(bytes).map_err(|_| WireError::Short { got: bytes.len(), want: size_of::<T>() })
}

/// Appends a fixed struct.
pub fn write_fixed<T: IntoBytes + Immutable>(value: &T, out: &mut Vec<u8>) {
    out.extend_from_slice(value.as_bytes());
}

/// An empty body.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Empty {}
cbor_body!(Empty);
