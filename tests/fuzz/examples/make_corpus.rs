//! Writes the real encodings of every target, or of those that are named, to `corpus/TARGET/seed-NN`, in place of
//! those that are there.

use ember_fuzz::{TARGETS, corpus, samples};

fn main() -> std::io::Result<()> {
    let mut bytes = 0;
    let named: Vec<String> = std::env::args().skip(1).collect();
    for (name, _) in TARGETS.iter().filter(|(name, _)| named.is_empty() || named.iter().any(|n| n == name)) {
        let dir = corpus::dir(name);
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-")) {
                std::fs::remove_file(path)?;
            }
        }
        let inputs = samples::of(name)?;
        for (i, input) in inputs.iter().enumerate() {
            bytes += input.len();
            std::fs::write(dir.join(format!("seed-{i:02}")), input)?;
        }
        println!("{name}: {} inputs", inputs.len());
    }
    println!("{bytes} bytes");
    Ok(())
}
