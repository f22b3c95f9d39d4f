//! The seam's production implementation: reactors on tokio-uring, one raw io_uring per disk, threads that may
//! block. Nothing above `ember-rt` names this crate but the binary and the wrappers that start reactors.
//!
//! A reactor is one thread with a tokio-uring runtime (which is a tokio current-thread runtime, so tokio's
//! timers work in it). What runs where:
//!
//! - **Streams** are tokio-uring's. A send first tries the socket without waiting, since nearly every frame
//!   fits into the socket's buffer and a trip through the ring would cost another turn of the reactor; only
//!   the rest goes through the ring. A receive asks the socket directly while the last one filled its buffer.
//!   Listeners are tokio's: an accept of tokio-uring that is dropped loses the connection, and its `bind`
//!   shares the port with any other process that asks (SO_REUSEPORT).
//! - **Disks** are driven by a ring each ([`disk`]), with COOP_TASKRUN: a ring with DEFER_TASKRUN behind
//!   tokio's AsyncFd hangs. Operations are collected and submitted once per turn of the reactor.
//! - **Blocking work** runs on a pool of threads shared by the process ([`blocking`]).
//!
//! Invariants: a buffer belongs to the kernel until its operation has ended, also if whoever asked is gone; a
//! task that panics ends its reactor with that panic, so that no daemon runs without one of its parts;
//! `unsafe` is in [`raw`], [`readable`], [`disk::ring`] and [`disk::map`] alone.

// This crate implements the seam: the methods that everybody else must reach through it are called here.
#![allow(clippy::disallowed_methods)]

pub mod blocking;
pub mod disk;

mod clock;
mod net;
mod panics;
mod probe;
mod raw;
mod reactor;
mod readable;
mod stream;

pub use probe::probe;
pub use reactor::{Options, ReactorThread, run_reactor, spawn_reactor};
pub use readable::Readable;
