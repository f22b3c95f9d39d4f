//! The stored inputs: `corpus/TARGET/NAME`, one file each. `seed-…` are real encodings, made by
//! `cargo run -p ember-fuzz --example make_corpus`; `found-…` are inputs that once broke something.

use std::io;
use std::path::{Path, PathBuf};

/// The folder of a target's inputs.
pub fn dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// A target's inputs with their names, in order. An error if there are none.
pub fn load(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let dir = dir(target);
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(&dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        inputs.push((name.unwrap_or_default(), std::fs::read(&path)?));
    }
    inputs.sort();
    if inputs.is_empty() {
        return Err(io::Error::other(format!("{}: no inputs", dir.display())));
    }
    Ok(inputs)
}
