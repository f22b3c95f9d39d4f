//! `ember down` and `ember destroy`.

use crate::cluster::Cluster;
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::line;
use crate::usage::{self, Failure};
use crate::wanted::{Wanted, supervisor};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

/// How long the supervisor may take: three classes of daemons, each killed after a minute.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(200);
/// How long a daemon without a supervisor may take.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// Stops every process of the cluster. That none runs is fine.
pub(crate) fn run(dir: &DataDir) -> Result<u8> {
    Cluster::require(dir)?;
    stop_supervisor(dir)?;
    line("stopped");
    Ok(usage::OK)
}

/// Stops the supervisor, which stops its daemons; then whatever a killed supervisor left behind.
pub(crate) fn stop_supervisor(dir: &DataDir) -> Result<()> {
    if let Some(pid) = supervisor(dir)? {
        process::signal(pid, Signal::TERM);
        if !process::wait_gone(pid, SUPERVISOR_LIMIT) {
            let text = format!("the supervisor (process {pid}) doesn't stop; see {}", dir.logs().display());
            return Err(Failure::refused(text));
        }
    }
    let mut left = Wanted::load(dir)?.daemons();
    left.reverse();
    for daemon in left {
        stop_daemon(dir, &daemon);
    }
    Ok(())
}

fn stop_daemon(dir: &DataDir, daemon: &Daemon) {
    if let Some(pid) = process::find(dir, daemon) {
        process::signal(pid, Signal::TERM);
        if !process::wait_gone(pid, DAEMON_LIMIT) {
            process::signal(pid, Signal::KILL);
            process::wait_gone(pid, DAEMON_LIMIT);
        }
    }
}

/// Stops the cluster and deletes it. What isn't the cluster's stays.
pub(crate) fn destroy(dir: &DataDir, yes: bool) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    if !yes && !confirmed(dir)? {
        return Err(Failure::refused("nothing was deleted"));
    }
    stop_supervisor(dir)?;
    if let Ok(ember_rt::Addr::Unix(socket)) = dir.socket("mgmtd")
        && let Some(parent) = socket.parent()
        && parent != dir.run()
    {
        remove_all(parent)?;
    }
    // The cluster's file goes first: what is left after an interruption is no cluster.
    let file = dir.cluster_file();
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    for node in 1..=cluster.storage_nodes {
        remove_all(&dir.storage(node))?;
    }
    for part in [dir.root().join("control"), dir.exports(), dir.run(), dir.logs()] {
        remove_all(&part)?;
    }
    for secret in [dir.secret_file(), dir.token_file()] {
        std::fs::remove_file(&secret).with_context(|| format!("removing {}", secret.display()))?;
    }
    // Stays if something of the user's is in it.
    let _ = std::fs::remove_dir(dir.root());
    line(&format!("the cluster in {} is deleted", dir.root().display()));
    Ok(usage::OK)
}

fn remove_all(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn confirmed(dir: &DataDir) -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage("destroy deletes all data: say --yes"));
    }
    line(&format!("This deletes all data in {}. Type `destroy` to go on:", dir.root().display()));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(answer.trim() == "destroy")
}
