//! The seam: everything that a daemon or client needs from the outside world, as traits. Production
//! (`ember-rt-uring`) and the simulator (`tests/sim`) implement them; nobody else reaches time, network, disks,
//! threads or randomness.
//!
//! It is not a runtime and does no I/O of its own. Invariants: futures are `!Send` and run on the reactor that
//! made them; a buffer handed to a driver belongs to it until it comes back; dropping a future never loses
//! bytes of a stream, because streams are ended by shutdown.
#![forbid(unsafe_code)]

pub mod buf;
pub mod disk;
pub mod net;
pub mod select;
pub mod sync;
pub mod watch;

mod handle;

pub use buf::{Buf, PAGE_SIZE, SLABS_MAX, SharedBuf, slabs};
pub use handle::{Clock, LocalBoxFuture, Rng, Rt, RtParts, SendTask, Spawn};
pub use net::Addr;

/// Why a future with a deadline ended without a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("deadline passed")
    }
}

impl std::error::Error for Elapsed {}
