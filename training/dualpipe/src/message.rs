//! Messages as bytes: payload and module (a byte each), two bytes of zeros, micro-batch, length of the body, body. All
//! numbers are little-endian.

use crate::schedule::{Part, Payload};
use crate::transport::Tag;

/// Bytes before the body.
pub(crate) const HEADER: usize = 16;

/// What can be sent to another process.
pub trait Message: Sized {
    /// Appends the bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// What [`Message::encode`] made bytes of; nothing if they are no such message.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Message for Vec<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.iter().flat_map(|x| x.to_le_bytes()));
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks() else { return None };
        Some(numbers.iter().map(|x| f32::from_le_bytes(*x)).collect())
    }
}

impl Message for Vec<f64> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.iter().flat_map(|x| x.to_le_bytes()));
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks() else { return None };
        Some(numbers.iter().map(|x| f64::from_le_bytes(*x)).collect())
    }
}

/// A message with its header.
pub(crate) fn framed<T: Message>(tag: Tag, what: &T) -> Vec<u8> {
    let mut message = vec![tag.payload as u8, tag.part.module as u8, 0, 0];
    message.extend((tag.part.chunk as u32).to_le_bytes());
    message.extend([0; 8]);
    what.encode(&mut message);
    let length = (message.len() - HEADER) as u64;
    message[8..HEADER].copy_from_slice(&length.to_le_bytes());
    message
}

/// What a header says, and how long the body is; nothing if it is none.
pub(crate) fn unframed(header: &[u8; HEADER]) -> Option<(Tag, u64)> {
    let [payload, module, 0, 0, c0, c1, c2, c3, length @ ..] = *header else { return None };
    let payload = match payload {
        0 => Payload::Activation,
        1 => Payload::Gradient,
        _ => return None,
    };
    let part = Part { module: module.into(), chunk: u32::from_le_bytes([c0, c1, c2, c3]) as usize };
    Some((Tag { payload, part }, u64::from_le_bytes(length)))
}
