//! Requests and responses between processes: framing, handshake, deadlines, credits, connections, a server.
//!
//! It is not a message definition (`ember-wire`) and reaches no network itself (`ember_rt::net`). The framing
//! ([`frame`]) and the order of sending ([`queue`]) are pure; connections drive them over any stream.
//!
//! Invariants:
//! - Nothing is allocated for a length before the header's checksum and limits were checked; before the
//!   handshake is over the limits are 64 KiB of body and no payload.
//! - A malformed frame ends its connection and nothing else.
//! - Every call has a deadline, and ends at it. Its credits come back only with the peer's answer, so that a
//!   peer is never asked to hold more than it promised ([`credits`]).
//! - A connection's reader never waits for a handler, and its writer sends urgent classes first: control
//!   messages pass when everything below them is stuck (R15).
//! - When a connection dies, every call on it ends with [`NetError::Unavailable`].
#![forbid(unsafe_code)]

pub mod connection;
pub mod credits;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod mem;
pub mod pool;
pub mod queue;
pub mod server;

mod link;

pub use connection::{CallOptions, Connection, Options, Reply};
pub use error::NetError;
pub use handshake::{Identity, Keys, Peer, ServerIdentity};
pub use pool::Pool;
pub use server::{Handler, Request, Response, Server, ServerOptions, ServerStats};
