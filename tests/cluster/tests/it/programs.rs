//! Programs that people run on a mount: tar, git, cargo.

use crate::common::{Cases, mounted};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::{missing_program, run, skip, tree};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn programs() -> Result<()> {
    let Some(cluster) = mounted("programs")? else { return Ok(()) };
    if let Some(reason) = missing_program(&["tar", "git", "cargo", "rsync"]) {
        skip("programs", &reason);
        return Ok(());
    }
    let mut cases = Cases::new(&cluster);
    cases.run("tar", |dir| archive(cluster.root(), dir));
    cases.run("git", |dir| repository(cluster.root(), dir));
    cases.run("cargo", |dir| build(cluster.root(), dir));
    cases.finish()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

fn archive(local: &Path, dir: &Path) -> Result<()> {
    let tree = local.join("tree");
    tree::generate(&tree, 300, 4 << 20, 11)?;
    let archive = dir.join("tree.tar");
    run("tar", &["-C", text(local)?, "-cf", text(&archive)?, "tree"])?;
    run("tar", &["-C", text(dir)?, "-xpf", text(&archive)?])?;
    tree::expect_equal(&tree, &dir.join("tree"))
}

fn git(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("git")
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@example.org"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .stdin(Stdio::null())
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}\n{error}", args.join(" "), output.status);
    Ok(())
}

fn repository(local: &Path, dir: &Path) -> Result<()> {
    let origin = local.join("origin");
    std::fs::create_dir(&origin)?;
    git(&origin, &["init", "--quiet"])?;
    for round in 0..3_u64 {
        tree::generate(&origin.join(format!("part-{round}")), 150, 1 << 20, round)?;
        git(&origin, &["add", "--all"])?;
        git(&origin, &["commit", "--quiet", "--message", "a part"])?;
    }
    git(dir, &["clone", "--quiet", "--no-local", text(&origin)?, "clone"])?;
    let clone = dir.join("clone");
    git(&clone, &["fsck", "--full", "--strict"])?;
    std::fs::write(clone.join("more"), "more")?;
    git(&clone, &["add", "more"])?;
    git(&clone, &["commit", "--quiet", "--message", "more"])?;
    git(&clone, &["gc", "--quiet"])?;
    git(&clone, &["fsck", "--full"])?;
    git(&clone, &["diff", "--exit-code", "HEAD"])
}

fn build(local: &Path, dir: &Path) -> Result<()> {
    let krate = local.join("tiny");
    std::fs::create_dir_all(krate.join("src"))?;
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";
    std::fs::write(krate.join("Cargo.toml"), manifest)?;
    std::fs::write(krate.join("src/main.rs"), "fn main() {\n    println!(\"built on the mount\");\n}\n")?;
    for _ in 0..2 {
        let output = Command::new("cargo")
            .args(["run", "--quiet", "--offline"])
            .current_dir(&krate)
            .env("CARGO_TARGET_DIR", dir.join("target"))
            .env_remove("RUSTFLAGS")
            .stdin(Stdio::null())
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo run: {}\n{error}", output.status);
        ensure!(output.stdout == b"built on the mount\n", "the program runs from the mount");
    }
    Ok(())
}
