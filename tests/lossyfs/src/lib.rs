//! `ember-lossyfs`: a FUSE file system in memory whose power can fail, for tests of programs that must lose nothing.
//!
//! A power loss forgets what was not flushed: of each page of 4 KiB that was written since the last fsync of its file
//! the old content, the new one, or sectors of 512 bytes of both are left; of the file's length the old or the new
//! one; names are durable in order, surely after an fsync of their directory. It can also hang, fail, and lie about
//! flushes. It does not model permissions beyond what the kernel checks, hard links, xattrs, or the loss of
//! attributes.
//!
//! It is served by threads of the process that made it; nothing of it survives that process.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "it stands in for a disk below real processes, outside the seam"
)]

mod content;
mod names;
mod serve;
mod store;

pub use serve::{LossyFs, Mounted};
pub use store::Loss;
