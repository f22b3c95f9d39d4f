//! `ember-fuse-kernel`: the kernel's FUSE ABI, from the bytes of `/dev/fuse` to typed requests and back.
//!
//! It mounts, negotiates, receives, parses, answers and notifies. It is not a file system and not a server:
//! it has no nodes, no handles, no threads that serve, no runtime; the crate above decides all of that. It
//! knows no other crate of the house.
//!
//! Invariants:
//! - No bytes from the kernel make it panic or read outside the message ([`Request::parse`]).
//! - A capability is used only if the kernel offered it and the server asked for it ([`init::negotiate`]).
//! - An answer goes to the kernel whole or not at all, and its payload is never copied here
//!   ([`Channel::reply`]).
//! - The end of the mount is a value ([`Received::Ended`]), not an error.
//! - Nothing here touches a mount that may be dead without a bound on the wait ([`mount::probe`]).
#![deny(unsafe_code)]

pub mod abi;
mod buffer;
mod channel;
mod dirbuf;
mod error;
pub mod init;
pub mod mount;
mod notify;
mod reply;
pub mod request;
mod sys;

pub use buffer::{RecvBuffer, Slot, WRITE_DATA_OFFSET, message_size, message_window, window_size};
pub use channel::{Channel, DEVICE, Delivery, DevChannel, Notified, Received};
pub use dirbuf::{Cookie, DirBuf, Pushed};
pub use error::{Error, PointProblem};
pub use notify::{NotQueued, Notification, NotifyQueue, OwnedNotification};
pub use reply::Reply;
pub use request::{Malformed, Op, Request};
/// Error numbers, as [`Reply::error`] takes them.
pub use rustix::io::Errno;
