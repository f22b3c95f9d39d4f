//! The command line of the simulator.
#![forbid(unsafe_code)]

fn main() {}
