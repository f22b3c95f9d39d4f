//! Every decoder of bytes from a disk, a wire, the kernel or a user, as plain functions that are fed with any
//! bytes. It holds no decoder itself, and finds nothing by itself: the test `replay` gives the functions the
//! stored inputs and changes of them, and `cargo xtask fuzz` searches with libFuzzer.
//!
//! Invariants: a target never panics, whatever the bytes; what a decoder takes is encoded and read again to the
//! same value; what a decoder allocates is bounded by [`allowance`]. Where bytes carry a checksum, a target
//! tries them as they are and with the checksum made right.
#![forbid(unsafe_code)]

pub mod corpus;
mod directory;
mod disk;
mod memory;
pub mod mutate;
mod net;
mod reactor;
mod records;
pub mod samples;
mod wire;

/// A name, and what is done with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("wire-header", wire::header),
    ("wire-handshake", wire::handshake),
    ("wire-mgmtd", wire::mgmtd),
    ("wire-meta", wire::meta),
    ("wire-storage", wire::storage),
    ("wire-ranks", wire::ranks),
    ("net-frames", net::frames),
    ("net-server", net::server),
    ("net-client", net::client),
    ("engine-superblock", disk::superblock),
    ("engine-records", disk::records),
    ("engine-frame", disk::frame),
    ("engine-sums", disk::sums),
    ("engine-directory", directory::directory),
    ("kv-journal", disk::journal),
    ("kv-files", disk::kv_files),
    ("kv-export", disk::export),
    ("meta-records", records::meta),
    ("mgmtd-records", records::mgmtd),
    ("fuse-requests", records::fuse),
    ("config", records::config),
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|(known, _)| *known == name)
}

/// Bytes that a target may have allocated at once for an input of `len` bytes: some for what it always needs,
/// some in proportion, and for streams of frames what a frame's limits allow.
pub fn allowance(name: &str, len: usize) -> usize {
    let fixed = match name {
        "net-frames" | "net-server" | "net-client" => {
            // Two frames at a time, in buffers of a power of two.
            2 * (ember_wire::PAYLOAD_MAX + ember_wire::BODY_MAX).next_power_of_two()
        }
        // A directory of files of a MiB and more, in several states.
        "engine-directory" => 64 << 20,
        _ => 2 << 20,
    };
    fixed + 512 * len
}
