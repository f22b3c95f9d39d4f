//! Memory that a target needs per chunk. The whole process with 10 million chunks, and the time of recovery, are
//! measured by the example `recovery`.
#![allow(missing_docs)]

use ember_engine::synthetic::Memory;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[test]
fn a_chunk_takes_at_most_200_bytes_of_memory() {
    const CHUNKS: u64 = 1_000_000;
    let before = MEMORY.current_usage();
    let memory = Memory::of(CHUNKS).unwrap();
    let bytes = (MEMORY.current_usage() - before) as f64 / CHUNKS as f64;
    println!("{bytes:.1} bytes per chunk");
    assert_eq!(memory.chunks(), CHUNKS);
    assert!(bytes <= 200.0, "{bytes:.1} bytes per chunk");
}
