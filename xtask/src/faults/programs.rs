//! tar, git and cargo on the mount.

use anyhow::{Context, Result, ensure};
use ember_cluster_tests::{run as run_program, tree};
use std::path::Path;
use std::process::{Command, Stdio};

/// Each on a folder of the mount, its origin outside.
pub(super) fn run(local: &Path, mount: &Path) -> Result<()> {
    archive(local, mount).context("tar")?;
    println!("tar: packed and unpacked, no difference");
    repository(mount).context("git")?;
    println!("git: clone and fsck");
    build(local, mount).context("cargo")?;
    println!("cargo: a crate built with its target directory on the mount");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path that is not UTF-8")
}

fn archive(local: &Path, mount: &Path) -> Result<()> {
    let (archive, out) = (mount.join("made.tar"), mount.join("unpacked"));
    std::fs::create_dir(&out)?;
    run_program("tar", &["-C", text(&mount.join("tree"))?, "-cf", text(&archive)?, "made"])?;
    run_program("tar", &["-C", text(&out)?, "-xpf", text(&archive)?])?;
    tree::expect_equal(&local.join("source/made"), &out.join("made"))
}

fn repository(mount: &Path) -> Result<()> {
    let (origin, clone) = (crate::process::root(), mount.join("clone"));
    run_program("git", &["clone", "--quiet", "--no-local", text(&origin)?, text(&clone)?])?;
    run_program("git", &["-C", text(&clone)?, "fsck", "--full"])?;
    let changed = run_program("git", &["-C", text(&clone)?, "status", "--porcelain"])?;
    ensure!(changed.is_empty(), "the clone differs from its commit: {changed}");
    Ok(())
}

fn build(local: &Path, mount: &Path) -> Result<()> {
    let krate = local.join("tiny");
    std::fs::create_dir_all(krate.join("src"))?;
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";
    std::fs::write(krate.join("Cargo.toml"), manifest)?;
    std::fs::write(krate.join("src/main.rs"), "fn main() {\n    println!(\"built on the mount\");\n}\n")?;
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--offline"]).current_dir(&krate).stdin(Stdio::null());
    let output = command.env("CARGO_TARGET_DIR", mount.join("cargo-target")).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{error}", output.status);
    ensure!(output.stdout == b"built on the mount\n", "the program doesn't run from the mount");
    Ok(())
}
