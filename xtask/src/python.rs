//! `cargo xtask python`: builds the wheel `emberfs` and runs its tests in an environment of their own under `target/`.

use crate::process::root;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// What builds and tests it, and what the tests compute with.
const PACKAGES: &[&str] = &["maturin==1.16.0", "numpy>=2", "pytest>=8", "ml_dtypes>=0.5"];
/// The name under which a skip is reported.
const TEST: &str = "the_wheel_passes_its_tests";

/// Builds and tests; without the packages it is skipped, aloud.
pub(crate) fn run() -> Result<()> {
    let (source, folder) = (root().join("client/python"), root().join("target/python"));
    let programs = folder.join("venv/bin");
    if let Err(error) = environment(&folder) {
        ember_cluster_tests::skip(TEST, &format!("{error:#}"));
        return Ok(());
    }
    let cargo = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(args).current_dir(&source).env("CARGO_TARGET_DIR", folder.join("build"));
        done(command)
    };
    cargo(&["fmt", "--check"])?;
    cargo(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"])?;
    let wheels = folder.join("wheels");
    if wheels.exists() {
        std::fs::remove_dir_all(&wheels)?;
    }
    let mut build = Command::new(programs.join("maturin"));
    build.args(["build", "--quiet", "--profile", "dev", "--out"]).arg(&wheels).current_dir(&source);
    build.env("CARGO_TARGET_DIR", folder.join("build"));
    done(build)?;
    let wheel = std::fs::read_dir(&wheels)?.next().context("maturin has made no wheel")??.path();
    let mut install = Command::new(programs.join("pip"));
    install.args(["install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]).arg(&wheel);
    done(install)?;
    let mut tests = Command::new(programs.join("python"));
    // From elsewhere, so that what was installed is tested.
    tests
        .args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"])
        .arg(source.join("tests"))
        .current_dir(&folder);
    done(tests)
}

/// The packages, unless they are there already.
fn environment(folder: &Path) -> Result<()> {
    let ready = folder.join("packages.txt");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&ready).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(folder.join("venv"));
    done(make).context("python3 with venv (Debian: python3-venv) is needed")?;
    let mut install = Command::new(folder.join("venv/bin/pip"));
    install.args(["install", "--quiet"]).args(PACKAGES);
    done(install).context("the packages can't be fetched")?;
    std::fs::write(&ready, wanted)?;
    Ok(())
}

fn done(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
