//! What goes over a wire: the frame header, the handshake and every message. Pure data; framing, deadlines
//! and connections are `ember-net`'s, and what messages cause is the services'.
//!
//! Invariants: the header and storage's hot bodies are fixed little-endian structs (longer is newer, zero is
//! the default); all other bodies are CBOR maps by field number, in which unknown fields are skipped and
//! missing ones take their default. Numbers of methods and fields never change meaning.
#![forbid(unsafe_code)]

pub mod admin;
pub mod codec;
pub mod handshake;
pub mod header;
pub mod meta;
pub mod method;
pub mod mgmtd;
mod operation;
pub mod ranks;
pub mod storage;

pub use codec::{WireError, decode, encode};
pub use header::{BODY_MAX, HEADER_SIZE, Header, PAYLOAD_MAX};
pub use method::{Class, Method, Rpc};
