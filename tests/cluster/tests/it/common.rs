//! What the tests share.

use anyhow::{Context, Result, bail, ensure};
use ember_cluster_tests::{TestCluster, no_fuse, skip};
use rustix::io::Errno;
use std::path::Path;
use std::process::Output;

/// A new cluster, not started; `None`, with a note, where there can be no mount.
pub(crate) fn cluster(name: &str) -> Result<Option<TestCluster>> {
    if let Some(reason) = no_fuse() {
        skip(name, &reason);
        return Ok(None);
    }
    TestCluster::new(name).map(Some)
}

/// A new cluster that is up and mounted.
pub(crate) fn mounted(name: &str) -> Result<Option<TestCluster>> {
    let Some(cluster) = cluster(name)? else { return Ok(None) };
    cluster.up(&[])?;
    Ok(Some(cluster))
}

/// Small checks on one cluster, each in a folder of its own; all run, whatever the others do.
pub(crate) struct Cases<'a> {
    cluster: &'a TestCluster,
    failures: Vec<String>,
    count: usize,
}

impl<'a> Cases<'a> {
    pub(crate) fn new(cluster: &'a TestCluster) -> Self {
        Self { cluster, failures: Vec::new(), count: 0 }
    }
    pub(crate) fn run(&mut self, name: &str, case: impl FnOnce(&Path) -> Result<()>) {
        self.count += 1;
        let begin = std::time::Instant::now();
        let dir = self.cluster.mount().join(format!("case-{}", self.count));
        let result = std::fs::create_dir(&dir).context("making the case's folder").and_then(|()| case(&dir));
        eprintln!("{name}: {:.1} s", begin.elapsed().as_secs_f64());
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            self.failures.push(format!("{name}: {error:#}"));
        }
    }
    pub(crate) fn finish(self) -> Result<()> {
        ensure!(
            self.failures.is_empty(),
            "{} of {} fail:\n{}",
            self.failures.len(),
            self.count,
            self.failures.join("\n")
        );
        Ok(())
    }
}

/// The call must fail with this error.
pub(crate) fn expect_errno<T>(result: std::io::Result<T>, wanted: Errno) -> Result<()> {
    match result {
        Ok(_) => bail!("succeeds, {wanted} expected"),
        Err(error) if error.raw_os_error() == Some(wanted.raw_os_error()) => Ok(()),
        Err(error) => bail!("{error}, {wanted} expected"),
    }
}

/// What a command printed, both streams.
pub(crate) fn printed(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

/// The command must end with this exit code and say all of these words.
pub(crate) fn expect_exit(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = printed(output);
    ensure!(output.status.code() == Some(code), "exit code {code} expected, {}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    ensure!(!text.contains("panicked"), "a panic: {text}");
    Ok(())
}
