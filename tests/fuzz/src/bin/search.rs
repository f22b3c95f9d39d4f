//! libFuzzer over one target, named by `EMBER_FUZZ_TARGET`: what `cargo xtask fuzz` runs.
#![no_main]

use std::sync::OnceLock;

fn chosen() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("EMBER_FUZZ_TARGET").unwrap_or_default();
        match ember_fuzz::target(&name) {
            Some((_, run)) => *run,
            None => panic!("EMBER_FUZZ_TARGET={name:?} names no target"),
        }
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| chosen()(input));
