//! Processes of the cluster on this machine: starting, finding and stopping them.

use crate::paths::{Daemon, DataDir};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A log is begun anew when it has grown beyond this, the old one kept as `NAME.log.1`.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// A command that runs this very program, whatever has become of its file since.
fn this_program() -> Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::current_exe().context("path of this program")?);
    Ok(command)
}

/// Starts a daemon in a process group of its own, its output in its log.
pub(crate) fn start(dir: &DataDir, daemon: &Daemon) -> Result<Child> {
    let mut command = this_program()?;
    match daemon {
        Daemon::Control => command.arg("control").arg("--data").arg(dir.root()),
        Daemon::Storage(node) => {
            command.arg("storage").arg("--data").arg(dir.root()).arg("--node").arg(node.to_string())
        }
        Daemon::Mount(point) => {
            command.arg("mount").arg("--data").arg(dir.root()).arg("--foreground").arg(point)
        }
    };
    let child = spawn_logged(&mut command, &dir.log_file(daemon))?;
    let pid_file = dir.pid_file(daemon);
    std::fs::write(&pid_file, child.id().to_string()).with_context(|| pid_file.display().to_string())?;
    Ok(child)
}

/// Starts the supervisor, detached from this terminal.
pub(crate) fn start_supervisor(dir: &DataDir) -> Result<Child> {
    let mut command = this_program()?;
    command.arg("supervise").arg("--data").arg(dir.root());
    spawn_logged(&mut command, &dir.logs().join("supervisor.log"))
}

fn spawn_logged(command: &mut Command, log: &Path) -> Result<Child> {
    if std::fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        std::fs::rename(log, log.with_extension("log.1"))?;
    }
    let out = std::fs::OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("opening {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0).current_dir("/");
    command.spawn().with_context(|| format!("starting {command:?}"))
}

/// The process id of a running daemon, if there is one: its pid file names a live process that is that daemon.
pub(crate) fn find(dir: &DataDir, daemon: &Daemon) -> Option<u32> {
    let pid = std::fs::read_to_string(dir.pid_file(daemon)).ok()?.trim().parse().ok()?;
    is_daemon(dir, daemon, pid).then_some(pid)
}

/// Whether a live process is that daemon of that cluster, by its command line.
pub(crate) fn is_daemon(dir: &DataDir, daemon: &Daemon, pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let args: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let has = |arg: &[u8]| args.contains(&arg);
    let (verb, own): (&[u8], Vec<u8>) = match daemon {
        Daemon::Control => (b"control", b"control".to_vec()),
        Daemon::Storage(node) => (b"storage", node.to_string().into_bytes()),
        Daemon::Mount(point) => (b"mount", point.as_os_str().as_encoded_bytes().to_vec()),
    };
    args.get(1) == Some(&verb) && has(dir.root().as_os_str().as_encoded_bytes()) && has(&own)
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits until a process is gone; `false` if it is still there after `limit`.
#[expect(clippy::disallowed_methods, reason = "a command of a person, outside the seam")]
pub(crate) fn wait_gone(pid: u32, limit: Duration) -> bool {
    let begin = Instant::now();
    while is_alive(pid) {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The last lines of a log, for an error message.
pub(crate) fn log_tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16 << 10)..]).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_process_is_no_daemon() {
        let dir = DataDir::new(Path::new("/nowhere")).unwrap();
        let own = std::process::id();
        assert!(is_alive(own));
        assert!(!is_daemon(&dir, &Daemon::Control, own));
        assert_eq!(find(&dir, &Daemon::Control), None);
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        assert!(wait_gone(child.id(), Duration::from_secs(10)));
        child.wait().unwrap();
    }
}
